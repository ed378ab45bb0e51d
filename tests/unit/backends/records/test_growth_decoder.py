"""From the records of the stacks' ring to Growth: names, marks, and what belongs to which request."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from samples import PROPERTY
from stack_records import HASH, NTH, PID, called, entry, function, grown, stack

from tracer.backends.records import growth_decoder
from tracer.backends.records.growth_decoder import GrowthDecoder
from tracer.backends.records.stack_structs import (
    HASH_LOST,
    HASH_NO_PHP,
    HASH_THREAD,
    Call,
    FunctionFlag,
    FunctionType,
    MetricKind,
    StackFlag,
)
from tracer.facts import GIVEN_BACK, NO_PHP, STACK_LOST, THREAD, TRUNCATED, UNREADABLE, Frame, Growth

FILE = "/srv/app/Repo.php"
INDEX = b"/srv/www/index.php"
PAGE = 4096
BASE = 0x7F00_0000_0000


@pytest.fixture
def decoder() -> GrowthDecoder:
    return GrowthDecoder()


def growths(decoder: GrowthDecoder, *records: bytes, pid: int = PID, nth: int = NTH) -> list[Growth]:
    for record in records:
        decoder.take(record)
    return decoder.growths(pid, nth)


def frames(decoder: GrowthDecoder, *records: bytes) -> tuple[Frame, ...]:
    """The frames of the one stack that these records make, the outermost first."""
    [found] = growths(decoder, *records, grown(101))
    return found.stack


def names(decoder: GrowthDecoder, *records: bytes) -> list[str]:
    return [frame.name for frame in frames(decoder, *records)]


def test_growth_has_the_frames_of_its_stack_the_outermost_first(decoder):
    records = [
        function(3, None, file=INDEX), function(5, b"find", b"Repo"), function(7, b"query", b"PDO", None,
                                                                              kind=FunctionType.INTERNAL),
        stack((7, 0), (5, 89), (3, 13)), grown(65_537, samples=11),
    ]  # fmt: skip

    assert growths(decoder, *records) == [
        Growth(
            PID, NTH, "rss",
            (Frame("user", "<main>", "/srv/www/index.php", 13), Frame("user", "Repo::find", FILE, 89),
             Frame("internal", "PDO::query", None, None)),
            65_537, 11,
        )
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("metric", "named"), [(MetricKind.RSS, "rss"), (MetricKind.MAPPED, "mapped"), (MetricKind.ZEND, "zend")]
)
def test_growth_has_the_name_of_its_metric(decoder, metric, named):
    [found] = growths(decoder, grown(101, key=HASH_NO_PHP, metric=metric))

    assert found.metric == named


def test_growth_of_an_unknown_metric_is_left_out(decoder):
    assert growths(decoder, grown(101, key=HASH_NO_PHP, metric=13)) == []


def test_a_function_without_a_class_is_its_name(decoder):
    assert names(decoder, function(3, b"array_map"), stack((3, 0))) == ["array_map"]


def test_a_files_own_code_is_main_where_it_is_outermost_and_require_where_it_is_not(decoder):
    records = [function(3, None, file=INDEX), stack((3, 7), (3, 2), (3, 2))]

    assert frames(decoder, *records) == (
        Frame("user", "<main>", "/srv/www/index.php", 2),
        Frame("user", "require", "/srv/www/index.php", 2),
        Frame("user", "require", "/srv/www/index.php", 7),
    )


def test_evaluated_code_is_eval_even_where_it_is_outermost(decoder):
    name = b"/srv/a.php(3) : eval()'d code"

    assert frames(decoder, function(3, None, file=name, kind=FunctionType.EVAL), stack((3, 1))) == (
        Frame("user", "eval", name.decode(), 1),
    )


def test_a_function_declared_in_evaluated_code_has_its_name(decoder):
    assert names(decoder, function(3, b"made", kind=FunctionType.EVAL), stack((3, 1))) == ["made"]


def test_a_line_that_is_not_known_is_none(decoder):
    assert frames(decoder, function(3), stack((3, 0))) == (Frame("user", "find", FILE, None),)


def test_a_file_that_is_not_known_is_none(decoder):
    assert frames(decoder, function(3, file=None), stack((3, 89))) == (Frame("user", "find", None, 89),)


def test_names_as_long_as_fit_are_not_marked_and_longer_ones_are_where_they_are_cut(decoder):
    fits = [function(3, b"n" * 127, b"c" * 127, b"f" * 255), stack((3, 2))]
    longer = [function(5, b"n" * 131, b"c" * 137, b"/dir/" + b"f" * 257), stack((5, 2), key=HASH + 1)]

    decoder_of_longer = [*longer, grown(103, key=HASH + 1)]
    [first, second] = growths(decoder, *fits, grown(101), *decoder_of_longer)

    assert first.stack == (Frame("user", "c" * 127 + "::" + "n" * 127, "f" * 255, 2),)
    assert second.stack == (Frame("user", "c" * 127 + "…::" + "n" * 127 + "…", "…" + "f" * 255, 2),)


def test_names_that_are_not_utf8_are_kept_as_they_were(decoder):
    [frame] = frames(decoder, function(3, b"\xff\xe6\x97\xa5", b"\x80", b"/\xc3"), stack((3, 2)))

    assert (frame.name, frame.file) == ("\udc80::\udcff日", "/\udcc3")


def test_an_anonymous_class_is_what_stands_before_its_nul(decoder):
    assert names(decoder, function(3, b"run", b"class@anonymous\0/srv/a.php:3$0"), stack((3, 2))) == [
        "class@anonymous::run"
    ]


def test_an_anonymous_class_has_one_name_however_long_the_path_behind_its_nul(decoder):
    records = [
        function(3, b"run", b"class@anonymous\0/srv/a.php:3$0"),
        function(5, b"run", b"class@anonymous\0/srv/" + b"a" * 131 + b".php:3$0"),
        stack((3, 2)), stack((5, 2), key=HASH + 1), grown(101), grown(103, key=HASH + 1),
    ]  # fmt: skip

    [found] = growths(decoder, *records)

    assert (found.stack[0].name, found.bytes) == ("class@anonymous::run", 204)


@PROPERTY
@given(st.binary(max_size=126), st.binary(max_size=127), st.binary(max_size=255))
def test_names_of_any_bytes_are_kept_up_to_their_first_nul(name, class_name, file):
    [frame] = frames(GrowthDecoder(), function(3, name, class_name, file), stack((3, 2)))

    shown = class_name.split(b"\0")[0] + b"::" + name.split(b"\0")[0]
    assert frame.name == shown.decode("utf-8", "surrogateescape")
    assert frame.file == file.split(b"\0")[0].decode("utf-8", "surrogateescape")


def test_a_dummy_frame_of_the_engine_is_left_out(decoder):
    records = [function(3, None, file=INDEX), function(5), stack((0, 0), (5, 89), (0, 0), (3, 13), (0, 0))]

    assert names(decoder, *records) == ["<main>", "find"]


def test_a_stack_of_nothing_but_dummy_frames_is_marked_no_php(decoder):
    assert frames(decoder, stack((0, 0), (0, 0))) == (NO_PHP,)


@pytest.mark.parametrize(("key", "mark"), [(HASH_NO_PHP, NO_PHP), (HASH_THREAD, THREAD), (HASH_LOST, STACK_LOST)])
def test_growth_without_a_stack_says_why(decoder, key, mark):
    [found] = growths(decoder, grown(101, key=key))

    assert found.stack == (mark,)


def test_a_stack_that_never_came_is_lost(decoder):
    [found] = growths(decoder, stack((0, 0)), grown(101, key=HASH + 1))

    assert found.stack == (STACK_LOST,)


def test_a_function_that_never_came_is_lost_alone(decoder):
    records = [function(3, None, file=INDEX), function(7), stack((7, 89), (5, 17), (3, 13))]

    assert frames(decoder, *records) == (
        Frame("user", "<main>", "/srv/www/index.php", 13),
        STACK_LOST,
        Frame("user", "find", FILE, 89),
    )


def test_a_stack_with_more_below_is_truncated_and_its_last_file_need_not_be_main(decoder):
    records = [function(3, None, file=INDEX), function(5), stack((5, 89), (3, 13), flags=StackFlag.TRUNCATED)]

    assert frames(decoder, *records) == (
        TRUNCATED,
        Frame("user", "require", "/srv/www/index.php", 13),
        Frame("user", "find", FILE, 89),
    )


def test_a_malformed_stack_is_unreadable_from_there_on_and_counted(decoder):
    flags = StackFlag.CORRUPT | StackFlag.TRUNCATED
    records = [function(3, None, file=INDEX), stack((3, 13), (0, 0), flags=flags), stack((3, 17), key=HASH + 1)]

    assert frames(decoder, *records) == (UNREADABLE, Frame("user", "require", "/srv/www/index.php", 13))
    assert (decoder.stacks, decoder.unreadable) == (2, 1)


def test_only_as_many_frames_as_the_stack_is_deep_are_read(decoder):
    records = [function(3, b"three"), function(5, b"five"), stack((5, 1), (3, 1), depth=1)]

    assert names(decoder, *records) == ["five"]


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


def test_the_same_function_is_the_same_object_in_every_request(decoder):
    first = frames(decoder, function(3, b"find", b"Repo"), stack((3, 89)))
    again = [function(5, b"find", b"Repo", nth=11), stack((5, 89), nth=11), grown(101, nth=11)]
    [second] = growths(decoder, *again, nth=11)

    assert first[0] is second.stack[0]


@pytest.mark.parametrize(
    "changed",
    [
        {"name": b"find2"},
        {"class_name": b"Other"},
        {"class_name": None},
        {"file": b"/srv/b.php"},
        {"file": None},
        {"name": None},
        {"kind": FunctionType.INTERNAL},
    ],
)
def test_functions_that_differ_in_anything_are_different_frames(decoder, changed):
    one = {"name": b"find", "class_name": b"Repo", "file": FILE.encode()}

    found = frames(decoder, function(3, **one), function(5, **{**one, **changed}), stack((3, 89), (5, 89)))

    assert found[0] != found[1]


def test_bytes_that_a_longer_name_left_behind_the_nul_are_not_shown(decoder):
    assert names(decoder, function(3, b"f", left_behind=b"indAll\0x"), stack((3, 2))) == ["f"]


def test_functions_that_differ_only_in_what_was_left_behind_are_the_same_object(decoder):
    first = frames(decoder, function(3, b"f"), stack((3, 2)))

    second = frames(decoder, function(5, b"f", left_behind=b"indAll"), stack((5, 2)))

    assert first[0] is second[0]


def test_a_name_is_not_shown_where_the_flags_say_that_there_is_none(decoder):
    stale = bytearray(function(3, b"stale", b"Stale", b"/stale.php"))
    stale[24] = FunctionFlag.NAMELESS | FunctionFlag.CLASSLESS | FunctionFlag.FILELESS

    assert frames(decoder, bytes(stale), stack((3, 2))) == (Frame("user", "<main>", None, 2),)


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
