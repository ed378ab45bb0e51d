"""Records of the ring, in order, as facts: those of workers that are wanted."""

from __future__ import annotations

import os
import subprocess

from records import record

from tracer.backends.records.event_decoder import EventDecoder
from tracer.backends.records.request_decoder import RequestDecoder
from tracer.backends.records.request_structs import FORK_EVENT, PROCESS_EVENT, RELEASE_EVENT, EventKind
from tracer.backends.records.worker_table import WorkerTable
from tracer.facts import Fork, Release, Request

OFFSET_NS = 1_700_000_000_000_000_003


def decoder() -> EventDecoder:
    return EventDecoder(WorkerTable(OFFSET_NS), RequestDecoder("web1", OFFSET_NS, keep_query=False, calls=True))


def released(
    owner: int, size: int, blocks: int, *, idle: bool = False, pid: int = 4241, by: int = 0, resized: bool = False
) -> bytes:
    return RELEASE_EVENT.pack(EventKind.RELEASED, pid, owner, by, size, blocks, idle, resized)


def died(pid: int) -> bytes:
    return PROCESS_EVENT.pack(EventKind.DIED, pid, 1, 0, 2_000_000, 0, b"")


def test_a_process_that_a_worker_forked_names_the_request_by_its_start():
    gone = subprocess.Popen(["true"])
    gone.wait()
    ended = FORK_EVENT.pack(EventKind.FORKED, 4253, 4241, 0, 1_000_003, 2_000_003)
    alive = FORK_EVENT.pack(EventKind.FORKED, os.getpid(), 4241, 0, 0, 0)
    unseen = FORK_EVENT.pack(EventKind.FORKED, gone.pid, 4241, 0, 0, 0)

    first, second, third = decoder().facts([ended, alive, unseen])

    assert first == Fork(4253, 4241, OFFSET_NS + 1_000_003, OFFSET_NS + 2_000_003, None)
    assert second[:4] == (os.getpid(), 4241, None, None)
    assert second.anon > 1_000_000
    assert third == Fork(gone.pid, 4241, None, None, None)


def test_a_release_names_the_earlier_request_by_its_start():
    request, release = decoder().facts([record(started_ns=1_000_003), released(1_000_003, 34_304, 64)])

    assert isinstance(request, Request)
    assert release == Release(4241, request.started_ns, 34_304, 64)


def test_a_release_names_the_request_that_freed_the_blocks():
    [moved, freed] = decoder().facts([released(3, 600, 1, by=11, resized=True), released(5, 32, 1, by=11)])

    assert moved == Release(4241, OFFSET_NS + 3, 600, 1, OFFSET_NS + 11, resized=True)
    assert freed == Release(4241, OFFSET_NS + 5, 32, 1, OFFSET_NS + 11, resized=False)


def test_a_block_that_was_resized_may_be_of_no_known_request():
    [found] = decoder().facts([released(0, 600, 1, by=11, resized=True)])

    assert found == Release(4241, 0, 600, 1, OFFSET_NS + 11, resized=True)


def test_a_worker_that_ends_releases_nothing():
    found = decoder().facts([released(3, 1072, 1, idle=True), released(5, 2144, 2, idle=True), died(4241)])

    assert found == []


def test_a_worker_that_goes_on_releases_the_blocks_it_freed_between_two_requests():
    between = [released(3, 1072, 1, idle=True), released(5, 100, 1, idle=True), released(3, 2144, 2, idle=True)]
    freed = [Release(4241, OFFSET_NS + 3, 3216, 3), Release(4241, OFFSET_NS + 5, 100, 1)]
    by_request, by_release, at_the_end = decoder(), decoder(), decoder()

    assert by_request.facts([*between, record(started_ns=7)])[:-1] == freed
    assert by_release.facts([*between, released(5, 32, 1)]) == [*freed, Release(4241, OFFSET_NS + 5, 32, 1)]
    assert at_the_end.facts([*between, released(3, 32, 1, idle=True, pid=4242), died(4242)]) == []
    assert at_the_end.remaining() == freed
    assert at_the_end.remaining() == []
