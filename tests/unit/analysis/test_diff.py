"""Comparisons of recordings, group by group: exact figures, what is matched, and what stays unclear."""

from __future__ import annotations

import random

import pytest
from deploys import SITE, recorded, rows, side, with_leak
from planted import KIB, MIB, Act, once
from samples import BLOG, COMPLETE, SHOP, request

from tracer.analysis.diff import Comparison, Outcome, is_rise
from tracer.analysis.diff_change import Figure, Kind, Why
from tracer.analysis.ranking import GroupBy
from tracer.analysis.verdict.judge import Kind as VerdictKind
from tracer.facts import Place, Request


def series(count: int = 100, pid: int = 7, **changed: object) -> list[Request]:
    """Requests of one worker that keep nothing, and are alike."""
    fixed = {"native_kept": 0, "native_alloc_bytes": 0, "native_free_bytes": 0, "native_freed_earlier": 0, "pid": pid}
    return [request(**{**fixed, "nth": nth, "started_ns": 1_700_000_000_000_000_000 + nth * 10**9, **changed})
            for nth in range(1, count + 1)]  # fmt: skip


def kept(count: int, size: int, pid: int = 7, **changed: object) -> list[Request]:
    return series(count, pid, native_kept=size, native_alloc_bytes=size, **changed)


def only(found: dict[str | None, object]) -> object:
    [row] = found.values()
    return row


def test_the_figures_are_per_request_without_the_first_one_of_each_worker():
    before = series(anon_before=10_000_000, anon_peak=10_700_001, zend_peak=400_000, duration_ns=5_000_000)
    before[0] = before[0]._replace(anon_peak=90_000_000, zend_peak=80_000_000, duration_ns=10**10)
    after = series(anon_before=10_000_000, anon_peak=10_800_003, zend_peak=500_007, duration_ns=7_000_001)

    row = only(rows(before, after))

    assert (row.key, row.container, row.requests_before, row.requests_after) == ("/srv/www/index.php", None, 100, 100)
    shown = {one.figure: (one.kind, one.before, one.after, one.shift, one.low, one.high, one.requests_before)
             for one in row.changes.values()}  # fmt: skip
    assert shown == {
        Figure.KEPT: (Kind.SAME, 0.0, 0.0, 0.0, 0.0, 0.0, 100),
        Figure.RISE: (Kind.ROSE, 700_001, 800_003, 100_002, 100_002, 100_002, 99),
        Figure.ZEND: (Kind.ROSE, 400_000, 500_007, 100_007, 100_007, 100_007, 99),
        Figure.DURATION: (Kind.ROSE, 5_000_000, 7_000_001, 2_000_001, 2_000_001, 2_000_001, 99),
    }
    assert row.outcome is Outcome.WORSE


def test_by_script_the_first_request_of_each_route_is_left_out():
    after = series()
    for at in range(0, 90, 10):
        after[at] = after[at]._replace(uri=f"/{'abcdefghi'[at // 10]}", duration_ns=10**11)

    change = only(rows(series(), after)).changes[Figure.DURATION]

    assert (change.after, change.requests_after) == (COMPLETE.duration_ns, 90)


def test_groups_beyond_the_most_are_not_compared_and_their_requests_are_counted(monkeypatch):
    monkeypatch.setattr("tracer.analysis.diff_side._GROUPS_MAX", 3)
    requests = [one for at in range(5) for one in series(7, script=f"/{at}.php")]

    sides = side(requests), side(requests)

    assert [row.key for row in Comparison(GroupBy.SCRIPT, *sides).rows(Figure.KEPT)] == ["/0.php", "/1.php", "/2.php"]
    assert (sides[0].overflow, sides[0].requests) == (14, 35)


def test_a_leak_that_a_deploy_adds_is_the_shift_to_the_byte():
    before = series(100, 7) + series(100, 8)
    after = kept(100, 65_552, 9) + kept(100, 65_552, 10)

    change = only(rows(before, after)).changes[Figure.KEPT]

    assert (change.kind, change.why) == (Kind.ROSE, None)
    assert (change.before, change.after, change.shift, change.low, change.high) == (0.0, *[65_552.0] * 4)
    assert (change.requests_before, change.requests_after, change.estimated) == (200, 200, False)
    assert change.verdict.kind is VerdictKind.LEAK


def test_a_leak_in_one_request_of_twenty_is_its_mean():
    def rare(pid: int) -> list[Request]:
        return [one if at % 20 == 7 else one._replace(native_kept=0, native_alloc_bytes=0)
                for at, one in enumerate(kept(700, 34_304, pid))]  # fmt: skip

    change = only(rows(series(700, 7) + series(700, 8), rare(9) + rare(10))).changes[Figure.KEPT]

    assert change.kind is Kind.ROSE
    assert change.shift == pytest.approx(34_304 / 20, rel=0.1)


