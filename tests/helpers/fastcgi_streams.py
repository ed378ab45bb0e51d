"""FastCGI records and requests made by hand, and a FastCgiReader that reads them."""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator, Mapping

from tracer.backends.ptrace.fastcgi_parser import (
    Begun,
    Event,
    FastCgiReader,
    Params,
    Value,
)

BEGIN_REQUEST, ABORT_REQUEST, END_REQUEST, PARAMS, STDIN, DATA, GET_VALUES = 1, 2, 3, 4, 5, 8, 9
RESPONDER, AUTHORIZER, FILTER = 1, 2, 3
WANTED = (b"SCRIPT_FILENAME", b"REQUEST_URI", b"REQUEST_METHOD")
# Parameters that are not wanted, some with the length or the beginning of a wanted one.
UNWANTED = (b"HTTP_COOKIE", b"REQUEST_URL", b"REQUEST_UR", b"REQUEST_URI_", b"X" * 127, b"X" * 128, b"")
VALUE_LIMIT = 61
BOUND = 64 * 1024
PLAIN = {b"SCRIPT_FILENAME": b"/srv/www/index.php", b"REQUEST_URI": b"/a?b=c"}


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
