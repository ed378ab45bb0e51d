"""Native memory that requests kept: means, intervals, warm-up apart, and nothing where too little was counted."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from samples import PROPERTY, request

from tracer.analysis.first_runs import Run
from tracer.analysis.kept import How, Kept, KeptSum


def add(summed: KeptSum, kept_bytes: int | None, run: Run, worker: int = 0) -> None:
    """Add a request that is followed by one that was counted."""
    counted = summed.add(request(native_kept=kept_bytes), run, worker)
    if counted is not None:
        values, number = counted
        values.close(number)


def kept_of(*requests: tuple[int | None, Run], workers: int = 1) -> Kept:
    """The figures of requests that kept so much; each of the `workers` served one after the other."""
    summed = KeptSum(None)
    for nth, (kept_bytes, run) in enumerate(requests):
        add(summed, kept_bytes, run, nth % workers)
    return summed.kept()


def steady(*values: int | None) -> list[tuple[int | None, Run]]:
    return [(value, Run.LATER) for value in values]


def test_the_mean_of_requests_that_were_all_counted_is_exact():
    found = kept_of(*steady(100, 200, 0, 500))

    assert (found.how, found.total, found.per_request, found.counted) == (How.COUNTED, 800, 200.0, 4)
    assert (found.low, found.high) == (100.0, 200.0), "without what one request kept beyond the others, and with it"
    assert (found.share, found.p50, found.p95) == (0.75, 100, 500)


def test_there_is_no_doubt_where_each_request_kept_the_same():
    found = kept_of(*steady(34_304, 34_304, 34_304, 34_304), workers=2)

    assert (found.total, found.per_request, found.low, found.high) == (4 * 34_304, 34_304.0, 34_304.0, 34_304.0)


def test_bytes_that_the_first_request_of_a_worker_kept_beyond_the_others_are_warm_up():
    found = kept_of((90_000, Run.FIRST), *steady(100, 100, 100), (50_100, Run.FIRST))

    assert (found.per_request, found.total, found.warmup, found.counted) == (100.0, 500, 139_900, 5)


def test_a_first_request_that_keeps_less_than_the_others_is_charged_what_it_kept():
    found = kept_of((0, Run.FIRST), *steady(700, 700, 700, 700), (10, Run.FIRST))

    assert (found.per_request, found.total, found.warmup) == (700.0, 2810, 0)


def test_the_first_request_of_each_route_is_warm_up_where_routes_come_again():
    found = kept_of((9_000, Run.FIRST), (8_000, Run.FIRST_OF_ROUTE), *steady(*[0] * 5), (7_000, Run.FIRST_OF_ROUTE))

    assert (found.per_request, found.total, found.low, found.warmup) == (0.0, 0, 0.0, 24_000)


def test_a_site_with_a_route_for_each_article_has_no_first_requests_of_routes():
    found = kept_of((9_000, Run.FIRST), *[(700, Run.FIRST_OF_ROUTE)] * 60, *steady(*[700] * 5))

    assert (found.per_request, found.total, found.low, found.warmup) == (700.0, 66 * 700, 700.0, 8_300)


@pytest.mark.parametrize("workers", [1, 8])
def test_a_cache_that_is_emptied_and_fills_once_in_each_worker_is_no_leak(workers):
    fills = [149_920, *[0] * 11]

    found = kept_of(*steady(*[kept for kept in fills for _ in range(workers)]), workers=workers)

    assert (found.total, found.per_request, found.low, found.high) == (0, 0.0, 0.0, 149_920 / 12)
    assert found.warmup == 149_920 * workers


def test_a_leak_that_comes_again_in_each_worker_is_one_though_few_requests_have_it():
    found = kept_of(*steady(*[700 if nth % 7 == 0 else 0 for nth in range(280)]), workers=2)

    assert (found.total, found.per_request) == (28_000, 100.0)
    assert (found.low, found.high) == (pytest.approx(38 * 700 / 278), 100.0)


def test_nobody_is_accused_where_one_request_of_each_worker_is_known():
    found = kept_of(*steady(*[149_920] * 8), workers=8)

    assert (found.per_request, found.low, found.high) == (149_920.0, 0.0, 149_920.0)


def test_the_interval_reaches_to_zero_where_every_request_was_its_workers_first():
    found = kept_of((700, Run.FIRST), (900, Run.FIRST))

    assert (found.total, found.per_request, found.low, found.high, found.warmup) == (1600, 800.0, 0.0, 800.0, None)


def test_where_workers_are_replaced_soon_the_counted_first_requests_give_a_figure_that_accuses_nobody():
    found = kept_of(*[(3088, Run.FIRST)] * 4, *steady(3088, 3088, None, None, None, None), workers=2)

    assert (found.total, found.per_request, found.counted) == (30_880, 3088.0, 6)
    assert (found.low, found.high, found.warmup) == (0.0, 3088.0, None)


def test_the_mean_of_requests_that_were_counted_in_part_stands_for_all_with_an_interval():
    found = kept_of(*steady(*[1000, 1200] * 8, *[None] * 84))

    assert (found.total, found.per_request, found.counted) == (110_000, 1100.0, 16)
    assert found.low == pytest.approx(1100 - 1.96 * 100 / 15**0.5)
    assert found.high == pytest.approx(1100 + 1.96 * 100 / 15**0.5)


def test_a_few_counted_requests_among_uncounted_ones_say_nothing():
    assert kept_of(*steady(1000, 1000, 1000, 1000, None)) == Kept(counted=4)
    assert kept_of((1000, Run.FIRST), *steady(None)) == Kept(counted=1)
    assert kept_of(*[(1000, Run.FIRST)] * 6, *steady(*[None] * 7)) == Kept(counted=6)


def test_nothing_is_known_where_nothing_was_counted():
    assert kept_of(*steady(None, None)) == Kept()


def test_with_a_window_the_quantiles_of_first_requests_are_of_the_last_ones():
    summed = KeptSum(4)
    for kept_bytes in range(1, 101):
        add(summed, kept_bytes, Run.FIRST)

    found = summed.kept()

    assert (found.total, found.counted, found.share, found.p50, found.p95) == (5_050, 100, 1.0, 98, 100)


@PROPERTY
@given(st.lists(st.tuples(st.none() | st.integers(-9, 9), st.sampled_from(Run)), max_size=12), st.integers(1, 3))
def test_figures_are_there_exactly_where_enough_is_known(requests, workers):
    summed = KeptSum(None)
    for nth, (kept_bytes, run) in enumerate(requests):
        add(summed, kept_bytes, run, nth % workers)

    found = summed.kept()

    assert summed.known == (found.how is How.COUNTED)
    if found.per_request is not None:
        assert found.low <= found.per_request <= found.high
