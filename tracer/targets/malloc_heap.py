"""The heap of glibc's malloc in a running process, walked from outside.

The process is not stopped, and no probe is needed. Counted are the chunks of the main arena, which brk() has made. Not
counted: arenas of other threads, and blocks that malloc maps apart, of which only the sum is known.
Source: malloc/malloc.c of glibc 2.26 to 2.42, 64 bits. Compared with mallinfo2(): 2.36.
"""

from __future__ import annotations

import array
import dataclasses
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from itertools import accumulate, compress

from tracer.targets.malloc_books import (
    TCACHE_BINS,
    TCACHE_BYTES,
    TCACHE_COUNT,
    TCACHE_ROOM,
    Arena,
    Fastbins,
    find_arena,
    tcache_counts,
)
from tracer.targets.process_memory import PAGE, HeapUnknownError, Maps, ProcessMemory, Reason

DEFAULT_LIMIT = 1 << 30
_PIECE = 256 << 10  # bytes read at once
_ATTEMPTS = 5
_RETRY_FOR_S = 1.0  # no further attempt after this

_MIN_CHUNK = 32
_FLAGS = 7
_PREV_FREE = bytes(1 - (bits & 1) for bits in range(256))  # of a header's lowest byte, with the flag PREV_INUSE
_NOT_HERE = 2 | 4 | 8  # IS_MMAPPED, NON_MAIN_ARENA, and a bit that no size has
_FENCEPOST = 16  # the size of what malloc puts behind its top when someone else has called sbrk() (sysmalloc)
_FAST_MAX = 128  # bytes of the largest chunk in a fastbin, unless mallopt(M_MXFAST) says otherwise
_ROOMS = 64  # chunks looked at for the tcache of a glibc that does not make it first


@dataclasses.dataclass(frozen=True, slots=True)
class MallocHeap:
    """The main arena at one moment. Sizes are those of chunks: 8 to 24 bytes more than what was asked for."""

    in_use_bytes: int  # handed out; what tcache and fastbins keep is not
    uncertain_bytes: int  # in use may be up to this much less; 0: exact
    free_bytes: int  # free again, but kept below top; tcache and fastbins included
    cached_bytes: int  # of these, in tcache and fastbins
    top_bytes: int  # never used, or free again, at the end
    sizes: Mapping[int, int]  # number of chunks in use by their size in bytes
    resident_bytes: int | None  # of the heap's memory; None: the kernel does not tell
    mapped_bytes: int | None  # blocks mapped apart, 128 KiB and more each; None: not found
    other_arenas: bool | None  # True: threads have arenas of their own, not counted here; None: not found
    settled: bool  # nothing changed during the walk; False: a figure of a busy process, not of one moment
    lacking: tuple[str, ...]  # what is not exact, and why


class _MalformedError(Exception):
    """A walk met what cannot be a heap, or one that is being changed."""


def walk(
    pid: int,
    *,
    start_ticks: int | None = None,
    limit_bytes: int = DEFAULT_LIMIT,
    swap_in: bool = False,
    attempts: int = _ATTEMPTS,
    until: float | None = None,
) -> MallocHeap:
    """Walk the heap of a process. HeapUnknownError, with a Reason, if it cannot be known.

    `start_ticks`: refuse another process that has this PID by now. A busy process changes its heap during the walk:
    up to `attempts` walks are made, none after one second, and if each was disturbed, the last one is returned with
    `settled` False. `swap_in`: also read a heap that is swapped out in part, which brings it back into memory. `until`
    (time.monotonic()): the heap is unknown if it is not walked by then.
    """
    began = time.monotonic()
    found: MallocHeap | None = None
    failure: HeapUnknownError | None = None
    with ProcessMemory(pid, start_ticks, swap_in=swap_in, until=until) as memory:
        for _ in range(max(1, attempts)):
            try:
                found = look(memory, memory.maps(), limit_bytes=limit_bytes, swap_in=swap_in)
            except HeapUnknownError as exc:
                memory.check()
                if exc.reason not in (Reason.MALFORMED, Reason.INTERRUPTED):  # as a torn read may look, too
                    raise
                failure = exc
            else:
                memory.check()
            if (found is not None and found.settled) or time.monotonic() - began > _RETRY_FOR_S:
                break
    if found is None:
        assert failure is not None
        raise failure
    return found


def look(memory: ProcessMemory, maps: Maps, *, limit_bytes: int = DEFAULT_LIMIT, swap_in: bool = False) -> MallocHeap:
    """One attempt of walk(), on the heap that `maps` names. HeapUnknownError if it fails."""
    try:
        return _look(memory, maps, limit_bytes, swap_in=swap_in)
    except _MalformedError as exc:
        raise HeapUnknownError(
            Reason.MALFORMED, f"its heap does not look like one of glibc's malloc, or changes too fast: {exc}"
        ) from exc


