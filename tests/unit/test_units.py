"""Sizes and durations as people read and write them, and untrusted texts made safe to show."""

from __future__ import annotations

import unicodedata

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from samples import PROPERTY

from tracer.units import (
    counted,
    counted_loss,
    parse_duration,
    parse_size,
    printable,
    short_bytes,
    short_duration,
    show_bytes,
    show_duration,
)

# U+061C and those below are Unicode's bidirectional controls (UAX #9): they reorder a line.
BIDI = "\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"
# Surrogates included, which Python has for bytes that were not UTF-8 (PEP 383).
ANY_TEXT = st.text(st.characters())
NO_C1 = st.text(st.characters(blacklist_characters=[*map(chr, range(0x80, 0xA0)), "\xad"]))


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("0", 0),
        ("4096", 4096),
        ("64K", 65_536),
        ("64k", 65_536),
        ("1.5M", 1_572_864),
        ("2GiB", 2_147_483_648),
        ("3 TB", 3_298_534_883_328),
        ("7B", 7),
        (" 11 ", 11),
    ],
)
def test_a_size_is_read_with_1024_bytes_to_the_k(text, size):
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "K", "-1", "1.", ".5", "1e3", "0x10", "1 2", "5X", "1.2.3", "ten"])
def test_a_text_that_is_not_a_size_is_refused_with_an_example(text):
    with pytest.raises(ValueError, match="is not a size. Write 4096, 64K"):
        parse_size(text)


@pytest.mark.parametrize("text", ["99999999999999999999999", "16777216T", "9" * 310 + "K"])
def test_a_size_beyond_64_bits_is_refused(text):
    with pytest.raises(ValueError, match="is too large for a size"):
        parse_size(text)


@pytest.mark.parametrize("text", ["99999999999s", "20000d", "9" * 310])
def test_a_duration_of_lifetimes_is_refused(text):
    with pytest.raises(ValueError, match="is too long for a duration"):
        parse_duration(text)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("250ms", 0.25), ("30s", 30.0), ("30", 30.0), ("5m", 300.0), ("1.5h", 5400.0), ("2d", 172800.0)],
)
def test_a_duration_is_read_in_seconds(text, seconds):
    assert parse_duration(text) == seconds


@pytest.mark.parametrize(
    ("count", "text"), [(0, "0 workers"), (1, "1 worker"), (2, "2 workers"), (1_009, "1,009 workers")]
)
def test_a_noun_agrees_with_its_count(count, text):
    assert counted(count, "worker") == text


def test_a_noun_that_ends_with_an_s_has_its_own_plural():
    assert (counted(1, "process"), counted(26, "process")) == ("1 process", "26 processes")


@pytest.mark.parametrize(
    ("lost", "why", "text"),
    [
        (1, "requests: the ring buffer was full", "1 request: the ring buffer was full"),
        (2, "requests: the ring buffer was full", "2 requests: the ring buffer was full"),
        (1_009, "workers not traced: worker table is full", "1,009 workers not traced: worker table is full"),
        (1, "workers not traced: workers die", "1 worker not traced: workers die"),
        (1, "possibly requests: malformed data", "possibly 1 request: malformed data"),
        (1, "births or deaths of workers: full", "1 birth or death of worker: full"),
        (1, "x", "1 x"),
    ],
)
def test_the_noun_of_a_loss_agrees_with_its_count(lost, why, text):
    assert counted_loss(lost, why) == text


@pytest.mark.parametrize("text", ["", "s", "-1s", "1 s", "5min", "1h30m", "inf", "nan"])
def test_a_text_that_is_not_a_duration_is_refused_with_an_example(text):
    with pytest.raises(ValueError, match="is not a duration. Write 250ms, 30s"):
        parse_duration(text)


@PROPERTY
@given(st.text(max_size=20))
def test_any_text_is_a_size_or_refused(text):
    try:
        found = parse_size(text)
    except ValueError:
        return

    assert found >= 0


