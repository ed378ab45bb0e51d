"""Groups requests by route, script, uri, worker, pool or container, and sorts the groups by what they did to memory."""

from __future__ import annotations

import dataclasses
import enum
import functools
from collections.abc import Callable, Hashable, Iterable, Sequence
from typing import Protocol

from tracer.analysis.accumulator import Accumulator
from tracer.analysis.estimation import Estimation, Together
from tracer.analysis.first_runs import FirstRuns, Run
from tracer.analysis.group import Group
from tracer.analysis.heap_windows import HeapWindows
from tracer.analysis.held import HeldBlocks
from tracer.analysis.order import Order, by_kept, order_of
from tracer.analysis.places import place_names
from tracer.analysis.routes import RouteKey, RouteNames, Routes
from tracer.analysis.seen_workers import SeenWorker, SeenWorkers
from tracer.analysis.uncounted import Charge, Mismatch, mismatch
from tracer.analysis.verdict.judge import judge
from tracer.analysis.verdict.recorded_time import RecordedTime
from tracer.analysis.workers import WorkerKey, WorkerNames
from tracer.facts import WORKER_FIELDS, Ending, Look, Place, Release, Request, Worker

# Fields of Request that a Ranking needs: a recording reads faster if it need not fetch the others.
COLUMNS = (
    *WORKER_FIELDS, "nth", "uri", "script", "status", "ending", "started_ns", "duration_ns",
    "anon_before", "anon_after", "anon_peak", "zend_real_before", "zend_real_after", "zend_peak", "memory_limit",
    "file_before", "file_after", "shmem_before", "shmem_after",
    "native_alloc_bytes", "native_free_bytes", "native_freed_earlier", "native_between_bytes", "native_kept",
    "native_released",
)  # fmt: skip


# For a view that is shown for hours: last requests of a group for quantiles, and groups.
LIVE_WINDOW = 4096
LIVE_GROUPS = 5000
# The first ones are the most frequent as a rule. Of each that comes later, less is remembered.
_LIVE_FREQUENT = 250
_LIVE_WINDOW_OF_RARE = 128
_LIVE_WORKERS, _LIVE_WORKERS_OF_RARE = 64, 8


class GroupBy(enum.Enum):
    """The value that all requests of one group share. In every ranking, they also share the place where they ran."""

    ROUTE = "route"
    SCRIPT = "script"
    URI = "uri"
    WORKER = "worker"
    POOL = "pool"
    CONTAINER = "container"


class _Figures(Protocol):
    def __call__(self, key: GroupKey, accumulator: Accumulator, *, quantiles: bool) -> Group: ...


