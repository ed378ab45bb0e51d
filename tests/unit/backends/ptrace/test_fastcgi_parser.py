"""FastCgiReader: a stream for every rule, properties of any stream, and recorded streams of real programs.

tests/streams was recorded over loopback on Debian 12: nginx 1.22.1 (`fastcgi_keep_conn on`, upstream `keepalive`) and
Apache 2.4.71 (mod_proxy_fcgi by SetHandler, `enablereuse=on`), one kept connection each; cgi-fcgi of libfcgi 2.4.2, its
three connections one after the other. Each has the same three requests: see REQUESTS.
"""

from __future__ import annotations

import dataclasses
import os
import struct
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from samples import PROPERTY

from tracer.backends.ptrace.fastcgi_parser import (
    KEPT_LIMIT_BYTES,
    Aborted,
    Begun,
    Event,
    FastCgiReader,
    Malformed,
    Params,
    Value,
)

STREAMS = Path(__file__).resolve().parents[3] / "streams"
BEGIN_REQUEST, ABORT_REQUEST, END_REQUEST, PARAMS, STDIN, DATA, GET_VALUES = 1, 2, 3, 4, 5, 8, 9
RESPONDER, AUTHORIZER, FILTER = 1, 2, 3
WANTED = (b"SCRIPT_FILENAME", b"REQUEST_URI", b"REQUEST_METHOD")
# Parameters that are not wanted, some with the length or the beginning of a wanted one.
UNWANTED = (b"HTTP_COOKIE", b"REQUEST_URL", b"REQUEST_UR", b"REQUEST_URI_", b"X" * 127, b"X" * 128, b"")
VALUE_LIMIT = 61
BOUND = 64 * 1024
PLAIN = {b"SCRIPT_FILENAME": b"/srv/www/index.php", b"REQUEST_URI": b"/a?b=c"}

# The requests that every recorded program sent: method, URI, script. The third has a header of more than 127 bytes.
LONG_URI = b"/index.php/long?" + b"&".join(b"key%d=value-%d" % (n, n * n) for n in range(83))
AGENT = b"phptrace-recorder/1 " + b"x" * 211
REQUESTS = (
    (b"GET", LONG_URI, b"/srv/www/index.php"),
    (b"POST", b"/form.php?id=17", b"/srv/www/form.php"),
    (b"GET", b"/index.php?last=1", b"/srv/www/index.php"),
)
# mod_proxy_fcgi sends this, and php removes it (init_request_info, sapi/fpm/fpm/fpm_main.c, 8.2).
APACHE_PREFIX = b"proxy:fcgi://127.0.0.1:9017"
KEPT = {"nginx": True, "apache": True, "cgi-fcgi": False}


def record(kind: int, content: bytes = b"", *, request_id: int = 1, padding: int = 0, version: int = 1) -> bytes:
    header = struct.pack(">BBHHBB", version, kind, request_id, len(content), padding, 0)
    return header + content + b"\xee" * padding


def begin(request_id: int = 1, role: int = RESPONDER, *, flags: int = 0, padding: int = 0) -> bytes:
    return record(BEGIN_REQUEST, struct.pack(">HB5x", role, flags), request_id=request_id, padding=padding)


def pair(name: bytes, value: bytes, *, wide: bool = False) -> bytes:
    return length(len(name), wide=wide) + length(len(value), wide=wide) + name + value


def length(size: int, *, wide: bool = False) -> bytes:
    return struct.pack(">I", size | 0x8000_0000) if wide or size > 127 else bytes([size])


def params(values: Mapping[bytes, bytes], request_id: int = 1) -> bytes:
    content = b"".join(pair(name, value) for name, value in values.items())
    return record(PARAMS, content, request_id=request_id) + record(PARAMS, request_id=request_id)


def request(values: Mapping[bytes, bytes] = PLAIN, request_id: int = 1, *, body: bytes = b"") -> bytes:
    stdin = record(STDIN, body, request_id=request_id) if body else b""
    return begin(request_id) + params(values, request_id) + stdin + record(STDIN, request_id=request_id)


