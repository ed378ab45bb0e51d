"""The bytes that each key keeps per request, fitted to windows of requests, and how sure that is.

The growth of a window is the sum of bytes(key) times requests(key), by robust non-negative least squares. Keys that
always come together are reported together. So are keys of which one surely keeps memory, while the figures do not say
which.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Hashable, Mapping, Sequence
from typing import Final

from tracer.analysis.growth_windows import ROUNDING, Window, add_counts
from tracer.analysis.least_squares import Fit, Row, dependences, fit, student_quantile

LEAST_WINDOWS = 8
_LEAST_DEGREES = 4
ENOUGH_WINDOWS = 40  # more of them would be shorter: their ends, where a window may be off, would weigh more
_MANY_WINDOWS = 400  # as many at most, if there are so many workers that windows of several would be joined
_COLUMNS = 32  # keys that are fitted one by one; the others share one rate
_CONSPICUOUS = 4.0  # standard deviations by which windows with a rare key grew more, from which on it is fitted
_OUTLIER = 0.1  # trust below which a window is an outlier
_OUTLIERS = 0.1  # share of outliers from which they are no exceptions
_MISSED = 0.1  # share of the growth that may be in them
_REGULAR = 0.25  # variance over mean of a count, below which it does not come at random
_RIVALS = -0.4  # correlation of two estimates, one of which may have what is the other's
_INTERVAL = 0.975  # two-sided 95 %
_SURE = 0.9995  # one-sided: with 20 innocent keys, one recording in 100 accuses one
_MATERIAL = 256.0  # bytes a request; less is not sure to be memory that is kept
_YOUNG = 2.0  # times the interval, of workers whose warm-up is possibly not over


class Others:
    """Stands for the requests of keys that are not fitted one by one, and for those that were not recorded."""


OTHERS: Final = Others()


@dataclasses.dataclass(frozen=True, slots=True)
class Estimate:
    """The bytes that one key made workers keep, or several keys that cannot be distinguished.

    For one key the figures are per request. For several they are per round: one request of the rarest key, with as
    many of the others as come with it. The interval from `low` to `high` covers the truth in at least 95 % of cases.
    The figures are None if there is a `reason` why nothing can be estimated.
    """

    keys: tuple[Hashable, ...]  # the one with the most requests first; empty: all keys without an entry of their own
    requests: tuple[int, ...]  # of each key, in the whole recording
    bytes_per_round: float | None
    low: float | None  # not below 0
    high: float | None
    total_bytes: float | None  # in the whole recording
    sure: bool  # it keeps memory: this is wrong in less than 1 of 1,000 cases; False for several keys
    reason: str | None


@dataclasses.dataclass(slots=True)
class _Group:
    """Keys of one entry, by column, and the number of requests of each."""

    columns: list[int]
    requests: list[int]

    @property
    def rounds(self) -> int:
        return min(self.requests)

    def joined(self, other: _Group) -> _Group:
        return _Group(self.columns + other.columns, self.requests + other.requests)


class KeptRates:
    """A fit of windows. `young`: the workers' warm-up was possibly not over, so that intervals are wide.

    `requests` has the requests of each key in the whole recording. There have to be LEAST_WINDOWS windows.
    """

    def __init__(self, windows: Sequence[Window], requests: Mapping[Hashable, int], *, young: bool = False) -> None:
        self._requests = requests
        self._young = young
        self._keys = _fitted_keys(windows, min(_COLUMNS, max(1, (len(windows) - _LEAST_DEGREES) // 2)))
        self._columns: dict[Hashable, int] = {key: column for column, key in enumerate(self._keys)}
        least = max(LEAST_WINDOWS, 2 * len(self._keys))
        chains = len({window.chain for window in windows})
        wanted = max(ENOUGH_WINDOWS, 4 * len(self._keys), min(2 * chains, _MANY_WINDOWS))
        self._windows = lengthened(windows, wanted)
        self._fit = self._fitted()
        while self._misses_growth() and wanted > least:
            # So many outliers are not steps, but memory kept now and then. In longer windows that is a rate.
            wanted = max(least, min(wanted, len(self._windows)) // 2)
            self._windows = lengthened(windows, wanted)
            self._fit = self._fitted()
        if self._misses_growth():
            self._fit = self._fitted(robust=False)
        self._fits = [self._fit]
        fewer = max(least, len(self._windows) // 2)
        if fewer < len(self._windows):
            # What keys free of others cancels out in long windows. Where that matters, the interval covers both.
            self._fits.append(self._fitted(lengthened(windows, fewer)))
        self._longest = lengthened(windows, 2 * least)
        # What even the least growing key keeps in workers that warm up may be their warm-up, in all keys alike.
        self._warming = min(self._fit.coefficients[: len(self._keys)], default=0.0) if young else 0.0

    @property
    def reason(self) -> str | None:
        """Why the fit says nothing; None if it does."""
        if self._fit.degrees >= _LEAST_DEGREES:
            return None
        if len(self._windows) < len(self._keys) + 2 * _LEAST_DEGREES:
            return f"{len(self._windows)} windows of requests are too few to tell {len(self._keys)} rows apart"
        return "the workers grew in steps and not at a rate"

    def entries(self) -> list[Estimate]:
        """An entry for each key that was fitted, or for several together; one without keys for all others."""
        groups = self._joined_until_sure(self._linked())
        others = sum(self._requests.values()) - sum(sum(group.requests) for group in groups)
        entries = [self._entry(group) for group in groups]
        if others > 0 and any(
            self._column(key) == len(self._keys) for window in self._windows for key in window.counts
        ):
            entries.append(self._entry(_Group([len(self._keys)], [others])))
        return entries

    def _column(self, key: Hashable) -> int:
        return self._columns.get(key, len(self._keys))

    def _row(self, window: Window, least_noise: float = ROUNDING) -> Row:
        cells: dict[int, float] = {}
        for key, count in window.counts.items():
            column = self._column(key)
            cells[column] = cells.get(column, 0.0) + count
        return Row(tuple(cells.items()), window.growth, (ROUNDING / max(least_noise, window.noise)) ** 2)

    def _fitted(self, windows: Sequence[Window] | None = None, *, robust: bool = True) -> Fit:
        windows = self._windows if windows is None else windows
        noise = self._least_noise(windows)
        rows = [self._row(window, noise) for window in windows]
        return fit(rows, len(self._keys) + 1, floor=ROUNDING, robust=robust)

    def _least_noise(self, windows: Sequence[Window]) -> float:
        """The noise below which all windows weigh the same, so that a few of them do not decide alone."""
        enough = min(0.75 * len(windows), 2 * len(self._keys) + LEAST_WINDOWS)
        noise = ROUNDING
        while True:
            weights = [(noise / max(noise, window.noise)) ** 2 for window in windows]
            # As many windows of equal weight would be as exact: Kish, Survey Sampling, 1965.
            if sum(weights) ** 2 / sum(weight * weight for weight in weights) >= enough:
                return noise
            noise *= 2

    def _misses_growth(self) -> bool:
        """True if many windows are outliers, with a large part of all growth."""
        outliers = [i for i, trust in enumerate(self._fit.trust) if trust < _OUTLIER]
        if len(outliers) <= _OUTLIERS * len(self._windows):
            return False
        missed = sum(self._fit.residuals[i] for i in outliers)
        return missed > _MISSED * sum(abs(window.growth) for window in self._windows)

    def _linked(self) -> list[_Group]:
        """Groups of keys that come together.

        They are judged in windows as long as possible. In random traffic the counts of two keys come apart the more,
        the longer a window is; in traffic with a fixed order they do not.
        """
        size = len(self._keys)
        group_of = list(range(size + 1))
        for column, others in dependences([self._row(window) for window in self._longest], size + 1, _REGULAR).items():
            for other in others:
                group_of = [group_of[column] if group == group_of[other] else group for group in group_of]
        groups: dict[int, list[int]] = {}
        for column, group in enumerate(group_of[:size]):
            groups.setdefault(group, []).append(column)
        return [_Group(columns, [self._requests[self._keys[i]] for i in columns]) for columns in groups.values()]

    def _joined_until_sure(self, groups: list[_Group]) -> list[_Group]:
        """Join groups of which one surely keeps memory, while the figures do not say which.

        The estimates of such groups are negatively correlated: bytes of the one may be the other's."""
        settled = [group for group in groups if self._lower(group) > 0]
        open_ = sorted((group for group in groups if self._lower(group) <= 0), key=self._total, reverse=True)
        while open_:
            joined = group = open_.pop(0)
            rest = list(open_)
            while self._lower(joined) <= 0 and rest and self._total(group) > _MATERIAL * group.rounds:
                rival = min(rest, key=lambda other: self._correlation(joined, other))
                if self._correlation(joined, rival) > _RIVALS:
                    break
                joined = joined.joined(rival)
                rest = [other for other in rest if other is not rival]
            if self._lower(joined) > 0:
                settled.append(joined)
                open_ = rest
            else:
                settled.append(group)
        return settled

    def _total(self, group: _Group, fit: Fit | None = None) -> float:
        coefficients = (fit or self._fit).coefficients
        return sum(coefficients[i] * n for i, n in zip(group.columns, group.requests, strict=True))

    def _unbounded(self, group: _Group, fit: Fit) -> float:
        return sum(fit.unbounded[i] * n for i, n in zip(group.columns, group.requests, strict=True))

    def _covariance(self, group: _Group, other: _Group, fit: Fit) -> float:
        return sum(
            fit.covariance[i][j] * n * m
            for i, n in zip(group.columns, group.requests, strict=True)
            for j, m in zip(other.columns, other.requests, strict=True)
        )

    def _deviation(self, group: _Group, fit: Fit) -> float:
        return math.sqrt(max(0.0, self._covariance(group, group, fit)))

    def _correlation(self, group: _Group, other: _Group) -> float:
        deviations = self._deviation(group, self._fit) * self._deviation(other, self._fit)
        return self._covariance(group, other, self._fit) / deviations if deviations else 0.0

    def _lower(self, group: _Group) -> float:
        return min(self._limit(group, fit, -self._quantile(fit)) for fit in self._fits)

    def _upper(self, group: _Group) -> float:
        return max(self._limit(group, fit, self._quantile(fit)) for fit in self._fits)

    def _limit(self, group: _Group, fit: Fit, deviations: float) -> float:
        outermost = min if deviations < 0 else max
        estimate = outermost(self._total(group, fit), self._unbounded(group, fit))
        return estimate + deviations * self._deviation(group, fit)

    def _quantile(self, fit: Fit) -> float:
        return student_quantile(_INTERVAL, fit.degrees) * (_YOUNG if self._young else 1.0)

    def _entry(self, group: _Group) -> Estimate:
        order = sorted(range(len(group.columns)), key=lambda i: (-group.requests[i], group.columns[i]))
        keys = tuple(self._keys[group.columns[i]] for i in order if group.columns[i] < len(self._keys))
        windows = sum(any(self._column(key) in group.columns for key in window.counts) for window in self._windows)
        total, rounds = self._total(group), group.rounds
        warming = self._warming * sum(group.requests)
        low = max(0.0, self._lower(group) - warming)
        high = self._upper(group) + warming
        surely = self._limit(group, self._fit, -student_quantile(_SURE, self._fit.degrees)) > _MATERIAL * rounds
        return Estimate(
            keys=keys,
            requests=tuple(group.requests[i] for i in order),
            bytes_per_round=total / rounds,
            low=low / rounds,
            high=high / rounds,
            total_bytes=total,
            sure=surely and low > 0 and len(keys) == 1 and windows >= LEAST_WINDOWS and not self._young,
            reason=None,
        )


