"""A memory cgroup of the tests' own, of version 1 or 2, which what runs in it cannot outgrow."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from machine import lacking
from waiting import wait_for

_TOPS = (Path("/sys/fs/cgroup/memory"), Path("/sys/fs/cgroup"))  # version 1, version 2


class MemoryCgroup:
    """A cgroup with a limit."""

    def __init__(self, folder: Path, limit: int) -> None:
        self.folder = folder
        self._version = 2 if (folder / "memory.max").exists() else 1
        (folder / ("memory.max" if self._version == 2 else "memory.limit_in_bytes")).write_text(str(limit))
        # A command that joins it and then executes the rest of its arguments.
        self.enter = ("/bin/sh", "-c", f'echo $$ > {folder}/cgroup.procs && exec "$@"', "sh")

    @property
    def oom_kills(self) -> int:
        """Processes that the kernel has killed in it: 1 and above in version 1 since Linux 4.13."""
        name = "memory.events" if self._version == 2 else "memory.oom_control"
        lines = dict(line.split() for line in (self.folder / name).read_text().splitlines())
        return int(lines["oom_kill"])

    def empty(self) -> bool:
        return not (self.folder / "cgroup.procs").read_text()


@contextlib.contextmanager
def memory_cgroup(limit: int) -> Iterator[MemoryCgroup]:
    """Make a cgroup with that limit. The test is skipped where that is not possible."""
    made = None
    for top in _TOPS:
        folder = top / f"phptrace-test-{os.getpid()}"
        try:
            folder.mkdir()
        except OSError:
            continue
        if (folder / "memory.stat").exists():
            made = folder
            break
        folder.rmdir()
    if made is None:
        lacking("no memory cgroup can be made here. Run as root where the memory controller is mounted.")
    found = MemoryCgroup(made, limit)
    try:
        yield found
    finally:
        wait_for(found.empty, "the cgroup's processes to end")
        made.rmdir()
