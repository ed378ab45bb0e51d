"""Windows: consecutive requests of a worker, by what memory it grew, and how far that may be off."""

from __future__ import annotations

import math
from collections.abc import Hashable
from typing import Final, NamedTuple

PAGE = 4096
ROUNDING = PAGE / 2  # standard deviation of a difference of two numbers of pages


class Nobody:
    """Stands for no key: any key may be the caller's, None too."""


NOBODY: Final = Nobody()


class Window(NamedTuple):
    """Consecutive requests of one worker, or several such windows together. Bytes.

    Its growth may be off by `hidden`, memory that is kept but does not show, unless it ends as it begins.
    """

    chain: tuple[int, int]  # the cutter's number, and its restarts: windows of a chain follow on each other
    counts: dict[Hashable, int]  # requests by key, without first uses
    growth: int
    variance: float  # of the growth, by rounding and by the ends of windows that were joined
    begins: Hashable = NOBODY  # the key of the request before it, if that grew the worker
    ends: Hashable = NOBODY  # the key of its last request, if that grew the worker
    hidden: float = 0.0
    walked: bool = False  # measured by heap walks: other windows cover the same requests
    young: bool = False  # the worker's warm-up was possibly not over

    @property
    def requests(self) -> int:
        """Number of requests that are counted."""
        return sum(self.counts.values())

    @property
    def noise(self) -> float:
        """Standard deviation of the growth."""
        hidden = 0.0 if self.begins is not NOBODY and self.begins == self.ends else self.hidden
        return math.sqrt(self.variance + hidden * hidden)

    def joined(self, later: Window) -> Window:
        """Both windows as one: where they follow on each other, what was hidden between them is in one of them."""
        counts = dict(self.counts)
        add_counts(counts, later.counts)
        follows = self.chain == later.chain
        return later._replace(
            counts=counts,
            growth=self.growth + later.growth,
            variance=max(self.variance, later.variance) if follows else self.noise**2 + later.variance,
            begins=self.begins if follows else later.begins,
            hidden=max(self.hidden, later.hidden) if follows else later.hidden,
            young=self.young or later.young,
        )


def add_counts(counts: dict[Hashable, int], more: dict[Hashable, int]) -> None:
    """Add `more` to `counts`."""
    for key, count in more.items():
        counts[key] = counts.get(key, 0) + count
