"""The books that glibc's malloc keeps about its heap: the main arena, the thread cache, blocks mapped apart.

None of them has a symbol. Each is known by its shape, and what does not have it exactly is not taken for it.
Sources: malloc/malloc.c of glibc 2.26 to 2.42, 64 bits. Compared with gdb and mallinfo2(): 2.36.
"""

from __future__ import annotations

import array
import dataclasses
from collections.abc import Sequence

from tracer.targets.process_memory import PAGE, Maps, ProcessMemory

# struct malloc_state, by its distance from the member `top`. The bins are pairs of pointers; an empty one points to
# the place 16 bytes before it (bin_at). glibc 2.26 to 2.42.
_BINS, _BIN_COUNT = 16, 127
_NEXT = _BINS + 16 * (_BIN_COUNT + 1)
_SYSTEM_MEM = _NEXT + 24
_WORDS = _SYSTEM_MEM // 8 + 1
# Where `top` is in it: glibc 2.27 to 2.42, 2.26, and after 2.42, which has no fastbins.
_TOPS = (96, 88, 8)
_FASTBINS = 10
_ARENAS = 1 << 10
# Bounds of the search, for a C library that is none: bytes of each of so many ranges, and places looked at closely.
_DATA_BYTES = 1 << 20
_DATA_RANGES = 4
_CANDIDATES = 1 << 10

# Following fastbins: so many bytes of the heap are read at once, and kept in so many blocks.
_BLOCK, _BLOCKS = 16 << 10, 1 << 10
_LISTED = 4 << 20  # chunks followed in all: 0.5 µs each
_READS = 1 << 18  # blocks read in all: 12 µs each, and a list may lead to another block with every chunk
_CHECK_EVERY = 1 << 10  # chunks, after which the time is checked
_NO_WORDS = memoryview(b"").cast("Q")

# tcache_perthread_struct, by the size of its chunk: (bins, bytes of a counter).
_TCACHES = {
    0x250: (64, 1),  # glibc 2.26 to 2.29
    0x290: (64, 2),  # 2.30 to 2.41
    0x300: (76, 2),  # from 2.42 on; counts the room that is left, from tcache_count down
}
TCACHE_ROOM = 0x300
TCACHE_BYTES = TCACHE_ROOM + 8  # a chunk's last word is in the one behind it
TCACHE_BINS = 64  # those of one size each: 32, 48, … 1,040 bytes
TCACHE_COUNT = 16  # chunks in each, unless a tunable says otherwise: 7 up to glibc 2.42, then 16


