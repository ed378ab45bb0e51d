"""The native memory that a group of requests kept: per request, as a whole, and how sure that is.

A worker's first request for a script fills caches that the later ones find filled. What it keeps beyond what the
others keep is warm-up: it comes once a worker, so it is a figure of its own and no part of a leak.
"""

from __future__ import annotations

import enum
import math
from collections import OrderedDict
from typing import NamedTuple

from tracer.analysis.kept_rates import Estimate
from tracer.analysis.open_requests import OpenValues
from tracer.facts import Request

# With fewer counted requests than this among uncounted ones, no mean is given.
_LEAST_COUNTED = 5
_CONFIDENCE = 1.96  # standard errors, for 95 %
_WORKERS_MAX = 8192
_SCRIPTS_MAX = 4096  # of one worker
_FIRST_RUNS_MAX = 1 << 18  # of all workers together: 50 bytes each


class How(enum.Enum):
    """How the native memory that requests kept is known."""

    COUNTED = "counted"  # every allocation and every free was counted, in every request or in enough of them
    ESTIMATED = "estimated"  # from the growth of the workers; without a mean where it may be nothing


class Kept(NamedTuple):
    """Native bytes that the requests of a group kept. None: not known."""

    how: How | None = None
    total: int | None = None  # of all its requests, without warm-up
    per_request: float | None = None  # mean
    low: float | None = None  # 95 % interval of the mean; equal to it if every request was counted
    high: float | None = None
    share: float | None = None  # of its requests that kept anything
    p50: int | None = None
    p95: int | None = None
    warmup: int | None = None  # what the workers' first requests kept beyond the mean
    counted: int = 0  # requests of which the allocations were counted


def estimated(estimate: Estimate) -> Kept:
    """The figures of a group with an estimate of its own: only the interval, unless it is sure that it keeps any."""
    if estimate.bytes_per_round is None or estimate.total_bytes is None:
        return Kept()
    known = Kept(How.ESTIMATED, low=estimate.low, high=estimate.high)
    if not estimate.sure:
        return known
    return known._replace(total=round(estimate.total_bytes), per_request=estimate.bytes_per_round)


class FirstRuns:
    """Tells which requests are the first for their script in their worker.

    When it knows too much, it forgets the workers that served no request for the longest time: they have ended.
    """

    def __init__(self) -> None:
        """No worker has been seen."""
        self._workers: OrderedDict[tuple[str, int], tuple[list[int], set[str | None]]] = OrderedDict()
        self._runs = 0

    def is_first(self, request: Request) -> bool:
        """True if this worker is not known to have run the script before. Call once a request, in order."""
        worker = request.host, request.pid
        known = self._workers.get(worker)
        # The count of a worker's requests begins anew where another worker got the pid.
        if known is None or request.nth <= known[0][0]:
            self._runs -= len(known[1]) if known is not None else 0
            known = self._workers[worker] = ([0], set())
        self._workers.move_to_end(worker)
        known[0][0] = request.nth
        if request.script in known[1]:
            return False
        if len(known[1]) < _SCRIPTS_MAX:
            known[1].add(request.script)
            self._runs += 1
            while len(self._workers) > _WORKERS_MAX or self._runs > _FIRST_RUNS_MAX:
                _, (_, idle) = self._workers.popitem(last=False)
                self._runs -= len(idle)
        return True


class KeptSum:
    """Adds up what the counted requests of a group kept."""

    __slots__ = ("_complete", "_firsts", "_steady")

    def __init__(self, window: int | None) -> None:
        """`window`: how many last requests the quantiles cover; None for all."""
        self._steady = OpenValues(window)
        self._firsts = OpenValues(window)
        self._complete = 0

    def add(self, request: Request, *, first: bool, is_open: bool = False) -> int | None:
        """Count a request of which both ends were seen. `first`: it is its worker's first for this script.

        Return its number, for change() and close(); None if its allocations were not counted.
        """
        self._complete += 1
        kept = request.native_retained
        if kept is None:
            return None
        return self._of(first).add(
            kept, is_open=is_open, released=request.native_released or 0, freed=request.native_freed_earlier or 0
        )

    def change(self, number: int, before: int, after: int, *, first: bool) -> None:
        """Take note that the request of that number had kept `before`, and that `after` is left of it."""
        self._of(first).change(number, before, after)

    def close(self, number: int, *, first: bool) -> None:
        """Take note that the request after the one of that number was counted."""
        self._of(first).close(number)

    def _of(self, first: bool) -> OpenValues:
        return self._firsts if first else self._steady

    @property
    def known(self) -> bool:
        """True if enough requests were counted for the figures."""
        steady, firsts = self._steady.values.count, self._firsts.values.count
        if steady >= _LEAST_COUNTED:
            return True
        return steady + firsts > 0 and steady + firsts >= self._complete

    def kept(self) -> Kept:
        """The figures of the requests so far."""
        counted = self._steady.values.count + self._firsts.values.count
        if not self.known:
            return Kept(counted=counted)
        if not self._steady.values.count:
            return self._of_first_runs()
        count, total, squares, kept_any = self._steady.believed
        mean = total / count
        low = high = mean
        if counted < self._complete:
            spread = math.sqrt(max(0.0, squares / count - mean * mean) / max(1, count - 1))
            low, high = low - _CONFIDENCE * spread, high + _CONFIDENCE * spread
        if self._steady.all_open:
            low, high = min(0.0, low), max(0.0, high)
        p50, p95 = self._steady.values.quantiles(0.5, 0.95)
        firsts = self._firsts.believed
        return Kept(
            How.COUNTED,
            round(mean * self._complete),
            mean,
            low,
            high,
            kept_any / count,
            p50,
            p95,
            firsts.total - round(mean * firsts.requests),
            counted,
        )

    def _of_first_runs(self) -> Kept:
        """Where each request was its worker's first: what is a leak and what is warm-up cannot be told apart."""
        count, total, _, kept_any = self._firsts.believed
        p50, p95 = self._firsts.values.quantiles(0.5, 0.95)
        mean = total / count
        return Kept(
            How.COUNTED,
            round(mean * self._firsts.values.count),
            mean,
            min(0.0, mean),
            max(0.0, mean),
            kept_any / count,
            p50,
            p95,
            None,
            self._firsts.values.count,
        )