def _fitted_keys(windows: Sequence[Window], most: int) -> list[Hashable]:
    """The keys that get a rate of their own: the most frequent, and rare ones whose windows grew much more."""
    counts: dict[Hashable, int] = {}
    for window in windows:
        add_counts(counts, window.counts)
    counts.pop(OTHERS, None)
    frequent = sorted(counts, key=lambda key: counts[key], reverse=True)
    if len(frequent) <= most:
        return frequent
    limit = sorted(abs(window.growth) for window in windows)[len(windows) * 9 // 10]
    rates = [max(-limit, min(limit, window.growth)) / window.requests for window in windows]
    mean = sum(rates) / len(rates)
    deviation = math.sqrt(sum((rate - mean) ** 2 for rate in rates) / len(rates))
    rare = dict.fromkeys(frequent[most // 2 :], (0.0, 0))
    for window, rate in zip(windows, rates, strict=True):
        for key in window.counts.keys() & rare.keys():
            excess, seen = rare[key]
            rare[key] = excess + rate - mean, seen + 1
    conspicuous = {key: excess / math.sqrt(seen) for key, (excess, seen) in rare.items()}
    chosen = [key for key in conspicuous if conspicuous[key] > _CONSPICUOUS * deviation]
    chosen = sorted(chosen, key=lambda key: conspicuous[key], reverse=True)[: most - most // 2]
    return [key for key in frequent if key not in chosen][: most - len(chosen)] + chosen


def lengthened(windows: Sequence[Window], wanted: int) -> list[Window]:
    """About as many windows as wanted, or fewer: each joined with the next ones of its worker until it is long enough.

    Windows get about equal lengths. Many end when memory that was kept unseen shows, and the shorter ones of these
    would have more growth per request than the longer ones.
    """
    length = sum(window.requests for window in windows) / wanted
    joined = []
    current: Window | None = None
    for window in sorted(windows, key=lambda window: window.chain):
        current = window if current is None else current.joined(window)
        if current.requests >= length:
            joined.append(current)
            current = None
    return joined if current is None else [*joined, current]
