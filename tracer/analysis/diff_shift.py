"""The Hodges-Lehmann shift from one sample to another, with an exact interval of Mann and Whitney's rank-sum test.

Sources: Hodges and Lehmann, Estimates of location based on rank tests, 1963; Mann and Whitney, On a test of whether one
of two random variables is stochastically larger than the other, 1947. Nearly three numbers in ten of a sample may be of
any size without moving the shift beyond what the others give.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence

from tracer.analysis.verdict.signed_rank import Shift

ERROR = 0.001  # of an interval that covers 99.9 %


def shift_between(before: Sequence[float], after: Sequence[float], error: float = ERROR) -> Shift:
    """The numbers by which `after` is shifted from `before`. Neither may be empty.

    The interval fails to cover the truth in a share of `error` at most. It is exact where all numbers differ, and too
    wide where some are alike. Without bounds if there are too few numbers.
    """
    differences = sorted([b - a for a in before for b in after])
    count = len(differences)
    middle = (differences[(count - 1) // 2] + differences[count // 2]) / 2
    rank = _critical_rank(*sorted((len(before), len(after))), error)
    if rank is None:
        return Shift(middle, None, None)
    return Shift(middle, differences[rank], differences[count - 1 - rank])


@functools.lru_cache(maxsize=4096)
def _critical_rank(fewer: int, more: int, error: float) -> int | None:
    """The largest rank sum that is exceeded, on either side, but in a share of `error`; None if none is that rare."""
    limit, seen = error / 2 * math.comb(fewer + more, fewer), 0
    for rank, ways in enumerate(rank_sums(fewer, more)):
        seen += ways
        if seen > limit:
            return rank - 1 if rank else None
    raise AssertionError


def rank_sums(fewer: int, more: int) -> list[int]:
    """In how many orders of two samples 0, 1, 2, and so on pairs have the number of the second one first.

    Up to half of all pairs: the rest is symmetric.
    """
    most = fewer * more // 2
    ways = [1] + [0] * most
    # The coefficients of the Gaussian binomial, a product of (1 - q^(more + i)) / (1 - q^i).
    for i in range(1, fewer + 1):
        for total in range(most, more + i - 1, -1):
            ways[total] -= ways[total - more - i]
        for total in range(i, most + 1):
            ways[total] += ways[total - i]
    return ways
