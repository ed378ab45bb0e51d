"""Workers in two containers are two, though pool and script have the same names; a container can be a target."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from containers import SCRIPT, Container, cgroup, container
from fpm import ONE_WORKER, Fpm
from tracing import Tracer

from tracer.analysis.ranking import GroupBy, Ranking
from tracer.facts import Request
from tracer.targets.resolve import targets

WWW = {"www": ONE_WORKER}


@pytest.fixture(scope="module")
def shop(php_fpm: str) -> Iterator[Container]:
    with container(php_fpm, "shop", WWW) as started:
        yield started


@pytest.fixture(scope="module")
def blog(php_fpm: str) -> Iterator[Container]:
    with container(php_fpm, "blog", WWW) as started:
        yield started


def rows(requests: list[Request], by: GroupBy) -> dict[tuple[str | None, str | None], int]:
    """Number of requests by container and key."""
    ranking = Ranking(by)
    for request in requests:
        ranking.add(request)
    return {(group.container, group.key): group.requests for group in ranking.groups()}


def both(trace: Callable[..., Tracer], first: Container, second: Container) -> list[Request]:
    """The requests of two containers: 3 of the first, 5 of the second."""
    tracer = trace(str(first.fpm.master), str(second.fpm.master))
    first.get(3)
    second.get(5)
    found = tracer.next(8)
    tracer.close()
    assert tracer.requests == found
    assert (tracer.lost, all(request.complete for request in found)) == (0, True)
    return found


def test_two_containers_with_one_pool_and_one_script_are_two_rows_everywhere(
    shop: Container, blog: Container, trace: Callable[..., Tracer]
) -> None:
    requests = both(trace, shop, blog)

    assert rows(requests, GroupBy.SCRIPT) == {("shop", SCRIPT): 3, ("blog", SCRIPT): 5}
    assert rows(requests, GroupBy.URI) == {("shop", "/hello.php"): 3, ("blog", "/hello.php"): 5}
    assert rows(requests, GroupBy.POOL) == {("shop", "www"): 3, ("blog", "www"): 5}
    assert rows(requests, GroupBy.CONTAINER) == {(None, "shop"): 3, (None, "blog"): 5}
    workers = [(one.name, f"www/{one.fpm.workers()[0]}") for one in (shop, blog)]
    assert rows(requests, GroupBy.WORKER) == {workers[0]: 3, workers[1]: 5}
    assert {(r.container, r.container_id, r.cgroup, r.namespaces, r.root) for r in requests} == {
        (one.name, one.id, one.cgroup, None, "/") for one in (shop, blog)
    }
    assert {(r.container, r.master_pid) for r in requests} == {(one.name, one.fpm.master) for one in (shop, blog)}
    assert len({r.worker for r in requests}) == 2
    assert None not in {r.start_ticks for r in requests}


def test_a_worker_that_is_born_later_is_in_the_container_of_its_master(
    php_fpm: str, trace: Callable[..., Tracer]
) -> None:
    ondemand = {"www": "pm = ondemand\npm.max_children = 1\npm.max_requests = 2"}
    with container(php_fpm, "late", ondemand) as late:
        tracer = trace(str(late.fpm.master))
        late.get(4)
        found = tracer.next(4)
        tracer.close()

    assert {(r.container, r.container_id, r.root) for r in found} == {("late", late.id, "/")}
    assert len({(r.pid, r.start_ticks) for r in found}) == len({r.worker for r in found}) == 2


@pytest.mark.parametrize("form", ["container:{0.name}", "container:{0.id}", "container:{short}", "cgroup:{0.cgroup}",
                                  "cgroup:{folder}"])  # fmt: skip
def test_a_container_or_a_cgroup_as_target_means_its_masters_alone(
    shop: Container, blog: Container, trace: Callable[..., Tracer], form: str
) -> None:
    with cgroup(blog.cgroup) as processes:
        name = form.format(blog, short=blog.id[:12], folder=processes.parent)
    tracer = trace(name)

    shop.get(3)
    blog.get(2)
    found = tracer.next(2)
    tracer.close()

    assert tracer.requests == found
    assert {(r.container, r.master_pid, r.script) for r in found} == {("blog", blog.fpm.master, SCRIPT)}


def test_a_cgroup_means_those_below_it_too(shop: Container, blog: Container) -> None:
    found = targets(["cgroup:/phptrace-test"])

    assert {target.master.pid for target in found if target.master} >= {shop.fpm.master, blog.fpm.master}
    for target in found:
        target.close()


def test_in_one_cgroup_mounts_of_its_own_tell_a_master_apart(php_fpm: str, trace: Callable[..., Tracer]) -> None:
    shared = "/phptrace-test-shared"
    with cgroup(shared), container(php_fpm, "a", WWW, shared) as first, container(php_fpm, "b", WWW, shared) as second:
        requests = both(trace, first, second)

    found = rows(requests, GroupBy.SCRIPT)
    assert sorted(found.values()) == [3, 5]
    assert all((container or "").startswith("mnt:") and key == SCRIPT for container, key in found)
    assert {(r.container, r.container_id, r.cgroup) for r in requests} == {(None, None, shared)}


def test_pools_with_roots_of_their_own_are_told_apart(php_fpm: str, site: Path, trace: Callable[..., Tracer]) -> None:
    for pool in ("a", "b"):
        (site / pool).mkdir()
        (site / pool / "index.php").write_text("<?php echo 1;")
    chrooted = {pool: f"{ONE_WORKER}\nchroot = {{folder}}/{pool}" for pool in ("a", "b")}
    fpm = Fpm(php_fpm, site, {**chrooted, "c": ONE_WORKER})
    try:
        tracer = trace(str(fpm.master))
        for pool, number in (("a", 3), ("b", 5)):
            for _ in range(number):
                assert fpm.get("hello.php", pool=pool, SCRIPT_FILENAME="/index.php").ended
        fpm.get("hello.php", pool="c")
        found = tracer.next(9)
        tracer.close()
    finally:
        fpm.stop()

    assert {(r.pool, r.root) for r in found} == {("a", f"{site}/a"), ("b", f"{site}/b"), ("c", "/")}
    by_script = rows([r for r in found if r.script == "/index.php"], GroupBy.SCRIPT)
    assert {(container or "").rpartition(":")[2]: number for (container, _), number in by_script.items()} == {
        f"{site}/a": 3,
        f"{site}/b": 5,
    }
