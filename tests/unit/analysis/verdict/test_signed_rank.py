"""The Hodges-Lehmann shift and its interval, against scipy's exact signed-rank test."""

from __future__ import annotations

import itertools
import statistics

import pytest
from hypothesis import given
from hypothesis import strategies as st
from samples import PROPERTY

from tracer.analysis.verdict.signed_rank import least_values, rank_sums, shift

stats = pytest.importorskip("scipy.stats")


@pytest.mark.parametrize("count", range(1, 11))
def test_the_rank_sums_are_those_of_every_choice_of_ranks(count):
    sums = [sum(chosen) for size in range(count + 1) for chosen in itertools.combinations(range(1, count + 1), size)]

    assert rank_sums(count) == tuple(sums.count(total) for total in range(max(sums) + 1))


@pytest.mark.parametrize("count", [11, 13, 19, 31, 50])
def test_an_interval_ends_where_the_exact_test_begins_to_refuse(count):
    values = [10.0 + at**1.3 for at in range(count)]  # no two averages of pairs are alike

    found = shift(values)

    def refused(centre: float) -> bool:
        return stats.wilcoxon([value - centre for value in values], mode="exact").pvalue <= 0.001

    assert found.low is not None
    assert found.high is not None
    assert refused(found.low - 1e-9)
    assert not refused(found.low + 1e-9)
    assert not refused(found.high - 1e-9)
    assert refused(found.high + 1e-9)


def test_eleven_numbers_are_the_fewest_with_an_interval_of_99_9_percent():
    assert least_values() == 11
    assert least_values(0.05) == 6  # as in every table of the signed-rank test
    assert shift([1.0] * 10) == (1.0, None, None)


def test_the_shift_of_equal_numbers_is_that_number():
    assert shift([34_304.0] * 11) == (34_304.0, 34_304.0, 34_304.0)


def test_two_numbers_in_eleven_of_any_size_do_not_move_the_shift_beyond_the_others():
    found = shift([*range(100, 109), 1e12, 1e12])

    assert 100 <= found.estimate <= 108


@PROPERTY
@given(st.lists(st.integers(-1000, 1000), min_size=1, max_size=30))
def test_the_shift_is_the_median_of_the_averages_of_pairs(values):
    averages = [(a + b) / 2 for at, a in enumerate(values) for b in values[at:]]

    found = shift(values)

    assert found.estimate == pytest.approx(statistics.median(averages))
    if found.low is not None:
        assert found.high is not None
        assert found.low <= found.estimate <= found.high


@PROPERTY
@given(st.lists(st.integers(-1000, 1000), min_size=11, max_size=20), st.integers(-99, 99))
def test_a_shifted_sample_has_a_shifted_interval(values, by):
    before, after = shift(values), shift([value + by for value in values])

    assert after == tuple(bound + by for bound in before)
