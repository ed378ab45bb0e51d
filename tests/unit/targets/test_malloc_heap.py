"""Heaps of glibc's malloc, made by hand: the counts of chunks, and heaps that are refused."""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st
from malloc_memory import ARENA_AT, FREE, HEAP_BYTES, NEXT, PAR_AT, USED, MallocMemory
from samples import PROPERTY, within

from tracer.targets import malloc_books, malloc_heap, process_memory
from tracer.targets.malloc_heap import MallocHeap, walk
from tracer.targets.process_memory import HeapUnknownError, Reason

TCACHE = (0x290, USED)
SOON_S = 2.0


@pytest.fixture
def heap() -> Iterator[MallocMemory]:
    memory = MallocMemory()
    yield memory
    memory.close()


def whole(found: MallocHeap) -> int:
    """Bytes of the heap."""
    return found.in_use_bytes + found.free_bytes + found.top_bytes


def test_chunks_in_use_are_counted_by_size_and_free_ones_and_top_apart(heap):
    heap.chunks([TCACHE, (1040, USED), (32, USED), (1040, USED), (176, FREE), (32, USED)])
    heap.tcache(heap.base, {})
    heap.arena(mapped=303_104)

    found = heap.look()

    assert found.sizes == {0x290: 1, 1040: 2, 32: 2}
    assert (found.in_use_bytes, found.free_bytes, found.cached_bytes) == (0x290 + 2080 + 64, 176, 0)
    assert whole(found) == HEAP_BYTES
    assert (found.uncertain_bytes, found.lacking, found.settled) == (0, (), True)
    assert (found.mapped_bytes, found.other_arenas) == (303_104, False)


def test_one_size_is_one_class_whatever_is_before_its_chunks(heap):
    heap.chunks([TCACHE, (48, USED), (64, FREE), (48, USED), (64, FREE), (48, USED)])
    heap.tcache(heap.base, {})
    heap.arena()

    found = heap.look()

    assert (found.sizes, found.free_bytes) == ({0x290: 1, 48: 3}, 128)


def test_chunks_in_the_thread_cache_are_free(heap):
    heap.chunks([TCACHE, *[(48, USED)] * 11, *[(1040, USED)] * 7])
    heap.tcache(heap.base, {48: 3, 1040: 7})
    heap.arena()

    found = heap.look()

    assert found.sizes == {0x290: 1, 48: 8}
    assert (found.free_bytes, found.cached_bytes) == (3 * 48 + 7 * 1040, 3 * 48 + 7 * 1040)


def test_the_thread_cache_of_glibc_2_42_counts_the_room_that_is_left(heap):
    heap.chunks([(0x300, USED), *[(48, USED)] * 11])
    heap.tcache_of_rooms(heap.base, {48: 3}, most=7)
    heap.arena()

    assert heap.look().sizes == {0x300: 1, 48: 8}


def test_the_thread_cache_of_glibc_2_29_counts_in_bytes(heap):
    heap.chunks([(0x250, USED), *[(48, USED)] * 11])
    heap.write(heap.base + 16, bytes([0, 3]).ljust(64, b"\0"))
    heap.word(heap.base + 16 + 64 + 8, heap.base + 16)
    heap.arena()

    assert heap.look().sizes == {0x250: 1, 48: 8}


def test_an_arena_without_fastbins_has_nothing_in_them(heap):
    """After glibc 2.42; what is before its `top` is something else."""
    places = heap.chunks([TCACHE, *[(32, USED)] * 5])
    heap.tcache(heap.base, {})
    heap.arena([places[1]], has_fastbins=False)

    found = heap.look()

    assert (found.sizes[32], found.lacking, found.other_arenas) == (5, (), False)


def test_a_thread_cache_that_was_not_made_first_is_found_by_its_shape(heap):
    places = heap.chunks([(1040, USED), (0x300, USED), (0x300, USED), *[(48, USED)] * 11])
    heap.write(places[1] + 16, b"\x05" * 700)
    heap.tcache_of_rooms(places[2], {48: 16}, most=16)
    heap.tcache_of_rooms(places[2], {48: 3}, most=16)
    heap.arena()

    found = heap.look()

    assert (found.sizes[48], found.lacking) == (8, ())


