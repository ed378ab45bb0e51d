"""Which requests an estimate takes: only those that come while something is not known."""

from __future__ import annotations

from samples import request

from tracer.analysis.estimation import Estimation
from tracer.facts import Look


def taken(estimation: Estimation) -> dict[object, int]:
    """How many requests of each group an estimate has taken."""
    return {key: entry.requests[0] for key, entry in estimation.single().items()}


def add(estimation: Estimation, key: str, *numbers: int, needed: bool) -> None:
    for nth in numbers:
        estimation.add(request(script=key, nth=nth, native_kept=None), key, needed=needed)


def test_no_request_is_taken_until_a_group_needs_an_estimate():
    estimation = Estimation(possible=True)

    add(estimation, "/a.php", 1, 2, 3, needed=False)
    assert (taken(estimation), estimation.together({}), estimation.why_not()) == ({}, [], None)
    add(estimation, "/b.php", 4, 5, needed=True)
    add(estimation, "/a.php", 6, needed=False)

    assert taken(estimation) == {"/b.php": 2, "/a.php": 1}
    assert estimation.why_not() is not None


def test_no_request_is_taken_any_more_when_no_group_needs_an_estimate():
    estimation = Estimation(possible=True)
    add(estimation, "/a.php", 1, 2, needed=True)
    add(estimation, "/b.php", 3, needed=True)

    add(estimation, "/a.php", 4, needed=False)
    assert taken(estimation) == {"/a.php": 3, "/b.php": 1}
    add(estimation, "/b.php", 5, needed=False)
    add(estimation, "/a.php", 6, 7, needed=False)

    assert (taken(estimation), estimation.why_not()) == ({}, None)


def test_an_estimate_that_is_needed_again_begins_anew():
    estimation = Estimation(possible=True)
    add(estimation, "/a.php", 1, 2, needed=True)
    add(estimation, "/a.php", 3, needed=False)

    add(estimation, "/b.php", 4, needed=True)

    assert taken(estimation) == {"/b.php": 1}


def test_nothing_is_estimated_where_that_is_not_possible():
    estimation, filtered = Estimation(possible=False), Estimation(possible=True)
    add(filtered, "/a.php", 1, needed=True)
    filtered.begin_recording([], filtered=True)

    for one in (estimation, filtered):
        add(one, "/a.php", 2, 3, needed=True)
        assert (taken(one), one.together({}), one.why_not()) == ({}, [], None)


def test_a_look_at_an_earlier_worker_of_the_pid_says_nothing_of_this_one():
    estimation = Estimation(possible=True)
    look = Look(4241, 11, 1_000, 5, 7, 4_000_016, 0, 13, 17, True, True, None, None)
    estimation.begin_recording([look, look._replace(start_ticks=13, malloc_in_use=5_000_016)], filtered=False)

    assert estimation._heap_before(request(start_ticks=13, started_ns=2_000)) == 5_000_016
    assert estimation._heap_before(request(start_ticks=17, started_ns=2_000)) is None
    assert estimation._heap_before(request(start_ticks=11, started_ns=2_000)) == 4_000_016
