"""The native memory that a group of requests kept: per request, as a whole, and how sure that is.

A worker's first request for a script, or for a route of it, fills caches that the later ones find filled. What it keeps
beyond what the others keep is warm-up: it comes once a worker, so it is a figure of its own and no part of a leak. Some
caches are emptied now and then, and filled again by whichever request comes next. So what one request of each worker
kept, where the others kept nearly nothing, is warm-up too.
"""

from __future__ import annotations

import enum
import math
from typing import NamedTuple

from tracer.analysis.first_runs import Run
from tracer.analysis.kept_rates import Estimate
from tracer.analysis.open_requests import OpenSum, OpenValues
from tracer.analysis.repeated import share_kept_again
from tracer.facts import Request, retained

# With fewer counted requests than this among uncounted ones, no mean is given.
_LEAST_COUNTED = 5
_CONFIDENCE = 1.96  # standard errors, for 95 %
# Of what was kept, so much has to be kept again in a worker.
_LEAST_AGAIN = 1 / 4


class How(enum.Enum):
    """How the native memory that requests kept is known."""

    COUNTED = "counted"  # every allocation and every free was counted, in every request or in enough of them
    ESTIMATED = "estimated"  # from the growth of the workers; without a mean where it may be nothing


class Kept(NamedTuple):
    """Native bytes that the requests of a group kept. None: not known."""

    how: How | None = None
    total: int | None = None  # of all its requests, without warm-up
    per_request: float | None = None  # mean
    # 95 % interval of the mean. If every request was counted: `low` is without what each worker kept once, `high` with.
    low: float | None = None
    high: float | None = None
    share: float | None = None  # of its requests that kept anything
    p50: int | None = None
    p95: int | None = None
    warmup: int | None = None  # what one request of each worker kept beyond the mean
    counted: int = 0  # requests of which the allocations were counted


def estimated(estimate: Estimate) -> Kept:
    """The figures of a group with an estimate of its own: only the interval, unless it is sure that it keeps any."""
    if estimate.bytes_per_round is None or estimate.total_bytes is None:
        return Kept()
    known = Kept(How.ESTIMATED, low=estimate.low, high=estimate.high)
    if not estimate.sure:
        return known
    return known._replace(total=round(estimate.total_bytes), per_request=estimate.bytes_per_round)


class KeptSum:
    """Adds up what the counted requests of a group kept."""

    __slots__ = ("_complete", "_counted", "_runs")

    def __init__(self, window: int | None) -> None:
        """`window`: how many last requests of each kind of Run the quantiles cover; None for all."""
        self._runs = tuple(OpenValues(window) for _ in Run)
        self._complete = self._counted = 0

    def add(self, request: Request, run: Run, worker: int, taken_over: int = 0) -> tuple[OpenValues, int] | None:
        """Count a request of which both ends were seen. `taken_over`: bytes of earlier requests' blocks that it has.

        `worker`: a number that no other worker has. Return where it is, and its number there, to change it, and to
        close it once the request after it was counted; None if its allocations were not counted.
        """
        self._complete += 1
        kept = request.native_kept
        if kept is None:
            return None
        released = request.native_released
        if released or taken_over:
            kept = retained(kept, (released or 0) + taken_over)
        self._counted += 1
        values = self._runs[run]
        return values, values.add(kept, worker)

    @property
    def version(self) -> int:
        """Another one when a figure may have changed."""
        first, of_route, later = self._runs
        return self._complete + first.version + of_route.version + later.version

    @property
    def known(self) -> bool:
        """True if enough requests were counted for the figures."""
        _, of_route, later = self._runs
        if of_route.count + later.count >= _LEAST_COUNTED:
            return True
        counted = self._counted
        return (counted > 0 and counted >= self._complete) or self._mostly_first_runs

    @property
    def _mostly_first_runs(self) -> bool:
        """True if enough were counted, but of those that are not their worker's first too few for a mean of their own.

        That is so where workers are replaced after few requests.
        """
        counted = self._counted
        enough = _LEAST_COUNTED <= counted < self._complete <= 2 * counted
        return enough and counted - self._runs[Run.FIRST].count < _LEAST_COUNTED

    def _steady_and_firsts(self) -> tuple[OpenSum, OpenSum]:
        first, of_route, later = self._runs
        # Where hardly a route comes twice, it is unknown what the first request of each filled.
        if later.count < max(_LEAST_COUNTED, of_route.count // 10):
            return OpenSum(of_route, later), OpenSum(first)
        return OpenSum(later), OpenSum(first, of_route)

    def lives(self) -> list[list[int]]:
        """The bytes that each worker's requests kept, in order, without open ones and those that fill caches first."""
        found: dict[int, list[int]] = {}
        for kept, worker in self._steady_and_firsts()[0].closed():
            found.setdefault(worker, []).append(kept)
        return list(found.values())

    def kept(self, *, quantiles: bool = True) -> Kept:
        """The figures of the requests so far. `quantiles` False: those are None, and take most of the time."""
        counted = self._counted
        if not self.known:
            return Kept(counted=counted)
        if self._mostly_first_runs:
            return self._of_first_runs(OpenSum(*self._runs), quantiles=quantiles)
        steady, firsts = self._steady_and_firsts()
        if not steady.believed.requests:
            return self._of_first_runs(firsts, quantiles=quantiles)
        count, total, squares, kept_any = steady.believed
        mean = total / count
        low = high = mean
        uncounted = self._complete - count - firsts.believed.requests
        if counted < self._complete:
            error = _error(count, mean, squares)
            low, high = low - error, high + error
        once = 0.0
        if total > 0:
            again = share_kept_again(steady.closed())
            low = min(low, mean * again if again is not None and again >= _LEAST_AGAIN else 0.0)
            if again is not None and again < _LEAST_AGAIN:
                once = total * (1.0 - again)
                mean -= once / count
        p50, p95 = steady.quantiles(0.5, 0.95) if quantiles else (None, None)
        of_firsts = min(float(firsts.believed.total), max(mean, 0.0) * firsts.believed.requests)
        return Kept(
            How.COUNTED,
            round(total - once + of_firsts + mean * uncounted),
            mean,
            min(low, mean),
            max(high, mean),
            kept_any / count,
            p50,
            p95,
            round(firsts.believed.total - of_firsts + once),
            counted,
        )

    def _of_first_runs(self, firsts: OpenSum, *, quantiles: bool) -> Kept:
        """Where most requests were their worker's first: a leak cannot be distinguished from warm-up."""
        count, total, squares, kept_any = firsts.believed
        p50, p95 = firsts.quantiles(0.5, 0.95) if quantiles else (None, None)
        mean = total / count
        error = 0.0 if firsts.count >= self._complete else _error(count, mean, squares)
        return Kept(
            How.COUNTED,
            round(mean * self._complete),
            mean,
            min(0.0, mean - error),
            max(0.0, mean + error),
            kept_any / count,
            p50,
            p95,
            None,
            firsts.count,
        )


def _error(count: int, mean: float, squares: float) -> float:
    """How far the mean of so many values may be off, with 95 %. `squares`: the sum of their squares."""
    return _CONFIDENCE * math.sqrt(max(0.0, squares / count - mean * mean) / max(1, count - 1))
