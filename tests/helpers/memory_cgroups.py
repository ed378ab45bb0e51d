"""A memory cgroup of the tests' own: a process in it that takes more than the limit is ended by the OOM killer."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Iterator
from pathlib import Path

from machine import lacking
from waiting import wait_for

_ROOTS = (Path("/sys/fs/cgroup"), Path("/sys/fs/cgroup/memory"))  # of version 2, and of version 1
# The limit, and what keeps the kernel from swapping instead.
_LIMITS = ("memory.max", "memory.limit_in_bytes")
_NO_SWAP = (("memory.swap.max", "0"), ("memory.swappiness", "0"))


@contextlib.contextmanager
def memory_cgroup(limit: int) -> Iterator[Path]:
    """Make a cgroup whose processes may have so many bytes together; write their PIDs to its `cgroup.procs`.

    What is left of these processes is killed in the end. Skip the test where no cgroup can be made.
    """
    group = next(filter(None, map(_made_in, _ROOTS)), None)
    if group is None:
        lacking("no memory cgroup can be made here. Run as root, on a host with the memory controller.")
    try:
        for name in _LIMITS:
            if (group / name).exists():
                (group / name).write_text(str(limit))
        for name, value in _NO_SWAP:
            if (group / name).exists():
                (group / name).write_text(value)
        yield group
    finally:
        for pid in (group / "cgroup.procs").read_text().split():
            with contextlib.suppress(ProcessLookupError):
                os.kill(int(pid), signal.SIGKILL)
        wait_for(lambda: not (group / "cgroup.procs").read_text(), "the processes in the cgroup to end")
        group.rmdir()


def _made_in(root: Path) -> Path | None:
    group = root / f"phptrace-test-{os.getpid()}"
    try:
        group.mkdir()
    except OSError:
        return None
    if any((group / name).exists() for name in _LIMITS):
        return group
    group.rmdir()
    return None
