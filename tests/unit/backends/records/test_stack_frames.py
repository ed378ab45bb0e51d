"""From the records of the stacks' ring to the frames of a stack: names, and marks where there are none."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from samples import PROPERTY
from stack_records import HASH, NTH, PID, frames, function, grown, growths, stack

from tracer.backends.records.growth_decoder import GrowthDecoder
from tracer.backends.records.stack_structs import (
    HASH_LOST,
    HASH_NO_PHP,
    HASH_THREAD,
    FunctionFlag,
    FunctionType,
    StackFlag,
)
from tracer.facts import NO_PHP, STACK_LOST, THREAD, TRUNCATED, UNREADABLE, Frame, Growth

FILE = "/srv/app/Repo.php"
INDEX = b"/srv/www/index.php"


@pytest.fixture
def decoder() -> GrowthDecoder:
    return GrowthDecoder()


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
