"""The memory of one process by what it shares: /proc/PID/smaps_rollup, and what only /proc/PID/status has.

The kernel walks the page tables for it, and the process is not stopped. It holds mmap_lock for reading, and drops it
between two mappings as soon as another thread waits to write: show_smaps_rollup(), fs/proc/task_mmu.c, Linux 6.18.
"""

from __future__ import annotations

from typing import NamedTuple

from tracer.errors import UnsupportedError

_BYTES = 16 << 10  # each of the files has less than 2 KB
_NUMBER_DIGITS = 16


class Rollup(NamedTuple):
    """The memory of a process at one moment, in bytes. None: this kernel does not have it."""

    rss: int
    pss: int
    pss_shmem: int | None  # since Linux 5.3
    private_clean: int
    private_dirty: int
    anonymous: int
    shmem: int | None  # resident: status, since Linux 4.5
    swap_pss: int | None
    page_tables: int | None


def rollup(pid: int) -> Rollup:
    """Read the memory of a process. OSError if it has ended, or may not be read.

    UnsupportedError if this kernel has no such file (< 4.14), or a file of another form.
    """
    found, status = (kilobytes(_read(f"/proc/{pid}/{name}")) for name in ("smaps_rollup", "status"))
    try:
        return Rollup(
            found["Rss"],
            found["Pss"],
            found.get("Pss_Shmem"),
            found["Private_Clean"],
            found["Private_Dirty"],
            found["Anonymous"],
            status.get("RssShmem"),
            found.get("SwapPss"),
            status.get("VmPTE"),
        )
    except KeyError as exc:
        raise UnsupportedError(
            f"cannot read the memory of process {pid}: smaps_rollup has no line {exc}. Use Linux 4.14 or later."
        ) from exc


def kilobytes(text: bytes) -> dict[str, int]:
    """The values, in bytes, of all lines such as `Rss:   1234 kB`; other lines, and absurd numbers, are ignored."""
    found = {}
    for line in text.splitlines():
        name, _, value = line.partition(b":")
        words = value.split()
        if len(words) == 2 and words[1] == b"kB" and words[0].isdigit() and len(words[0]) < _NUMBER_DIGITS:
            found[name.decode("ascii", "replace")] = int(words[0]) * 1024
    return found


def _read(path: str) -> bytes:
    with open(path, "rb") as file:
        return file.read(_BYTES)