def whole(values: Mapping[bytes, bytes]) -> dict[bytes, Value]:
    return {name: Value(value, len(value)) for name, value in values.items()}


PLAIN_EVENTS = [Begun(1, RESPONDER, False), Params(1, whole(PLAIN))]


def reader(wanted: Iterable[bytes] = WANTED, value_limit: int = VALUE_LIMIT) -> FastCgiReader:
    return FastCgiReader(tuple(wanted), value_limit=value_limit)


def read(*chunks: bytes) -> list[Event]:
    """The events of these chunks, from a fresh reader."""
    one = reader()
    return [event for chunk in chunks for event in one.feed(chunk)]


def single_bytes(stream: bytes) -> list[bytes]:
    return [bytes([byte]) for byte in stream]


def as_php_reads(stream: bytes) -> Iterator[bytes]:
    """Header, then content and padding: fcgi_read_request(), main/fastcgi.c, 8.2."""
    at = 0
    while at < len(stream):
        _, _, _, content, padding, _ = struct.unpack_from(">BBHHBB", stream, at)
        yield stream[at : at + 8]
        if content + padding:
            yield stream[at + 8 : at + 8 + content + padding]
        at += 8 + content + padding


def stored(holder: object) -> list[bytes]:
    """Return all bytes that a reader holds, except the wanted names, which are the caller's."""
    if isinstance(holder, bytes | bytearray):
        return [bytes(holder)]
    if isinstance(holder, Mapping):
        return [text for value in holder.values() for text in stored(value)]
    if isinstance(holder, list | tuple):
        return [text for value in holder for text in stored(value)]
    if hasattr(holder, "__dict__"):
        kept = {name: value for name, value in vars(holder).items() if name not in ("_wanted", "_names")}
        return stored(kept)
    return []


def check_bounds(one: FastCgiReader) -> None:
    assert sum(map(len, stored(one))) == one.buffered
    assert one.buffered < BOUND
    assert len(one._starts) <= 8


# One request, its records and its pairs.


def test_a_request_begins_and_its_wanted_parameters_follow():
    assert read(request()) == PLAIN_EVENTS


def test_begun_has_the_role_and_the_keep_flag():
    assert read(begin(258, FILTER, flags=1)) == [Begun(258, FILTER, True)]


def test_only_the_lowest_flag_keeps_a_connection():
    assert read(begin(3, AUTHORIZER, flags=0xFE)) == [Begun(3, AUTHORIZER, False)]


def test_request_id_0_is_accepted():
    assert read(request(request_id=0)) == [Begun(0, RESPONDER, False), Params(0, whole(PLAIN))]


def test_begun_comes_with_the_last_byte_of_begin_request():
    one = reader()

    assert one.feed(begin(padding=5)[:15]) == []
    assert one.feed(begin(padding=5)[15:16]) == [Begun(1, RESPONDER, False)]


def test_params_come_with_the_header_of_the_empty_params():
    stream = begin() + params(PLAIN)
    one = reader()

    assert one.feed(stream[:-1]) == [Begun(1, RESPONDER, False)]
    assert one.feed(stream[-1:]) == [Params(1, whole(PLAIN))]


def test_header_content_and_padding_may_come_in_separate_calls():
    content = pair(b"REQUEST_URI", b"/")

    assert read(
        *(begin()[:8], begin()[8:]),
        *(record(PARAMS, content, padding=7)[:8], content, b"\1\1\0\1\0\x08\0"),
        record(PARAMS),
    ) == [Begun(1, RESPONDER, False), Params(1, {b"REQUEST_URI": Value(b"/", 1)})]


def test_records_may_cut_a_pair_anywhere():
    content = pair(b"REQUEST_URI", b"/" * 200, wide=True) + pair(b"REQUEST_METHOD", b"GET")
    cut = b"".join(record(PARAMS, byte, padding=3) for byte in single_bytes(content))

    assert read(begin() + cut + record(PARAMS))[1] == Params(
        1, {b"REQUEST_URI": Value(b"/" * VALUE_LIMIT, 200), b"REQUEST_METHOD": Value(b"GET", 3)}
    )


