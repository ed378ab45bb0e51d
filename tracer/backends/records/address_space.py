"""From the memory calls of one worker to the bytes that each call stack added to its address space."""

from __future__ import annotations

import dataclasses
import mmap
from collections.abc import Iterator
from typing import NamedTuple

from tracer.backends.records.ranges import Ranges
from tracer.backends.records.stack_structs import Call
from tracer.facts import GIVEN_BACK, Stack


class MemoryCall(NamedTuple):
    """A call that succeeded. Fields as in struct memory_call_event: addresses and bytes."""

    call: Call
    address: int
    bytes: int
    to: int
    to_bytes: int


class _Owner(NamedTuple):
    nth: int  # the request it was mapped in
    script_ended: bool  # True: after the script, while PHP was cleaning up
    stack: Stack


@dataclasses.dataclass(slots=True)
class AddressSpace:
    """The memory that one worker has mapped while it was watched, and the stack that mapped it.

    Unmapped memory is taken off the stack that mapped it, if that was in the same request and in the
    same part of it: the script, or the cleaning up after it. Otherwise it is attributed to
    `[given back]`: memory that was freed at the end of the request, or left by an earlier request.
    """

    _ranges: Ranges[_Owner] = dataclasses.field(default_factory=Ranges)
    _brk: tuple[int, int] = (0, 0)  # the request, and the break after its last call

    def changes(self, nth: int, call: MemoryCall, stack: Stack, *, script_ended: bool) -> Iterator[tuple[Stack, int]]:
        """Yield (stack, signed bytes) for each change by a call in request `nth`, made by `stack`.

        Their sum is the change of the address space.
        """
        owner = _Owner(nth, script_ended, stack)
        size, to_size = whole_pages(call.bytes), whole_pages(call.to_bytes)
        if call.call is Call.MMAP:
            yield from self._map(call.address, size, owner)
        elif call.call is Call.MUNMAP:
            yield from self._unmap(call.address, size, owner)
        elif call.call is Call.MREMAP:
            yield from self._remap(call.address, size, call.to, to_size, owner)
        else:
            known, last = self._brk
            before = last if known == nth else call.address
            self._brk = nth, call.to
            if call.to > before:
                yield from self._map(before, call.to - before, owner)
            elif call.to < before:
                yield from self._unmap(call.to, before - call.to, owner)

    def _map(self, start: int, size: int, owner: _Owner) -> Iterator[tuple[Stack, int]]:
        """Map a range. Memory that a fixed mapping replaces was already counted; the space grows by the rest only."""
        replaced = self._ranges.add(start, start + size, owner)
        for begin, end, old in replaced:
            yield _blamed(old, owner), begin - end
        yield owner.stack, size

    def _unmap(self, start: int, size: int, owner: _Owner) -> Iterator[tuple[Stack, int]]:
        left = size
        for begin, end, old in self._ranges.take(start, start + size):
            left -= end - begin
            yield _blamed(old, owner), begin - end
        if left:
            yield (GIVEN_BACK,), -left

    def _remap(self, start: int, size: int, to: int, to_size: int, owner: _Owner) -> Iterator[tuple[Stack, int]]:
        """Move a range. It stays with the stack that mapped it; the caller's stack gets the bytes it is longer by."""
        moved = self._ranges.take(start, start + size)
        if to != start:
            for begin, end, old in self._ranges.take(to, to + min(size, to_size)):
                yield _blamed(old, owner), begin - end
        for begin, end, old in moved:
            keep = min(end, start + to_size)
            if begin < keep:
                self._ranges.add(to + begin - start, to + keep - start, old)
            if end > max(begin, keep):
                yield _blamed(old, owner), max(begin, keep) - end
        if to_size > size:
            yield from self._map(to + size, to_size - size, owner)
        elif to_size < size:
            known = sum(max(0, end - max(begin, start + to_size)) for begin, end, _ in moved)
            if size - to_size > known:
                yield (GIVEN_BACK,), known - (size - to_size)


def _blamed(old: _Owner, now: _Owner) -> Stack:
    """The stack that memory of `old` is taken off, if a call of `now` unmaps it."""
    return old.stack if (old.nth, old.script_ended) == (now.nth, now.script_ended) else (GIVEN_BACK,)


def whole_pages(size: int) -> int:
    """Round bytes up to whole pages, as the kernel does."""
    return (size + mmap.PAGESIZE - 1) // mmap.PAGESIZE * mmap.PAGESIZE