@PROPERTY
@given(st.text(max_size=20))
def test_any_text_is_a_duration_or_refused(text):
    try:
        found = parse_duration(text)
    except ValueError:
        return

    assert found >= 0


def test_a_size_of_more_digits_than_a_float_holds_is_read_or_refused():
    digits = "9" * 310

    try:
        found = parse_size(digits)
    except ValueError:
        return

    assert found > 0


@pytest.mark.parametrize(
    ("size", "shown"),
    [
        (None, "-"),
        (0, "0 B"),
        (1023, "1023 B"),
        (1024, "1.0 KiB"),
        (1536, "1.5 KiB"),
        (102_348, "99.9 KiB"),
        (102_349, "100 KiB"),
        (1_023_487, "999 KiB"),
        (1_023_488, "1.0 MiB"),
        (1 << 30, "1.0 GiB"),
        (5000 << 40, "5000 TiB"),
        (-2048, "-2.0 KiB"),
    ],
)
def test_a_size_is_shown_with_two_or_three_digits(size, shown):
    assert show_bytes(size) == shown


@pytest.mark.parametrize(
    ("size", "shown"), [(1, "+1 B"), (0, "0 B"), (-1, "-1 B"), (-3, "-3 B"), (2048, "+2.0 KiB"), (None, "-")]
)
def test_a_change_is_shown_with_its_sign(size, shown):
    assert show_bytes(size, signed=True) == shown


@PROPERTY
@given(st.integers(0, 1 << 50))
def test_a_size_that_is_shown_can_be_read_back_within_what_was_rounded(size):
    read = parse_size(show_bytes(size))

    # One decimal below 100 of a unit, none above: at worst half of 0.1 in 1.0.
    assert abs(read - size) <= size * 0.05


@PROPERTY
@given(st.integers(0, 1023))
def test_bytes_are_shown_exactly(size):
    assert parse_size(show_bytes(size)) == size


@PROPERTY
@given(st.integers(-(1 << 63), 1 << 63), st.integers(-(1 << 63), 1 << 63))
def test_the_smaller_of_two_sizes_is_never_shown_as_the_greater(one, other):
    def value(shown: str) -> int:
        return -parse_size(shown[1:]) if shown.startswith("-") else parse_size(shown)

    low, high = sorted((one, other))

    assert value(show_bytes(low)) <= value(show_bytes(high))


@PROPERTY
@given(st.integers(-(1 << 50), 1 << 50))
def test_a_size_takes_at_most_nine_columns(size):
    assert len(show_bytes(size, signed=True)) <= 9


@pytest.mark.parametrize(
    ("nanoseconds", "shown"),
    [
        (None, "-"),
        (0, "0 µs"),
        (1_499, "1 µs"),
        (850_000, "850 µs"),
        (999_499, "999 µs"),
        (999_500, "1.0 ms"),
        (12_345_678, "12.3 ms"),
        (999_949_999, "999.9 ms"),
        (999_950_000, "1.00 s"),
        (4_560_000_000, "4.56 s"),
    ],
)
def test_a_duration_is_shown_in_the_unit_that_fits(nanoseconds, shown):
    assert show_duration(nanoseconds) == shown


@pytest.mark.parametrize("text", ["", "/index.php", "/über/straße", "日本語", "emoji 🐘", "a b"])
def test_harmless_text_is_shown_as_it_is(text):
    assert printable(text) == text


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("\x1b[31m", "\\x1b[31m"),
        ("a\tb\nc\rd", "a\\tb\\nc\\rd"),
        ("\0", "\\x00"),
        ("\x7f", "\\x7f"),
        ("\x9b31m", "\\u009b31m"),  # C1: one character is what ESC [ is
        ("\x80", "\\u0080"),
        ("\u202egnp.php", "\\u202egnp.php"),
        ("\u2028", "\\u2028"),
        ("\u200b", "\\u200b"),
        ("\U000e0041", "\\U000e0041"),
        ("\udcff\udc80", "\\xff\\x80"),
        ("\ud800\udc7f\udd00", "\\ud800\\udc7f\\udd00"),
        ("\\x1b", "\\\\x1b"),
    ],
)
def test_a_character_that_acts_on_a_terminal_is_shown_as_an_escape(text, shown):
    assert printable(text) == shown


