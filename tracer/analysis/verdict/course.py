"""How the native bytes that the requests of a group kept changed in the course of each worker's life.

Only increments are looked at, never levels. A leak goes on: in the last third of each worker's requests as well.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from math import inf
from typing import NamedTuple

from tracer.analysis.verdict.blocks import block_means
from tracer.analysis.verdict.signed_rank import MOST, Shift, least_values, shift
from tracer.analysis.verdict.trend import trend

_TREND_BLOCKS = 24
_SURELY_FALLS = -3.09  # standard deviations: 99.9 %
_LIKELY_FALLS = -2.33  # 99 %
_SEEMS_TO_FALL = -1.64  # 95 %
_MAY_FALL = -1.28  # 90 %
# Signs of a fall: what the last third keeps as a share of the second and of the first third, with the deviations of
# the last two thirds and of the whole. Each of them is rare in a leak, and one of them is found in most caches.
_FALLS = (
    (0.75, inf, _SEEMS_TO_FALL, inf),
    (0.75, 0.8, inf, _LIKELY_FALLS),
    (0.8, 0.8, inf, _SURELY_FALLS),
    (0.9, 0.7, _MAY_FALL, inf),
    (1.0, 0.9, _MAY_FALL, _SURELY_FALLS),
)
_GOES_ON = 0.5  # of the second and last third
_LEAST_EVENTS = 3.0  # that a worker's last requests should have if it is to be asked
_AGREES = 1 / 4  # of the estimate
_STOPPED = 0.1  # of what the requests kept on the whole
_FADES = 0.25  # of what the first thirds kept
_ENOUGH_EVENTS = 8.0
_SEVERAL_WORKERS = 3
# Requests in the last thirds, of all workers together. With fewer, a cache that fills slowly goes on as a leak does.
LEAST_LAST = 24
_LEAST_BLOCKS = least_values()


class Course(NamedTuple):
    """Bytes that a group's requests kept, those of each worker one after the other. `last` are its last third."""

    total: int
    last_requests: int
    # Bytes a request in blocks of the last thirds that kept or freed any, as Wilcoxon leaves out zeros. If these are
    # too few, and the last third keeps at least half of that before it, of the last two thirds. None: too few again.
    last: Shift | None
    early_mean: float  # in the first thirds
    last_mean: float
    falls: bool  # what they keep seems to become less still: it has not come to a rate that stays
    fades: bool  # it surely becomes less, and is a quarter of what it was
    stopped: bool  # it came in the beginning, and little or nothing comes now
    once: bool  # one request of each of several workers kept something, and no other
    asked: int  # workers, or groups of short-lived ones, with enough requests to tell
    agree: int  # of these, those that kept on in the last third
    workers: int  # that served at least two of them
    kept_in: int  # of these, those that kept any


def course(lives: Iterable[Sequence[int]]) -> Course:
    """The course of the bytes that the requests of each worker kept, which are in the order of their ends."""
    longer = [life for life in lives if len(life) >= 2]
    lasts = [life[-_third(life) :] for life in longer]
    last = [value for part in lasts for value in part]
    early = [value for life in longer for value in life[: _third(life)]]
    events = sum(value != 0 for value in last)
    asked = _replicates(lasts, events / len(last)) if events else []
    last_mean, early_mean = _mean(last), _mean(early)
    whole = trend([block_means(life, _TREND_BLOCKS) for life in longer]) if last_mean < early_mean else 0.0
    surely, falls = whole < _SURELY_FALLS, _falls(longer, last_mean, early_mean, whole)
    return Course(
        total=sum(map(sum, longer)),
        last_requests=len(last),
        last=_shift(last) or _shift_of_two_thirds(longer, last_mean) if len(last) >= LEAST_LAST else None,
        early_mean=early_mean,
        last_mean=last_mean,
        falls=falls,
        fades=falls and last_mean <= _FADES * early_mean and surely,
        stopped=len(last) >= LEAST_LAST and _stopped(longer, last, events, surely=surely),
        once=_once(longer),
        asked=len(asked),
        agree=sum(_mean(part) >= _AGREES * last_mean > 0 for part in asked),
        workers=len(longer),
        kept_in=sum(map(any, longer)),
    )


def _third(life: Sequence[int]) -> int:
    return -(-len(life) // 3)


def _mean(values: Sequence[int]) -> float:
    return sum(values) / len(values) if values else 0.0


def _once(lives: Sequence[Sequence[int]]) -> bool:
    events = [sum(value != 0 for value in life) for life in lives]
    return max(events, default=0) == 1 and sum(events) >= _SEVERAL_WORKERS


def _shift(values: Sequence[int]) -> Shift | None:
    blocks = [mean for mean in block_means(values, MOST) if mean]
    return shift(blocks) if len(blocks) >= _LEAST_BLOCKS else None


def _shift_of_two_thirds(lives: Sequence[Sequence[int]], last_mean: float) -> Shift | None:
    later = [value for life in lives for value in life[-2 * _third(life) :]]
    return _shift(later) if last_mean >= _GOES_ON * _mean(later) else None


def _replicates(lasts: Sequence[Sequence[int]], events_a_request: float) -> list[list[int]]:
    """The last requests of each worker, or of several together that served too few to tell."""
    found: list[list[int]] = []
    current: list[int] = []
    for part in lasts:
        current.extend(part)
        if len(current) * events_a_request >= _LEAST_EVENTS:
            found.append(current)
            current = []
    if current and found:
        found[-1] = found[-1] + current
    return found


def _falls(lives: Sequence[Sequence[int]], last_mean: float, early_mean: float, whole: float) -> bool:
    """True if the bytes become less, and in the last two thirds as well: a cache that is being filled."""
    longer = [life for life in lives if len(life) >= 2 * _third(life)]
    second = _mean([value for life in longer for value in life[-2 * _third(life) : -_third(life)]])
    if last_mean >= second:
        return False
    later = trend([block_means(life[-2 * _third(life) :], _TREND_BLOCKS) for life in longer])
    return any(
        last_mean < of_second * second and last_mean < of_first * early_mean and later < of_later and whole < of_whole
        for of_second, of_first, of_later, of_whole in _FALLS
    )


def _stopped(lives: Sequence[Sequence[int]], last: Sequence[int], events: int, *, surely: bool) -> bool:
    """True if the last third kept a tenth of its share of the bytes, in few requests, or it surely falls."""
    share = len(last) / sum(map(len, lives))
    total = sum(map(sum, lives))
    if total <= 0 or sum(last) > _STOPPED * share * total:
        return False
    expected = share * sum(value != 0 for life in lives for value in life)
    if expected >= _ENOUGH_EVENTS and events <= expected / 4:
        return True
    return surely
