"""Mann and Kendall's test against scipy's Kendall's tau, of which it is the same statistic."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from samples import PROPERTY

from tracer.analysis.verdict.trend import trend

stats = pytest.importorskip("scipy.stats")


@PROPERTY
@given(st.lists(st.integers(0, 9), min_size=3, max_size=40))
def test_the_deviations_are_those_of_kendalls_tau(values):
    count = len(values)
    tau = stats.kendalltau(range(count), values).statistic
    if math.isnan(tau):  # all are alike
        assert trend([values]) == 0.0
        return

    # scipy's asymptotic p is of the same score and variance, without the correction for steps of two.
    pairs = count * (count - 1) / 2
    untied = pairs - sum(values.count(value) * (values.count(value) - 1) / 2 for value in set(values))
    score = round(tau * math.sqrt(pairs * untied))
    asymptotic = stats.norm.isf(stats.kendalltau(range(count), values, method="asymptotic").pvalue / 2)
    expected = math.copysign(asymptotic * (abs(score) - 1) / abs(score), score) if abs(score) > 1 else 0.0
    assert trend([values]) == pytest.approx(expected, rel=1e-6, abs=1e-9)


@pytest.mark.parametrize(
    ("values", "deviations"),
    [
        ([1, 2, 3, 4, 5], 9 / math.sqrt(5 * 4 * 15 / 18)),
        ([5, 4, 3, 2, 1], -9 / math.sqrt(5 * 4 * 15 / 18)),
        ([3, 3, 2, 1, 1], -7 / math.sqrt((5 * 4 * 15 - 2 * (2 * 1 * 9)) / 18)),
        ([7, 7, 7], 0.0),
        ([1, 2], 0.0),
        ([], 0.0),
    ],
)
def test_the_deviations_are_right_where_they_are_known(values, deviations):
    assert trend([values]) == pytest.approx(deviations)


def test_several_short_series_that_fall_fall_together():
    one = trend([[3.0, 2.0, 1.0]])
    many = trend([[3.0, 2.0, 1.0]] * 12)

    assert one > -1.64
    assert many < -3.09


def test_a_series_that_rises_makes_up_for_one_that_falls():
    assert trend([[1.0, 2.0, 3.0, 4.0], [4.0, 3.0, 2.0, 1.0]]) == 0.0
