"""Checks that run in a process of their own: as another user, or under limits of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from samples import COMPLETE

ROOT = Path(__file__).resolve().parents[2]


def in_subprocess(program: str, path: Path) -> subprocess.CompletedProcess[str]:
    """Run it in a process of its own, with `path` and the imports it needs."""
    head = (
        f"import os, resource, signal\nfrom tracer.errors import *\nfrom tracer.facts import *\n"
        f"from tracer.recording.reader import *\nfrom tracer.recording.writer import *\npath = {str(path)!r}\n"
        f"request = Request._make({tuple(COMPLETE)!r})\n"
    )
    return subprocess.run(
        [sys.executable, "-c", head + program],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )


def as_nobody(check: Callable[[], bool]) -> int:
    """Exit code 0 if it is true in a process of a user who may write nothing here."""
    child = os.fork()
    if child == 0:
        try:
            if os.getuid() == 0:
                os.setuid(65534)
            os._exit(0 if check() else 1)
        finally:
            os._exit(2)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
