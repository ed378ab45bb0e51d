"""Requests grouped and sorted, and their quantiles against a naive way of finding them."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Iterable
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rankings import after, grown, native, of_a, only, ranked
from samples import COMPLETE, PROPERTY, request

from tracer.analysis.group import Group
from tracer.analysis.order import by_kept
from tracer.analysis.ranking import COLUMNS, GroupBy, Ranking
from tracer.analysis.verdict.judge import Kind, Verdict, Why
from tracer.facts import Release, Request, Worker
from tracer.reporters.columns import column

UNMEASURED = Request(**{**dict.fromkeys(Request._fields), "host": "h", "pid": 2, "nth": 1, "ending": "cut_off"})


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
