"""FastCgiReader: a stream for every rule. test_fastcgi_malformed.py has those that break one."""

from __future__ import annotations

import pytest
from fastcgi_streams import (
    ABORT_REQUEST,
    AUTHORIZER,
    DATA,
    END_REQUEST,
    FILTER,
    GET_VALUES,
    PARAMS,
    PLAIN,
    PLAIN_EVENTS,
    RESPONDER,
    STDIN,
    VALUE_LIMIT,
    begin,
    check_bounds,
    pair,
    params,
    read,
    reader,
    record,
    request,
    single_bytes,
    stored,
    whole,
)

from tracer.backends.ptrace.fastcgi_parser import (
    KEPT_LIMIT_BYTES,
    Aborted,
    Begun,
    Malformed,
    Params,
    Value,
)

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
