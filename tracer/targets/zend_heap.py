"""Resident memory of Zend's allocator in a running process, by address: what of RssAnon is PHP's own heap.

zend_mm_heap, zend_mm_chunk and zend_mm_huge_list: Zend/zend_alloc.c, PHP 7.4 to 8.5, 64 bits. The process is not
stopped; a figure of a busy one is of no single moment, and `settled` is False then.
"""

from __future__ import annotations

import dataclasses
from itertools import pairwise
from typing import NamedTuple

from tracer.errors import UnsupportedError
from tracer.targets.php import Php
from tracer.targets.process_memory import PAGE, HeapUnknownError, ProcessMemory, Reason
from tracer.targets.processes import load_bias

CHUNK = 2 << 20
DEFAULT_LIMIT = 4 << 30
_ATTEMPTS = 3
_HEAP_WORDS = 72  # main_chunk is word 39 in PHP 8.2, 41 in Debian's; all versions have it in the first 72
_CHUNK_WORDS = 3  # heap, next, prev
_HUGE_WORDS = 3  # ptr, size, next
_MAX_HUGE = 1 << 14  # blocks followed: each is at least one chunk, and 5 µs


@dataclasses.dataclass(frozen=True, slots=True)
class ZendResidency:
    """Bytes of Zend's heap, by what they are."""

    resident_bytes: int  # of all below; RssAnon counts exactly these pages
    resident_cached_bytes: int  # of these, in cached chunks
    live_chunks: int
    cached_chunks: int  # kept for later requests; Zend frees them step by step
    huge_bytes: int  # of address space, as live_bytes and cached_bytes
    hugetlb_bytes: int  # resident in huge pages of hugetlbfs, which RssAnon leaves out
    settled: bool  # the lists did not change while the pages were counted

    @property
    def live_bytes(self) -> int:
        """Address space of live chunks and huge blocks."""
        return CHUNK * self.live_chunks + self.huge_bytes

    @property
    def cached_bytes(self) -> int:
        """Address space of cached chunks."""
        return CHUNK * self.cached_chunks


class _Lists(NamedTuple):
    """Where Zend's memory is. `key`: the words in zend_mm_heap from which the lists hang, and their lengths."""

    live: tuple[int, ...]
    cached: tuple[int, ...]
    huge: tuple[tuple[int, int], ...]  # (address, size)
    key: tuple[int, ...]


class _MalformedError(Exception):
    """The lists are not what they should be, or are being changed."""


def heap_address(
    pid: int, php: Php, *, start_ticks: int | None = None, bias: int | None = None, until: float | None = None
) -> int:
    """alloc_globals.mm_heap of a process that runs this PHP. HeapUnknownError if it cannot be found.

    `bias`: running address minus link address of the binary; None finds it, which takes 4 ms. `until`: as resident().
    """
    if php.heap is None:
        raise HeapUnknownError(Reason.NO_HEAP, "this PHP's zend_mm_get_heap() is missing or has an unknown form")
    with ProcessMemory(pid, start_ticks, until=until) as memory:
        try:
            slot = php.heap.slot + (load_bias(pid, php.image) if bias is None else bias)
        except (OSError, UnsupportedError) as exc:
            memory.check()
            raise HeapUnknownError(Reason.NO_HEAP, f"its PHP cannot be found in its memory: {exc}") from exc
        words = memory.words(slot, 1)
        memory.check()
    if words is None:
        raise HeapUnknownError(Reason.NO_HEAP, "the pointer to Zend's heap cannot be read")
    return words[0]


def resident(
    pid: int,
    heap_address: int,
    *,
    start_ticks: int | None = None,
    limit_bytes: int = DEFAULT_LIMIT,
    attempts: int = _ATTEMPTS,
    until: float | None = None,
) -> ZendResidency:
    """Resident bytes of Zend's heap. HeapUnknownError, with a Reason, if they cannot be known.

    `heap_address`: alloc_globals.mm_heap as the process has it. `start_ticks`: refuse another process that has this
    PID by now. `limit_bytes`: of address space. The process may change the lists meanwhile: up to `attempts` are
    made, and the last one that fits is returned with `settled` False. `until` (time.monotonic()): they are unknown if
    they are not read by then.
    """
    with ProcessMemory(pid, start_ticks, until=until) as memory:
        found: ZendResidency | None = None
        failure = ""
        for _ in range(max(1, attempts)):
            try:
                found = _look(memory, heap_address, limit_bytes)
            except _MalformedError as exc:
                failure = str(exc)
            finally:
                memory.check()
            if found is not None and found.settled:
                break
    if found is None:
        raise HeapUnknownError(Reason.MALFORMED, f"Zend's heap is corrupt, or changed too fast: {failure}")
    return found


