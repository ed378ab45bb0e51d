"""Zend's chunks, made by hand: the pages that are counted, and lists that are refused."""

from __future__ import annotations

import os
import struct
import time
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st
from samples import PROPERTY, within
from zend_chunks import MAIN_AT, PAGE, ZendChunks

from tracer.targets.process_memory import HeapUnknownError, Reason
from tracer.targets.zend_heap import CHUNK, resident

COUNT = 7
SOON_S = 2.0


@pytest.fixture
def zend() -> Iterator[ZendChunks]:
    memory = ZendChunks(COUNT)
    yield memory
    memory.close()


def test_resident_pages_of_live_and_cached_chunks_and_huge_blocks_are_counted(zend):
    zend.lists([0, 2, 1], cached=[3, 5], huge=[(4, CHUNK)])
    zend.touch(0, 11)
    zend.touch(1, 13)
    zend.touch(3, 17)
    zend.touch(4, 19)

    found = zend.look()

    # The first page of each chunk has its header, and page 1 of the first the list of huge blocks, too.
    assert found.resident_cached_bytes == PAGE * (18 + 1)
    assert found.resident_bytes == PAGE * (12 + 1 + 14 + 18 + 1 + 19)
    assert (found.live_chunks, found.cached_chunks) == (3, 2)
    assert (found.live_bytes, found.cached_bytes, found.huge_bytes) == (4 * CHUNK, 2 * CHUNK, CHUNK)
    assert (found.settled, found.hugetlb_bytes) == (True, 0)


def test_a_chunk_in_no_list_is_not_counted(zend):
    zend.lists([0])
    zend.touch(1, 23)

    assert zend.look().resident_bytes == PAGE


@pytest.mark.skipif(os.geteuid() != 0, reason="page numbers are hidden from ordinary users")
def test_the_zero_page_is_not_counted(zend):
    zend.lists([0])
    for page in range(100, 110):
        zend.read_page(zend.at[0] + PAGE * page)

    assert zend.look().resident_bytes == PAGE


def test_a_heap_beyond_the_deadline_is_refused(zend):
    zend.lists([0])

    with pytest.raises(HeapUnknownError) as refused:
        resident(os.getpid(), zend.heap, until=time.monotonic())

    assert refused.value.reason is Reason.TOO_LONG


@pytest.mark.parametrize("main_at", [312, 328, 400])
def test_the_main_chunk_is_found_wherever_a_build_has_it(zend, main_at, monkeypatch):
    monkeypatch.setattr("zend_chunks.MAIN_AT", main_at)
    zend.lists([0, 1])

    assert zend.look().live_chunks == 2


@pytest.mark.parametrize(
    ("spoil", "why"),
    [
        pytest.param(lambda z: z.word(z.at[1] + 8, z.at[1]), "wrong pointer", id="circle beside the main chunk"),
        pytest.param(lambda z: z.word(z.at[1] + 8, 0), "do not form a ring", id="open ring"),
        pytest.param(lambda z: z.word(z.at[1] + 8, z.at[0] + 8), "wrong pointer", id="not aligned"),
        pytest.param(lambda z: z.word(z.at[1] + 8, 1 << 46), "wrong pointer", id="not mapped"),
        pytest.param(lambda z: z.word(z.at[1] + 8, -1), "wrong pointer", id="all bits"),
        pytest.param(lambda z: z.word(z.at[1], z.heap + 8), "wrong pointer", id="chunk of another heap"),
        pytest.param(lambda z: z.word(z.at[3] + 8, z.at[2]), "wrong pointer", id="cached chunks in a circle"),
        pytest.param(lambda z: z.word(z.at[3] + 8, z.at[1]), "wrong pointer", id="cached chunk that is live"),
        pytest.param(lambda z: z.word(z.heap + MAIN_AT + 16, 7), "stated length", id="other count"),
        pytest.param(lambda z: z.word(z.heap + MAIN_AT, 0), "main chunk", id="no main chunk"),
        pytest.param(
            lambda z: z.word(z.at[0] + 4096 + 16, z.at[0] + 4096), "wrong pointer", id="huge blocks in a circle"
        ),
        pytest.param(lambda z: z.word(z.at[0] + 4096, z.at[4] + 4096), "wrong pointer", id="huge block not aligned"),
        pytest.param(lambda z: z.word(z.at[0] + 4096 + 8, 5), "wrong pointer", id="huge block of 5 bytes"),
        pytest.param(lambda z: z.word(z.at[0] + 4096 + 8, 3 * CHUNK), "overlap", id="huge blocks overlap"),
        pytest.param(lambda z: z.word(z.at[0] + 4096, z.at[1]), "overlap", id="huge block that is a chunk"),
    ],
)
def test_corrupt_lists_are_refused(zend, spoil, why):
    zend.lists([0, 1], cached=[2, 3], huge=[(4, CHUNK), (5, CHUNK)])
    spoil(zend)

    with pytest.raises(HeapUnknownError, match=why) as refused:
        zend.look()

    assert refused.value.reason is Reason.MALFORMED


