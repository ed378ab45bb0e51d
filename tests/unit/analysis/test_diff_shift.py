"""The Hodges-Lehmann shift of two samples and its interval, against scipy's exact rank-sum test."""

from __future__ import annotations

import itertools
import statistics

import pytest
from hypothesis import given
from hypothesis import strategies as st
from samples import PROPERTY

from tracer.analysis.diff_shift import rank_sums, shift_between

stats = pytest.importorskip("scipy.stats")

NUMBERS = st.lists(st.integers(-1000, 1000), min_size=1, max_size=20)


@pytest.mark.parametrize(("fewer", "more"), [(1, 1), (1, 6), (2, 3), (3, 3), (4, 5), (5, 5)])
def test_the_rank_sums_are_those_of_every_order_of_two_samples(fewer, more):
    sums = []
    for chosen in itertools.combinations(range(fewer + more), fewer):
        sums.append(sum(place - at for at, place in enumerate(chosen)))

    assert rank_sums(fewer, more) == [sums.count(total) for total in range(fewer * more // 2 + 1)]


@pytest.mark.parametrize(("first", "second"), [(7, 7), (8, 24), (12, 19), (24, 24), (24, 48)])
def test_an_interval_ends_where_the_exact_test_begins_to_refuse(first, second):
    before = [10.0 + at**1.3 for at in range(first)]  # no two differences are alike
    after = [17.0 + at**1.7 for at in range(second)]

    found = shift_between(before, after)

    def refused(by: float) -> bool:
        return stats.mannwhitneyu(before, [one - by for one in after], method="exact").pvalue <= 0.001

    assert found.low is not None
    assert found.high is not None
    assert refused(found.low - 1e-9)
    assert not refused(found.low + 1e-9)
    assert not refused(found.high - 1e-9)
    assert refused(found.high + 1e-9)


def test_two_times_seven_numbers_are_the_fewest_with_an_interval_of_99_9_percent():
    assert shift_between([1.0] * 7, [3.0] * 7) == (2.0, 2.0, 2.0)
    assert shift_between([1.0] * 6, [3.0] * 6) == (2.0, None, None)
    assert shift_between([1.0] * 4, [3.0] * 4, 0.05) == (2.0, 2.0, 2.0)  # as in every table of the test


def test_two_numbers_in_ten_of_any_size_do_not_move_the_shift_beyond_the_others():
    found = shift_between(list(range(10)), [*range(100, 108), 1e12, 1e12])

    assert 91 <= found.estimate <= 107


@PROPERTY
@given(NUMBERS, NUMBERS)
def test_the_shift_is_the_median_of_the_differences(before, after):
    found = shift_between(before, after)

    assert found.estimate == pytest.approx(statistics.median(b - a for a in before for b in after))
    if found.low is not None:
        assert found.high is not None
        assert found.low <= found.estimate <= found.high


@PROPERTY
@given(NUMBERS, NUMBERS)
def test_the_shift_back_has_the_opposite_sign(before, after):
    there, back = shift_between(before, after), shift_between(after, before)

    assert back.estimate == -there.estimate
    if there.low is None or there.high is None:
        assert (back.low, back.high) == (None, None)
    else:
        assert (back.low, back.high) == (-there.high, -there.low)


@PROPERTY
@given(NUMBERS)
def test_a_sample_is_not_shifted_from_itself(values):
    assert shift_between(values, values).estimate == 0


@PROPERTY
@given(st.lists(st.integers(-1000, 1000), min_size=7, max_size=20), st.integers(-99, 99))
def test_a_shifted_sample_has_a_shifted_interval(values, by):
    found, moved = shift_between(values, values), shift_between(values, [value + by for value in values])

    assert moved == tuple(bound + by for bound in found)
