"""Requests grouped and sorted, and their quantiles against a naive way of finding them."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Callable, Iterable
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st
from samples import BLOG, COMPLETE, PROPERTY, SHOP, request
from simulated_workers import Script, traffic

from tracer.analysis.estimation import Estimation
from tracer.analysis.first_runs import FirstRuns, Run
from tracer.analysis.group import Group
from tracer.analysis.order import by_kept
from tracer.analysis.ranking import COLUMNS, GroupBy, Ranking
from tracer.analysis.seen_workers import SeenWorkers
from tracer.analysis.verdict.judge import Kind, Verdict, Why
from tracer.facts import Look, Place, Release, Request, Worker
from tracer.reporters.columns import column

UNMEASURED = Request(**{**dict.fromkeys(Request._fields), "host": "h", "pid": 2, "nth": 1, "ending": "cut_off"})


def grown(growth: int, script: str | None = "/a.php", **changed: object) -> Request:
    """A request of that growth, none of it native."""
    memory = {"anon_before": 1_000_003, "anon_end": 1_000_003, "anon_after": 1_000_003 + growth}
    return request(**{"script": script, **memory, **changed})


def native(kept: int, script: str | None = "/a.php") -> Request:
    """A request that kept so much, the first for its script in its worker."""
    return grown(0, script, native_kept=kept)


def ranked(*requests: Request, by: GroupBy = GroupBy.SCRIPT, **options: int) -> Ranking:
    ranking = Ranking(by, **options)
    for one in requests:
        ranking.add(one)
    return ranking


def only(ranking: Ranking) -> Group:
    [group] = ranking.groups()
    return group


def of_a(ranking: Ranking) -> Group:
    """The group of /a.php."""
    [group] = [group for group in ranking.groups() if group.key == "/a.php"]
    return group


def after(nth: int) -> Request:
    """A request for another script that follows the one of that number, and was counted."""
    return grown(0, "/next.php", nth=nth + 1, started_ns=nth + 1, native_kept=0, native_alloc_bytes=0)


def nearest_rank(values: list[int], percent: int) -> int:
    """The smallest value that at least so many percent of the values do not exceed."""
    return min(
        v for v in values if Fraction(sum(other <= v for other in values), len(values)) >= Fraction(percent, 100)
    )


def test_of_groups_that_may_have_kept_nothing_those_that_may_have_kept_more_come_first():
    zero = dataclasses.replace(only(ranked(native(0))), growth_bytes=2 << 20)
    maybe = dataclasses.replace(zero, growth_bytes=0, kept_bytes=None, kept_per_request=None, kept_high=5.0)
    least = dataclasses.replace(maybe, kept_low=1.0)

    assert sorted([zero, maybe, least], key=by_kept, reverse=True) == [least, maybe, zero]


def test_groups_that_may_have_kept_nothing_stand_below_those_that_did():
    once = [grown(0, "/cache.php", pid=pid, nth=2, native_kept=900_000) for pid in range(3)]
    leaks = [grown(0, "/leak.php", nth=nth, native_kept=700) for nth in range(10, 20)]

    ranking = ranked(*[one._replace(nth=1, native_kept=0) for one in once], *once,
                     *[after(2)._replace(pid=pid, nth=3) for pid in range(3)], *leaks, after(19))  # fmt: skip

    [first, second, _] = ranking.groups()
    assert (first.key, first.kept_low, first.kept_bytes) == ("/leak.php", 700.0, 7_000)
    assert (second.key, second.kept_low, second.kept_bytes) == ("/cache.php", 0.0, 2_700_000)


@pytest.mark.parametrize(
    ("by", "keys"),
    [
        (GroupBy.SCRIPT, ["/a.php", "/b.php"]),
        (GroupBy.URI, ["/x", "/y"]),
        (GroupBy.ROUTE, ["/x (a.php)", "/x (b.php)", "/y"]),
        (GroupBy.WORKER, ["5", "shop/2", "www/2", "www/3"]),
        (GroupBy.POOL, ["shop", "www", None]),
    ],
)
def test_requests_are_grouped_by_the_chosen_key(by, keys):
    ranking = ranked(
        request(script="/a.php", uri="/x", pool="www", pid=2),
        request(script="/a.php", uri="/y", pool="www", pid=3),
        request(script="/b.php", uri="/x", pool="shop", pid=2),
        request(script="/b.php", uri="/x", pool=None, pid=5),
        by=by,
    )

    assert [group.key for group in ranking.groups(None)] == keys


def test_the_first_request_of_each_route_in_a_worker_is_warm_up():
    uris = ["/user/1", "/user/2", "/user/3", "/cart", "/cart", "/cart"]
    kept = [100_003, 7, 7, 200_017, 11, 11]
    requests = [
        grown(0, "/index.php", uri=uri, nth=nth, pid=pid, native_kept=size, started_ns=1_000 * nth + pid)
        for pid in range(2, 22)
        for nth, (uri, size) in enumerate(zip(uris, kept, strict=True), 1)
    ]

    ranking = ranked(*requests, *[after(6)._replace(pid=pid) for pid in range(2, 22)], by=GroupBy.ROUTE)

    found = {group.key: (group.requests, group.kept_bytes, group.warmup_bytes) for group in ranking.groups()}
    assert found["/user/{n}"] == (60, 60 * 7, 20 * (100_003 - 7))
    assert found["/cart"] == (60, 60 * 11, 20 * (200_017 - 11))


# Two workers of pid 77: the first was there before tracing began and died at 100, the second was born at 200.
FIRST_77 = Worker(77, 7919, "www", "8.2.36", None, 100, "exited:0")
SECOND_77 = Worker(77, 7927, "www", "8.2.36", 200, None, None)


def of_77(started_ns: int | None = 50, **changed: object) -> Request:
    """A request of a worker with the pid 77, as a recording has it that knows no start of a worker."""
    return request(**{"pid": 77, "started_ns": started_ns, "start_ticks": None, **changed})


def by_worker(*recordings: tuple[list[Worker], list[Request]], **options: int) -> Ranking:
    """A ranking of these recordings by worker."""
    ranking = Ranking(GroupBy.WORKER, **options)
    for workers, requests in recordings:
        ranking.begin_recording(workers)
        for one in requests:
            ranking.add(one)
    return ranking


def requests_by_key(ranking: Ranking) -> dict[str | None, int]:
    found = [(group.key, group.requests) for group in ranking.groups(None)]
    assert len(dict(found)) == len(found)
    return dict(found)


def test_equal_pids_of_two_hosts_are_two_workers():
    ranking = by_worker(
        ([], [of_77(host="web1"), of_77(host="web1")]), ([], [of_77(host="web2"), of_77(host="web2", pool=None)])
    )

    assert requests_by_key(ranking) == {"web1 www/77": 2, "web2 www/77": 1, "web2 pid 77": 1}


def test_the_workers_of_one_host_are_named_without_it():
    ranking = by_worker(([], [of_77(), of_77(pool=None)]), ([], [of_77()]))

    assert requests_by_key(ranking) == {"www/77": 2, "77": 1}


def test_a_host_whose_requests_found_no_room_counts_as_another_host():
    ranking = by_worker(([], [of_77(host="web1"), of_77(host="web2")]), max_groups=1)

    assert requests_by_key(ranking) == {"web1 www/77": 1}


def test_two_workers_that_had_the_same_pid_are_numbered_in_the_order_they_started():
    ranking = by_worker(([SECOND_77, FIRST_77], [of_77(50), of_77(99), of_77(201), of_77(300), of_77(400)]))

    assert requests_by_key(ranking) == {"www/77 #1": 2, "www/77 #2": 3}


def test_a_worker_whose_namesake_served_no_request_is_not_numbered():
    ranking = by_worker(([FIRST_77, SECOND_77], [of_77(201), of_77(300)]))

    assert requests_by_key(ranking) == {"www/77": 2}


def test_a_worker_whose_birth_was_not_seen_begins_where_the_one_before_it_died():
    ranking = by_worker(([FIRST_77, SECOND_77._replace(born_ns=None)], [of_77(100), of_77(101)]))

    assert requests_by_key(ranking) == {"www/77 #1": 1, "www/77 #2": 1}


def test_workers_between_which_no_time_is_known_are_not_distinguished():
    ranking = by_worker(([FIRST_77._replace(died_ns=None), SECOND_77._replace(born_ns=None)], [of_77(50), of_77(300)]))

    assert requests_by_key(ranking) == {"www/77": 2}


def test_a_request_whose_start_was_not_seen_is_of_the_first_worker_of_its_pid():
    ranking = by_worker(([FIRST_77, SECOND_77], [of_77(None), of_77(50), of_77(300)]))

    assert requests_by_key(ranking) == {"www/77 #1": 2, "www/77 #2": 1}


def test_a_worker_that_two_recordings_saw_is_one():
    seen_later = FIRST_77._replace(died_ns=None, exit=None)

    ranking = by_worker(([seen_later], [of_77(50)]), ([FIRST_77], [of_77(90)]), ([SECOND_77], [of_77(250)]))

    assert requests_by_key(ranking) == {"www/77 #1": 2, "www/77 #2": 1}


def test_a_worker_whose_start_is_unknown_is_known_by_its_pid_alone():
    ranking = by_worker(([SECOND_77._replace(start_ticks=None)], [of_77(50), of_77(300)]))

    assert requests_by_key(ranking) == {"www/77": 2}


def test_requests_without_a_key_are_a_group_of_their_own():
    ranking = ranked(grown(2, None), grown(3, None), grown(5, ""))

    assert {group.key: group.requests for group in ranking.groups()} == {None: 2, "": 1}


def test_growth_is_summed_and_its_quantiles_are_values_that_occurred():
    group = only(ranked(*map(grown, (7, -3, 11, 2, 5))))

    assert (group.requests, group.growth_bytes, group.growth_p50, group.growth_p95) == (5, 22, 5, 11)


def test_native_memory_that_was_kept_is_summed_apart():
    group = only(ranked(native(13), native(17), native(101)))

    assert (group.kept_bytes, group.kept_p50, group.kept_p95) == (131, 17, 101)
    assert group.growth_bytes == 0


def test_memory_that_is_freed_later_is_taken_back_from_the_group_that_kept_it():
    kept = [native(kept)._replace(nth=nth, started_ns=nth) for nth, kept in enumerate((5, 700, 1000), 1)]
    ranking = ranked(*kept, after(3), window=100)

    ranking.release(Release(COMPLETE.pid, 2, 600, 3))
    group = of_a(ranking)
    assert (group.kept_per_request, group.kept_share) == (550.0, 1.0)

    ranking.release(Release(COMPLETE.pid, 2, 100, 1))
    ranking.release(Release(COMPLETE.pid, 1, 5, 1))
    ranking.release(Release(COMPLETE.pid, 77, 9_999, 1))  # of a request that was not seen
    group = of_a(ranking)
    assert (group.kept_per_request, group.kept_share, group.warmup_bytes) == (500.0, 0.5, 0)


# Requests that are not their worker's first; a mapping that went away may hide a part of what they kept.
STEADY = {"native_free_bytes": 300, "native_freed_earlier": 200}


def keeping(nth: int, blocks: int, mapped: int = 0, script: str = "/a.php") -> Request:
    """A request of which so many bytes in blocks are left, and that has mapped so much."""
    return grown(0, script, nth=nth, started_ns=nth, native_alloc_bytes=100 + blocks, native_kept=blocks + mapped,
                 native_mapped_bytes=mapped, **STEADY)  # fmt: skip


def reported(requests: Iterable[Request], releases: Iterable[Release]) -> list[Group]:
    """The groups of a recording of these facts."""
    released = Counter[tuple[int, int]]()
    for fact in releases:
        released[fact.pid, fact.started_ns] += fact.bytes
    return ranked(*(one._replace(native_released=released[one.pid, one.started_ns]) for one in requests)).groups()


def test_a_group_that_gave_back_more_than_it_kept_is_followed_as_in_a_recording():
    requests = [keeping(1, 0), keeping(2, 1500, mapped=-500), keeping(3, 500)]
    releases = [Release(COMPLETE.pid, 2, 1000, 7), Release(COMPLETE.pid, 2, 500, 3)]
    ranking = ranked(*requests[:2], window=100)

    for fact in releases:
        ranking.release(fact)
    assert only(ranking).kept_bytes == -500
    requests.append(after(3))
    for one in requests[2:]:
        ranking.add(one)

    assert (of_a(ranking).kept_bytes, of_a(ranking).kept_share) == (0, 0.5)
    assert ranking.groups() == reported(requests, releases)


def test_a_group_that_kept_nothing_by_its_sum_is_followed_too():
    requests = [keeping(1, 0), keeping(2, 700, mapped=-700)]
    ranking = ranked(*requests, window=100)
    release = Release(COMPLETE.pid, 2, 700, 1)

    ranking.release(release)

    assert only(ranking).kept_per_request == -700.0
    assert ranking.groups() == reported(requests, [release])


def test_memory_that_requests_before_the_view_kept_changes_nothing_when_it_is_freed():
    requests = [keeping(1, 0), keeping(2, 1000), keeping(3, 500)]
    releases = [Release(COMPLETE.pid, 2, 1000, 7), Release(COMPLETE.pid, 1_000_003, 500, 3)]
    ranking = ranked(*requests[:2], window=100)

    for fact in releases:
        ranking.release(fact)
    requests.append(after(3))
    for one in requests[2:]:
        ranking.add(one)

    assert of_a(ranking).kept_per_request == 250.0
    assert ranking.groups() == reported(requests, releases)


@PROPERTY
@given(
    st.lists(
        st.tuples(
            st.sampled_from(["/a.php", "/b.php"]),
            st.integers(0, 999),
            st.integers(-999, 999),
            st.lists(st.integers(1, 400), max_size=4),
        ),
        max_size=20,
    ),
    st.randoms(use_true_random=False),
)
def test_a_live_view_shows_what_a_report_of_the_same_facts_shows(kept, chance):
    requests, due = [], []
    for nth, (script, blocks, mapped, freed) in enumerate(kept, 1):
        requests.append(keeping(nth, blocks, mapped, script))
        for size in freed:
            if size <= blocks:
                blocks -= size
                due.append(Release(COMPLETE.pid, nth, size, 1))
    live = Ranking(GroupBy.SCRIPT, window=100)
    waiting = list(due)
    for one in requests:
        live.add(one)
        for fact in [fact for fact in waiting if fact.started_ns <= one.nth and chance.random() < 0.5]:
            waiting.remove(fact)
            live.release(fact)
    for fact in waiting:
        live.release(fact)

    assert live.groups() == reported(requests, due)


def test_a_value_that_left_the_window_of_the_quantiles_still_counts_when_it_is_freed():
    ranking = ranked(*(keeping(nth, 100 * nth) for nth in range(1, 8)), after(7), window=3)

    ranking.release(Release(COMPLETE.pid, 2, 200, 1))
    ranking.release(Release(COMPLETE.pid, 6, 450, 1))

    group = of_a(ranking)
    assert (group.kept_bytes, group.kept_p50, group.kept_p95) == (2700 - 650 + 100, 500, 700)


def test_the_figures_of_a_hostile_worker_fit_in_64_bits():
    most = (1 << 63) - 1
    kept = keeping(2, most - 100)._replace(native_kept=-most)
    ranking = ranked(keeping(1, 0), kept, window=3)

    ranking.release(Release(COMPLETE.pid, 2, most - 200, 1))

    assert only(ranking).kept_p50 == -(1 << 63)


def test_a_recordings_requests_come_with_the_bytes_freed_of_them():
    assert only(ranked(request(native_kept=700, native_released=600))).kept_bytes == 100


def test_the_growth_of_a_request_in_flight_is_no_figure_of_one_request():
    stream = grown(8 << 30)._replace(ending="cut_off", notes="end_not_seen")

    group = only(ranked(grown(3), stream, grown(5)))

    assert (group.growth_bytes, group.growth_p50, group.growth_p95) == (8 + (8 << 30), 3, 5)


def test_peaks_are_the_highest_of_any_request():
    group = only(
        ranked(
            request(anon_peak=7, zend_peak=101),
            request(anon_peak=11, zend_peak=3),
            request(anon_peak=None, zend_peak=None),
        )
    )

    assert (group.anon_peak_max, group.zend_peak_max) == (11, 101)


def test_nothing_kept_ranks_above_something_given_back_and_below_something_kept():
    ranking = ranked(native(0, "0"), native(1, "1"), native(-1, "-1"), UNMEASURED)

    assert [group.key for group in ranking.groups()] == ["1", "0", "-1", None]


def test_a_request_that_was_seen_in_part_counts_but_not_for_growth_or_duration():
    group = only(
        ranked(request(anon_after=None, duration_ns=999), request(anon_before=None), grown(7, COMPLETE.script))
    )

    assert (group.requests, group.incomplete, group.growth_bytes) == (3, 2, 7)
    assert group.duration_p95_ns == COMPLETE.duration_ns


def test_the_peak_of_a_request_that_was_killed_counts():
    group = only(ranked(request(anon_after=None, anon_peak=99_999_989), COMPLETE))

    assert group.anon_peak_max == 99_999_989


def test_a_figure_that_no_request_has_is_none():
    group = only(ranked(UNMEASURED))

    assert group == Group(
        key=None, requests=1, incomplete=1, growth_bytes=None, growth_p50=None, growth_p95=None,
        kept_bytes=None, kept_per_request=None, kept_low=None, kept_high=None, kept_how=None, kept_share=None,
        kept_p50=None, kept_p95=None, warmup_bytes=None, counted=0,
        anon_peak_max=None, zend_peak_max=None, duration_p95_ns=None,
        verdict=Verdict(Kind.UNCLEAR, Why.NOT_SEEN, requests=1),
    )  # fmt: skip


@PROPERTY
@given(st.lists(st.integers(-(1 << 40), 1 << 40), min_size=1, max_size=60))
def test_quantiles_are_of_the_nearest_rank(values):
    group = only(ranked(*map(grown, values)))

    assert (group.growth_p50, group.growth_p95) == (nearest_rank(values, 50), nearest_rank(values, 95))
    assert group.growth_bytes == sum(values)


@pytest.mark.parametrize("count", [1, 2, 19, 20, 21, 40, 60, 100, 180, 200, 220, 380, 1000, 2000, 4000])
def test_the_95th_of_a_hundred_is_the_95th(count):
    group = only(ranked(*(grown(value) for value in range(1, count + 1))))

    assert group.growth_p95 == -(-count * 95 // 100)


@PROPERTY
@given(st.lists(st.integers(0, 1 << 40), min_size=1, max_size=40), st.integers(1, 12))
def test_a_ranking_with_a_window_has_quantiles_of_the_last_requests_and_sums_of_all(values, window):
    group = only(ranked(*map(grown, values), window=window))

    assert group.growth_p50 == nearest_rank(values[-window:], 50)
    assert (group.requests, group.growth_bytes) == (len(values), sum(values))


def test_keys_beyond_the_greatest_number_of_groups_are_counted_but_not_ranked():
    ranking = ranked(*(grown(2, script) for script in "abcadbe"), max_groups=3)

    assert {group.key: group.requests for group in ranking.groups()} == {"a": 2, "b": 2, "c": 1}
    assert ranking.overflow == 2


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


SORTED = [
    ("kept", ["c", "b", "a", "none"]),
    ("growth", ["a", "c", "b", "none"]),
    ("peak", ["b", "a", "c", "none"]),
    ("zend/limit", ["c", "a", "b", "none"]),
    ("reqs", ["b", "a", "c", "none"]),
    ("p95", ["a", "b", "c", "none"]),
    ("max", ["a", "b", "c", "none"]),
    ("total", ["b", "a", "c", "none"]),
    ("mean", ["a", "c", "b", "none"]),
    ("key", ["a", "b", "c", "none"]),
]


def some_groups() -> Ranking:
    return ranked(
        grown(700, "a", native_kept=3, anon_peak=5, zend_peak=5, duration_ns=997),
        grown(-100, "b", native_kept=5, anon_peak=7, zend_peak=3, duration_ns=991),
        grown(-100, "b", native_kept=0, anon_peak=1, zend_peak=1, duration_ns=7),
        grown(300, "c", native_kept=7, anon_peak=3, zend_peak=7, duration_ns=983),
        UNMEASURED._replace(script="none"),
    )


@pytest.mark.parametrize(("name", "keys"), SORTED)
def test_groups_come_with_the_most_first_and_those_not_measured_last(name, keys):
    assert [group.key for group in some_groups().groups(column(name).order)] == keys


@pytest.mark.parametrize("name", [name for name, _ in SORTED])
def test_the_first_of_all_are_the_first(name):
    order = column(name).order
    every = some_groups().groups(order)

    assert [some_groups().groups(order, top) for top in (1, 2, 9)] == [every[:1], every[:2], every]


def test_behind_the_first_of_all_come_those_without_a_key():
    ranking = ranked(native(7, "a"), native(5, "b"), native(3, None), native(1, "c"))

    assert [group.key for group in ranking.groups(top=1)] == ["a", None]
    assert [group.key for group in ranking.groups(top=3)] == ["a", "b", None]


def test_a_group_has_the_figures_of_its_columns():
    limits = {"zend_peak": 7_000_003, "memory_limit": 134_217_728}
    group = only(ranked(
        grown(0, anon_peak=1_000_003 + 4_096, duration_ns=1_009, **limits),
        grown(0, anon_peak=1_000_003 + 8_192, duration_ns=1_013, ending="fatal", status=500, zend_peak=13),
        grown(0, anon_peak=1_000_003, duration_ns=7, status=503, memory_limit=-1, zend_peak=11),
        grown(0, anon_peak=1_000_003, duration_ns=5, status=600),
        UNMEASURED._replace(script="/a.php", **COMPLETE.place._asdict()),
    ))  # fmt: skip

    assert (group.rise_max, group.zend_peak_max, group.memory_limit) == (8_192, 7_000_003, 134_217_728)
    assert (group.fatal, group.status_5xx) == (1, 2)
    assert (group.duration_mean_ns, group.duration_max_ns, group.duration_total_ns) == (508, 1_013, 2_034)


def test_figures_that_no_request_has_are_absent():
    group = only(ranked(UNMEASURED, UNMEASURED._replace(ending="unknown")))

    names = ("rise_max", "memory_limit", "fatal", "status_5xx", "duration_mean_ns", "duration_max_ns",
             "duration_total_ns", "kept_per_hour")  # fmt: skip
    assert {name: getattr(group, name) for name in names} == dict.fromkeys(names)


def each_second(seconds: int) -> list[Request]:
    """Requests that keep 7 bytes each: one at the beginning, and one at the end of each second."""
    start = COMPLETE.started_ns or 0
    return [
        request(nth=nth, started_ns=start + nth * 10**9, native_kept=7, duration_ns=0) for nth in range(seconds + 1)
    ]


@pytest.mark.parametrize(("seconds", "per_hour"), [(4, None), (8, 7 * 9 * 450.0)])
def test_bytes_an_hour_go_by_the_time_that_was_recorded_if_it_is_long_enough(seconds, per_hour):
    assert only(ranked(*each_second(seconds), by=GroupBy.POOL)).kept_per_hour == per_hour


def left_out(ranking: Ranking, *requests: Request, **options: bool) -> Ranking:
    for one in requests:
        ranking.add(one, shown=False, **options)
    return ranking


def test_requests_that_are_left_out_are_of_no_group_but_their_worker_served_them():
    start, second, *others = [one._replace(native_kept=7 + 3 * (one.nth < 2)) for one in each_second(8)]

    ranking = left_out(Ranking(GroupBy.SCRIPT), start)
    for one in (second, *others):
        ranking.add(one)

    assert (only(ranking).requests, only(ranking).warmup_bytes) == (8, 0)
    assert only(ranked(second, *others)).warmup_bytes == 3  # as if it were the first of its worker


def test_the_time_of_a_ranking_is_that_of_requests_that_are_left_out_unless_they_are_not_of_it():
    *first, last = each_second(8)

    in_time, not_in_time = (only(left_out(ranked(*first), last, in_time=in_time)) for in_time in (True, False))
    assert (in_time.kept_per_hour, not_in_time.kept_per_hour) == (7 * 8 * 450.0, 7 * 8 * 3600 / 7)


def test_ties_go_by_growth_and_then_by_key():
    ranking = ranked(grown(2, "b"), grown(2, "a"), grown(3, "c"), grown(2, None))

    assert [group.key for group in ranking.groups(column("reqs").order)] == ["c", "a", "b", None]


@PROPERTY
@given(st.lists(st.tuples(st.sampled_from(["a", "b", "c", None]), st.integers(-9, 9)), max_size=30))
def test_the_order_does_not_depend_on_the_order_of_requests(pairs):
    forward = ranked(*(native(growth, key) for key, growth in pairs))
    backward = ranked(*(native(growth, key) for key, growth in reversed(pairs)))

    assert forward.groups() == backward.groups()
    assert Counter({group.key: group.requests for group in forward.groups()}) == Counter(key for key, _ in pairs)


def test_the_columns_that_are_read_for_it_are_all_that_it_needs():
    for by in GroupBy:
        part = Request(**{name: getattr(COMPLETE, name) if name in COLUMNS else None for name in Request._fields})
        assert ranked(part, by=by).groups() == ranked(COMPLETE, by=by).groups()


def in_place(place: Place, **changed: object) -> Request:
    """A request of a worker that runs there."""
    return request(**{**place._asdict(), **changed})


def rows(ranking: Ranking) -> dict[tuple[str | None, str | None], int]:
    """Number of requests by container and key."""
    return {(group.container, group.key): group.requests for group in ranking.groups()}


@pytest.mark.parametrize(
    ("by", "key"),
    [(GroupBy.SCRIPT, "/index.php"), (GroupBy.URI, "/cart"), (GroupBy.POOL, "www"), (GroupBy.WORKER, "www/7")],
)
def test_the_same_name_in_two_containers_is_two_groups(by, key):
    same = {"script": "/index.php", "uri": "/cart", "pool": "www", "pid": 7, "start_ticks": 11}
    ranking = ranked(*[in_place(SHOP, **same)] * 3, *[in_place(BLOG, **same)] * 5, by=by)

    assert rows(ranking) == {("shop", key): 3, ("blog", key): 5}
    assert ranking.places() == {SHOP: "shop", BLOG: "blog"}


def test_a_container_that_is_the_only_one_is_not_shown():
    ranking = ranked(*[in_place(SHOP, script="/index.php")] * 3)

    assert rows(ranking) == {(None, "/index.php"): 3}
    assert ranking.places() == {SHOP: "shop"}


def test_requests_are_grouped_by_container():
    shop = [in_place(SHOP, script=script) for script in ("/a.php", "/b.php")]

    assert rows(ranked(*shop, in_place(BLOG), by=GroupBy.CONTAINER)) == {(None, "shop"): 2, (None, "blog"): 1}


def test_groups_that_differ_in_their_container_alone_are_sorted_by_it():
    ranking = ranked(in_place(SHOP, script="/a.php"), in_place(BLOG, script="/a.php"), in_place(SHOP, script="/b.php"))

    found = [(group.key, group.container) for group in ranking.groups(None)]
    assert found == [("/a.php", "blog"), ("/a.php", "shop"), ("/b.php", "shop")]


def test_pools_with_roots_of_their_own_are_two_groups():
    jails = [SHOP._replace(root=root) for root in ("/srv/a", "/srv/b")]

    ranking = ranked(*(in_place(jail, script="/index.php") for jail in jails))

    assert rows(ranking) == {("shop:/srv/a", "/index.php"): 1, ("shop:/srv/b", "/index.php"): 1}


def first_runs(requests: Iterable[Request]) -> list[Run]:
    workers = SeenWorkers()
    first = FirstRuns(workers)
    return [first.of(one, workers.of(one)) for one in requests]


def test_a_pid_and_a_start_in_two_containers_are_two_workers_with_first_requests_of_their_own():
    found = first_runs(
        in_place(place, nth=nth, start_ticks=11, script="/index.php") for nth in (1, 2) for place in (SHOP, BLOG)
    )

    assert found == [Run.FIRST, Run.FIRST, Run.LATER, Run.LATER]


def test_a_pid_that_was_used_anew_is_another_worker_although_its_requests_are_counted_on():
    found = first_runs(request(nth=nth, start_ticks=start) for nth, start in ((1, 11), (2, 11), (3, 13), (4, 13)))

    assert found == [Run.FIRST, Run.LATER, Run.FIRST, Run.LATER]


def test_groups_that_always_come_together_are_named_with_their_containers_where_there_are_several():
    one_worker = not_counted({"x": Script(keeps=17_152)}, 900)
    shop = [one._replace(script=("page", "leak")[one.nth % 2], **SHOP._asdict()) for one in one_worker]

    ranking = ranked(*shop, in_place(BLOG, script="page"))

    [entry] = ranking.together()
    assert set(entry.keys) == {"shop: page", "shop: leak"}


def test_the_rate_an_hour_is_that_of_the_recordings_that_have_the_group():
    second = 10**9
    ranking = Ranking(GroupBy.SCRIPT)
    for pid, script, seconds in ((2, "/old.php", 100), (3, "/new.php", 300)):
        ranking.begin_recording([])
        for nth in range(1, 21):
            started = pid * 10**15 + nth * seconds * second // 20
            ranking.add(grown(0, script, pid=pid, nth=nth, native_kept=900, started_ns=started, duration_ns=0))

    rates = {group.key: group.kept_per_hour for group in ranking.groups()}

    assert rates == {"/old.php": pytest.approx(18_000 * 3600 / 95), "/new.php": pytest.approx(18_000 * 3600 / 285)}
