"""Page faults and the CPU clock of processes, sampled by perf's software events, each with a BPF program.

An event is a thread's and, by inheritance, that of what it starts from then on: threads, and processes, of which
the programs heed those in the map `workers`.
"""

from __future__ import annotations

import os
import time
from pathlib import Path

from tracer.backends.bpf.perf_event import PERF_COUNT_SW_CPU_CLOCK, PERF_COUNT_SW_PAGE_FAULTS
from tracer.backends.bpf.programs import Programs
from tracer.errors import TargetGoneError

_NS = 1_000_000_000
_ATTEMPTS = 20
_IDLE_S, _LOOK_S = 1.0, 0.0005


class ThreadSampling:
    """The events of all processes that are sampled: two descriptors a thread. close() takes them off."""

    def __init__(self, programs: Programs, *, every: int, hz: int) -> None:
        self._programs = programs
        self._kinds = (
            ("on_fault", PERF_COUNT_SW_PAGE_FAULTS, every),
            ("on_clock", PERF_COUNT_SW_CPU_CLOCK, round(_NS / hz)),
        )
        self._events: dict[int, list[int]] = {}

    def start(self, pid: int) -> bool:
        """Samples that process, and what it starts from now on. One that has ended is left out.

        False if it starts threads all the time, so that some of them may not be sampled.
        """
        for _ in range(_ATTEMPTS):
            self.stop(pid)
            threads = _threads(pid)
            for tid in threads:
                self._open(pid, tid)
            # Of a thread that is new nobody knows whether it was started before or after its parent was sampled.
            if _threads(pid) <= threads:
                return True
        return False

    def stop(self, pid: int) -> None:
        """No more of that process, nor of what has inherited its sampling."""
        for fd in self._events.pop(pid, ()):
            os.close(fd)

    def close(self) -> None:
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
    """Until that process has slept, so that a fork it was in the middle of is over; for at most a second.

    A fork runs, or sleeps uninterruptibly: kernel_clone(), kernel/fork.c, Linux 6.18.
    """
    deadline = time.monotonic() + _IDLE_S
    while _state(pid) in ("R", "D") and time.monotonic() < deadline:
        time.sleep(_LOOK_S)


def _state(pid: int) -> str:
    """The letter in /proc/PID/stat; none if there is no such process."""
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
