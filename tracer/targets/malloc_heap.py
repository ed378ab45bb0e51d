"""The heap of glibc's malloc in a running process, walked from outside.

The process is not stopped, and no probe is needed. Counted are the chunks of the main arena that brk() has made. Not
counted: arenas of other threads, and blocks that malloc maps apart, of which only the sum is known.
Sources: malloc/malloc.c of glibc 2.26 to 2.42, x86-64 and other 64-bit machines. Compared with mallinfo2(): 2.36.
"""

from __future__ import annotations

import array
import dataclasses
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from itertools import accumulate, compress

from tracer.targets.process_memory import PAGE, HeapUnknownError, Maps, ProcessMemory, Reason

DEFAULT_LIMIT = 1 << 30
_PIECE = 256 << 10  # bytes read at once
_ATTEMPTS = 5
_RETRY_FOR_S = 1.0  # no further attempt after this
_LIBC_DATA = 1 << 20  # bytes of each of so many ranges that are searched for main_arena
_LIBC_RANGES = 4
_CANDIDATES = 1 << 10

_MIN_CHUNK = 32
_PREV_FREE = bytes(1 - (bits & 1) for bits in range(256))  # of a header's lowest byte, with the flag PREV_INUSE
_NOT_HERE = 2 | 4 | 8  # IS_MMAPPED, NON_MAIN_ARENA, and a bit that no size has
_FENCEPOST = 16  # the size of what malloc puts behind its top when someone else has called sbrk() (sysmalloc)

# struct malloc_state, by its distance from the member `top`. The bins are pairs of pointers; an empty one points to
# the place 16 bytes before it (bin_at). glibc 2.26 to 2.42.
_BINS, _BIN_COUNT = 16, 127
_NEXT = _BINS + 16 * _BIN_COUNT + 16
_SYSTEM_MEM = _NEXT + 24
_ARENA_WORDS = _SYSTEM_MEM // 8 + 1
# Where `top` is in it: glibc 2.27 to 2.42, 2.26, and after 2.42, which has no fastbins.
_TOPS = (96, 88, 8)
_FASTBINS = 10
_FAST_MAX = 128  # bytes of the largest chunk in a fastbin, unless mallopt(M_MXFAST) says otherwise
_FAST_LISTED = 1 << 14  # chunks followed in all fastbins
_ARENAS = 1 << 10

# tcache_perthread_struct, by the size of its chunk: (bins, bytes of a counter, glibc).
_TCACHES = {
    0x250: (64, 1),  # glibc 2.26 to 2.29
    0x290: (64, 2),  # 2.30 to 2.41
    0x300: (76, 2),  # 2.42; counts the room that is left, from tcache_count down
}
_TCACHE_ROOM = 0x300
_TCACHE_SMALL = 64
_TCACHE_COUNT = 16  # the default: 7 to glibc 2.42, then 16


@dataclasses.dataclass(frozen=True, slots=True)
class MallocHeap:
    """The main arena at one moment. Sizes are those of chunks: what was asked for, and some 8 to 24 bytes."""

    in_use_bytes: int  # handed out; what tcache and fastbins keep is not
    uncertain_bytes: int  # in use may be up to this much less; 0: exact
    free_bytes: int  # free again, but kept below top; tcache and fastbins included
    cached_bytes: int  # of these, in tcache and fastbins
    top_bytes: int  # never used, or free again, at the end
    chunks_in_use: int
    chunks_free: int
    sizes: Mapping[int, int]  # chunks in use by size in bytes
    resident_bytes: int | None  # of the heap's memory; None: the kernel does not tell
    mapped_bytes: int | None  # blocks mapped apart, 128 KiB and more each; None: not found
    other_arenas: bool | None  # True: threads have arenas of their own, not counted here; None: not found
    settled: bool  # nothing changed during the walk; False: a figure of a busy process, not of one moment
    lacking: tuple[str, ...]  # what is not exact, and why; a sentence each
    read_bytes: int
    seconds: float  # what this look took, attempts that failed included
    start_ticks: int

    @property
    def heap_bytes(self) -> int:
        """All memory of the heap."""
        return self.in_use_bytes + self.free_bytes + self.top_bytes


