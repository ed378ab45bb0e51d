"""A ranking of requests whose native memory was not counted, or not all: estimates, and unexplained growth."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from rankings import in_place, ranked
from samples import BLOG, COMPLETE, SHOP, request
from simulated_workers import Script, traffic

from tracer.analysis.estimation import Estimation
from tracer.analysis.ranking import GroupBy, Ranking
from tracer.facts import Look, Request

NOT_COUNTED = {"native_kept": None, "native_released": None, "native_mapped_bytes": None}
CHURN = {
    "page": Script(frees=138_000, weight=3),
    "leak": Script(keeps=34_304),
    "hello": Script(weight=6),
}


def not_counted(scripts: dict[str, Script], count: int) -> list[Request]:
    """Requests of simulated workers, whose allocations nobody counted."""
    return [one._replace(**NOT_COUNTED) for one, _ in traffic(scripts, count, seed=3)]


def test_scripts_that_have_no_estimate_of_their_own_are_charged_nothing():
    scripts = {f"/{number}.php": Script(keeps=1_000, weight=1.0 / (1 + number)) for number in range(40)}
    estimation = Estimation(possible=True)
    for one in not_counted(scripts, 2_000):
        estimation.add(one, one.script, needed=True)

    assert 0 < len(estimation.charges()) < 40


def test_uncounted_memory_is_estimated_and_only_the_leaking_script_is_named():
    leak, *others = ranked(*not_counted(CHURN, 2_000)).groups()

    assert (leak.key, leak.kept_how, leak.counted) == ("leak", "estimated", 0)
    assert leak.kept_low < 34_304 < leak.kept_high
    assert abs(leak.kept_per_request - 34_304) < 0.15 * 34_304
    assert {group.key: (group.kept_how, group.kept_bytes) for group in others} == {
        "page": ("estimated", None),
        "hello": ("estimated", None),
    }
    assert all(group.kept_low == 0 and group.kept_high < 1024 for group in others)


def looked_at(in_accept: bool, in_use: int = 0) -> Ranking:
    """A ranking of requests that nobody counted, and of looks at their workers.

    A look finds `in_use` bytes more for each request that the worker has served.
    """
    requests, looks = [], []
    for number, (one, worker) in enumerate(traffic(CHURN, 2_000, seed=3), 1):
        requests.append(one._replace(**NOT_COUNTED, started_ns=1_000 * number))
        if one.nth % 50 == 1:
            looks.append(look(one.pid, 1_000 * number + 500, worker.used + in_use * one.nth, in_accept=in_accept))
    ranking = Ranking(GroupBy.SCRIPT)
    ranking.begin_recording([], looks)
    for one in requests:
        ranking.add(one)
    return ranking


def look(pid: int, at_ns: int, in_use: int, *, in_accept: bool) -> Look:
    """A look at a worker that has so much in use in malloc's heap."""
    return Look(pid, 1, at_ns, 1, 1 << 24, in_use, 0, 1 << 23, 1 << 21, settled=True, in_accept=in_accept,
                requests=None, why=None)  # fmt: skip


def test_looks_at_idle_workers_make_an_estimate_exact():
    leak, *_ = looked_at(in_accept=True).groups()

    assert (leak.key, leak.kept_how) == ("leak", "estimated")
    assert leak.kept_per_request == pytest.approx(34_304, rel=0.02)


def test_the_total_of_an_estimate_is_that_of_all_complete_requests():
    requests = not_counted(CHURN, 2_000)
    counted = [request(script="leak", pid=1, nth=nth, native_kept=7) for nth in range(1, 5)]
    cut_off = request(script="leak", pid=1, nth=5, anon_after=None, **NOT_COUNTED)

    leak, *_ = ranked(*counted, *requests, cut_off).groups()

    complete = 4 + sum(one.script == "leak" for one in requests)
    assert (leak.key, leak.kept_how, leak.requests, leak.incomplete) == ("leak", "estimated", complete + 1, 1)
    assert leak.kept_bytes == round(leak.kept_per_request * complete)


def late_leak(counted: Callable[[int], bool]) -> Ranking:
    """A ranking of 600 rounds of three scripts, of which one keeps 34,304 bytes in its last 300 requests."""
    ranking = Ranking(GroupBy.SCRIPT)
    requests, used = [], 4_000_016
    for nth in range(1, 1801):
        kept = 34_304 if nth > 900 and nth % 3 == 0 else 0
        used += kept
        calls = {"native_kept": kept, "native_alloc_bytes": kept, "native_free_bytes": 0, "native_between_bytes": 0}
        if not counted(nth):
            calls = dict.fromkeys(calls)
        script = ("late", "page", "hello")[nth % 3]
        requests.append(request(script=script, nth=nth, started_ns=10 * nth, native_released=0, **calls))
    looks = [look(COMPLETE.pid, 1, 4_000_016, in_accept=True), look(COMPLETE.pid, 30_000, used, in_accept=True)]
    ranking.begin_recording([], looks)
    for one in requests:
        ranking.add(one)
    return ranking


