"""An application with 5,000 native allocations a page, of which some outlive their request: nobody is accused."""

from __future__ import annotations

import contextlib
import random
import socket
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import fastcgi
import mediawiki
import pytest
from backend_kinds import BPF, make_backend
from fpm import Fpm
from machine import lacking
from mediawiki import PAGES
from proc_status import waits_for_a_request
from tracing import Tracer
from waiting import wait_for

from tracer.analysis.group import Group
from tracer.analysis.ranking import GroupBy, Ranking
from tracer.facts import Release, Request
from tracer.targets import malloc_heap

pytestmark = [pytest.mark.needs_bpf, pytest.mark.needs_php]

LEAK = 32 * (1040 + 32)
LAST = "empty_realpath_cache.php"


@pytest.fixture(scope="module")
def settings() -> Iterator[str]:
    """Settings of a pool that serves a wiki."""
    if mediawiki.MISSING:
        lacking(mediawiki.MISSING)
    with mediawiki.installed() as found:
        yield found


def served_by(start_fpm: Callable[..., Fpm], settings: str, workers: int) -> Fpm:
    """So many workers, each of which has served each page of the wiki twice."""
    fpm = start_fpm(www=f"pm = static\npm.max_children = {workers}\n{settings}")
    assert b"<title>" in visit(fpm, mediawiki.MAIN_PAGE).body
    visit_in_each(fpm, PAGES * 2)
    return fpm


@pytest.fixture(scope="module")
def wiki(start_fpm: Callable[..., Fpm], settings: str) -> Fpm:
    return served_by(start_fpm, settings, 2)


def params(page: str) -> dict[str, str]:
    """The FastCGI parameters of a page of the wiki; none for the tests' own scripts."""
    return mediawiki.params(page) if page in PAGES else {}


def visit(fpm: Fpm, page: str) -> fastcgi.Response:
    return fpm.get(page, **params(page))


def visit_all(fpm: Fpm, pages: Sequence[str]) -> None:
    with ThreadPoolExecutor(len(fpm.workers())) as clients:
        list(clients.map(lambda page: visit(fpm, page), pages))


def visit_in_each(fpm: Fpm, pages: Sequence[str]) -> None:
    """Have each worker serve these pages: it serves no other connection while it has one."""

    def visit_here(connection: socket.socket) -> None:
        for page in pages:
            connection.sendall(fastcgi.message(fpm.params(page, **params(page)), keep=True))
            assert fastcgi.receive(connection).ended

    with contextlib.ExitStack() as stack:
        connections = [stack.enter_context(socket.socket(socket.AF_UNIX)) for _ in fpm.workers()]
        for connection in connections:
            connection.connect(str(fpm.socket()))
        with ThreadPoolExecutor(len(connections)) as clients:
            list(clients.map(visit_here, connections))


def trace_all(tracer: Tracer, fpm: Fpm, pages: Sequence[str]) -> None:
    """Visit the pages, 20 at a time, and take the facts about them.

    load.php leaves 150 KB in the worker's realpath cache, which the next page that deletes a file frees. Not each does:
    most take a lock, and MediaWiki deletes its file when nobody else has it.
    """
    for at in range(0, len(pages), 20):
        visit_all(fpm, pages[at : at + 20])
        tracer.next(len(pages[at : at + 20]))


def empty_caches(tracer: Tracer, fpm: Fpm) -> None:
    """Have each worker empty its realpath cache, and take the facts about that."""
    visit_in_each(fpm, [LAST])
    tracer.next(len(fpm.workers()))


def ranked(fpm: Fpm, pages: list[str]) -> list[list[Group]]:
    """The scripts of these requests, as the live view ranks them after each from the 100th on."""
    tracer = Tracer(make_backend(BPF), str(fpm.master))
    try:
        trace_all(tracer, fpm, pages)
    finally:
        tracer.close()
    assert tracer.lost == 0
    ranking, found = Ranking(GroupBy.SCRIPT, window=4096), []
    for fact in tracer.facts:
        if isinstance(fact, Release):
            ranking.release(fact)
        elif isinstance(fact, Request):
            ranking.add(fact)
            found.append(ranking.groups())
    return found[99:]


