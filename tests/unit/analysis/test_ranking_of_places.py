"""Requests of one script in several containers and roots are groups of their own."""

from __future__ import annotations

from collections.abc import Iterable

import pytest
from rankings import in_place, ranked
from samples import BLOG, SHOP, request

from tracer.analysis.first_runs import FirstRuns, Run
from tracer.analysis.ranking import GroupBy, Ranking
from tracer.analysis.seen_workers import SeenWorkers
from tracer.facts import Request


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
