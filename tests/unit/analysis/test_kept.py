"""Native memory that requests kept: means, intervals, warm-up apart, and nothing where too little was counted."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from samples import PROPERTY, request

from tracer.analysis import kept
from tracer.analysis.kept import FirstRuns, How, Kept, KeptSum
from tracer.facts import Request


def kept_of(*requests: tuple[int | None, bool]) -> Kept:
    """The figures of requests that kept so much, each with whether it was its worker's first for the script."""
    summed = KeptSum(None)
    for kept_bytes, first in requests:
        summed.add(request(native_kept=kept_bytes), first=first)
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


def test_of_many_workers_those_that_served_nothing_for_the_longest_time_are_forgotten(monkeypatch):
    monkeypatch.setattr(kept, "_WORKERS_MAX", 2)
    runs = FirstRuns()

    found = [runs.is_first(each) for each in (one(1, pid=2), one(1, pid=3), one(2, pid=2), one(1, pid=4), one(3, pid=2),
                                              one(2, pid=3))]  # fmt: skip

    assert found == [True, True, False, True, False, True]


def test_of_workers_with_many_scripts_fewer_are_known(monkeypatch):
    monkeypatch.setattr(kept, "_FIRST_RUNS_MAX", 5)
    runs = FirstRuns()
    for pid in (2, 3):
        for nth, script in enumerate("abc", 1):
            runs.is_first(one(nth, script, pid))

    assert [runs.is_first(one(4, "a", pid)) for pid in (3, 2)] == [False, True]
    assert runs.is_first(one(1, "a", pid=3)), "another worker with that pid"
    assert [runs.is_first(one(nth, script, pid=5)) for nth, script in enumerate("wxyz", 1)] == [True] * 4
    assert not runs.is_first(one(2, "a", pid=3))


def test_with_a_window_the_quantiles_of_first_requests_are_of_the_last_ones():
    summed = KeptSum(4)
    for kept_bytes in range(1, 101):
        summed.add(request(native_kept=kept_bytes), first=True)

    found = summed.kept()

    assert (found.total, found.counted, found.share, found.p50, found.p95) == (5_050, 100, 1.0, 98, 100)


@PROPERTY
@given(st.lists(st.tuples(st.none() | st.integers(-9, 9), st.booleans()), max_size=12))
def test_figures_are_there_exactly_where_enough_is_known(requests):
    summed = KeptSum(None)
    for kept_bytes, first in requests:
        summed.add(request(native_kept=kept_bytes), first=first)

    assert summed.known == (summed.kept().how is How.COUNTED)
