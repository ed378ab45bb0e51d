"""From the records of the stacks' ring to Growth: sums, and what belongs to which request."""

from __future__ import annotations

import pytest
from stack_records import HASH, NTH, PID, called, entry, function, grown, growths, stack

from tracer.backends.records import growth_decoder
from tracer.backends.records.growth_decoder import GrowthDecoder
from tracer.backends.records.stack_structs import (
    HASH_LOST,
    HASH_NO_PHP,
    HASH_THREAD,
    Call,
    MetricKind,
)
from tracer.facts import GIVEN_BACK, NO_PHP, STACK_LOST, THREAD, Frame, Growth

FILE = "/srv/app/Repo.php"
PAGE = 4096
BASE = 0x7F00_0000_0000


@pytest.fixture
def decoder() -> GrowthDecoder:
    return GrowthDecoder()


@pytest.mark.parametrize(
    ("metric", "named"), [(MetricKind.RSS, "rss"), (MetricKind.MAPPED, "mapped"), (MetricKind.ZEND, "zend")]
)
def test_growth_has_the_name_of_its_metric(decoder, metric, named):
    [found] = growths(decoder, grown(101, key=HASH_NO_PHP, metric=metric))

    assert found.metric == named


def test_growth_of_an_unknown_metric_is_left_out(decoder):
    assert growths(decoder, grown(101, key=HASH_NO_PHP, metric=13)) == []


def test_growth_in_one_stack_is_added_up_by_metric(decoder):
    records = [
        function(3), stack((3, 2)), grown(101, samples=2), grown(103, samples=3), grown(-107, samples=5),
        grown(109, metric=MetricKind.ZEND, samples=7),
    ]  # fmt: skip

    assert [(found.metric, found.bytes, found.samples) for found in growths(decoder, *records)] == [
        ("rss", 97, 10),
        ("zend", 109, 7),
    ]


def test_two_stacks_that_look_alike_are_one(decoder):
    records = [
        function(3), function(5), stack((3, 2)), stack((5, 2), key=HASH + 1), grown(101), grown(103, key=HASH + 1)
    ]  # fmt: skip

    assert [found.bytes for found in growths(decoder, *records)] == [204]


def test_growth_that_adds_up_to_zero_is_left_out(decoder):
    assert growths(decoder, grown(101, key=HASH_NO_PHP), grown(-101, key=HASH_NO_PHP)) == []


def test_growth_is_given_once(decoder):
    first = growths(decoder, grown(101, key=HASH_NO_PHP))

    assert len(first) == 1
    assert growths(decoder) == []


def test_growth_is_forgotten_even_if_it_is_not_read(decoder):
    decoder.take(grown(101, key=HASH_NO_PHP))

    decoder.growths(PID, NTH)

    assert growths(decoder) == []


@pytest.mark.parametrize(
    ("record", "most"),
    [
        (called(Call.MUNMAP, BASE, 1 << 62, key=HASH_NO_PHP), -(1 << 63) + 1),
        (called(Call.MMAP, BASE, 1 << 63, key=HASH_NO_PHP), (1 << 63) - 1),
        (grown(1 << 62, key=HASH_NO_PHP, metric=MetricKind.ZEND), (1 << 63) - 1),
        (grown(-(1 << 62), key=HASH_NO_PHP, metric=MetricKind.ZEND), -(1 << 63) + 1),
    ],
)
def test_growth_that_no_memory_can_have_is_as_much_as_a_recording_holds(decoder, record, most):
    [found] = growths(decoder, record, record, record)

    assert found.bytes == most


def test_an_unknown_request_has_no_growth(decoder):
    assert growths(decoder) == []


def test_stacks_and_functions_are_of_one_request_of_one_worker(decoder):
    others = [
        function(3, pid=PID + 2),
        stack((3, 2), pid=PID + 2),
        function(3, nth=NTH + 1),
        stack((3, 2), nth=NTH + 1),
    ]

    [found] = growths(decoder, *others, grown(101))

    assert found.stack == (STACK_LOST,)


