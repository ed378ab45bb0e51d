"""Looks at the memory of traced workers: when a recording begins, now and then while it goes on, and when it ends.

In a thread of its own, while the capture goes on: workers are neither stopped nor slowed, and no request waits. A
worker in the middle of a request gives no figures that can be compared: it is tried again until the time limit.
Looks in between come the more seldom the longer the recording is, and take at most 1 % of a CPU.
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import os
import queue
import threading
import time
from collections.abc import Mapping, Sequence

from tracer import worker_look
from tracer.errors import UnsupportedError
from tracer.facts import Footprint, Look, Request, Worker
from tracer.footprints import Footprints
from tracer.targets import processes
from tracer.targets.resolve import Target
from tracer.worker_look import GONE, BusyError, Subject, absent

WORKERS_MAX = 64
LOOKS_S = 1.0  # most time for all looks of the beginning, and for all of the end
# So long a worker that is in a request is tried again: at the beginning nobody waits for it, at the end the user does.
BEGIN_RETRY_S = 1.0
END_RETRY_S = 0.3
BETWEEN_RETRY_S = 0.3
# Between two rounds of looks: at least so long, and at least this part of the time that has passed; 275 in an hour.
BETWEEN_S = 2.0
_BETWEEN_SHARE = 1 / 64
_CPU_SHARE = 0.01  # of one CPU, for the looks in between
_PAUSE_S = 0.02  # before workers that are in a request are tried again
_RECENT = 256  # requests that may have been counted before a look at an earlier moment arrives

BUSY = "it was in a request"
TOO_MANY = f"more than {WORKERS_MAX} workers"
NO_TIME = "the time limit for looks was reached"


@dataclasses.dataclass(slots=True)
class _Course:
    """A worker since its first look."""

    since: Look  # the latest look that was given out
    until: Look | None = None  # the next one; held until all requests before it have been counted
    requests: int = 0  # between the two, or since the first
    later: int = 0  # since the second
    starts: collections.deque[int] = dataclasses.field(default_factory=lambda: collections.deque(maxlen=_RECENT))

    def count(self, started_ns: int) -> None:
        """Count a request that was counted for no look yet."""
        if started_ns < self.since.at_ns:
            return
        if self.until is not None and started_ns < self.until.at_ns:
            self.requests += 1
            return
        self.starts.append(started_ns)
        if self.until is None:
            self.requests += 1
        else:
            self.later += 1

    def take(self, look: Look) -> Look | None:
        """Take the next look. Return the one before, unless it was given out."""
        before = self.finished()
        self.starts = collections.deque((start for start in self.starts if start >= look.at_ns), maxlen=_RECENT)
        if self.until is not None:
            self.since, self.requests = self.until, self.later
        self.until = look
        self.later = len(self.starts)
        self.requests -= self.later
        return before

    def finished(self) -> Look | None:
        """The look that is held, with the number of requests before it."""
        return None if self.until is None else self.until._replace(requests=self.requests)


def looks_at(targets: Sequence[Target]) -> Looks:
    """Looks at the workers of these targets, and at those that their masters fork later, with their footprints."""
    return Looks(subjects(targets), masters(targets), Footprints())


def masters(targets: Sequence[Target]) -> dict[int, Subject]:
    """The masters by pid: what is known of a master's PHP is true of every process it forks."""
    return {
        target.master.pid: Subject(target.master.pid, target.master.start_ticks, target.php, _bias(target))
        for target in targets
        if target.master is not None
    }


def subjects(targets: Sequence[Target]) -> list[Subject]:
    """The workers of these targets. It takes 4 ms a target to find where their PHP is: forks have it in one place."""
    found = []
    for target in targets:
        bias = _bias(target) if target.serving else None
        found += [Subject(worker.pid, worker.start_ticks, target.php, bias) for worker in target.serving]
    return found


def _bias(target: Target) -> int | None:
    with contextlib.suppress(OSError, UnsupportedError):
        return processes.load_bias(target.processes[0].pid, target.php.image)
    return None


