"""Zend's chunks and the heap in the first of them, made by hand in this process's own memory."""

from __future__ import annotations

import ctypes
import mmap
import os
import struct
from collections.abc import Sequence
from itertools import zip_longest

from tracer.targets.zend_heap import CHUNK, ZendResidency, resident

PAGE = mmap.PAGESIZE
HEAP_AT = 64  # in its chunk: zend_mm_chunk.heap_slot
MAIN_AT = 328  # of main_chunk in zend_mm_heap, as in Debian's 8.2.36; huge_list is before it


class ZendChunks:
    """Room for that many chunks, none of which is resident at first. close() gives it back."""

    def __init__(self, count: int) -> None:
        self._memory = mmap.mmap(-1, (count + 1) * CHUNK, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        self._memory.madvise(mmap.MADV_NOHUGEPAGE)
        self._view = ctypes.c_char.from_buffer(self._memory)
        self._base = ctypes.addressof(self._view)
        first = -(-self._base // CHUNK) * CHUNK
        self.at = [first + CHUNK * number for number in range(count)]
        self.heap = self.at[0] + HEAP_AT

    def close(self) -> None:
        del self._view
        self._memory.close()

    def write(self, address: int, content: bytes) -> None:
        at = address - self._base
        self._memory[at : at + len(content)] = content

    def word(self, address: int, value: int) -> None:
        self.write(address, struct.pack("<Q", value & (1 << 64) - 1))

    def read_page(self, address: int) -> int:
        """Have the kernel map its zero page there."""
        return self._memory[address - self._base]

    def lists(self, live: Sequence[int], cached: Sequence[int] = (), huge: Sequence[tuple[int, int]] = ()) -> None:
        """The heap in the first of `live`, and what hangs from it: chunks by number, huge blocks by (number, size)."""
        for number, following in zip(live, [*live[1:], live[0]], strict=True):
            self.write(self.at[number], struct.pack("<3Q", self.heap, self.at[following], 0))
        for number, after in zip_longest(cached, cached[1:]):
            self.write(self.at[number], struct.pack("<3Q", 0, 0 if after is None else self.at[after], 0))
        nodes = [self.at[0] + 4096 + 32 * number for number in range(len(huge))]
        for (node, after), (number, size) in zip(zip_longest(nodes, nodes[1:], fillvalue=0), huge, strict=True):
            self.write(node, struct.pack("<3Q", self.at[number], size, after))
        first = self.at[cached[0]] if cached else 0
        self.write(
            self.heap + MAIN_AT - 8,
            struct.pack("<3Q3i", nodes[0] if nodes else 0, self.at[0], first, len(live), len(live), len(cached)),
        )

    def touch(self, number: int, pages: int) -> None:
        """Write to so many pages of a chunk, from its second on."""
        for page in range(1, pages + 1):
            self.write(self.at[number] + PAGE * page + PAGE - 1, b"x")

    def look(self, heap: int | None = None, limit_bytes: int = 1 << 30) -> ZendResidency:
        return resident(os.getpid(), self.heap if heap is None else heap, limit_bytes=limit_bytes)