@pytest.mark.parametrize("size", [0, 1, 127, 128, 255, 256, 65_500])
def test_values_of_any_length_are_read(size: int):
    events = read(begin() + params({b"REQUEST_URI": b"u" * size, b"REQUEST_METHOD": b"PUT"}))

    assert events[1] == Params(
        1, {b"REQUEST_URI": Value(b"u" * min(size, VALUE_LIMIT), size), b"REQUEST_METHOD": Value(b"PUT", 3)}
    )


def test_all_four_bytes_of_a_length_count():
    one = reader([b"N" * 258], value_limit=4)

    one.feed(begin())
    assert one.feed(params({b"N" * 258: b"v" * 0x0304})) == [Params(1, {b"N" * 258: Value(b"vvvv", 0x0304)})]


def test_a_short_length_may_be_written_with_four_bytes():
    content = pair(b"HTTP_HOST", b"h", wide=True) + pair(b"REQUEST_URI", b"/w", wide=True)

    assert read(begin() + record(PARAMS, content) + record(PARAMS))[1] == Params(1, {b"REQUEST_URI": Value(b"/w", 2)})


def test_the_last_value_of_a_repeated_name_wins():
    content = pair(b"REQUEST_URI", b"/first-and-longer") + pair(b"REQUEST_URI", b"/second")

    assert read(begin() + record(PARAMS, content) + record(PARAMS))[1] == Params(
        1, {b"REQUEST_URI": Value(b"/second", 7)}
    )


def test_names_that_resemble_a_wanted_one_are_not_kept():
    alike = (b"REQUEST_URL", b"REQUEST_UR", b"REQUEST_URI_", b"request_uri", b"XREQUEST_URI", b"XEQUEST_URI")

    assert read(begin() + params(dict.fromkeys(alike, b"/not-this")))[1] == Params(1, {})


def test_empty_names_and_values_are_accepted():
    content = pair(b"", b"") + pair(b"", b"nameless") + pair(b"REQUEST_URI", b"") + pair(b"", b"")

    assert read(begin() + record(PARAMS, content) + record(PARAMS))[1] == Params(1, {b"REQUEST_URI": Value(b"", 0)})


def test_the_empty_name_can_be_wanted():
    one = reader([b""])

    one.feed(begin())
    assert one.feed(params({b"": b"nameless"})) == [Params(1, {b"": Value(b"nameless", 8)})]


def test_a_request_may_have_no_parameters():
    assert read(begin() + record(PARAMS))[1] == Params(1, {})


def test_an_unwanted_parameter_is_never_stored():
    one = reader([b"REQUEST_URI"])
    stream = request({b"REQUEST_URL": b"#" * 99, b"#" * 11: b"#", b"REQUEST_URI": b"/", b"HTTP_COOKIE": b"#" * 999})

    for byte in single_bytes(stream):
        one.feed(byte)
        assert b"#" not in b"".join(stored(one))
    assert one.malformed_count == 0


def test_a_wanted_value_is_never_stored_beyond_the_limit():
    one = reader(value_limit=5)

    for chunk in (begin(), *single_bytes(record(PARAMS, pair(b"REQUEST_URI", b"/abcd###")))):
        one.feed(chunk)
        assert b"#" not in b"".join(stored(one))
    assert one.feed(record(PARAMS)) == [Params(1, {b"REQUEST_URI": Value(b"/abcd", 8)})]


def test_returned_parameters_are_not_kept():
    one = reader()

    one.feed(request())
    assert stored(one) == [b"", b""]


# Records that the parser skips.


@pytest.mark.parametrize("kind", [0, END_REQUEST, STDIN, DATA, GET_VALUES, 11, 255])
def test_other_records_are_skipped_and_not_stored(kind: int):
    one = reader()
    skipped = record(kind, request() * 3 + b"\xff" * 60_000, request_id=0, padding=255)

    assert one.feed(skipped[:-1]) == []
    assert one.buffered == 0
    assert one.feed(skipped[-1:] + request()) == PLAIN_EVENTS


