"""Planted behaviours and the verdicts on them: each in twenty random orders, and in other pools, times and amounts.

What is planted is in helpers/planted.py. The same on real php-fpm: tests/integration/product/test_verdicts.py.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from planted import CASES, HELLO, traffic
from samples import PROPERTY

from tracer.analysis.group import Group
from tracer.analysis.ranking import GroupBy, Ranking
from tracer.analysis.verdict.judge import Kind, Verdict, Why
from tracer.facts import Request

ORDERS = 20
FEW = settings(PROPERTY, max_examples=20)


def groups(requests: Iterable[Request], **options: int) -> dict[str | None, Group]:
    ranking = Ranking(GroupBy.SCRIPT, **options)
    for one in requests:
        ranking.add(one)
    return {group.key: group for group in ranking.groups()}


def verdicts(requests: Iterable[Request], **options: int) -> dict[str | None, Verdict]:
    return {key: group.verdict for key, group in groups(requests, **options).items() if group.verdict is not None}


def kinds(requests: Iterable[Request], **options: int) -> dict[str | None, Kind]:
    return {key: verdict.kind for key, verdict in verdicts(requests, **options).items()}


def not_counted(one: Request) -> Request:
    """The request as ptrace sees it."""
    return one._replace(
        native_kept=None, native_released=None, native_alloc_bytes=None, native_free_bytes=None,
        native_freed_earlier=None, native_mapped_bytes=None,
    )  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_each_planted_behaviour_has_its_verdict_in_any_order(case):
    scripts = {"/hello.php": HELLO, **CASES[case]}
    found: Counter[tuple[str, Kind]] = Counter()
    for seed in range(ORDERS):
        found.update((str(key), kind) for key, kind in kinds(traffic(case, requests=2_000, seed=seed)).items())

    assert sum(found.values()) == ORDERS * len(scripts)
    right = sum(count for (key, kind), count in found.items() if kind in scripts[key].right)
    innocents = {key for key, planted in scripts.items() if Kind.LEAK not in planted.right}
    assert right >= 0.95 * sum(found.values()), found
    assert [key for key, kind in found if kind is Kind.LEAK and key in innocents] == []


@pytest.mark.parametrize("requests", [100, 200, 400])
@pytest.mark.parametrize("case", CASES)
def test_few_requests_accuse_nobody(case, requests):
    scripts = {"/hello.php": HELLO, **CASES[case]}

    for seed in range(ORDERS):
        for key, kind in kinds(traffic(case, requests=requests, seed=seed)).items():
            assert kind is not Kind.LEAK or Kind.LEAK in scripts[str(key)].right, (case, seed)


@pytest.mark.parametrize("case", CASES)
def test_where_nothing_was_counted_no_innocent_is_accused(case):
    scripts = {"/hello.php": HELLO, **CASES[case]}

    for seed in range(4):
        for key, kind in kinds(map(not_counted, traffic(case, seed=seed))).items():
            assert kind is not Kind.LEAK or Kind.LEAK in scripts[str(key)].right, (case, seed)


def test_a_sure_estimate_is_a_leak_and_says_that_it_is_one():
    verdict = verdicts(map(not_counted, traffic("large leak")))["/leak.php"]

    assert (verdict.kind, verdict.estimated) == (Kind.LEAK, True)
    assert verdict.per_request == pytest.approx(524_304, rel=0.05)
    assert (verdict.workers, verdict.agree) == (4, 4)


@FEW
@given(st.sampled_from(sorted(CASES)), st.integers(0, 99), st.integers(1, 1 << 20))
def test_other_pids_change_no_verdict(case, seed, step):
    requests = list(traffic(case, requests=900, seed=seed))
    pids = {pid: 1 + (at * 7_919 + step) % 4_000_037 for at, pid in enumerate({one.pid: None for one in requests})}

    assert verdicts(one._replace(pid=pids[one.pid]) for one in requests) == verdicts(requests)


@FEW
@given(st.sampled_from(sorted(CASES)), st.integers(0, 99), st.integers(-(10**18), 10**18))
def test_another_time_changes_no_verdict(case, seed, by):
    requests = list(traffic(case, requests=900, seed=seed))

    assert verdicts(one._replace(started_ns=one.started_ns + by) for one in requests) == verdicts(requests)


@FEW
@given(st.sampled_from(sorted(CASES)), st.integers(0, 99), st.sampled_from([2, 3, 8]))
def test_more_workers_with_as_much_traffic_each_have_the_same_verdict(case, seed, times):
    few = kinds(traffic(case, requests=2_000, seed=seed, workers=4))
    many = kinds(
        one for part in range(times)
        for one in traffic(case, requests=2_000, seed=seed, workers=4, first_pid=100 + part * 100_000)
    )  # fmt: skip

    innocents = {key: kind for key, kind in few.items() if kind is not Kind.UNCLEAR}
    assert {key: many[key] for key in innocents} == innocents


@pytest.mark.parametrize("case", ["large leak", "recycled workers", "heavy once", "user cache"])
def test_the_same_requests_have_the_same_verdict(case):
    assert verdicts(traffic(case)) == verdicts(traffic(case))


def test_a_live_ranking_judges_by_the_last_requests_in_bounded_memory():
    found = verdicts(traffic("leak and warm-up in one script", requests=6_000), window=256)

    assert (found["/leak.php"].kind, found["/hello.php"].kind) == (Kind.LEAK, Kind.STEADY)
    assert found["/leak.php"].late == 34_304.0


def test_only_the_groups_that_are_asked_for_are_judged():
    ranking = Ranking(GroupBy.SCRIPT)
    for one in traffic("large leak"):
        ranking.add(one)

    [group] = ranking.groups(top=1)
    assert group.verdict is not None
    assert group.verdict.kind is Kind.LEAK


@pytest.mark.parametrize("by", [GroupBy.WORKER, GroupBy.POOL])
def test_workers_and_pools_have_no_verdict(by):
    ranking = Ranking(by)
    for one in traffic("large leak", requests=100):
        ranking.add(one)

    assert {group.verdict for group in ranking.groups()} == {None}


# Bad input: unclear, and why; never a confident wrong verdict.


def leaks(count: int, **changed: object) -> list[Request]:
    found = list(traffic("large leak", requests=4 * count + 20))
    return [one._replace(**changed) for one in found if one.script == "/leak.php"][:count]


@pytest.mark.parametrize("count", [1, 2, 11, 70])
def test_of_few_requests_nobody_can_tell(count):
    verdict = verdicts(leaks(count))["/leak.php"]

    assert (verdict.kind, verdict.why, verdict.requests) == (Kind.UNCLEAR, Why.FEW, count)
    assert verdict.needed is not None
    assert verdict.needed > 0


def test_a_group_of_requests_that_were_cut_off_was_not_seen():
    verdict = verdicts(leaks(50, anon_after=None))["/leak.php"]

    assert (verdict.kind, verdict.why) == (Kind.UNCLEAR, Why.NOT_SEEN)


def test_a_leak_among_many_lost_events_is_unclear():
    ranking = Ranking(GroupBy.SCRIPT)
    requests = leaks(300)
    for one in requests:
        ranking.add(one)

    [few], [many] = ranking.groups(lost=1), ranking.groups(lost=100)
    assert few.verdict is not None
    assert many.verdict is not None
    assert few.verdict.kind is Kind.LEAK
    assert (many.verdict.kind, many.verdict.why, many.verdict.lost_share) == (Kind.UNCLEAR, Why.LOST, 0.25)


def test_requests_that_free_more_than_they_allocate_are_unclear():
    verdict = verdicts(leaks(300, native_kept=-5_003))["/leak.php"]

    assert (verdict.kind, verdict.why) == (Kind.UNCLEAR, Why.FREED_MORE)


def test_a_worker_that_shrinks_all_the_time_is_steady():
    shrinking = [
        one._replace(native_kept=0, anon_before=90_000_000 - at * 4096, anon_after=90_000_000 - (at + 1) * 4096,
                     anon_peak=90_000_000 - at * 4096)
        for at, one in enumerate(leaks(300))
    ]  # fmt: skip

    assert kinds(shrinking) == {"/leak.php": Kind.STEADY}


def test_a_clock_that_is_set_back_leaves_the_rate_an_hour_unknown_and_the_verdict_as_it_is():
    requests = leaks(300)
    later = [one._replace(started_ns=one.started_ns - 3_600 * 10**9) for one in requests[150:]]

    before, after = verdicts(requests)["/leak.php"], verdicts(requests[:150] + later)["/leak.php"]

    assert (before.kind, after.kind) == (Kind.LEAK, Kind.LEAK)
    assert before.per_hour is not None
    assert after.per_hour is None


def test_gaps_in_the_numbers_of_the_requests_change_nothing():
    every_other = [one for at, one in enumerate(traffic("pattern cache", requests=4_000)) if at % 2]

    assert kinds(every_other)["/search.php"] is Kind.WARM_UP


def test_a_leak_in_one_of_four_workers_is_unclear():
    pids = sorted({one.pid for one in leaks(400)})
    requests = [one if one.pid == pids[0] else one._replace(native_kept=0) for one in leaks(400)]

    verdict = verdicts(requests)["/leak.php"]

    assert (verdict.kind, verdict.why) == (Kind.UNCLEAR, Why.WORKERS_DIFFER)
    assert (verdict.agree, verdict.workers) == (1, 4)


def test_a_leak_of_less_than_64_kib_in_all_is_steady():
    assert kinds(leaks(300, native_kept=200)) == {"/leak.php": Kind.STEADY}
    assert kinds(leaks(400, native_kept=200)) == {"/leak.php": Kind.LEAK}
