"""Leaks of all sizes among pages of all kinds, under each setting that changes how PHP or malloc get their memory."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator

import pytest
from backend_kinds import BPF, make_backend
from fpm import Fpm
from tracing import Tracer

from tracer.analysis.ranking import GroupBy, Ranking
from tracer.facts import Release, Request

TIMES = 10
BATCH = 5  # requests; between them the tracer finds the workers that are new
# Bytes of the block that malloc makes of so many. From 128 KiB on, it maps pages: malloc/malloc.c, glibc 2.36.
BLOCKS = {0: 0, 3072: 3088, 65_536: 65_552, 524_288: 528_384}
PAGES = [f"{kind}-{size}" for kind in ("light", "heavy", "rows") for size in BLOCKS] + ["dies-0"]

SETTINGS = {
    "plain": ((), "", {}),
    "no opcache": (("opcache.enable=0",), "", {}),
    "jit": (("opcache.jit=tracing", "opcache.jit_buffer_size=32M"), "", {}),
    "no gc": (("zend.enable_gc=0",), "", {}),
    "huge pages": ((), "", {"USE_ZEND_ALLOC_HUGE_PAGES": "1"}),
    "one arena": ((), "", {"MALLOC_ARENA_MAX": "1"}),
    "recycled": ((), "\npm.max_requests = 50", {}),
}


@pytest.fixture(scope="module")
def pools(start_fpm: Callable[..., Fpm]) -> dict[str, Fpm]:
    """A pool for each setting, whose workers have run every page."""
    found = {}
    for setting, (ini, pool, environment) in SETTINGS.items():
        with pytest.MonkeyPatch.context() as patch:
            for name, value in environment.items():
                patch.setenv(name, value)
            fpm = start_fpm(*ini, "memory_limit=128M", www=f"pm = static\npm.max_children = 2{pool}")
        for page in PAGES:
            fpm.get("native_leaker.php", QUERY_STRING=page)
        found[setting] = fpm
    return found


@pytest.fixture(scope="module")
def traced(pools: dict[str, Fpm]) -> Iterator[Tracer]:
    tracer = Tracer(make_backend(BPF), *(str(fpm.master) for fpm in pools.values()))
    yield tracer
    tracer.close()


@pytest.mark.parametrize("setting", SETTINGS)
def test_each_leaker_is_found_to_2_percent_and_nobody_else(pools: dict[str, Fpm], traced: Tracer, setting: str) -> None:
    fpm = pools[setting]
    visits = PAGES * TIMES
    random.Random(11).shuffle(visits)

    requests: list[Request] = []
    for at in range(0, len(visits), BATCH):
        batch = visits[at : at + BATCH]
        for page in batch:
            fpm.get("native_leaker.php", QUERY_STRING=page, REQUEST_URI=f"/{page}")
        requests += traced.next(len(batch))

    ranking = Ranking(GroupBy.URI, window=4096)
    for request in requests:
        ranking.add(request)
    pids = {request.pid for request in requests}
    for fact in traced.facts:
        if isinstance(fact, Release) and fact.pid in pids:
            ranking.release(fact)
    groups = {(group.key or "")[1:]: group for group in ranking.groups()}
    assert set(groups) == set(PAGES)
    wrong = {}
    for page, group in groups.items():
        truth = BLOCKS[int(page.partition("-")[2])]
        found = group.kept_per_request
        if found is None or abs(found - truth) > max(0.02 * truth, 64):
            wrong[page] = found, truth, group.counted
    assert wrong == {}
    assert groups["dies-0"].requests == TIMES
    assert {request.ending for request in requests if request.uri == "/dies-0"} == {"fatal"}