def test_other_records_may_come_within_a_request():
    between = record(GET_VALUES, pair(b"FCGI_MAX_CONNS", b""), request_id=0) + record(77, b"REQUEST", padding=1)
    cut = pair(b"REQUEST_URI", b"/between")
    stream = begin() + between + record(PARAMS, cut[:9]) + between + record(PARAMS, cut[9:]) + between + record(PARAMS)

    assert read(stream)[1:] == [Params(1, {b"REQUEST_URI": Value(b"/between", 8)})]


def test_a_request_crafted_in_a_body_is_ignored_even_as_a_separate_chunk():
    crafted = request({b"REQUEST_URI": b"/crafted"})
    stdin = record(STDIN, crafted)

    assert read(begin() + params(PLAIN), stdin[:8], crafted, record(STDIN)) == PLAIN_EVENTS


def test_a_request_crafted_in_a_body_is_ignored_if_malformed_data_follows_in_its_chunk():
    crafted = request({b"REQUEST_URI": b"/crafted"})
    header = record(STDIN, crafted)[:8]

    assert read(begin() + params(PLAIN), header, crafted + bytes(8)) == [
        *PLAIN_EVENTS,
        Malformed("a record of FastCGI version 0, not 1"),
    ]
    assert read(begin() + params(PLAIN), header, crafted + bytes(3), bytes(5)) == [
        *PLAIN_EVENTS,
        Malformed("a record of FastCGI version 0, not 1"),
    ]


def test_a_body_in_many_pieces_is_not_stored():
    one = reader()

    for byte in single_bytes(request(body=b"#" * 211)):
        one.feed(byte)
        check_bounds(one)


def test_requests_follow_each_other_on_a_kept_connection():
    second = {b"REQUEST_URI": b"/second"}

    assert read(request(body=b"#" * 1013) + request(second)) == [
        *PLAIN_EVENTS,
        *(Begun(1, RESPONDER, False), Params(1, whole(second))),
    ]


def test_an_empty_stdin_that_php_did_not_read_does_not_disturb_the_next_request():
    assert read(record(STDIN, request_id=9), request()) == PLAIN_EVENTS


def test_stdin_ends_parameters_without_an_end():
    content = b"".join(pair(name, value) for name, value in PLAIN.items())

    assert read(begin() + record(PARAMS, content) + record(STDIN)) == PLAIN_EVENTS


def test_stdin_of_another_request_does_not_end_parameters():
    assert read(begin(1) + record(STDIN, request_id=2)) == [Begun(1, RESPONDER, False)]


# Requests that end early.


def test_an_abort_is_an_event():
    assert read(begin(5) + record(ABORT_REQUEST, request_id=5)) == [Begun(5, RESPONDER, False), Aborted(5)]


def test_an_abort_may_have_content():
    assert read(begin() + record(ABORT_REQUEST, b"why", padding=2) + request())[2:] == PLAIN_EVENTS


def test_parameters_after_an_abort_are_malformed():
    assert read(begin() + record(ABORT_REQUEST) + params(PLAIN))[2:] == [Malformed("PARAMS without a request")]


@pytest.mark.parametrize("request_id", [1, 2])
def test_a_request_within_another_replaces_it(request_id: int):
    half = begin() + record(PARAMS, pair(b"REQUEST_METHOD", b"GET") + b"\x0b")

    assert read(half + request(request_id=request_id)) == [
        *(Begun(1, RESPONDER, False), Begun(request_id, RESPONDER, False)),
        Params(request_id, whole(PLAIN)),
    ]


# Malformed streams.

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


def test_an_empty_chunk_has_no_events_and_is_not_stored():
    one = reader()
    one.feed(begin()[:3])

    assert [one.feed(b"") for _ in range(999)] == [[]] * 999
    check_bounds(one)
    assert one.feed(begin()[3:]) == [Begun(1, RESPONDER, False)]