@dataclasses.dataclass(slots=True)
class _Walked:
    """The chunks of a heap by header word, and where the last one is."""

    counts: Counter[int]  # every chunk but top, by size and flags
    free: Counter[int]  # the free ones of them
    top_at: int
    top_bytes: int
    rooms: list[int]  # chunks that may be a tcache of glibc >= 2.42

    def used(self) -> Counter[int]:
        """Number of chunks in use by size, as their headers say."""
        used: Counter[int] = Counter()
        for word, count in self.counts.items():
            used[word & ~_FLAGS] += count - self.free[word]
        return used


def _look(memory: ProcessMemory, maps: Maps, limit: int, *, swap_in: bool) -> MallocHeap:
    start, end = _extent(memory, maps, limit, swap_in=swap_in)
    arena = find_arena(memory, maps, start, end)
    last = end
    if arena is not None:
        start, last = _extent_of(arena, start, end)
    tcache_before = memory.read(start, TCACHE_BYTES)
    walked = _walk(memory, start, last, None if arena is None else arena.top)
    used = walked.used()
    cached = _Cached(memory, used, start, end)
    cached.subtract_tcache(tcache_before, walked.rooms)
    cached.subtract_fastbins(arena)
    settled = cached.consistent and memory.read(start, TCACHE_BYTES) == tcache_before
    if settled:
        settled = arena.unchanged(memory) if arena else _walk(memory, start, last, None).counts == walked.counts
    sizes = {size: count for size, count in used.items() if count > 0}
    in_use = sum(size * count for size, count in sizes.items())
    return MallocHeap(
        in_use_bytes=in_use,
        uncertain_bytes=min(in_use, cached.uncertain),
        free_bytes=walked.top_at - start - in_use,
        cached_bytes=cached.bytes,
        top_bytes=walked.top_bytes,
        sizes=sizes,
        resident_bytes=memory.anon_resident_bytes(start, end) if memory.paged else None,
        mapped_bytes=None if arena is None else arena.mapped_bytes,
        other_arenas=None if arena is None else arena.others,
        settled=settled,
        lacking=tuple(cached.lacking),
    )


def _extent(memory: ProcessMemory, maps: Maps, limit: int, *, swap_in: bool) -> tuple[int, int]:
    """Where the first chunk is, and where the memory of brk() ends."""
    if maps.allocator is not None:
        raise HeapUnknownError(Reason.OTHER_ALLOCATOR, f"its malloc is {maps.allocator}, not glibc's")
    start = maps.first_break + 15 & ~15
    if maps.heap is None or not maps.heap[0] <= start < maps.heap[1] - _MIN_CHUNK:
        raise HeapUnknownError(Reason.NO_HEAP, "it has no heap of glibc's malloc")
    end = maps.heap[1]
    if end - start > limit:
        raise HeapUnknownError(
            Reason.TOO_LARGE, f"its heap has {end - start:,} bytes, more than the limit of {limit:,}"
        )
    swapped = 0 if swap_in else memory.swapped_bytes(start, end)
    if swapped:
        raise HeapUnknownError(
            Reason.SWAPPED, f"{swapped:,} bytes of its heap are swapped out; reading would bring them back into memory"
        )
    return start, end


def _extent_of(arena: Arena, start: int, end: int) -> tuple[int, int]:
    """The same, as malloc's books have it: before it and behind it, brk() may have made memory for someone else."""
    base = arena.base + 15 & ~15
    if arena.end > end:
        raise _MalformedError("its last chunk does not end within it")
    if not start <= base <= arena.top:
        raise HeapUnknownError(Reason.INTERRUPTED, "other code has put memory of sbrk() into its heap")
    return base, arena.end


def _walk(memory: ProcessMemory, start: int, end: int, top: int | None) -> _Walked:
    """Follow the chunks from the first to the last, which is top. _MalformedError if their sizes do not fit.

    `top`: where that was before the walk; None: not known. A process that goes on takes chunks from it meanwhile: these
    are left out, so that a heap that grows all the time can be walked.
    """
    walked = _Walked(Counter(), Counter(), start, 0, [])
    buffer = memoryview(bytearray(_PIECE))
    at, last = start, 0
    while at < end:
        base = at & -PAGE
        got = memory.read_into(buffer[: min(_PIECE, end - base)], base) & ~7
        if base + got < at + 16:
            raise _MalformedError("a chunk's header cannot be read")
        headers, following = _headers(buffer[:got].cast("Q"), base, at)
        if top is not None and following > top:
            headers, following = _up_to(top, at, headers, end)
        _count(walked, headers, last)
        if at == start:
            walked.rooms = [place for place, word in _places(at, headers) if word & ~_FLAGS == TCACHE_ROOM][:_ROOMS]
        at, last = following, headers[-1]
    if at != end or last & _NOT_HERE or last < 16:
        raise _MalformedError("its last chunk does not end where the heap ends")
    walked.top_bytes = last & ~_FLAGS
    walked.top_at = at - walked.top_bytes
    return walked


