"""The change of one figure of one group between two recordings, by rules that are never surer than the figures.

Hundreds of groups are compared at once, so intervals cover 99.9 %, and a change has a least size. A rise of what
requests keep also needs that the verdict on the requests after is a leak (analysis.verdict.judge): otherwise new
workers that fill their caches would be one. A fall needs the same of those before.
"""

from __future__ import annotations

import dataclasses
import enum
from collections.abc import Callable

from tracer.analysis.diff_samples import LEAST_BLOCKS, Blocks, Series, paired
from tracer.analysis.diff_shift import shift_between
from tracer.analysis.group import Group
from tracer.analysis.kept import How
from tracer.analysis.verdict.judge import Kind as VerdictKind
from tracer.analysis.verdict.judge import Verdict

_KIB = 1 << 10


class Figure(enum.Enum):
    """A figure of a request that is compared."""

    KEPT = "kept"  # native bytes that it kept
    RISE = "rise"  # bytes by which it raised its worker while it ran
    ZEND = "zend"  # Zend's peak, in bytes
    DURATION = "duration"  # nanoseconds


class Kind(enum.Enum):
    """The direction of a change."""

    ROSE = "rose"
    FELL = "fell"
    SAME = "same"  # surely no more than a change that does not matter
    WARM_UP = "warm-up"  # more or less is kept, by caches that are being filled
    UNCLEAR = "unclear"
    NEW = "new"  # there is nothing before
    GONE = "gone"


class Why(enum.Enum):
    """Why a change is unclear."""

    FEW = "few"  # too few requests, or far fewer than of the other recording
    WIDE = "wide"  # the interval covers no change and one that matters
    NOT_MEASURED = "not measured"  # in one of the recordings
    NOT_SURE = "not sure"  # an estimate may be nothing
    VERDICT = "verdict"  # the verdict on the recording with more of it is unclear
    NOT_ALIKE = "not alike"  # the recordings were made in ways that change this figure
    REST = "rest"  # a group of many routes, which may be others


@dataclasses.dataclass(frozen=True, slots=True)
class Change:
    """A change per request, in bytes or nanoseconds. None: not known."""

    figure: Figure
    kind: Kind
    why: Why | None = None  # of an unclear one
    before: float | None = None  # mean
    after: float | None = None
    shift: float | None = None
    low: float | None = None  # of the shift, with 99.9 %; of an estimate, or of a new group, by 95 % intervals
    high: float | None = None
    estimated: bool = False
    requests_before: int = 0  # that the figures come from
    requests_after: int = 0
    verdict: Verdict | None = None  # that decided, or does not


def least_change(figure: Figure, before: float | None, after: float | None, requests: int) -> float:
    """The change that matters of a figure with these means. `requests`: those of the recording with fewer."""
    smaller = min(abs(before or 0.0), abs(after or 0.0))
    if figure is Figure.KEPT:
        return max(64.0, 64 * _KIB / max(1, requests))
    if figure is Figure.RISE:
        return max(32.0 * _KIB, 0.05 * smaller)
    return max(16.0 * _KIB, 0.02 * smaller) if figure is Figure.ZEND else max(1e6, 0.1 * smaller)


def change_of_series(figure: Figure, before: Series, after: Series) -> Change:
    """The change of a figure that every request has, or none."""
    change = Change(
        figure,
        Kind.UNCLEAR,
        Why.NOT_MEASURED,
        before.mean,
        after.mean,
        requests_before=before.count,
        requests_after=after.count,
    )
    if not before.count or not after.count:
        return change
    return _decided(_with_shift(change, before.blocks(), after.blocks()))


def change_of_kept(
    before: Group,
    after: Group,
    samples: Callable[[], tuple[Blocks, Blocks, int]],
    verdicts: tuple[Callable[[], Verdict], Callable[[], Verdict]],
) -> Change:
    """The change of what requests keep.

    `samples`: the bytes that each request kept before and after, and how many requests a block of them needs.
    """
    change = Change(
        Figure.KEPT,
        Kind.UNCLEAR,
        Why.NOT_MEASURED,
        before.kept_per_request,
        after.kept_per_request,
        requests_before=before.counted if before.kept_how == How.COUNTED.value else before.requests,
        requests_after=after.counted if after.kept_how == How.COUNTED.value else after.requests,
    )
    if before.kept_how is None or after.kept_how is None:
        return change
    if _keeps_nothing(before) and _keeps_nothing(after):
        return dataclasses.replace(change, kind=Kind.SAME, why=None, shift=0.0, low=0.0, high=0.0)
    if before.kept_how == after.kept_how == How.COUNTED.value:
        first, second, length = samples()
        if not first.sums or not second.sums:
            return dataclasses.replace(change, why=Why.FEW)
        change = _decided(_with_shift(change, first, second, length))
    else:
        change = _of_estimates(change, before, after)
    return _with_verdict(change, *verdicts)


def _keeps_nothing(group: Group) -> bool:
    """True if enough requests were counted, and all of them kept exactly nothing."""
    counted = group.kept_how == How.COUNTED.value and group.counted >= 2 * LEAST_BLOCKS
    return counted and group.kept_share == group.kept_per_request == 0.0


def _with_shift(change: Change, before: Blocks, after: Blocks, length: int = 1) -> Change:
    first, second = paired(before, after, length)
    if not first or not second:
        return change
    shift = shift_between(first, second)
    if min(len(first), len(second)) < LEAST_BLOCKS:
        return dataclasses.replace(change, shift=shift.estimate)
    return dataclasses.replace(change, shift=shift.estimate, low=shift.low, high=shift.high)


def _of_estimates(change: Change, before: Group, after: Group) -> Change:
    """Of a group that was estimated in at least one recording: two intervals that do not overlap are a change."""
    if before.kept_low is None or before.kept_high is None or after.kept_low is None or after.kept_high is None:
        return change
    known = change.before is not None and change.after is not None
    change = dataclasses.replace(
        change,
        shift=change.after - change.before if change.before is not None and change.after is not None else None,
        low=after.kept_low - before.kept_high,
        high=after.kept_high - before.kept_low,
        estimated=True,
    )
    decided = _decided(change)
    if decided.kind is Kind.UNCLEAR and not known:
        return dataclasses.replace(decided, why=Why.NOT_SURE)
    return decided


def _decided(change: Change) -> Change:
    """The change with its kind, by its interval."""
    if change.low is None or change.high is None:
        return dataclasses.replace(change, why=Why.FEW)
    requests = min(change.requests_before, change.requests_after)
    least = least_change(change.figure, change.before, change.after, requests)
    if change.low > least:
        return dataclasses.replace(change, kind=Kind.ROSE, why=None)
    if change.high < -least:
        return dataclasses.replace(change, kind=Kind.FELL, why=None)
    if -least <= change.low and change.high <= least:
        return dataclasses.replace(change, kind=Kind.SAME, why=None)
    return dataclasses.replace(change, why=Why.WIDE)


def _with_verdict(change: Change, before: Callable[[], Verdict], after: Callable[[], Verdict]) -> Change:
    """The change, if the recording in which more is kept has a leak; caches that are filled are none."""
    if change.kind not in (Kind.ROSE, Kind.FELL):
        return change
    verdict = after() if change.kind is Kind.ROSE else before()
    if verdict.kind is VerdictKind.LEAK:
        return dataclasses.replace(change, verdict=verdict)
    if verdict.kind is VerdictKind.UNCLEAR:
        return dataclasses.replace(change, kind=Kind.UNCLEAR, why=Why.VERDICT, verdict=verdict)
    return dataclasses.replace(change, kind=Kind.WARM_UP, verdict=verdict)
