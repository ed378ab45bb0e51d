"""The requests that raised each worker's memory above all it had before, and a pool's weight without one of its routes.

Sizes are levels, as in verdict.worker_levels: anonymous memory between two requests, without the chunks that Zend keeps
for later. Limits: a request that reuses memory which an earlier step left raises nothing, though it may have without
that step; and the first request of a new worker also loads PHP's own code and data, so that it is no route's. The
weight without a route is therefore an estimate. Of each worker, the largest steps have their request; the others are a
sum.
"""

from __future__ import annotations

import dataclasses
import heapq
from collections import OrderedDict
from collections.abc import Iterable

from tracer.analysis.places import place_names
from tracer.analysis.routes import RouteKey, RouteNames, Routes
from tracer.analysis.verdict.worker_levels import Level
from tracer.analysis.workers import WorkerKey, WorkerNames
from tracer.facts import WORKER_FIELDS, Ending, Place, Request, Worker

COLUMNS = (
    *WORKER_FIELDS, "nth", "uri", "script", "ending", "started_ns", "anon_before", "anon_after", "anon_peak",
    "zend_real_after",
)  # fmt: skip
_CUT_OFF = Ending.CUT_OFF.value
_WORKERS_MAX = 8192
_STEPS = 3  # of one worker
_LEAST_STEP = 64 << 10
_LEAST_SHARE = 1 / 20  # of all that a worker was raised by
_MOST_OF_IT = 1 / 2
_ROUTES_MAX = 64  # of one worker
_ROUTES_SHOWN = 10  # of one pool


@dataclasses.dataclass(frozen=True, slots=True)
class Step:
    """A request that raised its worker from the highest level before to a new one. Bytes."""

    uri: str | None
    script: str | None
    route: str | None
    started_ns: int | None  # Unix time
    before: int
    after: int
    starts: bool  # it is the first request of a worker that was born while tracing: PHP's own start is part of it


@dataclasses.dataclass(frozen=True, slots=True)
class WorkerMarks:
    """A worker's sizes in bytes, and the steps that made them. None: not measured."""

    worker: str
    container: str | None  # None if all requests ran in one place
    now: int | None  # anonymous memory after its last request
    peak: int | None  # the most that it had during a request
    alive: bool  # when the recording ended
    steps: tuple[Step, ...]  # the largest, in order of time
    other_steps: int
    other_bytes: int  # by which these raised it
    other_route: str | None  # the route that made half of it or more; None: there is none


@dataclasses.dataclass(frozen=True, slots=True)
class WithoutRoute:
    """An estimate of a pool's weight without one of its routes. Bytes."""

    route: str
    workers: int  # that it raised
    weight: int


@dataclasses.dataclass(frozen=True, slots=True)
class PoolWeight:
    """The anonymous memory of the workers of a pool that served requests and were alive when the recording ended."""

    host: str | None  # None if all are of one host
    pool: str | None
    container: str | None
    workers: int
    weight: int
    without: tuple[WithoutRoute, ...]  # the lightest first


class _Marks:
    """The figures of one worker."""

    __slots__ = ("by_route", "ended", "largest", "level", "now", "nth", "other_bytes", "other_steps", "peak")

    def __init__(self) -> None:
        self.level = Level()
        self.nth = 0  # of its latest request
        self.ended = False
        self.now: int | None = None
        self.peak: int | None = None
        self.largest: list[tuple[int, int, Step, RouteKey | None]] = []  # a heap: bytes, number of the step
        self.other_steps = 0
        self.other_bytes = 0
        self.by_route: dict[RouteKey, int] = {}

    def add_step(self, size: int, number: int, step: Step, route: RouteKey | None) -> None:
        if route is not None and not step.starts:
            self.by_route[route] = self.by_route.get(route, 0) + size
            if len(self.by_route) > _ROUTES_MAX:
                del self.by_route[min(self.by_route, key=self.by_route.__getitem__)]
        if size >= _LEAST_STEP:
            if len(self.largest) < _STEPS:
                heapq.heappush(self.largest, (size, number, step, route))
                return
            size = heapq.heappushpop(self.largest, (size, number, step, route))[0]
        self.other_steps += 1
        self.other_bytes += size

    def split(self) -> tuple[tuple[Step, ...], int, int, str | None]:
        """The steps that matter, in order of time; and of all others, their number, their bytes, and their route."""
        least = _LEAST_SHARE * (self.other_bytes + sum(size for size, _, _, _ in self.largest))
        shown = sorted((entry for entry in self.largest if entry[0] >= least), key=lambda entry: entry[1])
        left = dict(self.by_route)
        for size, _, step, route in shown:
            if route in left and not step.starts:
                left[route] -= size
        more = [size for size, _, _, _ in self.largest if size < least]
        size = self.other_bytes + sum(more)
        main = max(left, key=left.__getitem__, default=None)
        name = main.route if main is not None and size and left[main] >= _MOST_OF_IT * size else None
        return tuple(step for _, _, step, _ in shown), self.other_steps + len(more), size, name

    def without(self, route: RouteKey) -> int:
        """How much smaller it would be now if that route had not raised it."""
        top, last = self.level.top, self.level.last
        if top is None or last is None:
            return 0
        return max(0, min(last - (top - self.by_route.get(route, 0)), self.now or 0))


