"""Checks if the requests that were counted speak for those that were not, and bounds what the latter kept.

The growth of malloc's heap between two looks is exact. What the counted requests kept of it is, too, so what all others
kept together is known. If their groups' means do not give as much, counting missed something: a leak that began or
ended while nothing was counted. Then each group may have kept as much as the others leave of the growth, where each
request keeps between the least and the most that one of its group is known to have kept. Where that does not
explain the growth either, any group that was not counted whole may have kept all of it.

Limits. Native memory that malloc does not know, and memory that groups keep in turns so that their sum stays right,
is not checked.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Hashable, Mapping, Sequence
from typing import NamedTuple

from tracer.analysis.heap_windows import HeapWindow
from tracer.analysis.kept import How, Kept

_LARGE_SHARE = 0.05  # of the growth
_LARGE_BYTES = 1 << 20
_LARGE_AT_FIRST = 65_536  # in short recordings, and so much more for each request:
_LARGE_PER_REQUEST = 256
_NOISE_PER_REQUEST = 32  # what PHP allocates between requests, and what malloc rounds up
_MATERIAL = 256.0  # bytes a request; the figures of groups whose limits are no farther off stay as they are
_ESTIMATES_SHARE = 0.15  # of the growth; an estimate that is farther off says nothing
_INTERVAL = 1.96  # standard deviations from a figure to its limits
_SURELY = 3.0  # standard deviations from which on a difference is no chance


class NetSum:
    """Sums of bytes that counted requests of a group allocated and did not free, without first runs of a script."""

    __slots__ = ("_squares", "_total", "count", "least", "most")

    def __init__(self) -> None:
        """Without a request."""
        self.count = 0
        self.least = self.most = 0
        self._total = 0
        self._squares = 0.0

    def add(self, net: int) -> None:
        """Count a request."""
        if not self.count or net < self.least:
            self.least = net
        if not self.count or net > self.most:
            self.most = net
        self.count += 1
        self._total += net
        self._squares += float(net) * net

    def charge(self) -> Charge:
        """The bytes that a request of the group is taken to keep. One has to be counted."""
        mean = self._total / self.count
        variance = max(0.0, self._squares / self.count - mean * mean)
        return Charge(mean, float(self.least), float(self.most), variance, self.count)


class Charge(NamedTuple):
    """The bytes that a request of a group is taken to keep, if not counted, and the least and the most it may."""

    mean: float
    low: float
    high: float
    variance: float = 0.0  # of one request
    counted: int = 0  # requests that this comes from; 0: an estimate


class Correction(NamedTuple):
    """The bytes by which a request of a group that was not counted kept more than it is charged, and their limits."""

    charged: float
    more: float | None  # None: nobody knows
    low: float
    high: float


@dataclasses.dataclass(frozen=True, slots=True)
class Mismatch:
    """Growth of the workers in requests that were not counted, which their groups' figures do not explain."""

    large: bool  # more than rounding, and what requests of one group differ by
    since_ns: int  # Unix time
    grew: int  # what those requests kept together
    charged: int  # what the figures say
    corrections: Mapping[Hashable, Correction]  # of groups whose figures say too little about their requests

    def figures(self, key: Hashable, kept: Kept, complete: int) -> Kept:
        """The figures of a group of so many requests, with what those of them that were not counted may have kept."""
        correction = self.corrections.get(key)
        if correction is None or complete <= kept.counted:
            return kept
        not_counted = complete - kept.counted
        share, per_request = not_counted / complete, kept.per_request
        if per_request is None:  # too few were counted
            share, per_request = 1.0, correction.charged
        low, high = per_request + share * correction.low, per_request + share * correction.high
        if not self.large:
            if kept.how is not How.COUNTED or kept.low is None or kept.high is None:
                return kept
            return kept._replace(low=min(kept.low, low), high=max(kept.high, high))
        low = max(0.0, low)
        found = Kept(How.ESTIMATED, low=low, high=max(low, high), warmup=kept.warmup, counted=kept.counted)
        if correction.more is None or kept.total is None or not low:
            return found
        total = kept.total + round(correction.more * not_counted)
        return found._replace(total=total, per_request=per_request + share * correction.more)


