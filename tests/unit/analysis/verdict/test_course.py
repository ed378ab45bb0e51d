"""The course of what requests kept: goes on, fades, stopped, came once, or not in each worker."""

from __future__ import annotations

import random

import pytest

from tracer.analysis.verdict.course import LEAST_LAST, course


def test_a_leak_in_each_request_goes_on_in_each_worker():
    found = course([[34_304] * 40, [34_304] * 50])

    assert found.last == (34_304.0, 34_304.0, 34_304.0)
    assert (found.total, found.last_requests, found.last_mean, found.early_mean) == (3_087_360, 31, 34_304, 34_304)
    assert (found.workers, found.kept_in, found.asked, found.agree) == (2, 2, 2, 2)
    assert (found.falls, found.fades, found.stopped, found.once) == (False, False, False, False)


@pytest.mark.parametrize(("requests", "known"), [(3 * LEAST_LAST - 3, False), (3 * LEAST_LAST - 2, True)])
def test_the_last_third_needs_as_many_requests_as_an_interval(requests, known):
    values = [0] * (requests - LEAST_LAST) + [7] * LEAST_LAST  # the first third kept nothing, the last one did

    assert (course([values]).last is not None) is known


def test_a_leak_in_one_request_of_twenty_is_one_though_its_median_is_0():
    found = course([[34_304 if nth % 20 == 7 else 0 for nth in range(400)] for _ in range(4)])

    assert found.last is not None
    assert found.last.low is not None
    assert found.last.low > 0
    assert found.last_mean == pytest.approx(34_304 / 20, rel=0.05)
    assert (found.asked, found.agree) == (4, 4)


def test_a_cache_that_fills_in_the_beginning_has_stopped():
    found = course([[9_000] * 20 + [0] * 60] * 3)

    assert (found.stopped, found.last, found.last_mean) == (True, None, 0.0)


def test_a_cache_that_fills_ever_more_slowly_fades():
    chance = random.Random(3)
    lives = [[sum(900 for _ in range(16) if chance.random() < 0.98**nth) for nth in range(100)] for _ in range(4)]

    found = course(lives)

    assert found.last is not None
    assert (found.falls, found.fades) == (True, True)
    assert found.last_mean < 0.25 * found.early_mean


def test_a_leak_behind_a_warm_up_does_not_fall():
    lives = [[9_000] * 20 + [700] * 100 for _ in range(4)]

    found = course(lives)

    assert (found.falls, found.fades, found.stopped) == (False, False, False)
    assert found.last == (700.0, 700.0, 700.0)


def test_workers_that_keep_nothing_do_not_agree():
    found = course([[5_003] * 60, [0] * 60, [0] * 60, [0] * 60])

    assert (found.asked, found.agree) == (4, 1)


def test_short_lives_are_asked_together():
    found = course([[0, 0, 7_001], [0, 0, 0]] * 30)

    assert found.workers == 60
    assert (found.asked, found.agree) == (10, 10)  # six last requests each, of which three kept


def test_a_cache_that_each_worker_fills_in_one_request_came_once():
    assert course([[0] * 9 + [150_000] + [0] * 20, [150_000] + [0] * 29, [0] * 29 + [150_000]]).once
    assert not course([[0] * 9 + [150_000] + [0] * 20, [150_000] + [0] * 28 + [150_000]]).once


@pytest.mark.parametrize("lives", [[], [[5]], [[5], [7]]])
def test_of_single_requests_there_is_no_course(lives):
    found = course(lives)

    assert (found.last, found.total, found.asked, found.stopped, found.falls) == (None, 0, 0, False, False)
