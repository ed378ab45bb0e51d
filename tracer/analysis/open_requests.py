"""Requests after which nothing more of their worker was counted, and how far what they kept is believed.

Many pages leave blocks that the worker's next request frees: an error's message, the name of a locale. Where the next
one was not counted, or has not come, nobody knows. Such a request is *open*: it counts only if another of its group,
which is not open, kept as much.
"""

from __future__ import annotations

from array import array
from itertools import chain
from typing import NamedTuple

from tracer.analysis.quantiles import Values, nearest_rank

_LEFT_OUT_MAX = 1024


class Believed(NamedTuple):
    """How many requests count, what they kept together, the sum of its squares, and how many kept anything."""

    requests: int = 0
    total: int = 0
    squares: float = 0.0
    kept_any: int = 0

    def without(self, kept: int) -> Believed:
        """The same, without a request that kept so much."""
        requests, total, squares, kept_any = self
        return Believed(requests - 1, total - kept, squares - float(kept) * kept, kept_any - (kept > 0))


class OpenValues:
    """Bytes that requests kept, of which some are open, and the workers that served them."""

    __slots__ = (
        "_kept_any", "_left_out", "_open", "_requests", "_squares", "_total", "_values", "_window", "_workers",
        "version",
    )  # fmt: skip

    def __init__(self, window: int | None) -> None:
        """`window`: how many last requests the quantiles cover, and what open ones are compared with; None for all."""
        self._window = window
        self._values = Values(window)
        self._workers = array("q")
        self._requests = self._total = self._kept_any = 0  # as in Believed, if the open ones are
        self._squares = 0.0
        self._open: dict[int, int] = {}  # bytes kept, by number, in order
        self._left_out: dict[int, None] = {}  # numbers of the last that are not believed for good
        self.version = 0  # another one when something has changed

    def add(self, kept: int, worker: int) -> int:
        """Add a request of that worker, which is open, and return its number.

        OverflowError if a value does not fit in 64 bits.
        """
        number = self._values.count
        self._values.add(kept)
        window = self._window
        if window is None or number < window:
            self._workers.append(worker)
        else:
            self._workers[number % window] = worker
        self._requests += 1
        if kept:
            self._total += kept
            self._squares += float(kept) * kept
            self._kept_any += kept > 0
        self._open[number] = kept
        self.version += 1
        if window is not None and next(iter(self._open)) <= number - window:
            self._decide_on_the_oldest()
        return number

    def _take(self, kept: int, *, times: int) -> None:
        """Count a request that kept so much once more, or (-1) no more."""
        self._requests += times
        self._total += times * kept
        self._squares += times * float(kept) * kept
        self._kept_any += times * (kept > 0)

    def _decide_on_the_oldest(self) -> None:
        """Believe an open request that leaves the window, or leave it out for good."""
        number = next(iter(self._open))
        kept = self._open.pop(number)
        most = self._most_of_others
        if most is not None and kept > most:
            self._take(kept, times=-1)
            self._left_out[number] = None
            if len(self._left_out) > _LEFT_OUT_MAX:
                del self._left_out[next(iter(self._left_out))]

    def change(self, number: int, before: int, after: int) -> None:
        """Take note that the request of that number had kept `before`, and that `after` is left of it."""
        self.version += 1
        self._values.replace(number, before, after)
        if number in self._left_out:
            return
        self._take(before, times=-1)
        self._take(after, times=1)
        if number in self._open:
            self._open[number] = after

    def close(self, number: int) -> None:
        """Take note that the request after the one of that number was counted."""
        if self._open.pop(number, None) is not None:
            self.version += 1

    @property
    def count(self) -> int:
        """Requests that were added."""
        return self._values.count

    @property
    def _most_of_others(self) -> int | None:
        return self._values.largest_besides(self._open.values())

    @property
    def believed(self) -> Believed:
        """The requests that count: all, if all are open."""
        found = Believed(self._requests, self._total, self._squares, self._kept_any)
        most = self._most_of_others
        for kept in self._open.values():
            if most is not None and kept > most:
                found = found.without(kept)
        return found

    @property
    def last(self) -> array[int]:
        """The bytes that the last `window` requests kept, in no order."""
        return self._values.last

    def closed(self) -> list[tuple[int, int]]:
        """For each of the last `window` requests that is not open, in order: the bytes it kept, and its worker."""
        size = self._window or len(self._workers)
        is_open = {number % size for number in self._open}
        pairs = [
            pair for at, pair in enumerate(zip(self._values.last, self._workers, strict=True)) if at not in is_open
        ]
        if self.count <= size:
            return pairs
        oldest = self.count % size
        newer = oldest - sum(at < oldest for at in is_open)
        return pairs[newer:] + pairs[:newer]


class OpenSum:
    """The requests of several OpenValues together."""

    def __init__(self, *parts: OpenValues) -> None:
        """Take the parts as they are now."""
        self._parts = parts
        self.count = sum(part.count for part in parts)
        self.believed = Believed(*map(sum, zip(*(part.believed for part in parts), strict=True)))

    def closed(self) -> list[tuple[int, int]]:
        """For each of the last requests that is not open: the bytes it kept, and its worker."""
        return [pair for part in self._parts for pair in part.closed()]

    def quantiles(self, *shares: float) -> list[int | None]:
        """As Values has them, of the last requests, the open ones included."""
        return nearest_rank(chain.from_iterable(part.last for part in self._parts), *shares)
