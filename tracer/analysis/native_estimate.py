"""Estimates the native bytes that each script keeps per request from the growth of whole workers.

For recordings in which allocations were not counted. Growth shows in the request that touches new pages, which is often
not the one that keeps memory: one script frees, another keeps what was free, and the first touches new pages instead.
Over many requests the sum is right, whichever of them touched the pages, so that rates can be fitted to it.

Limits. Scripts that always come together have one estimate. Memory that a worker keeps once, or a script in very few
of its requests, is a step and not a rate. Memory that is kept where a large peak left free pages does not show until
these are used up. Workers that live for less than some 50 requests say little: their warm-up is not over.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Hashable, Sequence

from tracer.analysis.growth_windows import Window, add_counts
from tracer.analysis.kept_rates import ENOUGH_WINDOWS, LEAST_WINDOWS, OTHERS, Estimate, KeptRates
from tracer.analysis.window_cutter import WARM_UP, WindowCutter
from tracer.facts import Request, WorkerId

_LEAST_WALKED = 2 * LEAST_WINDOWS  # windows of heap walks
_KEYS = 4096  # keys that are known by name
_KEYS_OF_LONG_WINDOWS = 256  # the most frequent ones, when windows are joined to bound memory
_WORKERS = 1024  # workers that served last, which are not taken for ended


@dataclasses.dataclass(frozen=True, slots=True)
class Estimates:
    """All entries, the largest lower bound first, those without an estimate last."""

    entries: list[Estimate]
    reason: str | None  # why there is no estimate at all
    caveat: str | None  # why none is sure


@dataclasses.dataclass(slots=True)
class _Worker:
    name: WorkerId
    cutter: WindowCutter
    latest: int = 0  # number of its latest request, among all
    nth: int = 0


class NativeEstimator:
    """Takes the requests of a recording in order; result() may be called at any time.

    Memory is bounded. When there are too many windows, neighbours are joined, and later windows are longer. When there
    are too many workers, those that served no request for the longest time are taken for ended.
    """

    def __init__(self, *, most_windows: int = 512, shortest_window: int = 8) -> None:
        self._most_windows = most_windows
        self._length = shortest_window
        self._windows: list[Window] = []
        self._requests: dict[Hashable, int] = {}
        self._count = 0
        self._workers: dict[WorkerId, _Worker] = {}  # the latest of each name
        self._number = 0

    def add(self, request: Request, key: Hashable, *, heap_used: int | None = None) -> None:
        """Take the next request of a worker, in the group `key`.

        A `nth` that does not rise is a new worker, too, since old recordings have no start of a worker. `heap_used` is
        the bytes in use in malloc's heap, if the worker was looked at before the request. Anonymous memory, which each
        request comes with, is compared where Zend's heap has the same size.
        """
        name = request.worker
        serving = self._workers.get(name)
        if serving is None or request.nth <= serving.nth:
            serving = self._new_worker(name)
        elif request.nth > serving.nth + 1:
            serving.cutter.begin(OTHERS, request.nth - serving.nth - 1)
        if key not in self._requests and len(self._requests) >= _KEYS:
            key = OTHERS
        self._requests[key] = self._requests.get(key, 0) + 1
        self._count += 1
        serving.latest = self._count
        serving.nth = request.nth
        # One that ran when tracing began was sampled in its middle.
        if request.anon_before is not None and (request.complete or request.anon_after is None):
            window = serving.cutter.look(request.anon_before, request.zend_real_before, self._length)
            if window is not None:
                self._take(window)
        if heap_used is not None:
            window = serving.cutter.walk(heap_used)
            if window is not None:
                self._take(window)
        serving.cutter.begin(key)

    def result(self) -> Estimates:
        """The estimates from all requests so far."""
        unfinished = [worker.cutter.unfinished() for worker in self._workers.values()]
        every = _alike(self._windows + [window for window in unfinished if window is not None])
        windows = [window for window in every if not window.young]
        young = len(windows) < LEAST_WINDOWS
        if young:
            windows = every
        rates, reason = self._rates(windows, young=young)
        entries = [] if rates is None else rates.entries()
        named = {key for entry in entries for key in entry.keys}
        entries += [
            Estimate((key,), (requests,), None, None, None, None, sure=False, reason=reason or "too few requests")
            for key, requests in self._requests.items()
            if key not in named and key is not OTHERS
        ]
        entries.sort(key=_order, reverse=True)
        caveat = None
        if rates is not None and young:
            caveat = f"few workers served more than {WARM_UP} requests, so that a part may be their warm-up"
        return Estimates(entries, reason, caveat)

    def _rates(self, windows: Sequence[Window], *, young: bool) -> tuple[KeptRates | None, str | None]:
        if len(windows) >= LEAST_WINDOWS:
            rates = KeptRates(windows, self._requests, young=young)
            return (rates, None) if rates.reason is None else (None, rates.reason)
        if not windows:
            return None, f"no worker served enough requests after its first {WARM_UP}, which are warm-up"
        return None, f"only {len(windows)} windows of requests can be compared, and {LEAST_WINDOWS} are needed"

    def _new_worker(self, name: WorkerId) -> _Worker:
        before = self._workers.pop(name, None)
        if before is not None:
            self._end(before)
        elif len(self._workers) >= 2 * _WORKERS:
            for idle in sorted(self._workers.values(), key=lambda worker: worker.latest)[:_WORKERS]:
                self._end(self._workers.pop(idle.name))
        worker = self._workers[name] = _Worker(name, WindowCutter(self._number))
        self._number += 1
        return worker

    def _end(self, worker: _Worker) -> None:
        window = worker.cutter.unfinished()
        if window is not None:
            self._take(window)

    def _take(self, window: Window) -> None:
        self._windows.append(window)
        if len(self._windows) >= 2 * self._most_windows:
            frequent = sorted(self._requests, key=lambda key: self._requests[key], reverse=True)
            named = frozenset(frequent[:_KEYS_OF_LONG_WINDOWS])
            self._windows = [_with_keys(window, named) for window in _halved(self._windows)]
            self._length *= 2


def _alike(windows: Sequence[Window]) -> list[Window]:
    """Windows of heap walks, which are exact, if there are enough; else the others. Both cover the same requests."""
    walked = [window for window in windows if window.walked]
    keys = {key for window in walked if not window.young for key in window.counts}
    enough = min(max(_LEAST_WALKED, 4 * len(keys)), ENOUGH_WINDOWS)
    if sum(not window.young for window in walked) >= enough:
        return walked
    return [window for window in windows if not window.walked]


def _halved(windows: Sequence[Window]) -> list[Window]:
    """Half as many windows: each joined with the next one of its worker, where there is one."""
    walked = [window for window in windows if window.walked]
    cut = sorted((window for window in windows if not window.walked), key=lambda window: window.chain)
    halved: list[Window] = []
    for alike in (walked, cut):
        halved += [first.joined(second) for first, second in zip(alike[::2], alike[1::2], strict=False)]
        halved += alike[len(alike) // 2 * 2 :]
    return halved


def _with_keys(window: Window, keys: frozenset[Hashable]) -> Window:
    """The window with the requests of all other keys counted together."""
    if window.counts.keys() <= keys:
        return window
    counts: dict[Hashable, int] = {}
    for key, count in window.counts.items():
        add_counts(counts, {key if key in keys else OTHERS: count})
    return window._replace(counts=counts)


def _order(entry: Estimate) -> tuple[float, float, int]:
    if entry.low is None or entry.total_bytes is None:
        return -1.0, -1.0, sum(entry.requests)
    return entry.low * min(entry.requests), entry.total_bytes, sum(entry.requests)
