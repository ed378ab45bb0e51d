"""The ranges of a worker's address space, each with the owner that mapped it and from whom it is taken when unmapped.

Zend maps a chunk, finds it unaligned, unmaps it, maps more and trims both ends (zend_mm_chunk_alloc_int,
Zend/zend_alloc.c, 8.2): only what stays mapped is growth.
"""

from __future__ import annotations

import bisect
from typing import Generic, TypeVar

Owner = TypeVar("Owner")


class Ranges(Generic[Owner]):
    """Ranges of addresses, each with its owner; they never overlap."""

    def __init__(self) -> None:
        """No ranges."""
        self._starts: list[int] = []
        self._ends: list[int] = []
        self._owners: list[Owner] = []

    def __len__(self) -> int:
        """Return the number of ranges."""
        return len(self._starts)

    def add(self, start: int, end: int, owner: Owner) -> list[tuple[int, int, Owner]]:
        """Enter a range from `start` up to, not including, `end`; remove what it replaces, and return that as take().

        It is joined with neighbours of the same owner, as the kernel joins mappings: without that, 120,000 single
        pages, each below the one before, took 9 s.
        """
        replaced = self.take(start, end)
        if start < end:
            at = bisect.bisect_left(self._starts, start)
            if at and self._ends[at - 1] == start and self._owners[at - 1] == owner:
                self._ends[at - 1] = end
                at -= 1
            else:
                self._starts.insert(at, start)
                self._ends.insert(at, end)
                self._owners.insert(at, owner)
            if at + 1 < len(self._starts) and self._starts[at + 1] == end and self._owners[at + 1] == owner:
                self._ends[at] = self._ends.pop(at + 1)
                del self._starts[at + 1], self._owners[at + 1]
        return replaced

    def take(self, start: int, end: int) -> list[tuple[int, int, Owner]]:
        """Remove what is entered from `start` up to `end`, and return it as (start, end, owner), in order."""
        if start >= end:
            return []
        first = bisect.bisect_right(self._ends, start)
        last = bisect.bisect_left(self._starts, end)
        if first >= last:
            return []
        taken, kept = [], []
        for index in range(first, last):
            begin, stop, owner = self._starts[index], self._ends[index], self._owners[index]
            if begin < start:
                kept.append((begin, start, owner))
            taken.append((max(begin, start), min(stop, end), owner))
            if stop > end:
                kept.append((end, stop, owner))
        self._starts[first:last] = [begin for begin, _, _ in kept]
        self._ends[first:last] = [stop for _, stop, _ in kept]
        self._owners[first:last] = [owner for _, _, owner in kept]
        return taken
