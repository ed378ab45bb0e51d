"""Routes whose requests came near a limit, or ended by a fatal error."""

from __future__ import annotations

import pytest
from samples import BLOG, SHOP, request

from tracer.analysis import limits
from tracer.analysis.limits import Limits, RouteLimits, Timeouts, Worst
from tracer.facts import Place

MIB = 1 << 20
AT = 1_700_000_000_123_456_789
SCRIPT = "/srv/www/index.php"
HERE = Place()
TIMEOUTS = {"master_pid": 4231, "pool": "www", "request_terminate_timeout_s": 30.0, "max_execution_time_s": 5.0}


def served(uri: str = "/a", **changed):
    """A request that came near nothing, with that changed."""
    return request(**{
        **HERE._asdict(), "uri": uri, "started_ns": AT, "zend_peak": 1 * MIB, "memory_limit": 128 * MIB,
        "cpu_ns": 1_000, **changed,
    })  # fmt: skip


def limits_of(*requests, meta=None, places=None) -> list[RouteLimits]:
    found = Limits()
    found.begin_recording(meta or {})
    for one in requests:
        found.add(one)
    return found.routes(places or {})


def test_a_request_that_came_near_nothing_is_not_reported():
    assert limits_of(served(), served(zend_peak=None), served(memory_limit=None), served(zend_peak=102 * MIB)) == []


def test_a_peak_of_four_fifths_of_memory_limit_is_a_near_miss_and_the_worst_is_named():
    requests = [served("/report/7", zend_peak=103 * MIB), served("/report/11", zend_peak=122 * MIB, started_ns=AT + 1)]

    assert limits_of(*requests, served("/report/13", zend_peak=104 * MIB)) == [
        RouteLimits("/report/{n}", SCRIPT, memory_limit=Worst(3, 122 / 128, 122 * MIB, 128 * MIB, "/report/11", AT + 1))
    ]


def test_the_worst_request_is_the_one_that_used_most_of_its_own_limit():
    found = limits_of(served("/a", zend_peak=200 * MIB, memory_limit=240 * MIB), served("/a", zend_peak=121 * MIB))

    assert (found[0].memory_limit.used, found[0].memory_limit.limit) == (121 * MIB, 128 * MIB)


@pytest.mark.parametrize("limit", [-1, 0])
def test_without_a_memory_limit_no_request_comes_near_it(limit):
    assert limits_of(served(zend_peak=1 << 40, memory_limit=limit)) == []


def test_fatal_errors_are_counted_by_route_and_script_and_the_last_one_is_named():
    requests = [
        served("/cart/7", ending="fatal"),
        served("/cart/11", ending="fatal", zend_peak=127 * MIB, started_ns=AT + 1),
        served("/cart/13", ending="fatal", script="/srv/blog/index.php"),
        served("/cart/17"),
    ]

    assert limits_of(*requests) == [
        RouteLimits("/cart/{n}", "/srv/blog/index.php", fatal=1, fatal_uri="/cart/13", fatal_at_ns=AT),
        RouteLimits("/cart/{n}", SCRIPT, fatal=2, fatal_near_memory_limit=1, fatal_uri="/cart/11", fatal_at_ns=AT + 1),
    ]


def test_a_fatal_error_with_much_memory_in_use_is_no_near_miss():
    assert limits_of(served(ending="fatal", zend_peak=127 * MIB))[0].memory_limit is None


def test_a_fatal_error_of_no_script_is_counted():
    found = limits_of(served(None, script=None, ending="fatal"))

    assert found == [RouteLimits(fatal=1, fatal_at_ns=AT)]


def test_a_request_that_took_four_fifths_of_the_pools_timeout_is_reported():
    slow = served("/slow", duration_ns=24_000_000_000)

    assert limits_of(served(duration_ns=23_999_999_999), slow, meta={"timeouts": [TIMEOUTS]}) == [
        RouteLimits(
            "/slow", SCRIPT, request_terminate_timeout=Worst(1, 0.8, 24_000_000_000, 30_000_000_000, "/slow", AT)
        )
    ]


