"""A figure of many requests as the means of equally many: bounded memory, and nothing is left to chance.

Single requests are no good sample: where one in twenty keeps memory, their median is 0. Requests are put into blocks in
their order. A long series has longer blocks, of a power of two, and not more of them. The blocks of two series are made
equally long, so that the same requests give the same distribution, however many there are.

Limits. At most the requests of one block, at the end, are left out. If one series is more than 32 times as long as the
other, its blocks may be too long for the shorter one to have enough of them.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from typing import NamedTuple

RAW = 1024  # values that are kept as they are
_BLOCKS = 512  # of a series, from which on two become one
# Blocks of the shorter series that are compared: 12 to 23. More would be shorter, and less independent of each other: a
# machine is slow for some time. Fewer would widen the interval; these do by a seventh.
_FEWER = 12
_MORE = 48  # blocks of the longer series
LEAST_BLOCKS = 8  # of each series, for an interval of 99.9 %
_LEAST_EVENTS = 3  # of a block, so that most have one


class Blocks(NamedTuple):
    """Sums of `length` consecutive values each."""

    length: int
    sums: Sequence[float]


class Series:
    """Integers of 64 bits, in order. Append to `raw`, and call fold() after RAW values or fewer."""

    __slots__ = ("_count", "_length", "_part", "_sums", "_total", "raw")

    def __init__(self) -> None:
        """No value has been added."""
        self.raw = array("q")
        self._count = self._total = 0
        self._length = 1
        self._sums = array("d")
        self._part: list[float] = []  # sums of RAW values each that do not fill a block yet

    @property
    def count(self) -> int:
        """Values that were added."""
        return self._count + len(self.raw)

    @property
    def mean(self) -> float | None:
        """Their mean; None if there is none."""
        return (self._total + sum(self.raw)) / self.count if self.count else None

    def fold(self) -> None:
        """Make blocks of the first RAW values of `raw`, if there are so many."""
        if len(self.raw) < RAW:
            return
        self._count += RAW
        self._total += sum(self.raw[:RAW])
        if self._length <= RAW:
            self._sums.extend(map(float, _grouped(self.raw[:RAW], self._length)))
        else:
            self._part.append(float(sum(self.raw[:RAW])))
            if len(self._part) * RAW == self._length:
                self._sums.append(sum(self._part))
                self._part.clear()
        del self.raw[:RAW]
        while len(self._sums) >= _BLOCKS:  # which is even: it grows by powers of two
            self._sums = array("d", _grouped(self._sums, 2))
            self._length *= 2

    def blocks(self) -> Blocks:
        """All values but those at the end that fill no block."""
        rest = _grouped(self.raw, self._length) if self._length <= RAW else []
        return Blocks(self._length, [*self._sums, *rest])


def paired(before: Blocks, after: Blocks, length: int = 1) -> tuple[list[float], list[float]]:
    """Means of blocks of both that are equally long, at least `length` if that leaves enough; few, evenly chosen."""
    common = max(before.length, after.length)
    first, second = (_grouped(one.sums, common // one.length) for one in (before, after))
    fewer = min(len(first), len(second))
    factor = max(1, fewer // _FEWER, min(-(-length // common), fewer // LEAST_BLOCKS))
    means = [
        [total / (common * factor) for total in _chosen(_grouped(sums, factor), _MORE)] for sums in (first, second)
    ]
    return means[0], means[1]


def length_for_events(*samples: Sequence[int]) -> int:
    """How many values a block needs in which most have some that are not 0."""
    every = sum(map(len, samples))
    events = sum(len(values) - values.count(0) for values in samples)
    return -(-_LEAST_EVENTS * every // events) if events else 1


def _grouped(values: Sequence[float], count: int) -> Sequence[float]:
    """Sums of so many consecutive values each, without those at the end that are fewer."""
    if count == 1:
        return values
    return [sum(values[at : at + count]) for at in range(0, len(values) - count + 1, count)]


def _chosen(values: Sequence[float], most: int) -> Sequence[float]:
    """At most so many of the values, at even distances."""
    if len(values) <= most:
        return values
    return [values[at * len(values) // most] for at in range(most)]
