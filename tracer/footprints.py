"""Samples of the memory of workers and their masters while a recording goes on: what is private, and what is shared.

In a thread of its own, one process at a time, in turns: a worker at most once a second, the more seldom the longer the
recording is, and all of them within a small share of one CPU. A worker is sampled while it waits for a request, so no
request waits for the lock that the kernel holds meanwhile; one that is never found waiting is sampled all the same, far
more seldom.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import queue
import threading
import time

from tracer import worker_look
from tracer.errors import UnsupportedError
from tracer.facts import Footprint, Worker
from tracer.targets import processes
from tracer.targets.rollup import rollup
from tracer.worker_look import BusyError

EVERY_S = 1.0  # between two samples of one process, at least
_EVERY_SHARE = 1 / 64  # and this part of the time that has passed: 320 in an hour
CPU_SHARE = 0.005  # of one CPU
MOST = 512  # processes that are sampled: further ones are not
_BUSY_TURNS = 10  # so often a worker is found in a request before it is sampled in one
_TRIES = 3  # in one turn
_PAUSE_S = 0.002  # before the next try
_WAITING = 100_000  # samples that nobody has taken yet


@dataclasses.dataclass(slots=True)
class _Process:
    """A process that is sampled."""

    pid: int
    start_ticks: int
    is_master: bool
    due: float = 0.0  # time.monotonic()
    busy_turns: int = 0


class Footprints:
    """The samples of one recording. begin(); take() and follow() as facts arrive; close() at last."""

    def __init__(self) -> None:
        """Nothing is sampled before begin()."""
        self._clock_offset_ns = time.time_ns() - time.clock_gettime_ns(time.CLOCK_MONOTONIC)
        self._processes: dict[int, _Process] = {}
        self._lock = threading.Lock()  # of the above
        self._found: queue.SimpleQueue[Footprint] = queue.SimpleQueue()
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self._began = 0.0

    def begin(self) -> None:
        """Begin to sample; returns at once."""
        self._began = time.monotonic()
        self._thread = threading.Thread(target=self._sample_until_stopped, daemon=True)
        self._thread.start()

    def follow(self, worker: Worker) -> None:
        """Sample a worker and its master from now on, or no longer if it has ended."""
        if worker.start_ticks is None:
            return
        if worker.died_ns is None:
            self._add(worker.pid, worker.start_ticks)
            return
        with self._lock:
            known = self._processes.get(worker.pid)
            if known is not None and known.start_ticks == worker.start_ticks:
                del self._processes[worker.pid]

    def take(self) -> list[Footprint]:
        """The samples since the last call."""
        found = []
        while not self._found.empty():
            found.append(self._found.get())
        return found

    def close(self) -> list[Footprint]:
        """Stop sampling and return the last samples. Idempotent."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join(EVERY_S)  # it may wait for a worker that is stuck in the kernel
            self._thread = None
        return self.take()

    def _add(self, pid: int, ticks: int) -> None:
        worker = processes.process(pid)
        if worker is None or worker.start_ticks != ticks:
            return
        parent = processes.process(worker.parent_pid)
        with self._lock:
            if parent is not None and parent.title.startswith(processes.MASTER_TITLE):
                self._enter(parent.pid, parent.start_ticks, is_master=True)
            self._enter(pid, ticks, is_master=False)

    def _enter(self, pid: int, ticks: int, *, is_master: bool) -> None:
        known = self._processes.get(pid)
        if (known is None or known.start_ticks != ticks) and len(self._processes) < MOST:
            self._processes[pid] = _Process(pid, ticks, is_master)

    def _sample_until_stopped(self) -> None:
        """In the thread: take turns until close()."""
        with contextlib.suppress(OSError):  # the backend may have raised the priority of the thread that made this one
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), 0)
        pause = 0.0
        while not self._stop.wait(pause):
            began = time.thread_time()
            with self._lock:
                process = min(self._processes.values(), key=lambda one: one.due, default=None)
            now = time.monotonic()
            if process is None or process.due > now:
                pause = EVERY_S / 4 if process is None else min(EVERY_S / 4, process.due - now)
                continue
            process.due = now + max(EVERY_S, (now - self._began) * _EVERY_SHARE)
            if self._found.qsize() < _WAITING:
                self._take_turn(process)
            pause = (time.thread_time() - began) / CPU_SHARE

    def _take_turn(self, process: _Process) -> None:
        """Sample the process, if it waits for a request or was often found in one; forget it if it has ended."""
        for last in (*[False] * (_TRIES - 1), True):
            try:
                found = self._sample(process)
            except BusyError:
                if not last and self._stop.wait(_PAUSE_S):
                    return
            except (OSError, UnsupportedError, ValueError, LookupError):  # the last two: what /proc never has
                with self._lock:  # another one may have its pid by now
                    if self._processes.get(process.pid) is process:
                        del self._processes[process.pid]
                return
            else:
                process.busy_turns = 0
                self._found.put(found)
                return
        process.busy_turns += 1

    def _sample(self, process: _Process) -> Footprint:
        """Sample the process. BusyError if it is in a request; OSError if it has ended or may not be read."""
        despite = process.is_master or process.busy_turns >= _BUSY_TURNS
        idle = not process.is_master and _waits(process.pid, despite)
        began = time.thread_time_ns()
        at_ns = time.clock_gettime_ns(time.CLOCK_MONOTONIC) + self._clock_offset_ns
        found = rollup(process.pid)
        took_ns = time.thread_time_ns() - began
        same = processes.process(process.pid)
        if same is None or same.start_ticks != process.start_ticks:
            raise ProcessLookupError
        if idle:
            idle = _waits(process.pid, despite)
        return Footprint(process.pid, process.start_ticks, at_ns, took_ns, idle, *found)


def _waits(pid: int, despite: bool) -> bool:
    """True if the worker waits for a request. BusyError if not, but False with `despite`."""
    try:
        worker_look.waits_for_request(pid)
    except BusyError:
        if despite:
            return False
        raise
    return True
