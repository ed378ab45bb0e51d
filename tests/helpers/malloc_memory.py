"""A heap of glibc's malloc, and the books about it, made by hand in this process's own memory."""

from __future__ import annotations

import array
import ctypes
import mmap
import os
import struct
from collections.abc import Sequence

from tracer.targets.malloc_heap import DEFAULT_LIMIT, MallocHeap, look
from tracer.targets.process_memory import Maps, ProcessMemory

PAGE = mmap.PAGESIZE
HEAP_BYTES = 512 << 10
LIBC_BYTES = 2 * PAGE
# Places of struct malloc_state and malloc_par in the data of the C library made here.
ARENA_AT, PAR_AT = 0x800, 0x200
BINS, NEXT, SYSTEM_MEM = 112, 2160, 2184  # in malloc_state of glibc 2.36
USED, FREE = 1, 0


class MallocMemory:
    """Memory for a heap and for a C library's data. close() gives it back; `base` is the heap's first address."""

    def __init__(self) -> None:
        # One page more in between, and at the end, that is of neither.
        self._memory = mmap.mmap(-1, HEAP_BYTES + LIBC_BYTES + 2 * PAGE, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        self._view = ctypes.c_char.from_buffer(self._memory)
        self.base = ctypes.addressof(self._view)
        self.libc = self.base + HEAP_BYTES + PAGE
        self.heap_bytes = HEAP_BYTES
        self.top = self.base

    def close(self) -> None:
        del self._view
        self._memory.close()

    def write(self, address: int, content: bytes) -> None:
        at = address - self.base
        self._memory[at : at + len(content)] = content

    def word(self, address: int, value: int) -> None:
        self.write(address, struct.pack("<Q", value & (1 << 64) - 1))

    def chunks(self, every: Sequence[tuple[int, int]], top: int | None = None) -> list[int]:
        """Chunks of (size, USED or FREE), then top, up to the end of the heap; return their addresses."""
        at, before, places = self.base, USED, []
        for size, use in every:
            self.word(at + 8, size | before)
            places.append(at)
            at, before = at + size, use
            if use == FREE:
                self.word(at, size)
        self.top = at
        self.heap_bytes = HEAP_BYTES if top is None else at - self.base + top
        self.word(at + 8, self.base + self.heap_bytes - at | before)
        return places

    def tcache(self, at: int, bins: dict[int, int], *, head: int | None = None) -> None:
        """tcache_perthread_struct of glibc 2.30 to 2.41: so many chunks of each size."""
        counts, entries = array.array("H", bytes(128)), array.array("Q", bytes(512))
        for size, count in bins.items():
            counts[(size - 32) // 16] = count
            entries[(size - 32) // 16] = self.base + 16 if head is None else head
        self.write(at + 16, counts.tobytes() + entries.tobytes())

    def tcache_of_rooms(self, at: int, bins: dict[int, int], most: int) -> None:
        """tcache_perthread_struct of glibc 2.42: the room that is left."""
        rooms, entries = array.array("H", [most] * 76), array.array("Q", bytes(8 * 76))
        for size, count in bins.items():
            rooms[(size - 32) // 16] = most - count
            entries[(size - 32) // 16] = self.base + 16
        self.write(at + 16, rooms.tobytes() + entries.tobytes())

    def arena(
        self,
        fastbins: Sequence[int] = (),
        *,
        mapped: int = 0,
        system_mem: int | None = None,
        has_fastbins: bool = True,
    ) -> None:
        """main_arena and mp_ of glibc 2.36; without fastbins, of the one after 2.42."""
        at = self.libc + ARENA_AT
        heads = [*fastbins, *[0] * (10 - len(fastbins))]
        self.write(at, struct.pack("<iii4x10QQQ", 0, 0, 0, *heads, self.top, 0))
        for number in range(127):
            self.write(at + BINS + 16 * number, struct.pack("<2Q", *[at + 96 + 16 * number] * 2))
        self.word(at + NEXT, at if has_fastbins else at + 96 - 8)
        self.word(at + SYSTEM_MEM, self.heap_bytes if system_mem is None else system_mem)
        par = self.libc + PAR_AT
        self.write(par, struct.pack("<3Q4Q", mapped, mapped, self.base, 64, 1032, 7, 0))

    def mangled_list(self, chunks: Sequence[int]) -> int:
        """Link these free chunks as glibc >= 2.32 does; return the first."""
        for chunk, following in zip(chunks, [*chunks[1:], 0], strict=True):
            self.word(chunk + 16, following ^ (chunk + 16 >> 12))
        return chunks[0]

    def maps(self, allocator: str | None = None) -> Maps:
        heap = (self.base, self.base + self.heap_bytes)
        return Maps(self.base, heap, ((self.libc, self.libc + LIBC_BYTES),), (), allocator)

    def look(self, limit_bytes: int = DEFAULT_LIMIT, until: float | None = None) -> MallocHeap:
        with ProcessMemory(os.getpid(), until=until) as memory:
            return look(memory, self.maps(), limit_bytes=limit_bytes)
