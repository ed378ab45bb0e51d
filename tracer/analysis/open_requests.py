"""Requests after which nothing more of their worker was counted, and how far what they kept is believed.

Many pages leave blocks that the worker's next request frees: an error's message, the name of a locale. Where the next
one was not counted, or has not come, nobody knows. Such a request is *open*: it counts only if another of its group,
which is not open, kept as much.
"""

from __future__ import annotations

from array import array
from collections import OrderedDict
from collections.abc import Callable
from itertools import chain
from typing import NamedTuple

from tracer.analysis.quantiles import Values, nearest_rank
from tracer.facts import Request, WorkerId

_WORKERS_MAX = 8192
_LEFT_OUT_MAX = 1024


class LastCounted:
    """Tells which counted requests are followed by one. Forgets the workers that served none for the longest time."""

    def __init__(self) -> None:
        """No worker has been seen."""
        self._last: OrderedDict[WorkerId, tuple[int, Callable[[], None] | None]] = OrderedDict()

    def add(self, request: Request, followed: Callable[[], None] | None) -> None:
        """Take a worker's next request. `followed` is called if the one after it is counted; None: it was not."""
        worker = request.worker
        nth, before = self._last.pop(worker, (0, None))
        # Where a filter left out the one after it, nobody knows whether that was counted.
        if before is not None and (request.nth > nth + 1 or (request.nth == nth + 1 and followed is not None)):
            before()
        self._last[worker] = request.nth, followed
        if len(self._last) > _WORKERS_MAX:
            self._last.popitem(last=False)


class Believed(NamedTuple):
    """How many requests count, what they kept together, the sum of its squares, and how many kept anything."""

    requests: int = 0
    total: int = 0
    squares: float = 0.0
    kept_any: int = 0

    def with_another(self, kept: int) -> Believed:
        """The same, and a request that kept so much."""
        requests, total, squares, kept_any = self
        return Believed(requests + 1, total + kept, squares + float(kept) * kept, kept_any + (kept > 0))

    def without(self, kept: int) -> Believed:
        """The same, without a request that kept so much."""
        requests, total, squares, kept_any = self
        return Believed(requests - 1, total - kept, squares - float(kept) * kept, kept_any - (kept > 0))


class OpenValues:
    """Bytes that requests kept, of which some are open, and the workers that served them."""

    __slots__ = ("_believed", "_left_out", "_open", "_values", "_window", "_workers")

    def __init__(self, window: int | None) -> None:
        """`window`: how many last requests the quantiles cover, and what open ones are compared with; None for all."""
        self._window = window
        self._values = Values(window)
        self._workers = array("q")
        self._believed = Believed()  # if the open ones are
        self._open: OrderedDict[int, int] = OrderedDict()  # bytes kept, by number
        self._left_out: OrderedDict[int, None] = OrderedDict()  # numbers of the last that are not believed for good

    def add(self, kept: int, worker: int, *, is_open: bool) -> int:
        """Add a request of that worker, and return its number. OverflowError if a value does not fit in 64 bits."""
        self._values.add(kept)
        number = self._values.count - 1
        if self._window is None or number < self._window:
            self._workers.append(worker)
        else:
            self._workers[number % self._window] = worker
        self._believed = self._believed.with_another(kept)
        if is_open:
            self._open[number] = kept
        if self._window is not None and self._open and next(iter(self._open)) <= number - self._window:
            self._decide_on_the_oldest()
        return number

    def _decide_on_the_oldest(self) -> None:
        """Believe an open request that leaves the window, or leave it out for good."""
        number, kept = self._open.popitem(last=False)
        most = self._most_of_others
        if most is not None and kept > most:
            self._believed = self._believed.without(kept)
            self._left_out[number] = None
            if len(self._left_out) > _LEFT_OUT_MAX:
                self._left_out.popitem(last=False)

    def change(self, number: int, before: int, after: int) -> None:
        """Take note that the request of that number had kept `before`, and that `after` is left of it."""
        self._values.replace(number, before, after)
        if number in self._left_out:
            return
        self._believed = self._believed.without(before).with_another(after)
        if number in self._open:
            self._open[number] = after

    def close(self, number: int) -> None:
        """Take note that the request after the one of that number was counted."""
        self._open.pop(number, None)

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
        most, found = self._most_of_others, self._believed
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
