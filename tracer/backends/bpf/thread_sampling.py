"""Page faults and the CPU clock of processes, sampled by perf's software events, each with a BPF program.

An event belongs to a thread, and is inherited by the threads and processes that it starts from then on. The programs
ignore processes that are not in the map `workers`.
"""

from __future__ import annotations

import os
import time
from collections.abc import Collection
from pathlib import Path

from tracer.backends.bpf.perf_event import PERF_COUNT_SW_CPU_CLOCK, PERF_COUNT_SW_PAGE_FAULTS
from tracer.backends.bpf.programs import Programs
from tracer.errors import TargetGoneError

_NS = 1_000_000_000
_ATTEMPTS = 20
_IDLE_S, _LOOK_S = 1.0, 0.0005


class ThreadSampling:
    """The events of all processes that are sampled: two descriptors a thread. The owner calls close()."""

    def __init__(self, programs: Programs, *, every: int, hz: int) -> None:
        """Sample every `every`-th page fault, and the clock `hz` times a second of CPU time."""
        self._programs = programs
        self._kinds = (
            ("on_fault", PERF_COUNT_SW_PAGE_FAULTS, every),
            ("on_clock", PERF_COUNT_SW_CPU_CLOCK, round(_NS / hz)),
        )
        self._events: dict[int, list[int]] = {}
        self._heirs: dict[int, set[int]] = {}  # by a process that has ended, those that use its events yet

    def start(self, pid: int) -> bool:
        """Start sampling every thread of `pid`; children and new threads inherit it. No-op if the process has ended.

        Returns False if it keeps starting threads, so that some may not be sampled. Raises UnsupportedError or
        PhptraceError if an event cannot be opened: see perf_error().
        """
        for _ in range(_ATTEMPTS):
            self.stop(pid)
            threads = _threads(pid)
            for tid in threads:
                self._open(pid, tid)
            # A thread that is new may have been started before its parent was sampled, or after.
            if _threads(pid) <= threads:
                return True
        return False

    def stop(self, pid: int) -> None:
        """Stop sampling that process, and what has inherited its events. No-op if it is not sampled."""
        for fd in self._events.pop(pid, ()):
            os.close(fd)

    def ended(self, pid: int, heirs: Collection[int]) -> None:
        """Stop sampling a process that has ended, once nobody uses its events any more.

        `heirs`: processes that it has forked, and that are alive. They have inherited its events, or those that it had
        inherited, and hand them on.
        """
        for owner, inherited in list(self._heirs.items()):
            if pid in inherited:
                inherited.discard(pid)
                inherited |= set(heirs)
                if not inherited:
                    del self._heirs[owner]
                    self.stop(owner)
        if heirs and pid in self._events:
            self._heirs[pid] = set(heirs)
        else:
            self.stop(pid)

    def close(self) -> None:
        """Stop sampling all processes. Idempotent."""
        for pid in list(self._events):
            self.stop(pid)

    def _open(self, pid: int, tid: int) -> None:
        events = self._events.setdefault(pid, [])
        for function, event, period in self._kinds:
            try:
                events.append(self._programs.on_software_event(function, event, period, tid))
            except TargetGoneError:
                return


def wait_until_idle(pid: int) -> None:
    """Wait until that process sleeps, so that a fork it was in the middle of is over; for at most a second.

    Returns at once if it has ended. A fork runs, or sleeps uninterruptibly: kernel_clone(), kernel/fork.c, Linux 6.18.
    """
    deadline = time.monotonic() + _IDLE_S
    while _state(pid) in ("R", "D") and time.monotonic() < deadline:
        time.sleep(_LOOK_S)


def _state(pid: int) -> str:
    """The letter in /proc/PID/stat; empty if there is no such process."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(errors="replace")
    except (FileNotFoundError, ProcessLookupError):
        return ""
    return stat[stat.rindex(")") + 2]


def _threads(pid: int) -> set[int]:
    try:
        return {int(name) for name in os.listdir(f"/proc/{pid}/task")}
    except (FileNotFoundError, ProcessLookupError):
        return set()