def test_requests_of_several_workers_do_not_mix(decoder):
    records = [
        grown(101, key=HASH_NO_PHP, pid=2, nth=3), grown(103, key=HASH_NO_PHP, pid=3, nth=2),
        grown(107, key=HASH_NO_PHP, pid=2, nth=2),
    ]  # fmt: skip

    assert [found[:2] + found[4:5] for found in growths(decoder, *records, pid=2, nth=2)] == [(2, 2, 107)]
    assert [found.bytes for found in growths(decoder, pid=3, nth=2)] == [103]
    assert [found.bytes for found in growths(decoder, pid=2, nth=3)] == [101]


def test_earlier_requests_of_a_worker_whose_end_was_lost_are_forgotten(decoder):
    for pid, nth, size in ((PID, 5, 101), (PID, 11, 103), (2, 5, 107)):
        decoder.take(grown(size, key=HASH_NO_PHP, pid=pid, nth=nth))

    decoder.growths(PID, 7)

    found = [growths(decoder, pid=pid, nth=nth) for pid, nth in ((PID, 5), (PID, 11), (2, 5))]
    assert [[one.bytes for one in of] for of in found] == [[], [103], [107]]


def test_a_mapping_is_growth_of_its_stack_and_a_sample(decoder):
    records = [
        function(3), stack((3, 2)), called(Call.MMAP, BASE, 3 * PAGE), called(Call.MMAP, BASE + 7 * PAGE, 2 * PAGE)
    ]  # fmt: skip

    assert growths(decoder, *records) == [
        Growth(PID, NTH, "mapped", (Frame("user", "find", FILE, 2),), 5 * PAGE, 2)
    ]  # fmt: skip


def test_unmapped_memory_is_taken_off_and_is_not_a_sample(decoder):
    records = [
        function(3), stack((3, 2)), called(Call.MMAP, BASE, 7 * PAGE),
        called(Call.MUNMAP, BASE, 2 * PAGE, key=HASH_NO_PHP),
    ]  # fmt: skip

    assert [(found.bytes, found.samples) for found in growths(decoder, *records)] == [(5 * PAGE, 1)]


def test_memory_unmapped_after_the_script_is_given_back(decoder):
    records = [
        function(3), stack((3, 2)), called(Call.MMAP, BASE, 7 * PAGE),
        called(Call.MUNMAP, BASE, 7 * PAGE, key=HASH_NO_PHP, script_ended=True),
    ]  # fmt: skip

    assert [(found.stack[0].name, found.bytes, found.samples) for found in growths(decoder, *records)] == [
        ("find", 7 * PAGE, 1),
        ("[given back]", -7 * PAGE, 0),
    ]


def test_a_mapping_moved_to_another_place_and_the_break_are_mapped_growth_too(decoder):
    records = [
        called(Call.MMAP, BASE, 2 * PAGE, key=HASH_NO_PHP),
        called(Call.MREMAP, BASE, 2 * PAGE, BASE + 997 * PAGE, 5 * PAGE, key=HASH_NO_PHP),
        called(Call.BRK, 0x1000, to=0x1000 + 11 * PAGE, key=HASH_NO_PHP),
    ]

    assert growths(decoder, *records) == [Growth(PID, NTH, "mapped", (NO_PHP,), 16 * PAGE, 3)]


def test_a_worker_remembers_what_it_mapped_in_earlier_requests(decoder):
    growths(decoder, called(Call.MMAP, BASE, 7 * PAGE, key=HASH_NO_PHP))
    later = called(Call.MMAP, BASE, 9 * PAGE, key=HASH_NO_PHP, nth=11)

    assert [(found.stack, found.bytes) for found in growths(decoder, later, nth=11)] == [
        ((GIVEN_BACK,), -7 * PAGE),
        ((NO_PHP,), 9 * PAGE),
    ]


def test_workers_have_address_spaces_of_their_own(decoder):
    growths(decoder, called(Call.MMAP, BASE, 7 * PAGE, key=HASH_NO_PHP))
    other = called(Call.MMAP, BASE, 7 * PAGE, key=HASH_NO_PHP, pid=2)

    assert [found.bytes for found in growths(decoder, other, pid=2)] == [7 * PAGE]


