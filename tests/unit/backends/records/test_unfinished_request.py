"""Requests that were under way when tracing ended, and how workers ended."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st
from records import record
from samples import PROPERTY

from tracer.backends.records.request_decoder import RequestDecoder, exit_text, unfinished_fork, unfinished_request
from tracer.backends.records.request_structs import FORK_EVENT, WORKER, WORKER_BYTES, EventKind, worker_entry

DECODER = RequestDecoder("web1", 0, keep_query=False, calls=True)


def entry(in_request: int, request: bytes) -> bytes:
    """A `struct worker` as the kernel keeps it."""
    head = worker_entry(in_request=in_request)[: WORKER.size]
    return (head + request).ljust(WORKER_BYTES, b"\0")


def test_a_worker_between_requests_has_nothing_under_way():
    assert unfinished_request(entry(0, record()), 9_000_011) is None


def test_a_request_under_way_when_tracing_ends_is_cut_off_at_that_moment():
    under_way = unfinished_request(entry(1, record(script=b"/a.php", uri=b"/b")), 9_000_011)

    assert under_way is not None
    found = DECODER.request(under_way, "www")
    assert (found.ending, found.notes, found.duration_ns) == ("cut_off", "end_not_seen", 8_000_008)
    assert (found.script, found.uri, found.anon_before, found.anon_after) == ("/a.php", "/b", 10_000_019, None)


def test_a_process_that_a_worker_forked_is_reported_as_alive():
    head = worker_entry(forked_by=4241)[: WORKER.size]
    forked = (head + record(started_ns=1_000_003)).ljust(WORKER_BYTES, b"\0")

    assert unfinished_fork(4253, entry(1, record())) is None
    assert unfinished_fork(4253, forked) == FORK_EVENT.pack(EventKind.FORKED, 4253, 4241, 0, 1_000_003, 0)


@PROPERTY
@given(st.binary(min_size=64, max_size=256))
def test_a_worker_entry_of_any_bytes_is_looked_at(content):
    entry = (content * (WORKER_BYTES // len(content) + 1))[:WORKER_BYTES]

    under_way = unfinished_request(entry, 1)

    (in_request,) = struct.unpack_from("<I", entry, 8)
    assert (under_way is not None) == bool(in_request)


@pytest.mark.parametrize(
    ("status", "shown"),
    [
        (0, "exited:0"),
        (70 << 8, "exited:70"),
        (255 << 8, "exited:255"),
        (15, "killed:TERM"),
        (11 | 0x80, "killed:SEGV"),
        (63, "killed:63"),
        (-1, "replaced"),
    ],
)
def test_a_workers_exit_is_reported_in_words(status, shown):
    assert exit_text(status) == shown
