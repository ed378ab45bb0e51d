"""Native memory that requests kept: means, intervals, warm-up apart, and nothing where too little was counted."""

from __future__ import annotations

import pytest
from samples import request

from tracer.analysis.kept import FirstRuns, How, Kept, KeptSum
from tracer.facts import Request


def kept_of(*requests: tuple[int | None, bool]) -> Kept:
    """The figures of requests that kept so much, each with whether it was its worker's first for the script."""
    summed = KeptSum(None)
    for kept, first in requests:
        summed.add(request(native_kept=kept), first=first)
    return summed.kept()


def steady(*values: int | None) -> list[tuple[int | None, bool]]:
    return [(value, False) for value in values]


def test_the_mean_of_requests_that_were_all_counted_is_exact():
    found = kept_of(*steady(100, 200, 0, 500))

    assert (found.how, found.total, found.per_request, found.counted) == (How.COUNTED, 800, 200.0, 4)
    assert (found.low, found.high) == (200.0, 200.0)
    assert (found.share, found.p50, found.p95) == (0.75, 100, 500)


def test_bytes_that_the_first_request_of_a_worker_kept_beyond_the_others_are_warm_up():
    found = kept_of((90_000, True), *steady(100, 100, 100), (50_100, True))

    assert (found.per_request, found.total, found.warmup, found.counted) == (100.0, 500, 139_900, 5)


def test_the_interval_reaches_to_zero_where_every_request_was_its_workers_first():
    found = kept_of((700, True), (900, True))

    assert (found.total, found.per_request, found.low, found.high, found.warmup) == (1600, 800.0, 0.0, 800.0, None)


def test_the_mean_of_requests_that_were_counted_in_part_stands_for_all_with_an_interval():
    found = kept_of(*steady(*[1000, 1200] * 8, *[None] * 84))

    assert (found.total, found.per_request, found.counted) == (110_000, 1100.0, 16)
    assert found.low == pytest.approx(1100 - 1.96 * 100 / 15**0.5)
    assert found.high == pytest.approx(1100 + 1.96 * 100 / 15**0.5)


def test_a_few_counted_requests_among_uncounted_ones_say_nothing():
    assert kept_of(*steady(1000, 1000, 1000, 1000, None)) == Kept(counted=4)
    assert kept_of((1000, True), (None, False)) == Kept(counted=1)


def test_nothing_is_known_where_nothing_was_counted():
    assert kept_of(*steady(None, None)) == Kept()


def one(nth: int, script: str | None = "/a", pid: int = 2, host: str = "h") -> Request:
    return request(nth=nth, script=script, pid=pid, host=host)


def test_a_first_run_is_one_of_a_script_in_a_worker():
    runs = FirstRuns()

    scripts = ["/a", "/a", "/b", None, "/b", None]
    found = [runs.is_first(one(nth, script)) for nth, script in enumerate(scripts, 1)]
    assert found == [True, False, True, True, False, False]
    assert runs.is_first(one(2, pid=3))
    assert runs.is_first(one(2, host="i"))


def test_a_worker_that_got_the_pid_of_another_begins_anew():
    runs = FirstRuns()

    assert [runs.is_first(each) for each in (one(1), one(2), one(1), one(2))] == [True, False, True, False]
