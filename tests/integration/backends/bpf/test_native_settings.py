"""Leaks of all sizes among pages of all kinds, under each setting that changes how PHP or malloc get their memory."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest
from fpm import Fpm
from tracing import Tracer

from tracer.analysis.ranking import GroupBy, Ranking
from tracer.facts import Release

TIMES = 10
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


@pytest.mark.parametrize("setting", SETTINGS)
def test_each_leaker_is_found_to_2_percent_and_nobody_else(
    start_fpm: Callable[..., Fpm], trace: Callable[..., Tracer], setting: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    ini, pool, environment = SETTINGS[setting]
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    fpm = start_fpm(*ini, "memory_limit=128M", www=f"pm = static\npm.max_children = 2{pool}")
    for page in PAGES:
        fpm.get("native_leaker.php", QUERY_STRING=page)
    tracer = trace(str(fpm.master))
    visits = PAGES * TIMES
    random.Random(11).shuffle(visits)

    for at in range(0, len(visits), 20):
        batch = visits[at : at + 20]
        for page in batch:
            fpm.get("native_leaker.php", QUERY_STRING=page, REQUEST_URI=f"/{page}")
        tracer.next(len(batch))

    ranking = Ranking(GroupBy.URI, window=4096)
    for request in tracer.requests:
        ranking.add(request)
    for fact in tracer.facts:
        if isinstance(fact, Release):
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
    assert {request.ending for request in tracer.requests if request.uri == "/dies-0"} == {"fatal"}