def test_the_values_of_a_request_are_kept_up_to_a_common_limit():
    names = [b"N%d" % n for n in range(7)]
    one = reader(names, value_limit=1 << 20)
    one.feed(begin())
    for name in names:
        one.feed(record(PARAMS, pair(name, b"v" * 20_000)))
        check_bounds(one)

    (event,) = one.feed(record(PARAMS))
    assert isinstance(event, Params)
    assert [len(value.text) for value in event.values.values()] == [20_000, 20_000, 20_000, 5_280, 0, 0, 0]
    assert {value.length for value in event.values.values()} == {20_000}
    assert KEPT_LIMIT_BYTES == 65_280


def test_a_name_that_comes_twice_counts_once_towards_the_limit():
    one = reader(value_limit=30_000)
    one.feed(begin())
    for _ in range(9):
        one.feed(record(PARAMS, pair(b"REQUEST_URI", b"v" * 30_000)))
        check_bounds(one)

    assert one.feed(record(PARAMS)) == [Params(1, {b"REQUEST_URI": Value(b"v" * 30_000, 30_000)})]


# Any stream.

VALUES = st.binary(max_size=300) | st.sampled_from([127, 128, VALUE_LIMIT, VALUE_LIMIT + 1, 5003]).map(bytes)
NAMES = st.sampled_from(WANTED) | st.sampled_from(UNWANTED) | st.binary(max_size=140)
PADDINGS = st.integers(0, 255)
SKIPPED = st.builds(
    record,
    st.sampled_from([DATA, GET_VALUES, 11, 255]),
    st.binary(max_size=40) | st.just(request()),
    request_id=st.integers(0, 3),
    padding=PADDINGS,
)


@dataclasses.dataclass(frozen=True)
class Stream:
    sent: bytes
    events: list[Event]


@st.composite
def requests(draw: st.DrawFn) -> Stream:
    """One well-formed request with any content, and its expected events."""
    request_id, role, flags = draw(st.integers(0, 0xFFFF)), draw(st.integers(1, 3)), draw(st.integers(0, 255))
    pairs = draw(st.lists(st.tuples(NAMES, VALUES, st.booleans()), max_size=8))
    content = b"".join(pair(name, value, wide=wide) for name, value, wide in pairs)
    sent = begin(request_id, role, flags=flags, padding=draw(PADDINGS))
    for piece in cut(content, draw(st.lists(st.integers(1, len(content) or 1), max_size=6))):
        sent += b"".join(draw(st.lists(SKIPPED, max_size=1)))
        sent += record(PARAMS, piece, request_id=request_id, padding=draw(PADDINGS))
    sent += record(PARAMS, request_id=request_id, padding=draw(PADDINGS))
    for body in draw(st.lists(st.binary(min_size=1, max_size=99) | st.just(request()), max_size=2)):
        sent += record(STDIN, body, request_id=request_id, padding=draw(PADDINGS))
    values = {name: Value(value[:VALUE_LIMIT], len(value)) for name, value, _ in pairs if name in WANTED}
    events: list[Event] = [Begun(request_id, role, bool(flags & 1)), Params(request_id, values)]
    if draw(st.booleans()):
        sent += record(ABORT_REQUEST, request_id=request_id, padding=draw(PADDINGS))
        events.append(Aborted(request_id))
    return Stream(sent, events)


def cut(content: bytes, places: Iterable[int]) -> list[bytes]:
    ends = [*sorted(set(places)), len(content)]
    pieces = [content[start:end] for start, end in zip([0, *ends], ends, strict=False)]
    return [piece for piece in pieces if piece]


@PROPERTY
@given(st.lists(requests(), min_size=1, max_size=3))
def test_an_encoded_stream_is_read_back(streams: list[Stream]):
    assert read(b"".join(stream.sent for stream in streams)) == [event for stream in streams for event in stream.events]