class Ranking:
    """Takes requests one by one; groups() may be called at any time.

    To run for hours in bounded memory, give `window`, so that quantiles cover only that many last
    requests of a group, and `max_groups`, so that requests of further keys are not ranked but
    counted in `overflow`.
    """

    def __init__(
        self,
        by: GroupBy,
        *,
        routes: Routes | None = None,
        window: int | None = None,
        max_groups: int | None = None,
        estimate: bool = True,
    ) -> None:
        """`routes` finds the route of a uri. None: by its form alone.

        `estimate`: estimate what routes, scripts or URIs keep, as long as of one of them too few requests were counted.
        It takes every request of the workers: it has to be False where some are filtered out.
        """
        self.by = by
        by_name = by in (GroupBy.ROUTE, GroupBy.SCRIPT, GroupBy.URI)
        self._estimation = Estimation(possible=estimate and by_name)
        self._judged = by_name
        self._time = RecordedTime()
        self.overflow = 0
        self._workers = SeenWorkers()
        self._worker_names = WorkerNames()
        routes = routes or Routes()
        self._first_runs = None if by in (GroupBy.ROUTE, GroupBy.URI) else FirstRuns(self._workers, routes)
        self._heaps = HeapWindows()
        self._held = HeldBlocks()
        self._frees = True
        self._freeing: dict[int, list[Release]] = {}  # by pid: what a request freed that has not ended
        self._name: Callable[[Request], str | RouteKey | WorkerKey | None] = {
            **_NAMES,
            GroupBy.WORKER: self._worker_names.key,
            GroupBy.ROUTE: RouteNames(routes).key,
        }[by]
        self._window = window
        self._max_groups = max_groups
        self._groups: dict[_Key, Accumulator] = {}
        self._left_out: dict[_Key, Accumulator] = {}

    def begin_recording(
        self, workers: Iterable[Worker], looks: Iterable[Look] = (), *, filtered: bool = False, frees: bool = True
    ) -> None:
        """Take the workers of the recording whose requests are added next; only a ranking by worker uses them.

        `looks` at these workers help to estimate. `filtered`: requests were left out, so that nothing can be estimated.
        `frees`: some free blocks of earlier ones; False: none does, which is faster.

        They tell apart workers that had the same pid one after the other. Such workers are one group
        if this is not called, if their start_ticks are unknown, or if neither the death of the earlier
        nor the birth of the later was seen.
        """
        self._frees = frees
        self._worker_names.begin_recording(workers)
        self._time.begin_recording()
        looks = list(looks)
        self._estimation.begin_recording(looks, filtered=filtered)
        self._heaps.begin_recording([] if filtered else looks)

    def add(
        self, request: Request, freed: Sequence[Release] = (), *, shown: bool = True, in_time: bool = True
    ) -> tuple[GroupKey, Run]:
        """Count a request in its group, with what it `freed` of earlier ones' blocks, if release() did not take that.

        `shown` False: it is left out of groups(), but its worker served it. `in_time` False: it is not of the time that
        the figures an hour are about. Return its group, also if that is one too many, and how often its worker has run
        its like. OverflowError if a figure of it does not fit in 64 bits.
        """
        worker = self._workers.of(request)
        name = self._name(request)
        known = worker.groups.get(name)
        if self._first_runs is None:
            run = Run.FIRST if known is None else Run.LATER
        else:
            run = self._first_runs.of(request, worker)
        key, group = known or self._meet(worker, name)
        if not shown:
            group = self._left_out_of(key)
        raised = 0
        if request.ending != _CUT_OFF:  # what it has is no level: Zend's chunks are unknown, and it goes on
            raised = worker.level.add(request.anon_before, request.anon_after, request.zend_real_after)
        started = request.started_ns
        if in_time and started is not None:
            self._time.add(started, started + (request.duration_ns or 0))
        if self._freeing:
            freed = freed or self._freeing.pop(request.pid, ())
        self._heaps.add(request, key, first=run is Run.FIRST)
        if group is None:
            self.overflow += 1
            self._estimation.add(request, key, needed=False)
            return key, run
        taken_over = self._held.take_over(request, group, freed) if freed else 0
        counted = group.add(request, run, worker.number, taken_over)
        group.memory.add(request, worker.level, raised)
        self._workers.follow(worker, counted)
        if counted is not None and self._frees:
            values, number = counted
            self._held.add(request, group, values, number, taken_over)
        self._estimation.add(request, key, needed=group.needs_estimate)
        return key, run

    def _meet(self, worker: SeenWorker, name: str | RouteKey | WorkerKey | None) -> tuple[_Key, Accumulator | None]:
        """The group of that name that a worker serves for the first time; None if there are too many groups."""
        key = worker.place, name
        group = self._groups.get(key)
        if group is None and (self._max_groups is None or len(self._groups) < self._max_groups):
            group = self._groups[key] = self._new_group()
        if group is not None:
            group.recordings.add(self._time.recording)
        if len(worker.groups) < _GROUPS_MAX:
            worker.groups[name] = key, group
            self._workers.remember(worker)
        return key, group

    def _new_group(self) -> Accumulator:
        if self._window is None:
            return Accumulator(None)
        if len(self._groups) < _LIVE_FREQUENT:
            return Accumulator(self._window, workers=_LIVE_WORKERS)
        return Accumulator(min(self._window, _LIVE_WINDOW_OF_RARE), workers=_LIVE_WORKERS_OF_RARE)

    def _left_out_of(self, key: _Key) -> Accumulator:
        """The requests of that group that are left out."""
        group = self._left_out.get(key)
        if group is None:
            group = self._left_out[key] = self._new_group()
        return group

    @property
    def _shown(self) -> dict[_Key, Accumulator]:
        """The groups, but those of which all requests are left out."""
        if not self._left_out:
            return self._groups
        return {key: group for key, group in self._groups.items() if group.requests}

    def release(self, fact: Release) -> None:
        """Take back what a request had kept, and what has been freed now. Only with a `window`.

        A recording's requests come with what was freed of them.
        """
        self._held.release(fact)
        if fact.freed_by_ns is not None:
            self._freeing.setdefault(fact.pid, []).append(fact)

    def together(self) -> list[Together]:
        """Estimates of several groups together, where nothing tells them apart, the largest lower bound first."""
        places = self.places()
        routes = RouteNames.names(name for _, name in self._groups)
        names: dict[Hashable, str | None] = {}
        for key in self._groups:
            at, name = key
            shown = routes[name] if isinstance(name, RouteKey) else name if isinstance(name, str) else None
            names[key] = shown if len(places) < 2 else f"{places[Place._make(at)]}: {shown or '(none)'}"
        mismatch = self.mismatch()
        return self._estimation.together(names, () if mismatch is None else mismatch.corrections.keys())

    def mismatch(self) -> Mismatch | None:
        """Growth in requests that were not counted, if it is much, and does not fit the figures; groups() respects it.

        None also if nobody knows.
        """
        found = self._mismatch()
        return found if found is not None and found.large else None

    def _mismatch(self) -> Mismatch | None:
        windows = self._heaps.windows()
        return mismatch(windows, self._charges()) if windows else None

    def _charges(self) -> dict[Hashable, Charge]:
        charges = self._estimation.charges()
        for key, group in self._groups.items():
            charge = group.charge
            if charge is not None:
                charges[key] = charge
        return charges

    def why_not_estimated(self) -> str | None:
        """A reason why what was not counted is not estimated either, or is not sure; None if there is none."""
        return self._estimation.why_not()

    def places(self) -> dict[Place, str]:
        """The places where the requests ran, with a name for each, all different."""
        return place_names(Place._make(at) for at, _ in self._shown)

    def groups(self, order: Order | None = by_kept, top: int | None = None, *, lost: int = 0) -> list[Group]:
        """The groups, the largest first, or by key (`order` None). Ties are sorted by growth, key, then container.

        `top`: only so many, and behind them those without a key. `lost`: facts that were lost, which a verdict
        respects.
        """
        figures = self._figures()
        some = top is not None  # the quantiles of all others need not be worked out
        found = [(key, figures(key, group, quantiles=not some)) for key, group in self._shown.items()]
        found.sort(key=lambda pair: (pair[1].key is None, pair[1].key or "", pair[1].container or ""))
        if order is not None:
            found.sort(key=lambda pair: (order(pair[1]), order_of(pair[1].growth_bytes)), reverse=True)
        if top is not None:
            kept = found[:top] + [pair for pair in found[top:] if pair[1].key is None]
            found = [(key, figures(key, self._groups[key], quantiles=True)) for key, _ in kept]
        return self.with_verdicts(found, lost)

    def figures(self) -> list[tuple[GroupKey, Group]]:
        """The groups by key, without verdicts, in the order of their first requests."""
        figures = self._figures()
        return [(key, figures(key, group, quantiles=True)) for key, group in self._shown.items()]

    def _figures(self) -> _Figures:
        """A function that returns the figures of a group, as they are now."""
        estimates = self._estimation.single()
        mismatch = self._mismatch()
        every = self._shown
        workers = self._worker_names.names(name for _, name in every if isinstance(name, WorkerKey))
        routes = RouteNames.names(name for _, name in every)
        places = self.places()
        several = len(places) > 1 and self.by is not GroupBy.CONTAINER
        place_of: dict[tuple[str | int | None, ...], str] = {tuple(place): shown for place, shown in places.items()}

        def figures(key: GroupKey, accumulator: Accumulator, *, quantiles: bool) -> Group:
            at, name = key
            place = place_of[at]
            shown = routes[name] if isinstance(name, RouteKey) else name
            shown = workers[shown] if isinstance(shown, WorkerKey) else shown
            if self.by is GroupBy.CONTAINER:
                shown = place
            correct = None if mismatch is None else functools.partial(mismatch.figures, key)
            where = place if several else None
            return accumulator.group(shown, where, estimates.get(key), correct, quantiles=quantiles)

        return figures

    def lives(self, key: GroupKey) -> list[list[int]]:
        """The bytes that each worker's requests of that group kept, in order: those that a verdict is made of."""
        return self._groups[key].lives()

    def with_verdicts(self, groups: Sequence[tuple[GroupKey, Group]], lost: int) -> list[Group]:
        """Groups of figures() with what depends on the whole recording: the verdict, and the bytes an hour."""
        every = (*self._groups.values(), *self._left_out.values())
        share = lost / (lost + self.overflow + sum(one.requests for one in every)) if lost else 0.0
        together = self._estimation.keys_together() if self._judged else ()
        found = []
        for key, group in groups:
            verdict, recordings = None, self._groups[key].recordings
            if self._judged:
                seconds, evidence = self._time.seconds(recordings), self._groups[key].evidence
                verdict = judge(evidence(group, seconds, lost_share=share, together=key in together))
            hours = self._time.hours(recordings)
            an_hour = None if hours is None or group.kept_bytes is None else group.kept_bytes / hours
            found.append(dataclasses.replace(group, verdict=verdict, kept_per_hour=an_hour))
        return found


# The place, as a plain tuple, and the name.
_Key = tuple[tuple[str | int | None, ...], str | RouteKey | WorkerKey | None]
GroupKey = _Key
_CUT_OFF = Ending.CUT_OFF.value
_GROUPS_MAX = 4096  # of one worker, that are remembered
_NAMES: dict[GroupBy, Callable[[Request], str | None]] = {
    GroupBy.SCRIPT: lambda request: request.script,
    GroupBy.URI: lambda request: request.uri,
    GroupBy.POOL: lambda request: request.pool,
    GroupBy.CONTAINER: lambda _: None,
}
