"""FastCgiReader on malformed streams: one event a stretch, and the next request is found where a chunk begins."""

from __future__ import annotations

import pytest
from fastcgi_streams import (
    ABORT_REQUEST,
    BEGIN_REQUEST,
    PARAMS,
    PLAIN,
    PLAIN_EVENTS,
    RESPONDER,
    STDIN,
    VALUE_LIMIT,
    as_php_reads,
    begin,
    check_bounds,
    pair,
    params,
    read,
    reader,
    record,
    request,
    single_bytes,
)

from tracer.backends.ptrace.fastcgi_parser import (
    Begun,
    Malformed,
    Params,
    Value,
)

MALFORMED = {
    "a record of FastCGI version 0, not 1": begin() + bytes(8),
    "a record of FastCGI version 2, not 1": record(STDIN, version=2),
    "a BEGIN_REQUEST of 7 bytes, not 8": record(BEGIN_REQUEST, b"\0\1\0\0\0\0\0"),
    "a BEGIN_REQUEST of 264 bytes, not 8": record(BEGIN_REQUEST, b"\0\1" + bytes(262)),
    "a BEGIN_REQUEST for role 0, which php does not play": begin(role=0),
    "a BEGIN_REQUEST for role 4, which php does not play": begin(role=4),
    "a BEGIN_REQUEST for role 257, which php does not play": begin(role=257),
    "PARAMS without a request": params(PLAIN),
    "PARAMS for request 2 within request 1": begin() + params(PLAIN, request_id=2),
    "PARAMS after the end of PARAMS": request() + params(PLAIN),
    "PARAMS that end within a pair": begin() + record(PARAMS, b"\x0b\x01REQUEST_URI") + record(PARAMS),
    "ABORT_REQUEST without a request": record(ABORT_REQUEST),
    "ABORT_REQUEST for request 9 within request 8": begin(8) + record(ABORT_REQUEST, request_id=9),
    "a parameter of 1 + 65535 bytes, more than a record holds": begin() + record(PARAMS, b"\x01\x80\x00\xff\xffX"),
    "a parameter of 2147483647 + 0 bytes, more than a record holds": begin() + record(PARAMS, b"\xff\xff\xff\xff\0"),
    "a parameter of 0 + 16777216 bytes, more than a record holds": begin() + record(PARAMS, b"\0\x81\0\0\0"),
}


@pytest.mark.parametrize("why", MALFORMED)
def test_malformed_data_is_one_event_with_a_reason(why: str):
    one = reader()
    events = [event for chunk in (MALFORMED[why], b"more of it", b"\0" * 70_000) for event in one.feed(chunk)]

    assert [event for event in events if isinstance(event, Malformed)] == [Malformed(why)]
    assert one.malformed_count == 1
    assert one.buffered == 0


@pytest.mark.parametrize(
    "cut", [b"\x0b", b"\x80", b"\x80\0\0", b"\x0b\x80\0\0", b"\x0b\x01REQUEST_URI", b"\x0b\x01HTTP"]
)
def test_parameters_that_end_within_a_pair_are_malformed(cut: bytes):
    assert read(begin() + record(PARAMS, cut) + record(PARAMS))[1:] == [Malformed("PARAMS that end within a pair")]


def test_a_parameter_may_be_as_large_as_a_record():
    content = pair(b"REQUEST_URI", b"u" * (0xFFFF - 11))

    stream = begin() + record(PARAMS, content[:0xFFFF]) + record(PARAMS, content[0xFFFF:]) + record(PARAMS)
    assert read(stream)[1] == Params(1, {b"REQUEST_URI": Value(b"u" * VALUE_LIMIT, 65_524)})


@pytest.mark.parametrize("why", MALFORMED)
@pytest.mark.parametrize("cut", [lambda stream: [stream], single_bytes, as_php_reads])
def test_after_malformed_data_a_request_is_found_where_a_chunk_begins(why: str, cut):
    one = reader()
    one.feed(MALFORMED[why])

    assert [event for chunk in cut(request()) for event in one.feed(chunk)] == PLAIN_EVENTS
    assert one.malformed_count == 1


@pytest.mark.parametrize("end", [bytes(8), begin()[:8]])
def test_a_malformed_or_replaced_request_is_not_stored(end: bytes):
    one = reader()

    one.feed(begin() + record(PARAMS, pair(b"REQUEST_URI", b"/held") + b"\x0b\x09REQUEST_URI/cut"))
    assert one.buffered == 9
    one.feed(end)
    assert one.buffered == 0
    check_bounds(one)


def test_each_malformed_stretch_is_counted():
    one = reader()

    for chunk in (b"\0" * 8, request() + b"\0" * 8, b"\0" * 8, request() + b"\0" * 8):
        one.feed(chunk)
    assert one.malformed_count == 3


def test_after_malformed_data_a_request_within_a_chunk_is_ignored():
    assert read(b"\0" * 8 + request(), b"\0" + request(), request()[1:]) == [
        Malformed("a record of FastCGI version 0, not 1")
    ]


@pytest.mark.parametrize("position", [0, 1, 4, 5])
def test_after_malformed_data_only_a_begin_request_is_accepted(position: int):
    header = bytearray(request())
    header[position] += 1

    assert read(b"\0" * 8, bytes(header)) == [Malformed("a record of FastCGI version 0, not 1")]


def test_after_malformed_data_any_id_padding_and_reserved_byte_is_accepted():
    found = bytearray(begin(0xFFFE, padding=255))
    found[7] = 0xFF

    assert read(b"\0" * 8, bytes(found))[1:] == [Begun(0xFFFE, RESPONDER, False)]


@pytest.mark.parametrize("start", [b"\1", b"\1\1", b"\1\1\0", b"\1\1\0\1\0", b"\1\4\0", b"\0" * 7])
def test_a_request_is_found_behind_a_header_that_is_never_completed(start: bytes):
    for cut in ([request()], single_bytes(request()), as_php_reads(request())):
        assert read(start, *cut)[1:] == PLAIN_EVENTS


@pytest.mark.parametrize("start", [b"\1", b"\1\1", b"\1\1\0", b"\1\1\0\1\0"])
def test_after_malformed_data_a_request_is_found_behind_the_beginning_of_one(start: bytes):
    for cut in ([request()], single_bytes(request()), as_php_reads(request())):
        assert read(b"\0" * 8, start, *cut)[1:] == PLAIN_EVENTS


def test_a_request_is_found_in_place_of_the_rest_of_parameters():
    half = begin() + record(PARAMS, pair(b"REQUEST_URI", b"/half") + bytes(50_000))[:-50_000]

    # As parameters, the padding of its BEGIN_REQUEST is the lengths of a pair.
    assert read(half, begin(padding=8) + params(PLAIN)) == [
        Begun(1, RESPONDER, False),
        Malformed("a parameter of 1861152494 + 1861152494 bytes, more than a record holds"),
        *PLAIN_EVENTS,
    ]