@PROPERTY
@given(st.lists(requests(), min_size=1, max_size=2), st.lists(st.integers(1, 4000), max_size=60))
def test_a_stream_has_the_same_events_however_it_is_cut(streams: list[Stream], places: list[int]):
    sent = b"".join(stream.sent for stream in streams)
    one = reader()

    events = []
    for chunk in cut(sent, [place % len(sent) for place in places]):
        events += one.feed(chunk)
        check_bounds(one)
    assert events == [event for stream in streams for event in stream.events]
    assert read(*single_bytes(sent)) == events
    assert read(*as_php_reads(sent)) == events


ANYTHING = st.lists(
    st.binary(max_size=64)
    | st.sampled_from([begin(), begin()[:8], request(), record(STDIN), params(PLAIN), record(ABORT_REQUEST)])
    | st.builds(record, st.integers(0, 11), st.binary(max_size=64), request_id=st.integers(0, 2), padding=PADDINGS)
    | st.builds(lambda stream, end: stream[:end], st.just(request()), st.integers(0, 99)),
    max_size=12,
)


@PROPERTY
@given(ANYTHING)
@example([b"\1\1\0\1\0\x08"])
def test_the_next_request_that_begins_a_chunk_is_found_after_any_data(chunks: list[bytes]):
    one = reader()
    malformed = 0
    # The zeros complete any open record, and are not a record themselves.
    for chunk in (*chunks, bytes(0xFFFF + 255 + 8 + 8)):
        malformed += sum(isinstance(event, Malformed) for event in one.feed(chunk))
        check_bounds(one)

    assert malformed == one.malformed_count > 0
    assert one.feed(request()) == PLAIN_EVENTS


@PROPERTY
@given(ANYTHING)
def test_events_of_any_data_belong_to_an_open_request(chunks: list[bytes]):
    open_request, complete = None, True
    for event in read(*chunks):
        if isinstance(event, Begun):
            open_request, complete = event.request_id, False
        elif isinstance(event, Malformed):
            open_request = None
        else:
            assert event.request_id == open_request
            if isinstance(event, Params):
                assert not complete
                complete = True
            else:
                open_request = None


# Recorded streams of real programs.

CUTS = {"whole": lambda stream: [stream], "byte by byte": single_bytes, "as php reads": as_php_reads}


@pytest.mark.parametrize("cutting", CUTS)
@pytest.mark.parametrize("program", KEPT)
def test_the_requests_of_a_real_program_are_read(program: str, cutting: str):
    one = reader(WANTED, value_limit=4096)
    stream = (STREAMS / f"{program}.bin").read_bytes()

    events = [event for chunk in CUTS[cutting](stream) for event in one.feed(chunk)]
    prefix = APACHE_PREFIX if program == "apache" else b""
    assert events == [
        event
        for method, uri, script in REQUESTS
        for event in (
            Begun(1, RESPONDER, KEPT[program]),
            Params(1, whole(dict(zip(WANTED, (prefix + script, uri, method), strict=True)))),
        )
    ]
    assert one.malformed_count == 0


@pytest.mark.parametrize("program", KEPT)
def test_long_values_of_a_real_program_are_cut_and_other_parameters_not_kept(program: str):
    one = FastCgiReader([b"HTTP_USER_AGENT", b"REQUEST_URI", b"CONTENT_LENGTH"], value_limit=29)
    first, second, third = (
        event.values for event in one.feed((STREAMS / f"{program}.bin").read_bytes()) if isinstance(event, Params)
    )

    assert first[b"REQUEST_URI"] == Value(LONG_URI[:29], 1370)
    assert second[b"CONTENT_LENGTH"] == Value(b"100000", 6)
    assert third[b"HTTP_USER_AGENT"] == Value(AGENT[:29], 231)


@pytest.mark.parametrize("program", KEPT)
def test_the_recordings_contain_no_path_except_the_document_root(program: str):
    stream = (STREAMS / f"{program}.bin").read_bytes()

    assert b"/srv/www" in stream
    folders = {"home", "root", "tmp", "usr", "etc", *os.listdir("/")} - {"srv"}  # of any machine, and of this one
    assert not [folder for folder in folders if f"/{folder}/".encode() in stream]