@pytest.mark.parametrize(
    ("figure", "before", "less", "more"),
    [
        (Figure.RISE, 100_000, 32_767, 32_769),
        (Figure.RISE, 2_000_000, 99_999, 100_001),
        (Figure.ZEND, 400_000, 16_383, 16_385),
        (Figure.ZEND, 2_000_000, 39_999, 40_001),
        (Figure.DURATION, 2_000_000, 999_999, 1_000_001),
        (Figure.DURATION, 50_000_000, 4_999_999, 5_000_001),
    ],
)
def test_a_change_that_is_sure_and_does_not_matter_is_none(figure, before, less, more):
    def of(value: int) -> list[Request]:
        if figure is Figure.RISE:
            return series(anon_before=0, anon_peak=value)
        return series(**{"zend_peak" if figure is Figure.ZEND else "duration_ns": value})

    risen = [only(rows(of(before), of(before + by))).changes[figure].kind for by in (less, more)]
    fallen = [only(rows(of(before + by), of(before))).changes[figure].kind for by in (less, more)]
    assert (risen, fallen) == ([Kind.SAME, Kind.ROSE], [Kind.SAME, Kind.FELL])


@pytest.mark.parametrize(("each", "kind"), [(655, Kind.SAME), (657, Kind.ROSE)])
def test_less_than_64_kib_in_all_is_no_leak(each, kind):
    before, after = series(50, 7) + series(50, 8), kept(50, each, 9) + kept(50, each, 10)

    assert only(rows(before, after)).changes[Figure.KEPT].kind is kind


def test_few_requests_are_unclear():
    found = only(rows(series(8), series(100, duration_ns=10**10)))

    assert {(change.kind, change.why) for change in found.changes.values() if change.figure is not Figure.KEPT} == {
        (Kind.UNCLEAR, Why.FEW)
    }
    assert found.changes[Figure.DURATION].shift == 10**10 - COMPLETE.duration_ns
    assert only(rows(series(9), series(9, duration_ns=10**10))).changes[Figure.DURATION].kind is Kind.ROSE


def test_a_leak_that_too_few_requests_show_is_unclear_for_the_reason_of_its_verdict():
    change = only(rows(series(40), kept(40, 65_552))).changes[Figure.KEPT]

    assert (change.kind, change.why, change.verdict.kind) == (Kind.UNCLEAR, Why.VERDICT, VerdictKind.UNCLEAR)


def test_a_leak_in_one_worker_of_four_is_unclear():
    before = [one for pid in range(4) for one in series(100, pid)]
    after = [one for pid in range(3) for one in series(100, pid)] + kept(4_000, 65_552, 9)

    change = only(rows(before, after)).changes[Figure.KEPT]

    assert (change.kind, change.why) == (Kind.UNCLEAR, Why.VERDICT)


def test_a_figure_that_scatters_more_than_it_changed_is_unclear():
    chance = random.Random(1)
    before, after = (
        [one._replace(duration_ns=chance.randrange(100_000_000) + more) for one in series()] for more in (0, 10_000_000)
    )

    change = only(rows(before, after)).changes[Figure.DURATION]

    assert (change.kind, change.why) == (Kind.UNCLEAR, Why.WIDE)
    assert change.low < 0 < 10_000_000 < change.high


def test_a_figure_that_one_recording_lacks_is_unclear():
    lacking = series(5, zend_peak=None, anon_peak=None, native_kept=None, native_alloc_bytes=None, duration_ns=None)

    for pair in ((lacking, series()), (series(), lacking), (lacking, lacking)):
        found = only(rows(*pair))
        assert {(one.kind, one.why) for one in found.changes.values()} == {(Kind.UNCLEAR, Why.NOT_MEASURED)}
        assert found.outcome is Outcome.UNCLEAR


def test_requests_that_were_seen_in_part_count_and_give_no_figure():
    found = only(rows(series(), series() + series(3, 9, anon_after=None, ending="cut_off", duration_ns=10**12)))

    assert found.requests_after == 103
    assert found.changes[Figure.DURATION].after == COMPLETE.duration_ns


