"""The memory that requests need above their idle workers, and how much several workers need for it at the same time.

A pool needs the most when all its workers are busy. Then each of them is in a request, and the more likely in a
request of some kind, the more time requests of that kind take. For each number of workers, the sum of so many
independent ones is worked out, by convolution.

A sum that is exceeded at 1 % of all moments would be exceeded within a minute. So the bound is by the hour: with it,
less than one hour in a hundred has a moment at which the workers together need more. In an hour, each worker starts
some thousand requests, and each start is such a moment: the bound is the one that a moment exceeds with 1 % divided by
the number of starts.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterator, Sequence

HOURS = 0.01  # of so many hours, some have a moment that needs more
_BINS = 32
_SIGNIFICANT_BITS = 7
_PAGE = 4096
_HOUR_NS = 3600 * 10**9
_NOTHING = 1e-16  # probabilities that are left out at both ends of a sum
_LEAST = 1e-13  # no bound is surer than this


def rounded_up(size: int) -> int:
    """The size in pages of 4 KiB, and in at most seven binary digits, rounded up: at most 1.6 % or a page more."""
    pages = -(-size // _PAGE)
    drop = max(0, pages.bit_length() - _SIGNIFICANT_BITS)
    return (-(-pages >> drop) << drop) * _PAGE


class Rises:
    """The memory that requests needed above their workers before, weighted by the time that they took."""

    def __init__(self) -> None:
        """No request yet."""
        self.requests = 0
        self.largest = 0  # bytes
        self.busy_ns = 0
        self._ns_of: Counter[int] = Counter()  # by rounded_up(): at most some thousand

    def add(self, rise: int, duration_ns: int) -> None:
        """Count a request."""
        duration_ns = max(1, duration_ns)
        rise = max(0, rise)
        self.requests += 1
        self.busy_ns += duration_ns
        self.largest = max(self.largest, rounded_up(rise))
        self._ns_of[rounded_up(rise)] += duration_ns

    def mean(self) -> int:
        """Bytes that a busy worker needs on average over the time, rounded up. 0 without any request."""
        total = sum(rise * spent for rise, spent in self._ns_of.items())
        return -(-total // max(1, self.busy_ns))

    def together(self) -> Iterator[int]:
        """Yield the bytes that 1, 2, 3 … busy workers need together, in all but HOURS of the hours."""
        step, first, shares = self._steps()
        base = self._median() + first * step  # of the first share
        starts = _HOUR_NS * self.requests / max(1, self.busy_ns)  # of one busy worker in an hour
        most = 0
        for workers, (below, sums) in enumerate(_sums(shares), 1):
            bound = max(_LEAST, min(HOURS, HOURS / max(1.0, starts * workers)))
            beyond = 0.0
            at = len(sums) - 1
            while at > 0 and beyond + sums[at] <= bound:
                beyond += sums[at]
                at -= 1
            most = max(most, workers * base + (below + at) * step)
            yield min(most, workers * self.largest)

    def _median(self) -> int:
        left = self.busy_ns / 2
        for rise in sorted(self._ns_of):
            left -= self._ns_of[rise]
            if left <= 0:
                return rise
        return self.largest

    def _steps(self) -> tuple[int, int, list[float]]:
        """Bytes of a step, the first step, and the share of the time that a worker is at this and each later step.

        Steps count from the median, so that what most requests need is exact. What is between two steps is divided
        among both so that the mean stays the same, and the spread grows.
        """
        median, least = self._median(), min(self._ns_of, default=0)
        step = max(1, -(-(self.largest - least) // _BINS))
        first = (least - median) // step
        shares = [0.0] * (_BINS + 3)
        for rise, spent in self._ns_of.items():
            steps, rest = divmod(rise - median, step)
            share = spent / self.busy_ns
            shares[steps - first] += share * (1 - rest / step)
            shares[steps - first + 1] += share * (rest / step)
        return step, first, shares


def _sums(one: Sequence[float]) -> Iterator[tuple[int, list[float]]]:
    """Yield, for the sum of 1, 2, 3 … such figures, the first value that it may have and the probability of each."""
    parts = [(steps, share) for steps, share in enumerate(one) if share > 0]
    first, shares = 0, [1.0]
    while True:
        longer = [0.0] * (len(shares) + (parts[-1][0] if parts else 0))
        for steps, share in parts:
            end = steps + len(shares)
            longer[steps:end] = [sum_ + share * other for sum_, other in zip(longer[steps:end], shares, strict=True)]
        below = sum(1 for _ in itertools.takewhile(lambda value: value < _NOTHING, longer))
        above = sum(1 for _ in itertools.takewhile(lambda value: value < _NOTHING, reversed(longer)))
        first, shares = first + below, longer[below : len(longer) - above] or [1.0]
        yield first, shares