def test_a_leak_that_begins_when_less_is_counted_is_charged_the_growth_of_the_worker():
    ranking = late_leak(lambda nth: nth < 300 or nth % 90 < 6)

    leak, *others = ranking.groups()
    assert (leak.key, leak.kept_how, leak.kept_share) == ("late", "estimated", None)
    assert leak.kept_bytes == pytest.approx(300 * 34_304, rel=0.001)
    assert leak.kept_low < 300 * 34_304 / 600 < leak.kept_high < 1.02 * leak.kept_low
    assert {(group.kept_how, group.kept_bytes) for group in others} == {("counted", 0)}
    assert (ranking.mismatch().since_ns, ranking.mismatch().grew) == (1, 280 * 34_304)


def test_a_leak_that_begins_when_nothing_is_counted_any_more_is_no_figure_of_zero():
    groups = late_leak(lambda nth: nth < 300).groups()

    assert {(group.kept_how, group.kept_bytes, group.kept_low) for group in groups} == {("estimated", None, 0)}
    assert all(group.kept_high > 300 * 34_304 / 600 for group in groups)


def test_the_growth_is_not_compared_if_every_request_was_counted():
    ranking = late_leak(lambda nth: nth > 0)

    assert ranking.mismatch() is None
    assert {group.kept_how for group in ranking.groups()} == {"counted"}


def test_looks_at_workers_that_may_be_in_a_request_are_not_used_for_an_estimate():
    without = ranked(*not_counted(CHURN, 2_000))

    assert looked_at(in_accept=False, in_use=90_001).groups() == without.groups()


def test_requests_for_which_there_is_no_group_explain_growth_all_the_same():
    requests = [request(script="page"), request(script="hello"), *not_counted(CHURN, 2_000)]

    ranking = ranked(*requests, max_groups=2)

    assert ranking.overflow > 100
    assert {group.key: (group.kept_how, group.kept_low) for group in ranking.groups()} == {
        "page": ("estimated", 0.0),
        "hello": ("estimated", 0.0),
    }
    assert all(group.kept_high < 1024 for group in ranking.groups())


def test_groups_that_always_come_together_are_estimated_together():
    one_worker = not_counted({"x": Script(keeps=17_152)}, 900)

    ranking = ranked(*(one._replace(script=("page", "leak")[one.nth % 2]) for one in one_worker))

    assert {group.kept_bytes for group in ranking.groups()} == {None}
    [entry] = ranking.together()
    assert set(entry.keys) == {"page", "leak"}
    assert entry.low <= 34_304 <= entry.high


def test_routes_that_always_come_together_are_estimated_together_by_their_names():
    one_worker = not_counted({"x": Script(keeps=17_152)}, 900)

    ranking = ranked(*(one._replace(uri=("/page", "/user/7")[one.nth % 2]) for one in one_worker), by=GroupBy.ROUTE)

    [entry] = ranking.together()
    assert set(entry.keys) == {"/page", "/user/{n}"}


def test_the_estimates_of_routes_are_those_of_their_scripts():
    requests = not_counted(CHURN, 2_000)
    by_script = ranked(*requests).groups()

    by_route = ranked(*(one._replace(uri=f"/{one.script}/{one.nth}") for one in requests), by=GroupBy.ROUTE).groups()

    assert [group.key for group in by_route] == [f"/{group.key}/{{n}}" for group in by_script]
    assert [(g.kept_bytes, g.kept_low) for g in by_route] == [(g.kept_bytes, g.kept_low) for g in by_script]


def test_nothing_is_estimated_where_requests_were_left_out():
    ranking = Ranking(GroupBy.SCRIPT)
    ranking.begin_recording([], filtered=True)
    for one in not_counted(CHURN, 2_000):
        ranking.add(one)

    assert {group.kept_how for group in ranking.groups()} == {None}
    assert (ranking.together(), ranking.why_not_estimated()) == ([], None)


def test_too_few_requests_are_a_reason_to_estimate_nothing():
    ranking = ranked(*not_counted(CHURN, 20))

    assert {group.kept_how for group in ranking.groups()} == {None}
    assert "requests" in (ranking.why_not_estimated() or "")


def test_groups_that_always_come_together_are_named_with_their_containers_where_there_are_several():
    one_worker = not_counted({"x": Script(keeps=17_152)}, 900)
    shop = [one._replace(script=("page", "leak")[one.nth % 2], **SHOP._asdict()) for one in one_worker]

    ranking = ranked(*shop, in_place(BLOG, script="page"))

    [entry] = ranking.together()
    assert set(entry.keys) == {"shop: page", "shop: leak"}