class HighWaterMarks:
    """Takes the requests of recordings one by one. Forgets the workers that served none for the longest time."""

    def __init__(self, routes: Routes | None = None) -> None:
        """`routes` finds the route of a uri. None: by its form alone."""
        self._workers = WorkerNames()
        self._route_of = RouteNames(routes or Routes()).key
        self._marks: OrderedDict[WorkerKey, _Marks] = OrderedDict()
        self._born: set[tuple[int, int | None]] = set()
        self._ended: set[tuple[int, int | None]] = set()
        self._steps = 0
        self.forgotten = 0  # workers

    def begin_recording(self, workers: Iterable[Worker], host: str) -> None:
        """Take the workers of the recording whose requests are added next, and the host that it was made on."""
        workers = list(workers)
        self._workers.begin_recording(workers)
        self._born = {(one.pid, one.start_ticks) for one in workers if one.born_ns is not None}
        self._ended = {(one.pid, one.start_ticks) for one in workers if one.died_ns is not None}
        for key, marks in self._marks.items():
            marks.ended |= key.host == host and (key.pid, key.start_ticks) in self._ended

    def add(self, request: Request) -> None:
        """Take one request, in the order of their ends."""
        key = self._workers.key(request)
        marks = self._marks.get(key)
        if marks is None:
            marks = self._marks[key] = _Marks()
            marks.ended = (key.pid, key.start_ticks) in self._ended
            if len(self._marks) > _WORKERS_MAX:
                self._marks.popitem(last=False)
                self.forgotten += 1
        else:
            self._marks.move_to_end(key)
            # The count of a worker's requests begins anew in a second recording.
            if request.nth <= marks.nth:
                marks.level = Level()
        level, marks.nth = marks.level, request.nth
        raised = 0
        # What one that was cut off has is no level: it has not given back what it takes, and Zend's chunks are unknown.
        if request.ending != _CUT_OFF:
            raised = level.add(request.anon_before, request.anon_after, request.zend_real_after)
            if request.anon_after is not None:
                marks.now = request.anon_after
        if request.anon_peak is not None and request.anon_peak > (marks.peak or 0):
            marks.peak = request.anon_peak
        if raised and level.top is not None:
            route = self._route_of(request)
            self._steps += 1
            step = Step(
                request.uri,
                request.script,
                route and route.route,
                request.started_ns,
                level.top - raised,
                level.top,
                request.nth == 1 and (key.pid, key.start_ticks) in self._born,
            )
            marks.add_step(raised, self._steps, step, route)

    def workers(self) -> list[WorkerMarks]:
        """The workers, the one with the highest peak first."""
        names = self._workers.names(self._marks)
        places = self._places()
        found = [
            WorkerMarks(
                names[key],
                places.get(key.place),
                marks.now,
                marks.peak,
                not marks.ended,
                *marks.split(),
            )
            for key, marks in self._marks.items()
        ]
        return sorted(found, key=lambda one: (-(one.peak or 0), one.worker, one.container or ""))

    def pools(self) -> list[PoolWeight]:
        """The pools, the heaviest first."""
        found: dict[tuple[str, str | None, Place], list[_Marks]] = {}
        for key, marks in self._marks.items():
            if marks.now is not None and not marks.ended:
                found.setdefault((key.host, key.pool, key.place), []).append(marks)
        places, hosts = self._places(), len({key.host for key in self._marks})
        weights = [
            PoolWeight(
                host if hosts > 1 else None,
                pool,
                places.get(place),
                len(every),
                sum(marks.now or 0 for marks in every),
                _without(every),
            )
            for (host, pool, place), every in found.items()
        ]
        return sorted(weights, key=lambda one: (-one.weight, one.host or "", one.pool or "", one.container or ""))

    def _places(self) -> dict[Place, str]:
        """The name of each place where requests ran; none if all ran in one."""
        names = place_names(key.place for key in self._marks)
        return names if len(names) > 1 else {}


def _without(workers: Iterable[_Marks]) -> tuple[WithoutRoute, ...]:
    workers = list(workers)
    weight = sum(marks.now or 0 for marks in workers)
    savings: dict[RouteKey, tuple[int, int]] = {}
    for marks in workers:
        for route in marks.by_route:
            saved = marks.without(route)
            if saved:
                raised, total = savings.get(route, (0, 0))
                savings[route] = raised + 1, total + saved
    largest = heapq.nlargest(_ROUTES_SHOWN, savings.items(), key=lambda entry: (entry[1][1], entry[0].route))
    names = RouteNames.names(route for route, _ in largest)
    return tuple(WithoutRoute(names[route], raised, weight - saved) for route, (raised, saved) in largest)