def test_without_a_thread_cache_the_figure_is_an_interval(heap):
    heap.chunks([(1040, USED), *[(48, USED)] * 11, *[(64, USED)] * 99])
    heap.arena()

    found = heap.look()

    assert found.sizes == {1040: 1, 48: 11, 64: 99}
    assert found.uncertain_bytes == 1040 + 11 * 48 + 16 * 64
    assert "thread cache was not found" in found.lacking[0]


@pytest.mark.parametrize("mangled", [True, False])
def test_chunks_in_fastbins_are_free(heap, mangled):
    places = heap.chunks([TCACHE, *[(32, USED)] * 5, *[(64, USED)] * 5])
    heap.tcache(heap.base, {})
    listed = [places[number] for number in (3, 1, 4)]
    if mangled:
        heap.mangled_list(listed)
    else:
        for chunk, following in zip(listed, [*listed[1:], 0], strict=True):
            heap.word(chunk + 16, following)
    heap.arena([listed[0]])

    found = heap.look()

    assert (found.sizes, found.cached_bytes, found.settled) == ({0x290: 1, 32: 2, 64: 5}, 96, True)


def test_fastbins_behind_memory_that_was_never_touched_are_followed(heap):
    """A large block whose middle has no pages yet: only its header, and what is behind it, is resident."""
    places = heap.chunks([TCACHE, (0x2800, USED), *[(32, USED)] * 5])
    heap.tcache(heap.base, {})
    heap.arena([heap.mangled_list([places[number] for number in (4, 2)])])

    found = heap.look()

    assert (found.sizes, found.cached_bytes, found.lacking) == ({0x290: 1, 0x2800: 1, 32: 3}, 64, ())


def test_a_fastbin_that_runs_in_a_circle_is_an_interval(heap):
    places = heap.chunks([TCACHE, *[(32, USED)] * 5])
    heap.tcache(heap.base, {})
    for chunk, following in ((places[1], places[2]), (places[2], places[1])):
        heap.word(chunk + 16, following ^ (chunk + 16 >> 12))
    heap.arena([places[1]])

    found = heap.look()

    assert (found.in_use_bytes, found.uncertain_bytes) == (0x290, 0)
    assert "fastbin of 32 bytes" in found.lacking[0]


def test_without_main_arena_fastbins_are_an_interval_and_two_walks_must_agree(heap):
    heap.chunks([TCACHE, *[(48, USED)] * 11, *[(1040, USED)] * 3])
    heap.tcache(heap.base, {48: 2})

    found = heap.look()

    assert (found.sizes, found.uncertain_bytes) == ({0x290: 1, 48: 9, 1040: 3}, 9 * 48)
    assert (found.mapped_bytes, found.other_arenas, found.settled) == (None, None, True)
    assert "main arena was not found" in found.lacking[0]


def test_an_arena_of_a_thread_leads_back_to_the_main_one(heap):
    heap.chunks([TCACHE])
    heap.tcache(heap.base, {})
    heap.arena()
    main = heap.libc + ARENA_AT
    heap.word(main + NEXT, heap.base + 64)
    heap.word(heap.base + 64 + NEXT, main)

    found = heap.look()

    assert (found.other_arenas, found.lacking) == (True, ())


def test_a_heap_larger_than_a_piece_is_walked_over_its_border(heap):
    count = HEAP_BYTES // 48 - 30
    heap.chunks([TCACHE, *[(48, USED)] * count])
    heap.tcache(heap.base, {})
    heap.arena()

    assert heap.look().sizes == {0x290: 1, 48: count}


def test_memory_of_other_code_behind_top_is_not_malloc_s(heap):
    heap.chunks([TCACHE, (48, USED)], top=PAGE_OF_TOP)
    heap.tcache(heap.base, {})
    heap.arena()
    malloc_s = heap.heap_bytes
    heap.heap_bytes = HEAP_BYTES

    found = heap.look()

    assert (whole(found), found.sizes[48]) == (malloc_s, 1)