@PROPERTY
@given(ANY_TEXT)
def test_nothing_that_acts_on_a_terminal_survives(text):
    shown = printable(text)

    assert not [c for c in shown if unicodedata.category(c) in ("Cc", "Cs", "Zl", "Zp") or c in BIDI]


@pytest.mark.parametrize("code", [*range(0x20), *range(0x7F, 0xA0), 0xAD, 0x2028, 0x2029, 0xFEFF, *map(ord, BIDI)])
def test_every_control_character_is_shown_as_an_escape(code):
    assert printable(chr(code)).startswith("\\")


@PROPERTY
@given(ANY_TEXT)
def test_a_shown_text_can_be_written_in_utf8(text):
    shown = printable(text)

    assert shown.encode("utf-8").decode("utf-8") == shown


@PROPERTY
@given(NO_C1, NO_C1)
def test_no_two_texts_look_the_same(one, other):
    assume(one != other)

    assert printable(one) != printable(other)


@PROPERTY
@given(NO_C1)
def test_a_text_and_its_escaped_form_are_not_shown_alike(text):
    shown = printable(text)
    assume(shown != text)

    assert printable(shown) != shown


def test_a_byte_and_the_control_character_of_its_number_do_not_look_the_same():
    assert printable("\udc9b") != printable("\x9b")


def test_no_text_is_hidden_by_characters_that_cannot_be_seen():
    # Unicode's Default_Ignorable_Code_Point (DerivedCoreProperties.txt) beyond those escaped.
    invisible = "\u034f\u115f\u1160\u17b4\u17b5\u3164\uffa0\U0001d173\U0001bca0"

    assert printable(invisible).isascii()


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("App\\Repo::find", "App\\Repo::find"),
        ("\\x1b", "\\x1b"),
        ("Ünï\\日本::f", "Ünï\\日本::f"),
        ("a\\b\n\x1b[2J\udcff\u202e", "a\\b\\n\\x1b[2J\\xff\\u202e"),
    ],
)
def test_backslashes_stay_single_in_names_of_code_and_all_else_is_escaped(text, shown):
    assert printable(text, code=True) == shown


@PROPERTY
@given(ANY_TEXT)
def test_nothing_of_a_name_of_code_acts_on_a_terminal(text):
    shown = printable(text, code=True)

    assert not [c for c in shown if unicodedata.category(c) in ("Cc", "Cs", "Zl", "Zp") or c in BIDI]
    assert "\\" in text or shown == printable(text)


@pytest.mark.parametrize(
    ("size", "text"),
    [(None, "-"), (0, "0"), (7, "7"), (999, "999"), (1_000, "1K"), (1_434, "1.4K"), (10_189, "10K"), (766_976, "749K"),
     (1_022_976, "999K"), (1_023_000, "999K"), (1_023_999, "1M"), (128 << 20, "128M"), (-1_434, "-1.4K"),
     (1 << 50, "1024T")],
)  # fmt: skip
def test_a_size_in_few_characters_has_two_digits_or_three(size, text):
    assert short_bytes(size) == text


@pytest.mark.parametrize(
    ("nanoseconds", "text"),
    [(None, "-"), (0, "0µs"), (850_000, "850µs"), (999_499, "999µs"), (999_500, "1ms"), (1_400_000, "1.4ms"),
     (12_345_678, "12ms"), (999_500_000, "1s"), (59_400_000_000, "59s"), (90_000_000_000, "1.5min"),
     (2_040_000_000_000, "34min"), (12_240_000_000_000, "3.4h"), (3_600_000_000_000_000, "1000h")],
)  # fmt: skip
def test_a_duration_in_few_characters_has_two_digits_or_three(nanoseconds, text):
    assert short_duration(nanoseconds) == text