@pytest.mark.parametrize(
    ("ending", "duration_ns", "terminated"),
    [
        ("killed:TERM", 30_500_000_000, 1),
        ("killed:TERM", 29_900_000_000, 1),
        ("killed:TERM", 29_899_999_999, 0),
        ("killed:KILL", 31_000_000_000, 0),
        ("finished", 31_000_000_000, 0),
    ],
)
def test_a_request_that_php_fpm_ended_is_counted(ending, duration_ns, terminated):
    (found,) = limits_of(served(ending=ending, duration_ns=duration_ns), meta={"timeouts": [TIMEOUTS]})

    assert found.terminated == terminated


def test_the_cpu_time_of_a_request_is_compared_with_max_execution_time():
    (found,) = limits_of(served("/x", cpu_ns=4_100_000_000, duration_ns=None), meta={"timeouts": [TIMEOUTS]})

    assert found.max_execution_time == Worst(1, 0.82, 4_100_000_000, 5_000_000_000, "/x", AT)


@pytest.mark.parametrize(
    "meta",
    [
        {},
        {"timeouts": []},
        {"timeouts": [{**TIMEOUTS, "pool": "shop"}]},
        {"timeouts": [{**TIMEOUTS, "master_pid": 7919}]},
        {"timeouts": [{**TIMEOUTS, "request_terminate_timeout_s": None, "max_execution_time_s": None}]},
        {"timeouts": [{**TIMEOUTS, "request_terminate_timeout_s": 0, "max_execution_time_s": 0}]},
    ],
)
def test_without_a_known_timeout_no_request_comes_near_it(meta):
    assert limits_of(served(duration_ns=1 << 62, cpu_ns=1 << 62), meta=meta) == []


@pytest.mark.parametrize(
    "timeouts",
    [
        None, 7, "text", [7, None, "x", {}], [{**TIMEOUTS, "master_pid": "4231"}], [{**TIMEOUTS, "pool": None}],
        [{**TIMEOUTS, "request_terminate_timeout_s": "30", "max_execution_time_s": float("nan")}],
        [{**TIMEOUTS, "request_terminate_timeout_s": -1, "max_execution_time_s": 1e300}],
    ],
)  # fmt: skip
def test_timeouts_of_a_malformed_recording_are_not_known(timeouts):
    assert limits_of(served(duration_ns=1 << 62, cpu_ns=1 << 62), meta={"timeouts": timeouts}) == []


def test_the_timeouts_of_all_recordings_are_listed_and_those_without_any_counted():
    found = Limits()
    for meta in ({"host": "web1", "timeouts": [TIMEOUTS]}, {"host": "web2"}):
        found.begin_recording(meta)

    assert found.timeouts == [Timeouts("web1", 4231, "www", 30.0, 5.0)]
    assert found.without_timeouts == 1


def test_a_recording_does_not_have_the_timeouts_of_the_one_before():
    found = Limits()
    found.begin_recording({"timeouts": [TIMEOUTS]})
    found.begin_recording({})
    found.add(served(duration_ns=1 << 62))

    assert found.routes({}) == []


def test_routes_of_several_containers_are_not_added_up():
    requests = [served(ending="fatal", **place._asdict()) for place in (SHOP, BLOG)]

    found = limits_of(*requests, places={SHOP: "shop", BLOG: "blog"})

    assert [(row.route, row.container, row.fatal) for row in found] == [("/a", "blog", 1), ("/a", "shop", 1)]


def test_memory_is_bounded_by_routes(monkeypatch):
    monkeypatch.setattr(limits, "_ROUTES_MAX", 3)

    found = limits_of(*(served(f"/{letter}", ending="fatal") for letter in "abcdefg"))

    assert [(row.route, row.fatal) for row in found] == [("(other routes)", 4), ("/a", 1), ("/b", 1), ("/c", 1)]