PAGE_OF_TOP = 4096 - 0x290 - 48


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        pytest.param(lambda heap, at: heap.word(at + 8, 0), Reason.MALFORMED, id="size 0"),
        pytest.param(lambda heap, at: heap.word(at + 8, 24 | 1), Reason.MALFORMED, id="no multiple of 16"),
        pytest.param(lambda heap, at: heap.word(at + 8, 64 | 1), Reason.MALFORMED, id="the next header is none"),
        pytest.param(lambda heap, at: heap.word(at + 8, 1 << 40 | 1), Reason.MALFORMED, id="beyond the end"),
        pytest.param(lambda heap, at: heap.word(at + 8, -1), Reason.MALFORMED, id="all bits"),
        pytest.param(lambda heap, at: heap.word(at + 8, 48 | 5), Reason.MALFORMED, id="of another arena"),
        pytest.param(lambda heap, at: heap.word(at + 8, 48 | 3), Reason.MALFORMED, id="mapped apart"),
        pytest.param(
            lambda heap, at: heap.write(at + 8, b"\x11".ljust(8, b"\0") * 4), Reason.INTERRUPTED, id="fencepost"
        ),
        pytest.param(lambda heap, _: heap.word(heap.top + 8, 48 | 1), Reason.MALFORMED, id="top too short"),
    ],
)
def test_memory_that_is_not_a_heap_is_refused(heap, spoil, reason):
    places = heap.chunks([TCACHE, *[(48, USED)] * 20])
    heap.tcache(heap.base, {})
    spoil(heap, places[7])

    with pytest.raises(HeapUnknownError) as refused:
        heap.look()

    assert refused.value.reason is reason


def test_a_heap_with_memory_of_other_code_is_refused(heap):
    heap.chunks([TCACHE])
    heap.tcache(heap.base, {})
    heap.arena(system_mem=HEAP_BYTES + 4096)

    with pytest.raises(HeapUnknownError, match="sbrk") as refused:
        heap.look()

    assert refused.value.reason is Reason.INTERRUPTED


def test_a_heap_beyond_the_limit_is_not_read(heap):
    with pytest.raises(HeapUnknownError, match="524,288 bytes, more than the limit of 4,096") as refused:
        heap.look(limit_bytes=4096)

    assert refused.value.reason is Reason.TOO_LARGE


class Clock:
    """Stands for the module time: a second passes whenever somebody looks at it."""

    def __init__(self) -> None:
        self.now = 0

    def monotonic(self) -> int:
        self.now += 1
        return self.now


def checks(heap: MallocMemory, monkeypatch: pytest.MonkeyPatch) -> int:
    """How often a look at the heap looks at the clock."""
    clock = Clock()
    monkeypatch.setattr(process_memory, "time", clock)
    heap.look(until=1e9)
    return clock.now


def test_a_look_ends_at_its_deadline_wherever_it_has_come_to(heap, monkeypatch):
    places = heap.chunks([TCACHE, *[(32, USED)] * 15_000])
    heap.tcache(heap.base, {})
    heap.arena([heap.mangled_list(places[1:5_000])])
    needed = checks(heap, monkeypatch)

    for moment in range(1, needed + 1):
        monkeypatch.setattr(process_memory, "time", Clock())
        with pytest.raises(HeapUnknownError) as refused:
            heap.look(until=moment)
        assert (refused.value.reason, str(refused.value)) == (Reason.TOO_LONG, "the time limit for looks was reached")


def test_a_list_that_goes_round_in_memory_that_was_read_looks_at_the_clock(heap, monkeypatch):
    places = heap.chunks([TCACHE, *[(32, USED)] * 15_000])
    heap.tcache(heap.base, {})
    heap.word(places[7] + 16, 0 ^ (places[7] + 16 >> 12))
    heap.arena([places[7]])
    with_an_end = checks(heap, monkeypatch)

    heap.word(places[7] + 16, places[7] ^ (places[7] + 16 >> 12))

    assert checks(heap, monkeypatch) >= with_an_end + 15_000 // 1024


def test_lists_that_lead_back_and_forth_are_not_read_for_ever(heap, monkeypatch):
    places = heap.chunks([TCACHE, *[(32, USED)] * 15_000])
    heap.tcache(heap.base, {})
    far_apart = [places[1 + 7_000 * (number % 2) + number] for number in range(10)]
    heap.arena([heap.mangled_list(far_apart)])
    monkeypatch.setattr(malloc_books, "_BLOCKS", 1)

    assert (heap.look().sizes[32], heap.look().lacking) == (15_000 - 10, ())
    monkeypatch.setattr(malloc_books, "_READS", 9)

    found = heap.look()

    assert (found.sizes[32], found.uncertain_bytes) == (15_000 - 9, 32 * (15_000 - 9))
    assert found.lacking == ("the fastbin of 32 bytes could not be followed to its end",)