def _look(memory: ProcessMemory, heap: int, limit: int) -> ZendResidency:
    if not memory.paged:
        raise HeapUnknownError(Reason.NOT_PERMITTED, "this kernel does not show which pages are resident")
    lists = _lists(memory, heap, limit)
    hugetlb = memory.maps().hugetlb if memory.hugetlb_bytes() else ()
    live = cached = apart = 0
    ranges = [(at, CHUNK, False) for at in lists.live] + [(at, CHUNK, True) for at in lists.cached]
    for at, size, is_cached in [*ranges, *[(at, size, False) for at, size in lists.huge]]:
        pages = memory.anon_resident_bytes(at, at + size)
        if any(start <= at < end for start, end in hugetlb):
            apart += pages
        elif is_cached:
            cached += pages
        else:
            live += pages
    return ZendResidency(
        resident_bytes=live + cached,
        resident_cached_bytes=cached,
        live_chunks=len(lists.live),
        cached_chunks=len(lists.cached),
        huge_bytes=sum(size for _, size in lists.huge),
        hugetlb_bytes=apart,
        settled=_key(memory, heap)[1] == lists.key,
    )


def _key(memory: ProcessMemory, heap: int) -> tuple[int, tuple[int, ...]]:
    """(address of the main chunk, huge_list, main_chunk, cached_chunks, chunk counts).

    Builds differ in where main_chunk is, and it equals the address of the chunk that the heap lies in.
    """
    main = heap & -CHUNK
    if heap <= 0 or heap & 7:
        raise HeapUnknownError(Reason.NO_HEAP, "Zend has not created its heap yet")
    chunk = memory.words(main, _CHUNK_WORDS) if main else None
    words = memory.words(heap, _HEAP_WORDS)
    if chunk is None or chunk[0] != heap:
        # alloc_globals_ctor(): with USE_ZEND_ALLOC=0 the structure alone is made, by malloc. `int use_custom_heap`
        # is its first member.
        if words is not None and words[0] & 0xFFFF_FFFF in (1, 2):
            raise HeapUnknownError(Reason.NOT_USED, "PHP uses malloc instead of Zend's allocator (USE_ZEND_ALLOC=0)")
        raise _MalformedError("it is not in a chunk of its own")
    place = words.index(main) if words is not None and main in words[1:-4] else 0
    if words is None or not place:
        raise _MalformedError("it does not point to its main chunk")
    return main, words[place - 1 : place + 4]


def _lists(memory: ProcessMemory, heap: int, limit: int) -> _Lists:
    main, key = _key(memory, heap)
    huge_at, _, cached_at, counts, more = key
    live = _chunks(memory, main, main, limit, heap)
    cached = _chunks(memory, cached_at, 0, limit, None)
    # int chunks_count, peak_chunks_count, cached_chunks_count
    if len(live) != counts & 0xFFFF_FFFF or len(cached) != more & 0xFFFF_FFFF:
        raise _MalformedError("its lists of chunks do not have the stated length")
    huge = _huge(memory, huge_at, limit)
    ranges = sorted([*huge, *[(at, CHUNK) for at in live + cached]])
    if any(low + size > high for (low, size), (high, _) in pairwise(ranges)):
        raise _MalformedError("its chunks and huge blocks overlap")
    if sum(size for _, size in ranges) > limit:
        raise _too_large(limit)
    return _Lists(live, cached, huge, key)


def _chunks(memory: ProcessMemory, first: int, end: int, limit: int, heap: int | None) -> tuple[int, ...]:
    """The chunks that hang together by `next`, up to `end`. `heap`: what each of them must belong to."""
    found: dict[int, None] = {}
    at = first
    while at and (at != end or not found):
        if at & CHUNK - 1 or at in found:
            raise _MalformedError("a list of chunks has a wrong pointer")
        if len(found) * CHUNK >= limit:
            raise _too_large(limit)
        words = memory.words(at, 2)
        if words is None or (heap is not None and words[0] != heap):
            raise _MalformedError("a list of chunks has a wrong pointer")
        found[at] = None
        at = words[1]
    if at != end:
        raise _MalformedError("its chunks do not form a ring")
    return tuple(found)


def _huge(memory: ProcessMemory, first: int, limit: int) -> tuple[tuple[int, int], ...]:
    """Huge blocks: larger than 2 MiB less a page each, and aligned as chunks are."""
    found: list[tuple[int, int]] = []
    seen: set[int] = set()
    at = first
    while at:
        if at in seen or at & 7:
            raise _MalformedError("the list of huge blocks has a wrong pointer")
        if len(found) >= _MAX_HUGE:
            raise _too_large(limit)
        words = memory.words(at, _HUGE_WORDS)
        if words is None or words[0] & CHUNK - 1 or not words[0] or not words[1] or words[1] % PAGE:
            raise _MalformedError("the list of huge blocks has a wrong pointer")
        if words[1] > limit or words[0] + words[1] > 1 << 63:
            raise _too_large(limit)
        seen.add(at)
        found.append((words[0], words[1]))
        at = words[2]
    return tuple(found)


def _too_large(limit: int) -> HeapUnknownError:
    return HeapUnknownError(Reason.TOO_LARGE, f"Zend's heap is larger than the limit of {limit:,} bytes")