def _headers(words: memoryview, base: int, at: int) -> tuple[list[int], int]:
    """The header of each chunk that begins in the piece of memory at `base`, and the address of the next chunk."""
    found: list[int] = []
    append = found.append
    place = (at - base) // 8 + 1  # the header is the second word of a chunk
    try:
        for _ in range(len(words) // 4 + 2):  # sizes below 32 bytes end it, and are refused by _count()
            word = words[place]
            append(word)
            place += word >> 3
    except IndexError:
        pass
    return found, base + 8 * (place - 1)


def _up_to(top: int, at: int, headers: list[int], end: int) -> tuple[list[int], int]:
    """The headers of the chunks up to top, and the end of the heap, as if all from top to there were its last chunk."""
    for number, (place, word) in enumerate(_places(at, headers)):
        if place == top:
            return [*headers[:number], end - top | word & _FLAGS], end
        if place > top:
            break
    raise _MalformedError("its last chunk is not malloc's top")


def _places(at: int, headers: list[int]) -> Iterator[tuple[int, int]]:
    """(address, header) of each chunk, the first of which is at `at`."""
    return zip(accumulate((word & ~_FLAGS for word in headers), initial=at), headers, strict=False)


def _count(walked: _Walked, headers: list[int], before: int) -> None:
    """Add a piece's chunks. Of its last one, only the next header knows if it is in use. `before`: the last of before.

    0, as at the beginning, is no chunk.
    """
    every = [before, *headers] if before else headers
    counts = Counter(every)
    counts[every[-1]] -= 1
    for word, count in counts.items():
        if count and (word & _NOT_HERE or word < _MIN_CHUNK):
            if word & ~_FLAGS == _FENCEPOST:
                raise HeapUnknownError(Reason.INTERRUPTED, "other code has put memory of sbrk() into its heap")
            raise _MalformedError("it has a header that no chunk of this arena has")
    walked.counts.update(counts)
    lowest = array.array("Q", every).tobytes()[::8].translate(_PREV_FREE)
    walked.free.update(compress(every, lowest[1:]))


class _Cached:
    """Chunks that are in use by their headers, and free: in the main thread's cache, and in fastbins."""

    def __init__(self, memory: ProcessMemory, used: Counter[int], start: int, end: int) -> None:
        """`used` is changed: what is cached is taken out of it."""
        self._memory = memory
        self._used = used
        self._start, self._end = start, end
        self.bytes = 0
        self.uncertain = 0  # bytes that may be cached as well
        self.consistent = True  # False: the books do not fit the chunks, so that they were changing
        self.lacking: list[str] = []

    def subtract_tcache(self, first: bytes | None, rooms: list[int]) -> None:
        """Take out the chunks in the thread cache: the heap's first chunk, of content `first`, or one of `rooms`."""
        found = None if first is None else tcache_counts(first)
        for place in rooms:
            if found is not None:
                break
            content = self._memory.read(place, TCACHE_BYTES)
            found = None if content is None else tcache_counts(content)
        if found is None:
            sizes = range(32, 32 + 16 * TCACHE_BINS, 16)
            self.uncertain += sum(size * min(self._used[size], TCACHE_COUNT) for size in sizes)
            self.lacking.append("the thread cache was not found, so its chunks count as in use")
            return
        counts, whole = found
        self.consistent = self.consistent and whole
        for index, count in enumerate(counts):
            self._subtract(32 + 16 * index, count)

    def subtract_fastbins(self, arena: Arena | None) -> None:
        """Take out the chunks in fastbins."""
        if arena is None or arena.fastbins is None:
            self.uncertain += sum(size * self._used[size] for size in range(32, _FAST_MAX + 16, 16))
            self.lacking.append("malloc's main arena was not found, so chunks in its fastbins count as in use")
            return
        lists = Fastbins(self._memory, self._start, self._end)
        for index, head in enumerate(arena.fastbins):
            size = 32 + 16 * index
            count, whole = lists.length(head, self._used[size])
            self._subtract(size, count)
            if not whole:
                self.uncertain += size * self._used[size]
                self.lacking.append(f"the fastbin of {size} bytes could not be followed to its end")

    def _subtract(self, size: int, count: int) -> None:
        if count > self._used[size]:
            self.consistent = False
            count = self._used[size]
        self._used[size] -= count
        self.bytes += size * count
