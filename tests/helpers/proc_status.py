"""Figures of a process from /proc: an oracle that shares no code with phptrace."""

from __future__ import annotations

import signal
from pathlib import Path


def _status(pid: int) -> dict[str, str]:
    return dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())


def status_bytes(pid: int, *names: str) -> list[int]:
    """Values of /proc/PID/status that are in kB, as bytes."""
    lines = _status(pid)
    return [int(lines[name].split()[0]) * 1024 for name in names]


def rollup_bytes(pid: int, name: str) -> int:
    """A value of /proc/PID/smaps_rollup, which walks the page tables and is exact on every kernel."""
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) * 1024
    raise KeyError(name)


def state(pid: int) -> tuple[str, int]:
    """The letter of the state, and the pid of the process that traces it; 0 if there is none."""
    lines = _status(pid)
    return lines["State"].split()[0], int(lines["TracerPid"])


def catches_traps(pid: int) -> bool:
    """True if the process has a handler for SIGTRAP."""
    return bool(int(_status(pid)["SigCgt"], 16) >> signal.SIGTRAP - 1 & 1)


def is_asleep(pid: int) -> bool:
    """True if the process is in clock_nanosleep(2), or in restart_syscall(2) after a stop interrupted it.

    The numbers are those of arch/x86/entry/syscalls/syscall_64.tbl.
    """
    return Path(f"/proc/{pid}/syscall").read_text().split()[0] in ("230", "219")


def waits_for_a_request(pid: int) -> bool:
    """True if the process is in accept(2) or accept4(2): a worker still tidies up when its answer has arrived."""
    return Path(f"/proc/{pid}/syscall").read_text().split()[0] in ("43", "288")


def cpu_time_ns(pid: int) -> int:
    """CPU time of the process's main thread: /proc/PID/schedstat, the scheduler's own sum."""
    return int(Path(f"/proc/{pid}/schedstat").read_text().split()[0])