@dataclasses.dataclass(frozen=True, slots=True)
class Arena:
    """The main arena at one moment. Two of them are equal if malloc did nothing in between but use its thread cache."""

    at: int  # address of its member `top`
    words: tuple[int, ...]  # from `top` to system_mem
    begin: int | None  # address of the structure; None: the ring of arenas did not lead back to it
    fastbins: tuple[int, ...] | None  # list heads; () where this glibc has none, None where that is not known
    base: int  # where malloc's memory begins; a static program has its thread's data before it
    end: int  # where it ends, and with it the last chunk
    mapped_bytes: int | None  # blocks mapped apart; None: not found

    @property
    def top(self) -> int:
        """Address of the last chunk."""
        return self.words[0]

    @property
    def others(self) -> bool | None:
        """True if threads have arenas of their own; None if that is not known."""
        return None if self.begin is None else self.words[_NEXT // 8] != self.begin

    def unchanged(self, memory: ProcessMemory) -> bool:
        """True if it is now as it was."""
        return memory.words(self.at, _WORDS) == self.words and _fastbins(memory, self.at, self.begin) == self.fastbins


def find_arena(memory: ProcessMemory, maps: Maps, start: int, end: int) -> Arena | None:
    """The main arena, in the data of the C library; None if it is not found. `start`, `end`: those of the heap.

    Its `top` points into the heap, and of its 127 bins each points to itself or into the heap.
    """
    candidates = 0
    for low, high in maps.libc_data[:_DATA_RANGES]:
        words = array.array("Q", memory.read_resident(low, min(high - low, _DATA_BYTES) & -8))
        for index in range(len(words) - _WORDS + 1):
            if not start <= words[index] < end:
                continue
            candidates += 1
            if candidates > _CANDIDATES:
                return None
            if _is_arena(words, index, low, start, end):
                return _arena(memory, words, index, low)
    return None


def tcache_counts(content: bytes) -> tuple[list[int], bool] | None:
    """(chunks in each bin of up to 1,040 bytes, True if it was not changing) of a chunk; None if it is not a tcache.

    `content`: TCACHE_BYTES from the chunk's address on.
    """
    size = int.from_bytes(content[8:16], "little") & ~7
    if size not in _TCACHES or len(content) < TCACHE_BYTES:
        return None
    bins, width = _TCACHES[size]
    entries_at = 16 + bins * width
    counts = list(content[16:entries_at]) if width == 1 else array.array("H", content[16:entries_at]).tolist()
    entries = array.array("Q", content[entries_at : entries_at + 8 * bins]).tolist()
    if size == TCACHE_ROOM:
        most = max(counts)  # an empty bin has room for tcache_count chunks
        counts = [most - room for room in counts]
        if not most or any(counts[TCACHE_BINS:]):  # bins of several sizes are off unless a tunable turns them on
            return None
    torn = sum((count == 0) != (entry == 0) for count, entry in zip(counts, entries, strict=True))
    if torn > 1 or any(entry & 15 for entry in entries):  # one bin may be changing just now
        return None
    return counts[:TCACHE_BINS], not torn


class Fastbins:
    """The lists of free chunks in fastbins. A worker that freed an XML document may have 200,000 chunks in them."""

    def __init__(self, memory: ProcessMemory, start: int, end: int) -> None:
        """`start`, `end`: those of the heap."""
        self._memory = memory
        self._start, self._end = start, end
        self._origin = start & -PAGE
        self._blocks: dict[int, memoryview] = {}  # of the heap, by their number
        self._left = _LISTED
        self._reads_left = _READS
        # glibc >= 2.32 mangles each pointer by its own address (PROTECT_PTR). Read in the other way, a list leads
        # out of the heap.
        self._forms: tuple[bool, ...] = (True, False)

    def length(self, chunk: int, most: int) -> tuple[int, bool]:
        """(chunks in the list that begins with `chunk`, True if its end was reached). It can have `most` at most.

        False as well if the lists that were followed so far took too much.
        """
        longest = 0
        for mangled in self._forms if chunk else ():
            count, whole = self._follow(chunk, min(most, self._left), mangled=mangled)
            self._left -= count
            if whole:
                self._forms = (mangled,)
                return count, True
            longest = max(longest, count)
        return longest, not chunk

    def _follow(self, chunk: int, most: int, *, mangled: bool) -> tuple[int, bool]:
        start, end, origin = self._start, self._end, self._origin
        number, words = -1, _NO_WORDS
        count = 0
        while chunk:
            if count >= most or not start <= chunk < end or chunk & 15:
                return count, False
            if not count % _CHECK_EVERY:
                self._memory.check_time()
            link = chunk + 16
            place = link - origin
            if place // _BLOCK != number:
                number = place // _BLOCK
                words = self._block(number)
            place = place % _BLOCK >> 3
            if place >= len(words):
                return count, False
            count += 1
            chunk = words[place] ^ (link >> 12) if mangled else words[place]
        return count, True

    def _block(self, number: int) -> memoryview:
        """A block's words, kept for the next time; 0 where no page is resident, as in a large block never used."""
        words = self._blocks.get(number)
        if words is None:
            if not self._reads_left:
                return _NO_WORDS
            self._reads_left -= 1
            if len(self._blocks) >= _BLOCKS:
                self._blocks.clear()
            content = self._memory.read_resident(self._origin + number * _BLOCK, _BLOCK)
            words = self._blocks[number] = memoryview(content).cast("Q")
        return words


def _is_arena(words: Sequence[int], index: int, low: int, start: int, end: int) -> bool:
    at, own = low + 8 * index, 0
    for number in range(_BIN_COUNT):
        itself = at + 16 * number
        place = index + (_BINS + 16 * number) // 8
        for link in words[place : place + 2]:
            if link == itself:
                own += 1
            elif not start <= link < end:
                return False
    return own > 0 and words[index] % 16 == 0


def _arena(memory: ProcessMemory, words: Sequence[int], index: int, low: int) -> Arena | None:
    at = low + 8 * index
    own = tuple(words[index : index + _WORDS])
    begin = _begin(memory, at, own[_NEXT // 8])
    header = memory.words(own[0] + 8, 1)
    if header is None:
        return None
    end = own[0] + (header[0] & ~7)
    base = end - own[_SYSTEM_MEM // 8]
    return Arena(at, own, begin, _fastbins(memory, at, begin), base, end, _mapped_bytes(words, base))


def _begin(memory: ProcessMemory, top_at: int, following: int) -> int | None:
    """Where the structure begins: the arenas are a ring, which leads back there; None if it does not."""
    for distance in _TOPS:
        begin, arena = top_at - distance, following
        for _ in range(_ARENAS):
            if arena == begin:
                return begin
            found = memory.words(arena + distance + _NEXT, 1)
            if found is None:
                break
            arena = found[0]
    return None


def _fastbins(memory: ProcessMemory, top_at: int, begin: int | None) -> tuple[int, ...] | None:
    if begin is None:
        return None
    return memory.words(top_at - 8 * _FASTBINS, _FASTBINS) if top_at - begin > 8 * _FASTBINS - 1 else ()


_ADDRESSES = 1 << 47  # of a process, on x86-64: no more bytes can be mapped


def _mapped_bytes(words: Sequence[int], base: int) -> int | None:
    """mp_.mmapped_mem: two words before sbrk_base, which is known. None if not just one place looks like it.

    struct malloc_par, glibc 2.26 to 2.42: mmapped_mem, max_mmapped_mem, sbrk_base, and four figures of the tcache.
    """
    found = [
        words[index - 2]
        for index in range(2, len(words) - 4)
        if words[index] == base
        and words[index - 2] <= words[index - 1] < _ADDRESSES
        and words[index - 2] % PAGE == words[index - 1] % PAGE == 0
        and words[index + 3] <= 0xFFFF  # tcache_count
    ]
    return found[0] if len(found) == 1 else None
