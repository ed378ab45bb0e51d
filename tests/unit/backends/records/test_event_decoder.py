"""Records of the ring, in order, as facts: those of workers that are wanted."""

from __future__ import annotations

from records import record

from tracer.backends.records.event_decoder import EventDecoder
from tracer.backends.records.request_decoder import RequestDecoder
from tracer.backends.records.request_structs import RELEASE_EVENT, EventKind
from tracer.backends.records.worker_table import WorkerTable
from tracer.facts import Release, Request

OFFSET_NS = 1_700_000_000_000_000_003


def test_a_release_names_the_earlier_request_by_its_start():
    decoder = EventDecoder(WorkerTable(OFFSET_NS), RequestDecoder("web1", OFFSET_NS, keep_query=False, calls=True))
    released = RELEASE_EVENT.pack(EventKind.RELEASED, 4241, 1_000_003, 34_304, 64)

    request, release = decoder.facts([record(started_ns=1_000_003), released])

    assert isinstance(request, Request)
    assert release == Release(4241, request.started_ns, 34_304, 64)
