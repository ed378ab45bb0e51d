"""Requests after which nothing more of their worker was counted, and how far what they kept is believed.

Many pages leave blocks that the worker's next request frees: an error's message, the name of a locale. Where the next
one was not counted, or has not come, nobody knows. Such a request is *open*: it counts only if another of its group,
which is not open, kept as much.

What an open request freed of earlier ones goes with it. Otherwise a list that each request makes longer, in a block
that realloc() moves, would be held by none: each but the last is freed by the next.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from typing import NamedTuple

from tracer.analysis.quantiles import Values
from tracer.facts import Request

_WORKERS_MAX = 8192


class LastCounted:
    """Tells which counted requests are followed by one. Forgets the workers that served none for the longest time."""

    def __init__(self) -> None:
        """No worker has been seen."""
        self._last: OrderedDict[tuple[str, int], tuple[int, Callable[[], None] | None]] = OrderedDict()

    def add(self, request: Request, followed: Callable[[], None] | None) -> None:
        """Take a worker's next request. `followed` is called if the one after it is counted; None: it was not."""
        worker = request.host, request.pid
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
    """Bytes that requests kept, of which some are open."""

    __slots__ = ("_believed", "_freed", "_freed_by_left_out", "_open", "_released", "_window", "values")

    def __init__(self, window: int | None) -> None:
        """`window`: how many last requests the quantiles cover, and what open ones are compared with; None for all."""
        self._window = window
        self.values = Values(window)
        self._believed = Believed()  # if the open ones are
        self._open: OrderedDict[int, tuple[int, int]] = OrderedDict()  # bytes kept, and freed of earlier, by number
        self._released = 0  # of what the requests kept, by later ones
        self._freed = 0  # by the requests, of earlier ones
        self._freed_by_left_out = 0  # of that, by requests that are left out for good

    def add(self, kept: int, *, is_open: bool, released: int = 0, freed: int = 0) -> int:
        """Add a request and return its number. OverflowError if a value does not fit in 64 bits.

        `kept` is what is left without the bytes that later requests have `released`; `freed` are those of earlier
        requests that this one freed.
        """
        self.values.add(kept)
        self._believed = self._believed.with_another(kept)
        number = self.values.count - 1
        self._released += released
        self._freed += freed
        if is_open:
            self._open[number] = kept, freed
        if self._window is not None and self._open and next(iter(self._open)) <= number - self._window:
            self._decide_on_the_oldest()
        return number

    def _decide_on_the_oldest(self) -> None:
        """Believe an open request that leaves the window, or leave it out for good."""
        _, (kept, freed) = self._open.popitem(last=False)
        most = self._most_of_others
        if most is not None and kept > most:
            self._believed = self._believed.without(kept)
            self._freed_by_left_out += freed

    def change(self, number: int, before: int, after: int) -> None:
        """Take note that the request of that number had kept `before`, and that `after` is left of it."""
        self.values.replace(number, before, after)
        self._believed = self._believed.without(before).with_another(after)
        self._released += before - after
        if number in self._open:
            self._open[number] = after, self._open[number][1]

    def close(self, number: int) -> None:
        """Take note that the request after the one of that number was counted."""
        self._open.pop(number, None)

    @property
    def all_open(self) -> bool:
        """True if no request is known to have been followed by one that was counted."""
        return len(self._open) == self.values.count

    @property
    def _most_of_others(self) -> int | None:
        return self.values.largest_besides(kept for kept, _ in self._open.values())

    @property
    def believed(self) -> Believed:
        """The requests that count: all, if all are open."""
        most, found, freed_by_left_out = self._most_of_others, self._believed, self._freed_by_left_out
        for kept, freed in self._open.values():
            if most is not None and kept > most:
                found = found.without(kept)
                freed_by_left_out += freed
        # Blocks of this group that it frees itself are handed on: as many as were released, if it freed so many.
        handed_on = min(self._released, self._freed)
        without_left_out = min(self._released, self._freed - freed_by_left_out)
        return found._replace(total=found.total + max(0, handed_on - max(0, without_left_out)))
