"""The blocks that requests left behind: who frees them, or makes them longer, and whose they are then.

A list that each request makes longer, in a block that it moves, is held by those who made it longer. So a request that
frees blocks of its own group, or moves those of any, is counted with the growth of these, and the requests that had
them before keep theirs.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

from tracer.analysis.accumulator import Accumulator
from tracer.analysis.open_requests import OpenValues
from tracer.facts import Release, Request, retained

# Requests that left blocks behind, of which a ranking remembers for a while how much that was.
_HELD_MAX = 65_536


class _Held:
    """The bytes that a request kept, and those that were freed since. `blocks` are those that may be freed yet."""

    __slots__ = ("_kept", "_number", "_released", "_values", "blocks", "group")

    def __init__(
        self, kept: int, released: int, blocks: int, group: Accumulator, values: OpenValues, number: int
    ) -> None:
        self._kept = kept
        self._released = released
        self.blocks = blocks
        self.group = group
        self._values = values
        self._number = number

    def release(self, freed: int) -> None:
        self.blocks -= freed
        self._change(freed)

    def hand_on(self, freed: int) -> None:
        """Count what it had released as freed of the request that freed it."""
        self._change(-freed)

    def _change(self, freed: int) -> None:
        before = retained(self._kept, self._released)
        self._released += freed
        self._values.change(self._number, before, retained(self._kept, self._released))


class HeldBlocks:
    """The last requests that left blocks behind, by worker and start."""

    def __init__(self) -> None:
        """Nothing is held."""
        self._held: OrderedDict[tuple[int, int], _Held] = OrderedDict()

    def add(self, request: Request, group: Accumulator, values: OpenValues, number: int, taken_over: int) -> None:
        """Take a request that was counted: where it is, and its number there, as Accumulator.add() said."""
        kept, started = request.native_kept, request.started_ns
        if kept is None or started is None:
            return
        blocks = _blocks_left(request)
        if blocks > 0:
            released = (request.native_released or 0) + taken_over
            self._held[request.pid, started] = _Held(kept, released, blocks, group, values, number)
            if len(self._held) > _HELD_MAX:
                self._held.popitem(last=False)

    def take_over(self, request: Request, group: Accumulator, freed: Sequence[Release]) -> int:
        """Return the bytes that the request freed and that count as freed of itself."""
        taken_over = 0
        for fact in freed:
            if fact.freed_by_ns != request.started_ns:
                continue
            known = request.native_kept is not None and request.complete
            held = self._held.get((fact.pid, fact.started_ns))
            if held is None:
                # What a request makes longer that was not counted, it made longer by the difference.
                taken_over += fact.bytes if known and not fact.started_ns else 0
                continue
            if known and (fact.resized or held.group is group):
                held.hand_on(fact.bytes)
                taken_over += fact.bytes
            if held.blocks <= 0:
                self._held.pop((fact.pid, fact.started_ns))
        return taken_over

    def release(self, fact: Release) -> None:
        """Take back what a request had kept, and what has been freed now."""
        held = self._held.get((fact.pid, fact.started_ns))
        if held is None:
            return
        held.release(fact.bytes)
        # Who frees it may have to be charged: take_over() forgets it then.
        if fact.freed_by_ns is None and held.blocks <= 0:
            del self._held[fact.pid, fact.started_ns]


def _blocks_left(request: Request) -> int:
    """Bytes of the blocks that it allocated and did not free. What it kept are these and its mappings."""
    allocated, freed, earlier = request.native_alloc_bytes, request.native_free_bytes, request.native_freed_earlier
    return (allocated or 0) - (freed or 0) + (earlier or 0)