def test_new_and_gone_groups_have_their_figures():
    found = rows(series(script="/old.php"), series(script="/new.php"))

    assert {key: row.outcome for key, row in found.items()} == {"/new.php": Outcome.NEW, "/old.php": Outcome.GONE}
    new, gone = found["/new.php"], found["/old.php"]
    assert (new.requests_before, new.requests_after, gone.requests_before, gone.requests_after) == (0, 100, 100, 0)
    assert {one.kind for one in new.changes.values()} == {Kind.NEW}
    assert {one.kind for one in gone.changes.values()} == {Kind.GONE}
    assert new.changes[Figure.DURATION].after == gone.changes[Figure.DURATION].before == COMPLETE.duration_ns
    assert new.rises == gone.rises == []


def test_a_new_group_that_surely_keeps_memory_is_a_rise():
    leak = [one for pid in (9, 10) for one in kept(100, 65_552, pid, script="/new.php")]

    found = rows(series(), series() + leak)

    assert list(found) == ["/new.php", "/srv/www/index.php"]
    change = found["/new.php"].changes[Figure.KEPT]
    assert found["/new.php"].outcome is Outcome.NEW_LEAK
    assert (change.kind, change.shift, change.low, is_rise(change)) == (Kind.NEW, 65_552.0, 65_552.0, True)
    few = rows(series(), series() + kept(30, 65_552, script="/new.php"))["/new.php"]
    assert (few.outcome, few.rises) == (Outcome.NEW, [])


def test_routes_of_two_releases_are_matched():
    old = series(script="/srv/releases/41/public/index.php", uri="/user/7")
    new = series(script="/srv/releases/42/public/index.php", uri="/user/11", duration_ns=10**9)

    for by, key in ((GroupBy.ROUTE, "/user/{n}"), (GroupBy.SCRIPT, "/srv/releases/42/public/index.php")):
        comparison = Comparison(by, side(old, by), side(new, by))
        [row] = comparison.rows(Figure.KEPT)
        assert (row.key, row.requests_before, row.requests_after, row.outcome) == (key, 100, 100, Outcome.WORSE)
        assert comparison.moved == ("/srv/releases/41", "/srv/releases/42")


def test_two_scripts_of_which_one_moved_to_the_place_of_the_other_are_not_added_up():
    old = series(50, script="/a/x/i.php") + series(70, 8, script="/b/x/i.php") + series(9, 9, script="/a/x/j.php")
    new = series(90, script="/b/x/i.php") + series(9, 9, script="/b/x/j.php")

    found = rows(old, new)

    assert sum(row.requests_before for row in found.values()) == 129
    assert sum(row.requests_after for row in found.values()) == 99


def test_a_container_that_was_made_anew_is_the_same_place():
    other = Place("shop", "77" * 32, "/docker/" + "77" * 32, "mnt:1", "/")
    before = series(**SHOP._asdict()) + series(50, 8, **BLOG._asdict())
    after = series(**other._asdict(), duration_ns=10**9) + series(50, 8, **BLOG._asdict())

    found = Comparison(GroupBy.SCRIPT, side(before), side(after)).rows(Figure.KEPT)

    assert [(row.container, row.requests_before, row.requests_after, row.outcome) for row in found] == [
        ("shop", 100, 100, Outcome.WORSE),
        ("blog", 50, 50, Outcome.SAME),
    ]


def test_where_each_recording_has_one_place_its_name_does_not_matter():
    row = only(rows(series(**SHOP._asdict()), series(**BLOG._asdict())))

    assert (row.container, row.requests_before, row.requests_after) == (None, 100, 100)


def test_the_rest_of_too_many_routes_is_unclear():
    before = series(uri="(other routes)")
    after = series(uri="(other routes)", duration_ns=10**10)

    row = only(rows(before, after, GroupBy.ROUTE))

    assert (row.key, row.outcome) == ("(other routes)", Outcome.UNCLEAR)
    assert {(one.kind, one.why) for one in row.changes.values()} == {(Kind.UNCLEAR, Why.REST)}


def test_figures_that_the_recordings_are_too_different_for_are_unclear():
    sides = side(series()), side(series(duration_ns=10**10, zend_peak=9 * MIB))

    [row] = Comparison(GroupBy.SCRIPT, *sides, not_alike={Figure.DURATION}).rows(Figure.KEPT)

    sides = side(series(duration_ns=None)), side(series(duration_ns=None))
    [other] = Comparison(GroupBy.SCRIPT, *sides, not_alike={Figure.DURATION}).rows(Figure.KEPT)
    assert other.changes[Figure.DURATION].why is Why.NOT_MEASURED
    assert (row.changes[Figure.DURATION].why, row.changes[Figure.ZEND].kind) == (Why.NOT_ALIKE, Kind.ROSE)


