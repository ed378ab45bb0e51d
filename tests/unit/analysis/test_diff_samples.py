"""Figures of many requests as means of blocks, in bounded memory."""

from __future__ import annotations

import random
from array import array

import pytest
from hypothesis import given
from hypothesis import strategies as st
from samples import PROPERTY

from tracer.analysis.diff_samples import RAW, Blocks, Series, length_for_events, paired


def series(values: list[int]) -> Series:
    found = Series()
    for at in range(0, len(values), RAW):
        found.raw.extend(values[at : at + RAW])
        found.fold()
    return found


def test_a_short_series_is_kept_value_by_value():
    found = series([3, 5, 7])

    assert found.blocks() == Blocks(1, [3, 5, 7])
    assert (found.count, found.mean) == (3, 5.0)


def test_an_empty_series_has_no_mean():
    assert (Series().count, Series().mean, Series().blocks()) == (0, None, Blocks(1, []))


@pytest.mark.parametrize(
    ("count", "length", "blocks"),
    [(1023, 1, 1023), (1024, 4, 256), (3 * 1024, 8, 384), (3 * 1024 + 17, 8, 386), (100 * 1024 + 5, 256, 400)],
)
def test_a_long_series_has_less_than_512_blocks_and_those_that_the_rest_fills(count, length, blocks):
    found = series(list(range(count))).blocks()

    assert (found.length, len(found.sums)) == (length, blocks)


@PROPERTY
@given(st.integers(0, 1_200), st.integers(0, RAW - 1), st.integers(-5, 5))
def test_each_block_is_the_sum_of_its_values(thousands, rest, step):
    found = Series()
    for at in range(thousands):
        found.raw.extend(array("q", [at * step] * RAW))
        found.fold()
    found.raw.extend(array("q", [7] * rest))
    found.fold()

    values = [float(at * step) for at in range(thousands)]
    blocks = found.blocks()
    assert len(blocks.sums) < 512 + RAW
    assert found.count == thousands * RAW + rest
    if blocks.length >= RAW:
        each = blocks.length // RAW
        sums = [RAW * sum(values[at : at + each]) for at in range(0, thousands - each + 1, each)]
        assert list(blocks.sums[: len(sums)]) == sums
    whole = len(blocks.sums) * blocks.length
    assert found.count - whole < max(2 * blocks.length, 1)
    if found.count:
        assert found.mean == pytest.approx((RAW * sum(values) + 7 * rest) / found.count)


def test_the_blocks_of_two_series_are_equally_long():
    chance = random.Random(1)
    short, long = ([chance.randrange(1000) for _ in range(count)] for count in (300, 4_000))

    before, after = paired(series(short).blocks(), series(long).blocks())

    # 4,000 values are 500 blocks of 8; of 300, 37 are as long. Three each make 12, and 166.
    assert (len(before), len(after)) == (12, 48)
    assert before[0] == sum(short[:24]) / 24
    assert after[:2] == [sum(long[:24]) / 24, sum(long[3 * 24 : 4 * 24]) / 24]


def test_a_series_that_is_a_hundred_times_as_long_leaves_the_other_one_too_few_blocks():
    before, after = paired(series([5] * 1_000).blocks(), series([5] * 100_000).blocks())

    assert (len(before), len(after)) == (3, 48)


def test_blocks_are_so_long_that_most_have_an_event():
    before = array("q", [34_304, *[0] * 19] * 30)
    after = array("q", [0] * 600)
    length = length_for_events(before)

    means, _ = paired(Blocks(1, before), Blocks(1, after), length)

    assert (length, length_for_events(before, after), length_for_events(after)) == (60, 120, 1)
    assert means == [3 * 34_304 / 60] * 10


def test_rare_events_leave_eight_blocks():
    before, after = paired(Blocks(1, [0] * 100), Blocks(1, [0] * 90), 1_000)

    assert (len(before), len(after)) == (9, 8)