def accused(groups: Iterable[Group]) -> list[Group]:
    """The scripts that a report accuses of at least 1 KiB a request."""
    return [group for group in groups if (group.kept_per_request or 0) >= 1024 and (group.kept_low or 0) > 0]


def in_use(fpm: Fpm) -> int:
    """Bytes of malloc that the workers hold, once all wait for a request: their heaps are walked from outside."""
    wait_for(lambda: all(waits_for_a_request(worker) for worker in fpm.workers()), "the workers to rest")
    heaps = [malloc_heap.walk(worker) for worker in fpm.workers()]
    assert all(heap.settled and not heap.lacking and not heap.other_arenas for heap in heaps)
    return sum(heap.in_use_bytes + (heap.mapped_bytes or 0) for heap in heaps)


def test_where_nobody_leaks_nobody_is_accused(wiki: Fpm) -> None:
    moments = ranked(wiki, random.Random(3).choices(PAGES, k=200))

    groups = moments[-1]
    assert {Path(group.key or "").name for group in groups} == {"index.php", "api.php", "load.php", "rest.php"}
    assert sum(group.counted for group in groups) == 200
    assert [group for group in groups if not -1024 < (group.kept_per_request or 0) < 1024] == []
    assert [group for groups in moments for group in accused(groups)] == []


@pytest.mark.parametrize("workers", [2, 8])
def test_a_leak_of_34_kb_is_its_scripts_to_2_percent(
    wiki: Fpm, start_fpm: Callable[..., Fpm], settings: str, workers: int
) -> None:
    fpm = wiki if workers == 2 else served_by(start_fpm, settings, workers)
    pages = random.Random(5).choices(PAGES, k=120 * workers // 2) + ["native_leak.php"] * (40 * workers // 2)
    random.Random(7).shuffle(pages)

    moments = ranked(fpm, pages)

    leaker = moments[-1][0]
    assert (leaker.key or "").endswith("/native_leak.php")
    assert leaker.kept_per_request == pytest.approx(LEAK, rel=0.02)
    assert leaker.kept_share == 1.0
    assert {Path(groups[0].key or "").name for groups in moments} == {"native_leak.php"}
    assert [group for groups in moments for group in accused(groups[1:])] == []


@pytest.mark.slow
def test_a_thousand_requests_keep_what_their_workers_grew_by(wiki: Fpm) -> None:
    pages = random.Random(11).choices(PAGES, k=1000)
    tracer = Tracer(make_backend(BPF), str(wiki.master))
    try:
        trace_all(tracer, wiki, pages[:500])
        empty_caches(tracer, wiki)
        before = in_use(wiki)
        tracer.poll()
        first_half = len(tracer.facts)
        trace_all(tracer, wiki, pages[500:])
        empty_caches(tracer, wiki)
        grew = in_use(wiki) - before
    finally:
        tracer.close()
    facts = tracer.facts[first_half:]
    requests = [fact for fact in facts if isinstance(fact, Request)]
    releases = [fact for fact in facts if isinstance(fact, Release)]
    theirs = {(request.pid, request.started_ns) for request in requests}
    kept = sum(request.native_kept or 0 for request in requests)
    freed_later = sum(fact.bytes for fact in releases if (fact.pid, fact.started_ns) in theirs)
    freed_of_any = sum(fact.bytes for fact in releases)

    assert tracer.lost == 0
    assert [request.notes for request in requests] == [None] * (500 + 2)
    assert kept > 1 << 20  # there is something to take back
    assert abs(kept - freed_later) < 64 << 10
    # What lies between: parameters of requests, which PHP allocates before a request begins.
    assert abs(kept - freed_of_any - grew) < 4 << 10
