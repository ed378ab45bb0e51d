"""The sum of many integers, and quantiles of the last of them."""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Iterable


class Values:
    """The sum of all integers added, and quantiles of the last `window` of them (None: of all)."""

    __slots__ = ("_window", "count", "last", "total")

    def __init__(self, window: int | None) -> None:
        """No value has been added."""
        self._window = window
        self.last = array("q")  # in no order
        self.count = 0
        self.total = 0

    def add(self, value: int) -> None:
        """Add a value. OverflowError if it does not fit in 64 bits."""
        window, count = self._window, self.count
        if window is None or count < window:
            self.last.append(value)
        else:
            self.last[count % window] = value
        self.count = count + 1
        self.total += value

    def replace(self, number: int, before: int, after: int) -> None:
        """Replace the value that was added as the one of that number, from 0. OverflowError as in add()."""
        if self._window is None or number >= self.count - self._window:
            self.last[number if self._window is None else number % self._window] = after
        self.total += after - before

    def largest_besides(self, others: Iterable[int]) -> int | None:
        """The largest of the last `window` values that is not one of `others`, each of which was added, too.

        None if there is none.
        """
        if not self.last:
            return None
        most, left_out = max(self.last), Counter(others)
        if self.last.count(most) > left_out[most]:
            return most
        for value in sorted(self.last, reverse=True):
            if not left_out[value]:
                return value
            left_out[value] -= 1
        return None

    def quantiles(self, *shares: float) -> list[int | None]:
        """The value of each share (0.5 is the median), by nearest rank: values that occurred; None if there is none."""
        return nearest_rank(self.last, *shares)


def nearest_rank(values: Iterable[int], *shares: float) -> list[int | None]:
    """For each share, the smallest value such that at least that share of them is not larger; None if there is none."""
    ordered = sorted(values)
    if not ordered:
        return [None for _ in shares]
    return [ordered[max(0, -int(-share * len(ordered) // 1) - 1)] for share in shares]