def test_a_cache_that_holds_more_than_there_is_does_not_count_as_settled(heap):
    heap.chunks([TCACHE, (48, USED)])
    heap.tcache(heap.base, {48: 5})
    heap.arena()

    found = heap.look()

    assert (found.settled, found.sizes) == (False, {0x290: 1})


def test_a_bin_that_is_changing_does_not_count_as_settled(heap):
    heap.chunks([TCACHE, (48, USED)])
    heap.tcache(heap.base, {48: 1}, head=0)
    heap.arena()

    assert heap.look().settled is False


def test_a_process_that_is_another_by_now_is_refused():
    with pytest.raises(HeapUnknownError) as refused:
        walk(os.getpid(), start_ticks=1)

    assert refused.value.reason is Reason.GONE


@pytest.mark.parametrize("pid", [4_194_303, 2**31, 2**80])
def test_a_process_that_is_not_there_is_refused(pid):
    with pytest.raises(HeapUnknownError) as refused:
        walk(pid)

    assert refused.value.reason is Reason.GONE


# Each memory is made once: what an example leaves behind is as good as any rubbish.
WORDS = st.one_of(
    st.integers(0, 80).map(lambda number: 16 * number | 1),
    st.integers(0, HEAP_BYTES // 16).map(lambda number: 16 * number | 1),
    st.integers(0, (1 << 64) - 1),
)


def sensible(found: MallocHeap) -> bool:
    parts = (found.in_use_bytes, found.uncertain_bytes, found.free_bytes, found.cached_bytes, found.top_bytes)
    return min(parts) >= 0 and whole(found) <= HEAP_BYTES


@pytest.fixture(scope="module")
def rubbish() -> Iterator[MallocMemory]:
    memory = MallocMemory()
    yield memory
    memory.close()


def looks_sensibly(heap: MallocMemory) -> bool:
    with within(SOON_S):
        try:
            return sensible(heap.look())
        except HeapUnknownError:
            return True


@PROPERTY
@given(st.lists(WORDS, max_size=60), st.integers(0, HEAP_BYTES // 8))
def test_rubbish_in_a_heap_is_refused_or_counted_and_nothing_else(rubbish, words, place):
    rubbish.chunks([TCACHE, *[(1040, USED)] * 300])
    rubbish.arena()
    content = struct.pack(f"<{len(words)}Q", *words)[: HEAP_BYTES - 8 * place]
    rubbish.write(rubbish.base + 8 * place, content)

    assert looks_sensibly(rubbish)


@PROPERTY
@given(st.binary(min_size=256, max_size=8192))
def test_a_heap_of_rubbish_only_is_refused_or_counted_and_nothing_else(rubbish, content):
    rubbish.write(rubbish.base, (content * (HEAP_BYTES // len(content) + 1))[:HEAP_BYTES])

    assert looks_sensibly(rubbish)


@PROPERTY
@given(st.lists(st.tuples(st.integers(0, 0x1F0), st.one_of(WORDS, st.integers(0, HEAP_BYTES))), max_size=40))
def test_rubbish_in_the_c_library_s_data_is_no_arena_or_one_and_nothing_else(rubbish, places):
    rubbish.chunks([TCACHE, *[(32, USED)] * 300])
    rubbish.tcache(rubbish.base, {32: 7})
    rubbish.arena()
    for place, word in places:
        rubbish.word(rubbish.libc + PAR_AT + 8 * place, word + rubbish.base if word < HEAP_BYTES else word)

    assert looks_sensibly(rubbish)


def test_chunks_that_were_taken_from_top_during_the_walk_are_left_out(heap, monkeypatch):
    """A process that goes on: its last chunk has moved by the time the walk comes there."""
    places = heap.chunks([TCACHE, *[(48, USED)] * 20, *[(64, USED)] * 5])
    heap.tcache(heap.base, {})
    heap.arena()
    now, before = heap.top, places[21]
    rest = heap.base + HEAP_BYTES - before
    heap.top = before
    heap.word(before + 8, rest | USED)
    heap.arena()
    real = malloc_heap.find_arena

    def found_before(*arguments):
        arena = real(*arguments)
        heap.top = now
        heap.word(before + 8, 64 | USED)
        heap.arena()
        return arena

    monkeypatch.setattr(malloc_heap, "find_arena", found_before)
    found = heap.look()

    assert (found.sizes[48], found.sizes.get(64), found.settled) == (20, None, False)
    assert found.top_bytes == rest
