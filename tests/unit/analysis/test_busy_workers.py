"""The memory that several busy workers need together: exact where the sum of so many requests is known otherwise."""

from __future__ import annotations

import itertools
import math
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st
from samples import PROPERTY, within

from tracer.analysis.busy_workers import Rises, rounded_up

MIB = 1 << 20
SECOND = 10**9


def rises(*of: tuple[int, int, int]) -> Rises:
    """Rises of (how many requests, bytes, nanoseconds of each)."""
    found = Rises()
    for requests, rise, spent in of:
        for _ in range(requests):
            found.add(rise, spent)
    return found


def together(found: Rises, workers: int) -> list[int]:
    return list(itertools.islice(found.together(), workers))


def most_of_binomial(workers: int, share: Fraction, bound: float) -> int:
    """The smallest number k such that more than k of so many workers are there with at most that probability."""
    chances = [math.comb(workers, k) * share**k * (1 - share) ** (workers - k) for k in range(workers + 1)]
    return next(k for k in range(workers + 1) if sum(chances[k + 1 :]) <= bound)


@pytest.mark.parametrize(
    ("size", "up"),
    [
        (0, 0), (1, 4096), (4096, 4096), (4097, 8192), (127 * 4096, 127 * 4096), (129 * 4096, 130 * 4096),
        (64 * MIB, 64 * MIB), (64 * MIB + 1, 65 * MIB), (1_000_003, 245 * 4096 + 4096),
    ],
)  # fmt: skip
def test_a_size_is_rounded_up_to_seven_binary_digits_of_pages(size, up):
    assert rounded_up(size) == up


@PROPERTY
@given(st.integers(0, 1 << 63))
def test_rounding_up_adds_at_most_a_page_or_a_sixty_fourth(size):
    assert size <= rounded_up(size) <= size + max(4096, size // 64)


def test_workers_whose_requests_all_need_the_same_need_that_together():
    found = rises((100, 5 * MIB, SECOND))

    assert (found.mean(), found.largest) == (5 * MIB, 5 * MIB)
    assert together(found, 7) == [n * 5 * MIB for n in range(1, 8)]


def test_workers_without_any_request_need_nothing():
    assert (Rises().mean(), together(Rises(), 3)) == (0, [0, 0, 0])


def test_so_many_heavy_requests_come_together_as_the_binomial_distribution_has_it():
    # 2 % of the time in a request that needs 64 MiB; each request takes a second: 3,600 starts an hour and worker.
    found = rises((98, 0, SECOND), (2, 64 * MIB, SECOND))

    expected = [most_of_binomial(n, Fraction(2, 100), 0.01 / (3600 * n)) * 64 * MIB for n in range(1, 41)]
    assert together(found, 40) == expected
    assert (expected[0], expected[9], expected[39]) == (64 * MIB, 5 * 64 * MIB, 9 * 64 * MIB)


def test_a_request_counts_by_the_time_that_it_takes():
    # One request of a hundred, but half of the time and more.
    found = rises((99, 0, SECOND), (1, 32 * MIB, 100 * SECOND))

    assert found.mean() == -(-32 * MIB * 100 // 199)
    assert together(found, 3) == [32 * MIB, 64 * MIB, 96 * MIB]


def test_rises_below_the_median_make_the_sum_smaller():
    found = rises((60, 32 * MIB, SECOND), (40, 0, SECOND))

    expected = most_of_binomial(40, Fraction(60, 100), 0.01 / (3600 * 40)) * 32 * MIB
    assert together(found, 40)[39] == expected < 40 * 32 * MIB


def test_requests_that_start_more_often_have_more_chances_to_come_together():
    slow = rises((98, 0, SECOND), (2, 64 * MIB, SECOND))
    quick = rises((98, 0, SECOND // 1000), (2, 64 * MIB, SECOND // 1000))

    assert (together(slow, 10)[9], together(quick, 10)[9]) == (5 * 64 * MIB, 6 * 64 * MIB)


def test_three_kinds_of_requests_are_summed_as_by_enumeration():
    shares = {0: 0.6, 8 * MIB: 0.3, 32 * MIB: 0.1}
    found = rises((60, 0, SECOND), (30, 8 * MIB, SECOND), (10, 32 * MIB, SECOND))
    sums: dict[int, float] = {}
    for three in itertools.product(shares, repeat=4):
        sums[sum(three)] = sums.get(sum(three), 0.0) + math.prod(shares[one] for one in three)
    bound = 0.01 / (3600 * 4)

    expected = next(size for size in sorted(sums) if sum(p for other, p in sums.items() if other > size) <= bound)
    assert together(found, 4)[3] == expected == 128 * MIB


@PROPERTY
@given(st.lists(st.tuples(st.integers(0, 1 << 40), st.integers(0, 10**12)), min_size=1, max_size=40))
def test_more_workers_never_need_less_and_never_more_than_all_at_the_largest(requests):
    found = Rises()
    for rise, spent in requests:
        found.add(rise, spent)

    needed = together(found, 12)

    assert needed == sorted(needed)
    assert all(0 <= size <= n * found.largest for n, size in enumerate(needed, 1))


def test_hundreds_of_workers_with_rises_of_every_size_are_summed_in_bounded_time():
    found = Rises()
    for number in range(2000):
        found.add(number * 65_537, SECOND // 50)

    with within(10):
        needed = together(found, 400)

    mean = sum(number * 65_537 for number in range(2000)) // 2000
    assert 400 * mean < needed[399] < 1.2 * 400 * mean
