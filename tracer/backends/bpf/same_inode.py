"""Files that look different and are one inode to the kernel: those of two overlay mounts, as two containers have them.

The kernel sets a uprobe on the inode below the mounts, so one probe is hit by the processes of all. Set once a mount,
each hit would run the program as often.
"""

from __future__ import annotations

import os
from collections.abc import Iterable

from tracer.targets import processes
from tracer.targets.elf import Image


class ProbedFiles:
    """The files that have our probes."""

    def __init__(self) -> None:
        """No file has any."""
        self._known: set[tuple[int, int]] = set()
        self._offsets: dict[tuple[int, int, int], set[int]] = {}

    def add(self, image: Image, offsets: Iterable[int]) -> None:
        """Take note that this file has probes at these file offsets."""
        self._known.add(image.identity)
        self._offsets.setdefault(_content(image), set()).update(offsets)

    def has(self, image: Image, pid: int) -> bool:
        """True if this file, which the process runs, has our probes, be it by another mount.

        OSError if the process has ended.
        """
        if image.identity in self._known:
            return True
        # As the files of two mounts agree in this, only the code in memory tells whether they are one.
        return any(_is_probed(image, offset, pid) for offset in self._offsets.get(_content(image), ()))


def _content(image: Image) -> tuple[int, int, int]:
    """The facts on a file that are the same in all overlay mounts of it."""
    stat = os.fstat(image.fd)
    return stat.st_ino, stat.st_size, stat.st_mtime_ns


def _is_probed(image: Image, offset: int, pid: int) -> bool:
    """True if the process has other code there than the file: a breakpoint, or what the kernel makes of one."""
    for mapping in processes.file_mappings(pid):
        inside = offset - mapping.offset
        if mapping.executable and mapping.inode == image.inode and 0 <= inside < mapping.end - mapping.start:
            with open(f"/proc/{pid}/mem", "rb", buffering=0) as memory:
                memory.seek(mapping.start + inside)
                return memory.read(1) != os.pread(image.fd, 1, offset)
    return False