def mismatch(windows: Sequence[HeapWindow], charges: Mapping[Hashable, Charge]) -> Mismatch | None:
    """Compare windows, from the earliest on, with what their requests are charged; None if it fits.

    Groups that are not in `charges` are taken for groups whose requests keep no more than any other one does.
    """
    requests: dict[Hashable, int] = {}
    for window in windows:
        for key, count in window.uncounted.items():
            requests[key] = requests.get(key, 0) + count
    most = max((charge.high for charge in charges.values()), default=0.0)
    known = {key: charges.get(key, Charge(0.0, 0.0, max(0.0, most))) for key in requests}
    grew = sum(window.growth - window.counted for window in windows)
    charged = sum(known[key].mean * count for key, count in requests.items())
    first_runs = sum(window.first_runs for window in windows)
    every = sum(window.requests for window in windows)
    by_chance = math.sqrt(sum(_variance(known[key], count) for key, count in requests.items()))
    excess = grew - charged
    beyond = max(-excess, excess - first_runs)
    noise = _NOISE_PER_REQUEST * every
    estimates_fit = beyond <= _ESTIMATES_SHARE * abs(grew) or _counted_explain(requests, known, grew, noise, first_runs)
    if beyond <= noise or (beyond <= _INTERVAL * by_chance and estimates_fit):
        return None
    share = _LARGE_SHARE * abs(sum(window.growth for window in windows))
    many = min(_LARGE_BYTES, _LARGE_AT_FIRST + _LARGE_PER_REQUEST * every)
    large = beyond > max(share, many, _SURELY * by_chance if estimates_fit else 0.0)
    return Mismatch(
        large,
        _since(windows, known, rising=excess > 0),
        grew,
        round(charged),
        _corrections(requests, known, grew, noise, first_runs, estimates_fit=estimates_fit),
    )


def _variance(charge: Charge, count: int) -> float:
    """Of the sum of so many requests, less so many times the mean of those that were counted, or the estimate."""
    if not charge.counted:
        return (count * (charge.high - charge.low) / (2 * _INTERVAL)) ** 2
    return charge.variance * count * (1 + count / charge.counted)


def _since(windows: Sequence[HeapWindow], charges: Mapping[Hashable, Charge], *, rising: bool) -> int:
    """When the sum of what does not fit was at its least, or at its most: from then on it rose, or fell."""
    turn, least, total = 0, 0.0, 0.0
    for number, window in enumerate(windows):
        if total <= least:
            turn, least = number, total
        charged = sum(charges[key].mean * count for key, count in window.uncounted.items())
        beyond = window.growth - window.counted - charged
        total += (beyond if rising else -beyond) - _NOISE_PER_REQUEST * window.requests
    return windows[turn].began_ns


def _counted_explain(
    requests: Mapping[Hashable, int], charges: Mapping[Hashable, Charge], grew: float, noise: float, first_runs: float
) -> bool:
    """True if the estimates may be right: what is missing is within the limits of the groups that were counted."""
    limits = {
        key: (charge.low, charge.high) if charge.counted else (charge.mean, charge.mean)
        for key, charge in charges.items()
    }
    return _explains(requests, limits, grew, noise, first_runs)


def _corrections(
    requests: Mapping[Hashable, int],
    charges: Mapping[Hashable, Charge],
    grew: float,
    noise: float,
    first_runs: float,
    *,
    estimates_fit: bool,
) -> dict[Hashable, Correction]:
    limits = {key: (charge.low, charge.high) for key, charge in charges.items()}
    explained = estimates_fit and _explains(requests, limits, grew, noise, first_runs)
    if not explained:
        # The estimates are wrong; or requests that were not counted are of a kind that none of the counted ones is.
        for of_estimates in (True, False):
            for key, charge in charges.items():
                if of_estimates is (charge.counted == 0):
                    limits[key] = min(0.0, charge.low), math.inf
            if _explains(requests, limits, grew, noise, first_runs):
                break
        else:
            limits = {key: (-math.inf, charge.high) for key, charge in charges.items()}
    lows = _Others({key: count * limits[key][0] for key, count in requests.items()})
    highs = _Others({key: count * limits[key][1] for key, count in requests.items()})
    weights = {key: count * count * charges[key].variance for key, count in requests.items()}
    weight = sum(weights.values())
    excess = grew - sum(charges[key].mean * count for key, count in requests.items())
    found = {}
    for key, count in requests.items():
        if explained and not charges[key].counted:
            continue
        mean, (low, high) = charges[key].mean, limits[key]
        low = max(low, (grew - noise - first_runs - highs.but(key)) / count)
        high = max(low, min(high, (grew + noise - lows.but(key)) / count))
        more = None
        if explained and weight:
            more = min(max(mean + excess * weights[key] / weight / count, low), high) - mean
        if max(high - mean, mean - low) > _MATERIAL:
            found[key] = Correction(mean, more, low - mean, high - mean)
    return found


def _explains(
    requests: Mapping[Hashable, int],
    limits: Mapping[Hashable, tuple[float, float]],
    grew: float,
    noise: float,
    first_runs: float,
) -> bool:
    low = sum(count * limits[key][0] for key, count in requests.items())
    high = sum(count * limits[key][1] for key, count in requests.items())
    return low - noise <= grew <= high + noise + first_runs


class _Others:
    """The sum of all values but one, some of which may be infinite."""

    def __init__(self, values: Mapping[Hashable, float]) -> None:
        self._values = values
        self._finite = math.fsum(value for value in values.values() if math.isfinite(value))
        self._infinite = [value for value in values.values() if math.isinf(value)]

    def but(self, key: Hashable) -> float:
        value = self._values[key]
        infinite = len(self._infinite) - math.isinf(value)
        if infinite:
            return self._infinite[0]
        return self._finite - (0.0 if math.isinf(value) else value)