def test_groups_of_few_requests_can_be_left_out():
    before, after = series(9, script="/a.php") + series(30, 8), series(4, script="/a.php") + series(8, 8)

    comparison = Comparison(GroupBy.SCRIPT, side(before), side(after))

    assert [row.key for row in comparison.rows(Figure.KEPT, least_requests=10)] == ["/srv/www/index.php"]
    assert len(comparison.rows(Figure.KEPT, least_requests=9)) == 2


def test_the_metric_decides_which_row_is_first():
    before = series(script="/a.php") + series(100, 8, script="/b.php")
    after = series(script="/a.php", zend_peak=90 * MIB) + series(100, 8, script="/b.php", duration_ns=10**10)

    assert [next(iter(rows(before, after, metric=one))) for one in (Figure.ZEND, Figure.DURATION)] == [
        "/a.php",
        "/b.php",
    ]


def test_an_estimate_is_a_change_if_its_interval_does_not_touch_the_other_one():
    def estimated(requests: list[Request]) -> list[Request]:
        return [one._replace(native_kept=None, native_alloc_bytes=None, native_free_bytes=None) for one in requests]

    after = estimated(recorded(with_leak("/hello.php", 512 * KIB), seed=2, requests=3_000))
    before = estimated(recorded(requests=3_000))

    found = {key: row.changes[Figure.KEPT] for key, row in rows(before, after).items()}
    change = found["/hello.php"]
    assert (change.kind, change.estimated) == (Kind.ROSE, True)
    assert change.low < 512 * KIB < change.high
    assert [key for key, one in found.items() if one.kind is Kind.ROSE] == ["/hello.php"]


def test_memory_that_new_workers_keep_in_caches_is_no_rise():
    old = recorded(requests=9_000)[6_000:]

    found = rows(old, recorded(first_pid=900, seed=2))

    assert [key for key, row in found.items() if row.changes[Figure.KEPT].kind is Kind.ROSE] == []
    search = found["/search.php"].changes[Figure.KEPT]
    assert search.kind in (Kind.WARM_UP, Kind.UNCLEAR)


def test_memory_that_surely_became_more_is_no_rise_while_workers_keep_less_and_less():
    before = [one for pid in range(4) for one in series(200, pid)]
    after = [one._replace(native_kept=size, native_alloc_bytes=size)
             for one in before if (size := int(40_000 * 0.98**one.nth)) > 0]  # fmt: skip

    there, back = (only(rows(*pair)).changes[Figure.KEPT] for pair in ((before, after), (after, before)))

    assert there.low > 64 * KIB / 800
    assert (there.kind, there.verdict.kind) == (Kind.WARM_UP, VerdictKind.WARM_UP)
    assert (back.kind, back.low, back.high) == (Kind.WARM_UP, -there.high, -there.low)
    assert only(rows(before, after)).outcome is Outcome.WARM_UP


def test_a_cache_that_each_worker_fills_once_is_no_rise():
    fills = {**SITE, "/hello.php": once(Act(keeps=MIB))}

    found = rows(recorded(), recorded(fills, seed=2))["/hello.php"].changes[Figure.KEPT]

    assert found.kind is Kind.SAME


@pytest.mark.parametrize("by", [GroupBy.ROUTE, GroupBy.SCRIPT, GroupBy.URI])
def test_a_recording_compared_with_itself_has_no_change(by):
    requests = recorded(seed=3)

    for row in rows(requests, requests, by).values():
        for change in row.changes.values():
            assert (change.kind in (Kind.SAME, Kind.UNCLEAR), change.shift) == (True, 0.0)


@pytest.mark.parametrize("seed", range(5))
def test_swapped_recordings_have_the_opposite_changes(seed):
    before, after = recorded(seed=seed), recorded(with_leak("/page.php"), seed=100 + seed, mean_ms=40)
    opposite = {Kind.ROSE: Kind.FELL, Kind.FELL: Kind.ROSE}

    there, back = rows(before, after), rows(after, before)

    assert any(one.kind is Kind.ROSE for row in there.values() for one in row.changes.values())
    for key, row in there.items():
        for figure, one in row.changes.items():
            other = back[key].changes[figure]
            assert (other.shift, other.low, other.high, other.kind, other.why) == (
                -one.shift, -one.high, -one.low, opposite.get(one.kind, one.kind), one.why,
            )  # fmt: skip


def test_other_pids_change_nothing():
    before, after = recorded(seed=5), recorded(with_leak("/page.php"), seed=6)
    renamed = [one._replace(pid=one.pid * 7_919 % 65_537) for one in after]

    assert rows(before, renamed) == rows(before, after)