def test_more_than_the_limit_is_refused(zend):
    zend.lists([0, 1, 2], huge=[(4, CHUNK)])

    for limit in (CHUNK, 3 * CHUNK, 4 * CHUNK - 1):
        with pytest.raises(HeapUnknownError) as refused:
            zend.look(limit_bytes=limit)
        assert refused.value.reason is Reason.TOO_LARGE
    assert zend.look(limit_bytes=4 * CHUNK).huge_bytes == CHUNK


def test_a_huge_block_of_any_size_is_not_read(zend):
    zend.lists([0], huge=[(4, 1 << 46)])

    with pytest.raises(HeapUnknownError) as refused:
        zend.look()

    assert refused.value.reason is Reason.TOO_LARGE


@pytest.mark.parametrize("custom", [1, 2])
def test_a_heap_that_only_passes_calls_on_is_not_in_use(zend, custom):
    """alloc_globals_ctor(): with USE_ZEND_ALLOC=0, zend_mm_heap is alone, and made by malloc."""
    at = zend.at[1] + 4096
    zend.write(at, struct.pack("<i", custom))

    with pytest.raises(HeapUnknownError) as refused:
        zend.look(at)

    assert refused.value.reason is Reason.NOT_USED


@pytest.mark.parametrize(
    ("heap", "reason"),
    [
        (0, Reason.NO_HEAP),
        (3, Reason.NO_HEAP),
        (-8, Reason.NO_HEAP),
        (64, Reason.MALFORMED),
        (1 << 62, Reason.MALFORMED),
        ((1 << 64) - 8, Reason.MALFORMED),
    ],
)
def test_a_pointer_that_leads_nowhere_is_refused(zend, heap, reason):
    with pytest.raises(HeapUnknownError) as refused:
        zend.look(heap)

    assert refused.value.reason is reason


def test_a_process_that_is_another_by_now_is_refused(zend):
    with pytest.raises(HeapUnknownError) as refused:
        resident(os.getpid(), zend.heap, start_ticks=1)

    assert refused.value.reason is Reason.GONE


@pytest.fixture(scope="module")
def rubbish() -> Iterator[ZendChunks]:
    memory = ZendChunks(COUNT)
    yield memory
    memory.close()


PLACES = st.tuples(st.sampled_from([0, 8, 16, 64, 64 + MAIN_AT - 8, 64 + MAIN_AT, 64 + MAIN_AT + 8, 64 + MAIN_AT + 16,
                                    4096, 4104, 4112]), st.integers(0, COUNT - 1))  # fmt: skip
VALUES = st.one_of(
    st.integers(0, COUNT - 1).map(lambda number: ("chunk", number)),
    st.sampled_from([0, 1, 8, 4096, CHUNK, (1 << 64) - 1]).map(lambda value: ("word", value)),
    st.integers(0, (1 << 64) - 1).map(lambda value: ("word", value)),
)


@PROPERTY
@given(st.lists(st.tuples(PLACES, VALUES), max_size=30))
def test_rubbish_is_refused_or_counted_and_nothing_else(rubbish, changes):
    rubbish.lists([0, 1], cached=[2, 3], huge=[(4, CHUNK), (5, CHUNK)])
    for (offset, number), (kind, value) in changes:
        rubbish.word(rubbish.at[number] + offset, rubbish.at[value] if kind == "chunk" else value)

    with within(SOON_S):
        try:
            found = rubbish.look()
        except HeapUnknownError:
            return
    assert 0 <= found.resident_cached_bytes <= found.resident_bytes <= COUNT * CHUNK
