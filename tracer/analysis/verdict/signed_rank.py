"""The Hodges-Lehmann estimate of the centre of numbers, with an exact interval of Wilcoxon's signed-rank test.

Sources: Hodges and Lehmann, Estimates of location based on rank tests, 1963; Wilcoxon, Individual comparisons by
ranking methods, 1945. One number in four may be of any size without moving the estimate beyond the others.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import NamedTuple

MOST = 64  # numbers at most: 2,080 averages of pairs


class Shift(NamedTuple):
    """The centre of some numbers, and an interval that covers it; without bounds if there are too few numbers."""

    estimate: float
    low: float | None
    high: float | None


def shift(values: Sequence[float], error: float = 0.001) -> Shift:
    """The centre of 1 to MOST numbers. Its interval fails to cover the truth in a share of `error` at most.

    The interval is exact where the numbers are symmetric and all differ, and too wide where some are alike.
    """
    averages = sorted((a + b) / 2 for at, a in enumerate(values) for b in values[at:])
    count = len(averages)
    middle = (averages[(count - 1) // 2] + averages[count // 2]) / 2
    rank = _critical_rank(len(values), error)
    return Shift(middle, None, None) if rank is None else Shift(middle, averages[rank], averages[count - 1 - rank])


def least_values(error: float = 0.001) -> int:
    """How many numbers an interval needs."""
    return next(count for count in range(1, MOST + 1) if _critical_rank(count, error) is not None)


@functools.lru_cache(maxsize=2 * MOST)
def _critical_rank(count: int, error: float) -> int | None:
    """The largest rank sum that is exceeded, on either side, but in a share of `error`; None if none is that rare."""
    limit, seen = error / 2 * 2**count, 0
    for rank, ways in enumerate(rank_sums(count)):
        seen += ways
        if seen > limit:
            return rank - 1 if rank else None
    raise AssertionError


@functools.lru_cache(maxsize=2 * MOST)
def rank_sums(count: int) -> tuple[int, ...]:
    """In how many of the 2**count choices of the ranks 1 to `count` they add up to 0, 1, 2, and so on."""
    ways = [1]
    for rank in range(1, count + 1):
        longer = ways + [0] * rank
        for total, number in enumerate(ways):
            longer[total + rank] += number
        ways = longer
    return tuple(ways)
