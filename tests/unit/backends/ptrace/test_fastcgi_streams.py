"""FastCgiReader: properties of any stream, and recorded streams of real programs.

tests/streams was recorded over loopback on Debian 12: nginx 1.22.1 (`fastcgi_keep_conn on`, upstream `keepalive`) and
Apache 2.4.71 (mod_proxy_fcgi by SetHandler, `enablereuse=on`), one kept connection each; cgi-fcgi of libfcgi 2.4.2, its
three connections one after the other. Each has the same three requests: see REQUESTS.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterable
from pathlib import Path

import pytest
from fastcgi_streams import (
    ABORT_REQUEST,
    DATA,
    GET_VALUES,
    PARAMS,
    PLAIN,
    PLAIN_EVENTS,
    RESPONDER,
    STDIN,
    UNWANTED,
    VALUE_LIMIT,
    WANTED,
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
    whole,
)
from hypothesis import example, given
from hypothesis import strategies as st
from samples import PROPERTY

from tracer.backends.ptrace.fastcgi_parser import (
    Aborted,
    Begun,
    Event,
    FastCgiReader,
    Malformed,
    Params,
    Value,
)

STREAMS = Path(__file__).resolve().parents[3] / "streams"

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
