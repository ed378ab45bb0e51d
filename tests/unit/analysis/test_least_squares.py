"""The solver against known values, its conditions of optimality, and scipy where that is installed."""

from __future__ import annotations

import math
import random
from collections.abc import Iterable, Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st
from samples import PROPERTY

from tracer.analysis.least_squares import Row, dependences, fit, nonnegative, student_quantile


def normal_equations(table: list[list[float]], values: list[float]) -> tuple[list[list[float]], list[float]]:
    columns = list(zip(*table, strict=True))
    gram = [[sum(a * b for a, b in zip(one, other, strict=True)) for other in columns] for one in columns]
    return gram, [sum(a * b for a, b in zip(column, values, strict=True)) for column in columns]


def random_problem(seed: int) -> tuple[list[list[float]], list[float]]:
    chance = random.Random(seed)
    columns = chance.randrange(1, 12)
    table = [[float(chance.randrange(10)) for _ in range(columns)] for _ in range(chance.randrange(1, 40))]
    if columns > 3 and seed % 3 == 0:
        for row in table:
            row[1] = row[0]
            row[2] = row[0] + row[3]
    return table, [chance.uniform(-100_000, 200_000) for _ in table]


def squared_error(table: list[list[float]], values: list[float], x: list[float]) -> float:
    return sum(
        (value - sum(a * b for a, b in zip(row, x, strict=True))) ** 2 for row, value in zip(table, values, strict=True)
    )


@pytest.mark.parametrize("seed", range(60))
def test_nonnegative_agrees_with_scipy(seed):
    optimize = pytest.importorskip("scipy.optimize", reason="scipy (python3-scipy) is not installed: no oracle")
    table, values = random_problem(seed)

    found = nonnegative(*normal_equations(table, values))

    _, norm = optimize.nnls(table, values)
    assert squared_error(table, values, found) == pytest.approx(norm**2, rel=1e-6, abs=1e-3)


@PROPERTY
@given(st.integers(min_value=0, max_value=10**9))
def test_nonnegative_is_optimal(seed):
    table, values = random_problem(seed)
    gram, moments = normal_equations(table, values)

    x = nonnegative(gram, moments)

    slack = 1e-6 * max(abs(moment) for moment in moments) + 1e-6
    slopes = [
        moment - sum(a * b for a, b in zip(line, x, strict=True)) for line, moment in zip(gram, moments, strict=True)
    ]
    assert min(x) >= 0
    assert max(slopes) <= slack, "a larger coefficient would fit better"
    assert all(abs(slope) <= slack for slope, value in zip(slopes, x, strict=True) if value > 0)


def test_nonnegative_of_no_columns_is_empty():
    assert nonnegative([], []) == []


# Of the usual tables of Student's t.
@pytest.mark.parametrize(
    ("share", "degrees", "expected"),
    [
        (0.975, 1, 12.7062), (0.975, 2, 4.3027), (0.975, 3, 3.1824), (0.975, 4, 2.7764), (0.975, 5, 2.5706),
        (0.975, 10, 2.2281), (0.975, 30, 2.0423), (0.975, 1000, 1.9623),
        (0.9995, 4, 8.6103), (0.9995, 10, 4.5869), (0.9995, 30, 3.6460), (0.9995, 1000, 3.3003),
    ],
)  # fmt: skip
def test_quantiles_of_student_are_those_of_the_tables(share, degrees, expected):
    assert student_quantile(share, degrees) == pytest.approx(expected, rel=0.01)


def test_quantiles_of_student_fall_with_the_degrees_also_between_whole_numbers():
    quantiles = [student_quantile(0.975, 1 + number / 10) for number in range(200)]

    assert quantiles == sorted(quantiles, reverse=True)
    assert student_quantile(0.975, 0.5) == math.inf


def rows_of(rates: list[float], count: int, noise: float, seed: int) -> list[Row]:
    chance = random.Random(seed)
    rows = []
    for _ in range(count):
        counts = [float(chance.randrange(20)) for _ in rates]
        value = sum(a * b for a, b in zip(rates, counts, strict=True)) + chance.gauss(0, noise)
        rows.append(Row(tuple(enumerate(counts)), value))
    return rows


def test_a_huge_step_in_a_row_has_no_influence():
    rows = rows_of([34_304.0, 0.0, 512.0], 40, 2_000, seed=7)
    clean = fit(rows, 3, floor=2_000)
    rows[11] = Row(rows[11].cells, rows[11].value + 100_000_000)

    found = fit(rows, 3, floor=2_000)

    assert found.trust[11] == 0
    assert found.residuals[11] == pytest.approx(100_000_000, rel=0.001)
    assert found.coefficients == pytest.approx(clean.coefficients, abs=100)
    assert fit(rows, 3, floor=2_000, robust=False).coefficients != pytest.approx(clean.coefficients, abs=100_000)


def test_intervals_cover_the_truth():
    rates, covered, tried = [34_304.0, 2_000.0, 512.0], 0, 0
    for seed in range(100):
        found = fit(rows_of(rates, 24, 5_000, seed), 3, floor=100)
        for column, rate in enumerate(rates):
            error = student_quantile(0.975, found.degrees) * math.sqrt(found.covariance[column][column])
            covered += abs(found.unbounded[column] - rate) <= error
            tried += 1

    assert covered / tried >= 0.94


def test_a_row_of_more_weight_decides_more():
    rows = [Row(((0, 1.0),), 100.0), Row(((0, 1.0),), 200.0, weight=99.0)]

    assert fit(rows, 1, floor=1_000).coefficients == pytest.approx([199], abs=0.5)


def test_too_few_rows_leave_no_degrees_of_freedom():
    assert fit(rows_of([1.0, 2.0, 3.0], 3, 0, seed=1), 3, floor=1).degrees <= 0


def rows_of_counts(table: Iterable[Sequence[float]]) -> list[Row]:
    return [Row(tuple(enumerate(counts)), 0.0) for counts in table]


def test_columns_that_always_come_together_depend_on_each_other_and_others_do_not():
    chance = random.Random(5)
    pairs = [(chance.randrange(20), chance.randrange(20)) for _ in range(30)]

    assert dependences(rows_of_counts((pair, 2 * pair, alone) for pair, alone in pairs), 3, 0.25) == {0: [1]}


def test_all_of_many_columns_in_turn_depend_on_one():
    turns = [random.Random(seed).randrange(20) for seed in range(30)]

    found = dependences(rows_of_counts([float(turn)] * 12 for turn in turns), 12, 0.25)

    assert found == {column: [0] for column in range(1, 12)}


def test_a_column_that_is_the_sum_of_many_depends_on_each_of_them():
    chance = random.Random(5)
    table = [[chance.randrange(20) for _ in range(10)] for _ in range(60)]

    found = dependences(rows_of_counts([*counts, sum(counts)] for counts in table), 11, 0.25)

    assert {column for last, others in found.items() for column in (last, *others)} == set(range(11))


def test_counts_of_random_requests_are_independent():
    chance = random.Random(5)
    table = []
    for _ in range(40):
        drawn = chance.choices(range(12), [30, 20, 10, 5, 5, 5, 2, 2, 2, 1, 1, 1], k=80)
        table.append([drawn.count(key) for key in range(12)])

    assert dependences(rows_of_counts(table), 12, 0.25) == {}


def test_columns_without_counts_depend_on_nothing():
    assert dependences(rows_of_counts([[0, 3], [0, 5], [0, 4]]), 2, 0.25) == {}
