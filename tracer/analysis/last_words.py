"""The last request of each worker that did not end in order: killed by a signal, or with an exit status.

A worker that SIGTERM or SIGQUIT ended between two requests was stopped by php-fpm, or with it: such ones are counted.
Limits: a recording that leaves requests out, or lost some, has another last request than the worker had; a request
that ran when tracing began is not known.
"""

from __future__ import annotations

import dataclasses
import heapq
from bisect import bisect_left
from collections.abc import Iterable, Mapping

from tracer.facts import Ending, Note, Place, Request, Worker

COLUMNS = (
    *Place._fields, "host", "pool", "pid", "start_ticks", "nth", "uri", "script", "started_ns", "duration_ns", "ending",
    "notes", "anon_after", "anon_peak",
)  # fmt: skip
_DEATHS_MAX = 10_000
_KILLED = f"{Ending.KILLED.value}:"
_STOPPED = (f"{_KILLED}TERM", f"{_KILLED}QUIT")  # fpm_pctl_kill_all(), sapi/fpm/fpm/fpm_process_ctl.c, PHP 7.4 to 8.5


@dataclasses.dataclass(slots=True)
class LastWords:
    """A worker's end, and its last request. None: not known."""

    host: str
    pid: int
    pool: str | None
    exit: str  # `killed:KILL`, `exited:70`
    died_ns: int  # Unix time
    by_oom_killer: bool | None  # the kernel's
    container: str | None = None  # also None if all requests ran in one place
    in_flight: bool | None = None  # True: its end cut the request off
    uri: str | None = None
    script: str | None = None
    started_ns: int | None = None
    duration_ns: int | None = None  # of a request in flight: until the end
    size: int | None = None  # anonymous memory in bytes after the request; of one in flight, the most that was seen

    @property
    def in_order(self) -> bool:
        """True if it was stopped between requests."""
        return self.exit in _STOPPED and not self.in_flight


class LastRequests:
    """Takes the requests of recordings one by one, and keeps those after which a worker died."""

    def __init__(self) -> None:
        """No worker has died."""
        self._deaths: list[LastWords] = []
        self._places: dict[int, Place] = {}  # where the last request ran, by the identity of a death
        self._hidden: set[int] = set()  # deaths whose last request is none that the report is about
        # Of one recording: by pid and start_ticks; and by pid, ascending by time, those without start_ticks, and all.
        self._by_start: dict[tuple[int, int | None], LastWords] = {}
        self._untold: dict[int, list[LastWords]] = {}
        self._by_pid: dict[int, list[LastWords]] = {}
        self._left_out = False
        self.more = 0  # deaths that are not kept

    def begin_recording(
        self, workers: Iterable[Worker], host: str, *, requests_left_out: bool = False, selected: bool = False
    ) -> None:
        """Take the workers of the recording whose requests are added next.

        `requests_left_out`: not all of their requests are there. `selected`: the report is about some of them.
        """
        died = [
            worker
            for worker in workers
            if worker.died_ns is not None and worker.exit is not None and _is_trouble(worker.exit)
        ]
        room = max(0, _DEATHS_MAX - len(self._deaths))
        self.more += max(0, len(died) - room)
        self._left_out = requests_left_out
        self._by_start, self._untold, self._by_pid = {}, {}, {}
        for worker in heapq.nlargest(room, died, key=_importance):
            death = LastWords(host, worker.pid, worker.pool, worker.exit or "", worker.died_ns or 0, _by_oom(worker))
            self._deaths.append(death)
            if selected:
                self._hidden.add(id(death))
            self._by_pid.setdefault(worker.pid, []).append(death)
            if worker.start_ticks is None:
                self._untold.setdefault(worker.pid, []).append(death)
            else:
                self._by_start[worker.pid, worker.start_ticks] = death
        for deaths in (*self._by_pid.values(), *self._untold.values()):
            deaths.sort(key=_died_ns)

    @property
    def waits(self) -> bool:
        """True if add() is of use: a worker of this recording did not end in order."""
        return bool(self._by_pid)

    def add(self, request: Request, *, shown: bool = True) -> None:
        """Take one request, in the order of their ends. `shown`: the report is about it."""
        if request.pid not in self._by_pid:
            return
        death = self._of(request)
        if death is not None:
            self._take(request, death)
            (self._hidden.discard if shown else self._hidden.add)(id(death))

    def _of(self, request: Request) -> LastWords | None:
        """The death of the worker of that request; None if it did not die, or in order."""
        if request.start_ticks is None:
            found = self._by_pid
        elif (death := self._by_start.get((request.pid, request.start_ticks))) is not None:
            return death
        else:
            found = self._untold
        deaths = found.get(request.pid, [])
        at = bisect_left(deaths, request.started_ns or 0, key=_died_ns)
        return deaths[at] if at < len(deaths) else None

    def _take(self, request: Request, death: LastWords) -> None:
        cut_off = request.ending.startswith(_KILLED) or Note.WORKER_EXITED.value in (request.notes or "")
        # The last one that was recorded may be another than the last one.
        death.in_flight = cut_off if cut_off or not self._left_out else None
        death.pool = request.pool
        self._places[id(death)] = request.place
        death.uri, death.script = request.uri, request.script
        death.started_ns, death.duration_ns = request.started_ns, request.duration_ns
        death.size = request.anon_peak if cut_off else request.anon_after

    def deaths(self, places: Mapping[Place, str]) -> list[LastWords]:
        """The workers that did not end in order, by the time of their end.

        `places`: the name of each place where requests ran.
        """
        found = [
            dataclasses.replace(death, container=places.get(self._places.get(id(death), Place())))
            if len(places) > 1
            else death
            for death in self._deaths
            if not death.in_order and id(death) not in self._hidden
        ]
        return sorted(found, key=lambda one: (one.died_ns, one.pid))

    @property
    def stopped(self) -> int:
        """Workers that were stopped between requests."""
        return sum(death.in_order for death in self._deaths)


def _is_trouble(ended: str) -> bool:
    return ended.startswith(_KILLED) or (ended.startswith("exited:") and ended != "exited:0")


def _importance(worker: Worker) -> tuple[bool, int]:
    return worker.exit not in _STOPPED, worker.died_ns or 0


def _by_oom(worker: Worker) -> bool | None:
    if worker.exit != f"{_KILLED}KILL":
        return False
    notes = (worker.notes or "").split(",")
    return None if Note.OOM_UNKNOWN.value in notes else Note.OOM.value in notes


def _died_ns(death: LastWords) -> int:
    return death.died_ns