def test_nothing_is_left_of_a_worker_that_is_forgotten(decoder):
    for pid in (PID, 2):
        decoder.take(grown(101, key=HASH_NO_PHP, pid=pid))
        decoder.take(called(Call.MMAP, BASE, 7 * PAGE, key=HASH_NO_PHP, pid=pid))

    decoder.forget(PID)

    left = [[found.bytes for found in growths(decoder, pid=pid)] for pid in (PID, 2)]
    mapped = [
        growths(decoder, called(Call.MMAP, BASE, 7 * PAGE, key=HASH_NO_PHP, pid=pid, nth=11), pid=pid, nth=11)
        for pid in (PID, 2)
    ]
    assert left == [[], [101, 7 * PAGE]]
    assert [len(found) for found in mapped] == [1, 2]


def test_an_unknown_worker_can_be_forgotten(decoder):
    decoder.forget(PID)

    assert growths(decoder) == []


def test_slots_that_the_kernel_still_holds_of_an_unfinished_request_are_growth(decoder):
    decoder.take(function(3))
    decoder.take(stack((3, 2)))
    decoder.take(grown(1_009, samples=2))

    slots = [(HASH, 101, MetricKind.RSS, 3), (HASH_NO_PHP, -103, MetricKind.ZEND, 5), (HASH + 1, 107, 1, 7)]
    decoder.take_slots(PID, entry(*slots))

    assert [(found.metric, found.stack[0].name, found.bytes, found.samples) for found in growths(decoder)] == [
        ("rss", "find", 1_110, 5),
        ("zend", "[no php]", -103, 5),
        ("rss", "[stack lost]", 107, 7),
    ]


def test_all_slots_are_read(decoder):
    decoder.take_slots(PID, entry(*((HASH_NO_PHP, 1 << bit % 31, MetricKind.RSS, 1) for bit in range(64))))

    [found] = growths(decoder)

    assert (found.bytes, found.samples) == (2 * ((1 << 31) - 1) + 3, 64)


def test_slots_are_of_the_request_they_name(decoder):
    decoder.take_slots(PID, entry((HASH_NO_PHP, 101, MetricKind.RSS, 1), nth=11))

    assert growths(decoder) == []
    assert [found.nth for found in growths(decoder, nth=11)] == [11]


def test_a_fault_outside_zends_chunks_is_one_of_all_faults_too(decoder):
    records = [function(3, b"find"), stack((3, 89)), grown(101, metric=MetricKind.RSS), grown(
        65_537, metric=MetricKind.NATIVE, samples=11)]  # fmt: skip

    found = growths(decoder, *records)

    assert [(one.metric, one.bytes, one.samples) for one in found] == [("rss", 65_638, 12), ("native", 65_537, 11)]


def test_the_stack_of_a_hash_is_known_while_its_request_runs_and_after_it_until_it_is_forgotten():
    decoder = GrowthDecoder(keep_stacks=True)
    for record in (function(3, b"find"), stack((3, 89))):
        decoder.take(record)

    running = decoder.stack(PID, NTH, HASH)
    decoder.growths(PID, NTH)
    ended = decoder.stack(PID, NTH, HASH)
    decoder.forget_ended()

    assert running == ended == (Frame("user", "find", FILE, 89),)
    assert decoder.stack(PID, NTH, HASH) is None


def test_the_stacks_of_requests_that_have_ended_are_not_kept_unless_asked_for(decoder):
    growths(decoder, function(3, b"find"), stack((3, 89)))

    assert decoder.stack(PID, NTH, HASH) is None


def test_stacks_are_kept_of_so_many_requests_that_have_ended(monkeypatch):
    monkeypatch.setattr(growth_decoder, "_ENDED_MAX", 7)
    decoder = GrowthDecoder(keep_stacks=True)
    for nth in range(1, 12):
        growths(decoder, function(3, b"find", nth=nth), stack((3, 89), nth=nth), nth=nth)

    assert [nth for nth in range(1, 12) if decoder.stack(PID, nth, HASH)] == list(range(5, 12))


@pytest.mark.parametrize(("key", "frame"), [(HASH_NO_PHP, NO_PHP), (HASH_THREAD, THREAD), (HASH_LOST, STACK_LOST)])
def test_the_mark_of_a_missing_stack_is_known_in_every_request(decoder, key, frame):
    assert decoder.stack(PID, NTH, key) == (frame,)
