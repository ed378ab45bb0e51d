"""Blocks that a request takes over from earlier ones: a list that each makes longer is held by those who did so."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import pytest
from samples import request

from tracer.analysis.group import Group
from tracer.analysis.ranking import GroupBy, Ranking
from tracer.facts import Release, Request


class Served(NamedTuple):
    """A request, and what it freed of the blocks of earlier ones."""

    request: Request
    freed: list[Release]


def served(
    nth: int, script: str, allocated: int, *freed: tuple[int, int], resized: bool = False, pid: int = 7
) -> Served:
    """`freed`: of which earlier request, by its nth, how many bytes."""
    earlier = sum(size for _, size in freed)
    return Served(
        request(pid=pid, nth=nth, started_ns=nth, script=script, uri=script, native_alloc_bytes=allocated,
                native_free_bytes=earlier, native_freed_earlier=earlier, native_mapped_bytes=0, native_kept=allocated,
                native_released=0),
        [Release(pid, owner, size, 1, nth, resized) for owner, size in freed],
    )  # fmt: skip


def live(requests: Sequence[Served]) -> Ranking:
    """The ranking of a live view: it takes what was freed before the request that freed it ends."""
    ranking = Ranking(GroupBy.SCRIPT, window=1000, estimate=False)
    for one in requests:
        for fact in one.freed:
            ranking.release(fact)
        ranking.add(one.request)
    return ranking


def recorded(requests: Sequence[Served]) -> Ranking:
    """The ranking of a report: each request comes with what was freed of it later."""
    ranking = Ranking(GroupBy.SCRIPT, estimate=False)
    freed = [fact for one in requests for fact in one.freed]
    for one in requests:
        owner = one.request
        released = sum(fact.bytes for fact in freed if (fact.pid, fact.started_ns) == (owner.pid, owner.started_ns))
        ranking.add(owner._replace(native_released=released), one.freed)
    return ranking


ranked = pytest.mark.parametrize("ranked", [live, recorded])
Ranked = Callable[[Sequence[Served]], Ranking]


def group_of(ranking: Ranking, script: str) -> Group:
    [group] = [group for group in ranking.groups() if group.key == script]
    return group


def growing(count: int, *, step: int, base: int = 0, pid: int = 7, resized: bool = True) -> list[Served]:
    """Requests of which each moves a block of the one before to a larger one."""
    found = [served(1, "/list.php", base + step, pid=pid)]
    for nth in range(2, count + 1):
        before = base + step * (nth - 1)
        found.append(served(nth, "/list.php", before + step, (nth - 1, before), resized=resized, pid=pid))
    return found


@ranked
@pytest.mark.parametrize("resized", [True, False])
@pytest.mark.parametrize("base", [0, 1_000_000])
def test_a_block_that_each_request_makes_longer_is_held_by_those_who_made_it_longer(
    base: int, resized: bool, ranked: Ranked
) -> None:
    group = group_of(ranked(growing(100, step=4096, base=base, resized=resized)), "/list.php")

    assert (group.kept_per_request, group.kept_low, group.kept_high) == (4096.0, 4096.0, 4096.0)
    assert (group.kept_bytes, group.warmup_bytes, group.kept_share) == (100 * 4096, base, 1.0)


@ranked
def test_a_block_that_grows_in_each_of_four_workers_is_held_by_those_who_made_it_longer(ranked: Ranked) -> None:
    workers = [growing(25, step=4096, pid=pid) for pid in range(4)]

    group = group_of(ranked([one for worker in workers for one in worker]), "/list.php")

    assert (group.kept_per_request, group.kept_bytes) == (4096.0, 100 * 4096)


@ranked
def test_a_block_that_each_request_replaces_by_one_of_the_same_size_is_held_by_none(ranked: Ranked) -> None:
    group = group_of(ranked(growing(50, step=0, base=146_000)), "/list.php")

    assert (group.kept_per_request, group.kept_low, group.kept_high, group.warmup_bytes) == (0.0, 0.0, 0.0, 146_000)


@ranked
def test_a_block_that_two_scripts_make_longer_in_turn_is_held_by_both(ranked: Ranked) -> None:
    scripts = ["/a.php", "/b.php"]
    turns = [served(1, "/a.php", 1000)]
    for nth in range(2, 41):
        turns.append(served(nth, scripts[(nth - 1) % 2], 1000 * nth, (nth - 1, 1000 * (nth - 1)), resized=True))

    ranking = ranked(turns)

    assert [(group.key, group.kept_per_request) for group in ranking.groups()] == [
        ("/a.php", 1000.0), ("/b.php", 1000.0)
    ]  # fmt: skip


@ranked
def test_a_block_of_a_request_that_was_not_counted_is_made_longer_by_the_difference(ranked: Ranked) -> None:
    turns = [served(1, "/list.php", 0), *growing(30, step=4096, base=1_000_000)[1:]]
    turns[1] = Served(turns[1].request, [turns[1].freed[0]._replace(started_ns=0)])

    group = group_of(ranked(turns), "/list.php")

    assert (group.kept_per_request, group.kept_low, group.warmup_bytes) == (4096.0, 4096.0, 0)


@ranked
def test_a_cache_that_another_script_empties_is_held_by_none(ranked: Ranked) -> None:
    turns = [served(1, "/index.php", 0)]
    for nth in range(2, 42, 2):
        turns += [served(nth, "/load.php", 146_000), served(nth + 1, "/index.php", 0, (nth, 146_000))]

    ranking = ranked(turns)

    assert [group.kept_bytes for group in ranking.groups()] == [0, 0]


@ranked
def test_blocks_taken_over_by_a_request_that_was_not_seen_whole_are_freed(ranked: Ranked) -> None:
    turns = growing(4, step=4096)
    turns[3] = Served(turns[3].request._replace(native_kept=None, anon_after=None), turns[3].freed)

    group = group_of(ranked(turns), "/list.php")

    assert group.kept_per_request == pytest.approx((4096 - 2 * 4096) / 2), "the third lost what three grew by"


def test_blocks_freed_by_a_request_that_never_ended_are_not_charged_to_the_next() -> None:
    ranking = live([served(1, "/a.php", 500), served(2, "/a.php", 500)])
    ranking.release(Release(7, 1, 500, 1, freed_by_ns=3))

    ranking.add(served(4, "/a.php", 500).request)

    assert group_of(ranking, "/a.php").kept_p50 == 500