@dataclasses.dataclass(frozen=True, slots=True)
class _Arena:
    """What main_arena says, if it was found."""

    at: int  # address of its member `top`
    words: tuple[int, ...]  # from `top` to system_mem
    begin: int | None  # address of the structure; None: other arenas did not lead back to it
    fastbins: tuple[int, ...] | None  # list heads; () where this glibc has none, None where that is not known
    mapped_bytes: int | None

    @property
    def top(self) -> int:
        return self.words[0]

    @property
    def alone(self) -> bool | None:
        return None if self.begin is None else self.words[_NEXT // 8] == self.begin

    @property
    def system_mem(self) -> int:
        return self.words[_SYSTEM_MEM // 8]


@dataclasses.dataclass(slots=True)
class _Walked:
    """The chunks of a heap by header word, and where the last one is."""

    counts: Counter[int]  # every chunk but top, by size and flags
    free: Counter[int]  # the free ones of them
    top_at: int
    top_bytes: int
    rooms: list[int]  # chunks that may be a tcache of glibc >= 2.42
    read_bytes: int
    paged: bool  # True if the kernel tells which pages are resident


class _MalformedError(Exception):
    """A walk met what cannot be a heap, or one that is being changed."""


def walk(
    pid: int,
    *,
    start_ticks: int | None = None,
    limit_bytes: int = DEFAULT_LIMIT,
    swap_in: bool = False,
    attempts: int = _ATTEMPTS,
) -> MallocHeap:
    """Walk the heap of a process. HeapUnknownError, with a Reason, if it cannot be known.

    `start_ticks`: refuse another process that has this PID by now. A busy process changes its heap during the walk:
    up to `attempts` walks are made, none after one second, and if each was disturbed, the last one is returned with
    `settled` False. `swap_in`: also read a heap that is swapped out in part, which brings it back into memory.
    """
    began = time.monotonic()
    with ProcessMemory(pid, start_ticks) as memory:
        found: MallocHeap | None = None
        failure: HeapUnknownError | None = None
        for _ in range(max(1, attempts)):
            try:
                found = _look(memory, limit_bytes, began, swap_in=swap_in)
                failure = None
            except _MalformedError as exc:
                failure = HeapUnknownError(Reason.MALFORMED, f"its heap is not one of glibc's malloc: {exc}")
            except HeapUnknownError as exc:
                if exc.reason is not Reason.INTERRUPTED:
                    raise
                failure = exc  # a torn read may look like that
            finally:
                memory.check()
            if (found is not None and found.settled) or time.monotonic() - began > _RETRY_FOR_S:
                break
        if found is not None:
            return dataclasses.replace(found, seconds=time.monotonic() - began)
        assert failure is not None
        raise failure


def _look(memory: ProcessMemory, limit: int, began: float, *, swap_in: bool) -> MallocHeap:
    maps = memory.maps()
    start, end = _extent(memory, maps, limit, swap_in=swap_in)
    arena = _find_arena(memory, maps, start, end)
    if arena is not None:
        end = _end_of_top(memory, arena, end)
    tcache_before = memory.read(start, max(_TCACHES))
    walked = _walk(memory, start, end)
    if arena is not None:
        _compare(arena, walked, memory.first_break)
    used: Counter[int] = Counter()
    for word, count in walked.counts.items():
        used[word & ~7] += count - walked.free[word]
    books = _Cached(memory, arena, walked, used, start, end)
    books.subtract_tcache(tcache_before)
    books.subtract_fastbins()
    settled = (
        books.consistent
        and memory.read(start, max(_TCACHES)) == tcache_before
        and _unchanged(memory, arena, walked, start, end)
    )
    sizes = {size: count for size, count in used.items() if count > 0}
    in_use = sum(size * count for size, count in sizes.items())
    return MallocHeap(
        in_use_bytes=in_use,
        uncertain_bytes=min(in_use, books.uncertain),
        free_bytes=walked.top_at - start - in_use,
        cached_bytes=books.bytes,
        top_bytes=walked.top_bytes,
        chunks_in_use=sum(sizes.values()),
        chunks_free=walked.free.total() + books.chunks,
        sizes=sizes,
        resident_bytes=memory.anon_resident_bytes(start, maps.heap[1]) if maps.heap and walked.paged else None,
        mapped_bytes=None if arena is None else arena.mapped_bytes,
        other_arenas=None if arena is None or arena.alone is None else not arena.alone,
        settled=settled,
        lacking=tuple(books.lacking),
        read_bytes=walked.read_bytes,
        seconds=time.monotonic() - began,
        start_ticks=memory.start_ticks,
    )


def _extent(memory: ProcessMemory, maps: Maps, limit: int, *, swap_in: bool) -> tuple[int, int]:
    """Where the first chunk is, and where the heap ends."""
    if maps.allocator is not None:
        raise HeapUnknownError(Reason.OTHER_ALLOCATOR, f"its malloc is {maps.allocator}, not glibc's")
    start = memory.first_break + 15 & ~15
    if maps.heap is None or not maps.heap[0] <= start < maps.heap[1] - _MIN_CHUNK:
        raise HeapUnknownError(Reason.NO_HEAP, "it has no heap of glibc's malloc")
    end = maps.heap[1]
    if end - start > limit:
        raise HeapUnknownError(
            Reason.TOO_LARGE, f"its heap has {end - start:,} bytes, more than the limit of {limit:,} bytes"
        )
    swapped = 0 if swap_in else memory.swapped_bytes(start, end)
    if swapped:
        raise HeapUnknownError(
            Reason.SWAPPED, f"{swapped:,} bytes of its heap are swapped out; reading would bring them back into memory"
        )
    return start, end


def _walk(memory: ProcessMemory, start: int, end: int) -> _Walked:
    """Follow the chunks from the first to the last, which is top. _MalformedError if their sizes do not fit."""
    pages = memory.backed_pages(start, end)
    walked = _Walked(Counter(), Counter(), start, 0, [], 0, bool(pages))
    buffer = memoryview(bytearray(_PIECE))
    at, header = start, None
    while at < end:
        base = at & -PAGE
        size = min(_PIECE, end - base)
        if pages:  # a page that was never written holds no header: reading it would only make the kernel work
            hole = pages.find(b"\0", base // PAGE - start // PAGE)
            size = size if hole < 0 else min(size, (hole + start // PAGE) * PAGE - base)
        got = memory.read_into(buffer[: max(size, 0)], base) & ~7
        if base + got <= at + 8:
            raise _MalformedError("a chunk's header cannot be read")
        words = buffer[:got].cast("Q")
        headers, at = _headers(words, base, at)
        walked.read_bytes += got
        _count(walked, headers, header)
        if len(walked.rooms) == 0 and base <= start:
            walked.rooms = [place for place, word in zip(_places(start, headers), headers, strict=False)
                            if word & ~7 == _TCACHE_ROOM]  # fmt: skip
        header = headers[-1]
    if header is None:
        raise _MalformedError("it has no chunk")
    walked.top_bytes = header & ~7
    walked.top_at = at - walked.top_bytes
    if at != end or header & _NOT_HERE or walked.top_bytes < 16:
        raise _MalformedError("its last chunk does not end where it ends")
    return walked


def _headers(words: memoryview, base: int, at: int) -> tuple[list[int], int]:
    """The header of each chunk that begins in the piece of memory at `base`, and the address of the next chunk."""
    found: list[int] = []
    append = found.append
    place = (at - base) // 8 + 1  # the header is the second word of a chunk
    try:
        for _ in range(len(words) // 4 + 2):  # a size of 0 ends it
            word = words[place]
            append(word)
            place += word >> 3
    except (IndexError, OverflowError):
        return found, base + 8 * (place - 1)
    raise _MalformedError("chunks of less than 32 bytes")


def _places(start: int, headers: Sequence[int]) -> Iterator[int]:
    return accumulate((word & ~7 for word in headers), initial=start)


def _count(walked: _Walked, headers: list[int], before: int | None) -> None:
    """Add a piece's chunks; of its last one only the next piece's first header knows if it is in use."""
    every = headers if before is None else [before, *headers]
    counts = Counter(every)
    counts[every[-1]] -= 1
    for word, count in counts.items():
        if word & _NOT_HERE or word < _MIN_CHUNK:
            if word & ~7 == _FENCEPOST:
                raise HeapUnknownError(Reason.INTERRUPTED, "memory of another user of sbrk() interrupts its heap")
            if count:
                raise _MalformedError("a header that no chunk of this arena has")
    walked.counts.update(+counts)
    lowest = array.array("Q", every).tobytes()[::8].translate(_PREV_FREE)
    walked.free.update(compress(every, lowest[1:]))


def _end_of_top(memory: ProcessMemory, arena: _Arena, end: int) -> int:
    """Where malloc's memory ends: after it, brk() may have made memory for someone else."""
    header = memory.words(arena.top + 8, 1)
    if header is None or arena.top + (header[0] & ~7) > end:
        raise _MalformedError("its last chunk does not end in it")
    return arena.top + (header[0] & ~7)


def _compare(arena: _Arena, walked: _Walked, first_break: int) -> None:
    if walked.top_at != arena.top:
        raise _MalformedError("its last chunk is not malloc's top")
    if arena.system_mem != walked.top_at + walked.top_bytes - first_break:
        raise HeapUnknownError(Reason.INTERRUPTED, "memory of another user of sbrk() is in its heap")


def _unchanged(memory: ProcessMemory, arena: _Arena | None, walked: _Walked, start: int, end: int) -> bool:
    """True if malloc's books are as they were before the walk; without main_arena, if a second walk finds the same."""
    if arena is None:
        return _walk(memory, start, end).counts == walked.counts
    return memory.words(arena.at, _ARENA_WORDS) == arena.words and _heads(memory, arena) == arena.fastbins


class _Cached:
    """Chunks that count as in use by their headers and are free: in the thread cache, and in fastbins."""

    def __init__(
        self,
        memory: ProcessMemory,
        arena: _Arena | None,
        walked: _Walked,
        used: Counter[int],
        start: int,
        end: int,
    ) -> None:
        """`used` is changed: chunks that are cached are taken out of it."""
        self._memory = memory
        self._arena = arena
        self._walked = walked
        self._used = used
        self._start, self._end = start, end
        self.bytes = 0
        self.chunks = 0
        self.uncertain = 0
        self.consistent = True
        self.lacking: list[str] = []

    def subtract_tcache(self, content: bytes | None) -> None:
        """Take out the chunks in the main thread's cache, which is the heap's first chunk, or near it."""
        size = 0 if content is None else int.from_bytes(content[8:16], "little") & ~7
        counts: Sequence[int] | None = None
        if content is not None and size in _TCACHES:
            counts = self._tcache(content, size)
        if counts is None:
            for place in self._walked.rooms[:_TCACHE_SMALL]:
                content = self._memory.read(place, _TCACHE_ROOM)
                counts = None if content is None else self._tcache(content, _TCACHE_ROOM)
                if counts is not None:
                    break
        if counts is None:
            most = sum(size * min(self._used[size], _TCACHE_COUNT) for size in range(32, 32 + 16 * _TCACHE_SMALL, 16))
            self.uncertain += most
            self.lacking.append("the thread cache was not found, so that its chunks count as in use")
            return
        for index, count in enumerate(counts):
            self._subtract(32 + 16 * index, count)

    def subtract_fastbins(self) -> None:
        """Take out the chunks in fastbins."""
        heads = None if self._arena is None else self._arena.fastbins
        if heads is None:
            self.uncertain += sum(size * self._used[size] for size in range(32, _FAST_MAX + 16, 16))
            self.lacking.append("malloc's main arena was not found, so that chunks in its fastbins count as in use")
            return
        listed = 0
        for index, head in enumerate(heads):
            size = 32 + 16 * index
            count, whole = self._fast_list(head, min(self._used[size], _FAST_LISTED - listed))
            listed += count
            self._subtract(size, count)
            if not whole:
                self.uncertain += size * self._used[size]
                self.lacking.append(f"the fastbin of {size} bytes could not be followed to its end")

    def _subtract(self, size: int, count: int) -> None:
        if count > self._used[size]:
            self.consistent = False
            count = self._used[size]
        self._used[size] -= count
        self.chunks += count
        self.bytes += size * count

    def _tcache(self, content: bytes, size: int) -> list[int] | None:
        """How many chunks are in each bin of up to 1,040 bytes; None if this is not a tcache."""
        bins, width = _TCACHES[size]
        if len(content) < 16 + bins * (width + 8):
            return None
        counts = list(content[16 : 16 + bins]) if width == 1 else array.array("H", content[16 : 16 + 2 * bins]).tolist()
        entries = array.array("Q", content[16 + width * bins : 16 + width * bins + 8 * bins]).tolist()
        if size == _TCACHE_ROOM:
            most = max(counts)  # an empty bin has room for tcache_count chunks
            counts = [most - room for room in counts]
            if not most or any(count for count in counts[_TCACHE_SMALL:]):
                return None
        torn = sum((count == 0) != (entry == 0) for count, entry in zip(counts, entries, strict=True))
        if torn > 1 or any(entry & 15 for entry in entries):  # one bin may be changing just now
            return None
        self.consistent = self.consistent and not torn
        return counts[:_TCACHE_SMALL]

    def _fast_list(self, chunk: int, most: int) -> tuple[int, bool]:
        """(chunks in a fastbin, True if its end was reached). `most`: how many there can be."""
        count = 0
        while chunk:
            if count >= most or not self._in_heap(chunk):
                return count, False
            words = self._memory.words(chunk + 16, 1)
            if words is None:
                return count, False
            count += 1
            # glibc >= 2.32 mangles the pointer by its own address (PROTECT_PTR): one of both readings is in the heap.
            plain, revealed = words[0], words[0] ^ (chunk + 16 >> 12)
            chunk = revealed if revealed == 0 or self._in_heap(revealed) else plain
        return count, True

    def _in_heap(self, chunk: int) -> bool:
        return self._start <= chunk < self._end and chunk & 15 == 0


def _find_arena(memory: ProcessMemory, maps: Maps, start: int, end: int) -> _Arena | None:
    """main_arena, known by its bins, in the data of the C library; None if it is not found.

    It has no symbol. Its `top` points into the heap, and of its 127 bins each points to itself or into the heap.
    """
    candidates = 0
    for low, high in maps.libc_data[:_LIBC_RANGES]:
        content = memory.read(low, min(high - low, _LIBC_DATA))
        if content is None:
            continue
        words = array.array("Q", content)
        for index in range(len(words) - _ARENA_WORDS + 1):
            if not start <= words[index] < end:
                continue
            candidates += 1
            if candidates > _CANDIDATES:
                return None
            if _is_arena(words, index, low, start, end):
                return _arena_at(memory, words, index, low)
    return None


def _is_arena(words: Sequence[int], index: int, low: int, start: int, end: int) -> bool:
    at = low + 8 * index
    own = 0
    for number in range(_BIN_COUNT):
        itself = at + 16 * number
        for link in words[index + _BINS // 8 + 2 * number : index + _BINS // 8 + 2 * number + 2]:
            if link == itself:
                own += 1
            elif not start <= link < end:
                return False
    return own > 0 and words[index + _SYSTEM_MEM // 8] % PAGE == 0 and words[index] % 16 == 0


def _arena_at(memory: ProcessMemory, words: Sequence[int], index: int, low: int) -> _Arena:
    at = low + 8 * index
    own = tuple(words[index : index + _ARENA_WORDS])
    begin = _begin(memory, at, own[_NEXT // 8])
    arena = _Arena(at, own, begin, None, _mapped_bytes(words, memory.first_break))
    return dataclasses.replace(arena, fastbins=_heads(memory, arena))


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


def _heads(memory: ProcessMemory, arena: _Arena) -> tuple[int, ...] | None:
    if arena.begin is None:
        return None
    if arena.at - arena.begin < 8 * _FASTBINS:
        return ()
    return memory.words(arena.at - 8 * _FASTBINS, _FASTBINS)


def _mapped_bytes(words: Sequence[int], first_break: int) -> int | None:
    """mp_.mmapped_mem: two words before sbrk_base, which is known. None if not just one place looks like it.

    struct malloc_par, glibc 2.26 to 2.42: mmapped_mem, max_mmapped_mem, sbrk_base, and four figures of the tcache.
    """
    found = [
        words[index - 2]
        for index in range(2, len(words) - 4)
        if words[index] == first_break
        and words[index - 2] <= words[index - 1]
        and words[index - 2] % PAGE == words[index - 1] % PAGE == 0
        and words[index + 3] <= 0xFFFF  # tcache_count
    ]
    return found[0] if len(found) == 1 else None