class Looks:
    """The looks of one capture.

    begin(), then take(), count() and follow() as facts arrive; end(), and the same until `busy` is False; close() at
    last. All of them belong to one thread.
    """

    def __init__(
        self,
        workers: Sequence[Subject],
        masters: Mapping[int, Subject] | None = None,
        footprints: Footprints | None = None,
    ) -> None:
        """Prepare; nothing is looked at before begin(). Workers that a master of `masters` forks are looked at too.

        `footprints` of the workers that are followed are given out with the looks.
        """
        self._given = workers
        self._footprints = footprints
        self._masters = masters or {}
        self._workers: dict[int, Subject] = {}
        self._clock_offset_ns = time.time_ns() - time.clock_gettime_ns(time.CLOCK_MONOTONIC)
        self._found: queue.SimpleQueue[Look] = queue.SimpleQueue()
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self._ready: list[Look] = []  # not given out yet
        self._courses: dict[int, _Course] = {}
        self._ending = False
        self._began = self._next_round = self._affordable = 0.0
        self._took_s = 0.0  # CPU time of the round; set by the thread when it ends

    def begin(self) -> None:
        """Begin the first looks; returns at once."""
        self._began = time.monotonic()
        for worker in self._given:
            self._add(worker)
        self._start(list(self._workers.values()), BEGIN_RETRY_S)
        if self._footprints is not None:
            self._footprints.begin()

    def end(self) -> None:
        """Begin the last looks, at the workers whose first one has figures. Ends the first ones, if they still run."""
        self._join()
        self._receive()
        self._ending = True
        self._start([one for one in self._workers.values() if self._can_be_booked(one)], END_RETRY_S)

    @property
    def busy(self) -> bool:
        """True while looks are being taken."""
        return self._thread is not None and self._thread.is_alive()

    def take(self) -> list[Look | Footprint]:
        """The looks since the last call of which all is known. Call it before count(), whenever facts have arrived."""
        self._receive()
        self._look_in_between()
        found, self._ready = self._ready, []
        return [*found, *self._footprints.take()] if self._footprints is not None else [*found]

    def count(self, request: Request) -> None:
        """Count a request that the backend has reported, recorded or not."""
        course = self._courses.get(request.pid)
        if course is not None and request.started_ns is not None:
            course.count(request.started_ns)

    def follow(self, worker: Worker) -> None:
        """Look from now on at a worker that was born, and no longer at one that has ended."""
        if self._footprints is not None:
            self._footprints.follow(worker)
        known = self._workers.get(worker.pid)
        if known is not None and known.start_ticks == worker.start_ticks:
            if worker.died_ns is not None:
                self._forget(known)
        elif worker.born_ns is not None and worker.died_ns is None and worker.start_ticks is not None:
            process = processes.process(worker.pid)
            master = None if process is None else self._masters.get(process.parent_pid)
            if process is None or master is None or process.start_ticks != worker.start_ticks:
                return
            if known is not None:
                self._forget(known)
            if self._add(dataclasses.replace(master, pid=worker.pid, start_ticks=worker.start_ticks)):
                self._next_round = self._affordable

    def close(self) -> list[Look | Footprint]:
        """Stop looking and return the last looks, which know by now how many requests there were. Idempotent."""
        self._join()
        self._receive()
        last = [course.finished() for course in self._courses.values()]
        found: list[Look | Footprint] = [*self._ready, *(look for look in last if look is not None)]
        if self._footprints is not None:
            found += self._footprints.close()
        self._ready.clear()
        self._courses.clear()
        return found

    def _add(self, worker: Subject) -> bool:
        if len(self._workers) >= WORKERS_MAX:
            self._ready.append(self._absent(worker, TOO_MANY))
            return False
        self._workers[worker.pid] = worker
        return True

    def _forget(self, worker: Subject) -> None:
        """Look no longer at a worker that has ended; what was found is given out."""
        del self._workers[worker.pid]
        course = self._courses.pop(worker.pid, None)
        if course is not None and course.since.bookable:
            before = course.take(self._absent(worker, GONE))
            self._ready += [look for look in (before, course.finished()) if look is not None]

    def _receive(self) -> None:
        """Take what the thread has found."""
        while not self._found.empty():
            look = self._found.get()
            worker = self._workers.get(look.pid)
            if worker is None or worker.start_ticks != look.start_ticks:
                continue  # it has ended meanwhile
            course = self._courses.get(look.pid)
            if course is None or not course.since.bookable:
                if course is None or look.bookable:
                    self._courses[look.pid] = _Course(look)
                    self._ready.append(look)
            elif look.bookable or self._ending:
                before = course.take(look)
                if before is not None:
                    self._ready.append(before)

    def _look_in_between(self) -> None:
        """Begin another round, if it is time."""
        if self._ending or self.busy or not self._began:
            return
        now = time.monotonic()
        if self._thread is not None:
            self._join()
            self._affordable = now + self._took_s / _CPU_SHARE
            self._next_round = max(self._affordable, now + max(BETWEEN_S, (now - self._began) * _BETWEEN_SHARE))
        if now >= self._next_round:
            self._start(list(self._workers.values()), BETWEEN_RETRY_S)

    def _can_be_booked(self, worker: Subject) -> bool:
        course = self._courses.get(worker.pid)
        return course is not None and course.since.bookable

    def _start(self, workers: Sequence[Subject], retry_s: float) -> None:
        self._stop.clear()
        if workers:
            now = time.monotonic()
            arguments = (list(workers), now + LOOKS_S, now + retry_s)
            self._thread = threading.Thread(target=self._look_at_all, args=arguments, daemon=True)
            self._thread.start()

    def _join(self) -> None:
        self._stop.set()
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    def _look_at_all(self, waiting: list[Subject], until: float, retry_until: float) -> None:
        """In the thread: look at each worker once it waits for a request, or at the time limit."""
        try:
            self._look_at_each(waiting, until, retry_until)
        finally:
            self._took_s = time.thread_time()

    def _look_at_each(self, waiting: list[Subject], until: float, retry_until: float) -> None:
        with contextlib.suppress(OSError):  # the backend may have raised the priority of the thread that made this one
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), 0)
        while waiting:
            busy = []
            for worker in waiting:
                look = self._absent(worker, NO_TIME) if self._over(until) else self._look(worker, until)
                if look is None:
                    busy.append(worker)
                else:
                    self._found.put(look)
            waiting = busy
            if not waiting or self._over(retry_until) or self._stop.wait(_PAUSE_S):
                break
        for worker in waiting:
            self._found.put(self._absent(worker, BUSY))

    def _over(self, until: float) -> bool:
        return self._stop.is_set() or time.monotonic() >= until

    def _look(self, worker: Subject, until: float) -> Look | None:
        """Return a look at a worker; None if it must be tried again, since it is in a request."""
        began = self._now()
        try:
            found = worker_look.look(worker, until)
        except BusyError:
            return None
        return found._replace(at_ns=began, took_ns=self._now() - began if found.settled else 0)

    def _now(self) -> int:
        """Unix time, by the clock that requests have."""
        return time.clock_gettime_ns(time.CLOCK_MONOTONIC) + self._clock_offset_ns

    def _absent(self, worker: Subject, why: str) -> Look:
        return absent(worker, why)._replace(at_ns=self._now())
