"""Parse the bytes a worker reads from one connection: where requests begin, and the wanted parameters.

Pure: no system calls, no clock. One reader per connection. FastCGI 1.0 specification, section 3; where php-fpm is
laxer (main/fastcgi.c, 8.2), so is this parser. It does not read the worker's answers, so it sees no request end.

The bytes may be cut anywhere. After malformed bytes, everything is skipped until a *fed chunk* begins with the
header of a BEGIN_REQUEST, which later chunks may complete: php reads a header with a separate call. At any other
place, data from the client (a body, for example, if tracing began in its middle) could hold a crafted header.
Before malformed bytes, the position in the stream is known, and nothing inside a record is taken for a header.
"""

from __future__ import annotations

import struct
from collections.abc import Collection, Mapping
from typing import NamedTuple

# Limit on all values of one request together; with the few bytes of cut headers and lengths, below 64 KiB.
KEPT_LIMIT_BYTES = 0xFF00


class Value(NamedTuple):
    """A parameter: `text` may be cut, `length` (bytes) never is."""

    text: bytes
    length: int


class Begun(NamedTuple):
    """BEGIN_REQUEST. A request open on this connection is over: php does not multiplex."""

    request_id: int
    role: int
    keep_connection: bool


class Params(NamedTuple):
    """All parameters have been read; `values` has the wanted ones by name. php runs the script after this."""

    request_id: int
    values: dict[bytes, Value]


class Aborted(NamedTuple):
    """ABORT_REQUEST for the open request. php never obeys it: it stops reading, and may well run the script."""

    request_id: int


class Malformed(NamedTuple):
    """The stream is malformed; it is skipped until a request begins. `why` quotes no content."""

    why: str


Event = Begun | Params | Aborted | Malformed

_BEGIN_REQUEST, _ABORT_REQUEST, _PARAMS, _STDIN = 1, 2, 4, 5
_HEADER = struct.Struct(">BBHHBx")  # version, type, request id, content length, padding length, reserved
_BEGIN = struct.Struct(">HB5x")  # role, flags, reserved
_KEEP_CONNECTION = 1
_ROLES = (1, 2, 3)  # responder, authorizer, filter; php hangs up on others (fcgi_read_request, main/fastcgi.c, 8.2)
# The header of a BEGIN_REQUEST as far as it is fixed: version, type, any id, length 8, any padding, any reserved.
_BEGIN_PATTERN = (1, _BEGIN_REQUEST, None, None, 0, _BEGIN.size, None, None)
# A name and its value. php wants a whole pair within one record (fcgi_get_params, 8.2), and no record holds more.
_PAIR_LIMIT_BYTES = 0xFFFF
_LENGTHS_MAX_BYTES = 8


def begins_request(data: bytes) -> bool:
    """True if the bytes start with the header of a BEGIN_REQUEST record."""
    return len(data) >= _HEADER.size and _matches_begin(data[: _HEADER.size])


def _matches_begin(header: bytes) -> bool:
    """True if a header, which may be cut, is a BEGIN_REQUEST's as far as it goes."""
    return all(expected in (None, byte) for expected, byte in zip(_BEGIN_PATTERN, header, strict=False))


class FastCgiReader:
    """Reads one connection's bytes: where requests begin, and their parameters. Never raises on content; memory
    is bounded.

    It stores neither names nor values of parameters that are not `wanted`. It stores at most `value_limit` bytes of
    each wanted value and KEPT_LIMIT_BYTES in total; the last value of a name wins, as in php. feed() keeps no chunk.
    """

    def __init__(self, wanted: Collection[bytes], *, value_limit: int = 4096) -> None:
        """`wanted`: names of the parameters to keep; `value_limit`: bytes kept of each value."""
        self.malformed_count = 0  # how often the stream was malformed, and skipped until the next BEGIN_REQUEST
        self._wanted: dict[int, list[bytes]] = {}  # by length
        for name in dict.fromkeys(wanted):
            self._wanted.setdefault(len(name), []).append(name)
        self._value_limit = value_limit
        self._request_id: int | None = None  # of the open request
        self._pairs: _Pairs | None = None  # of the open request, until its PARAMS stream has ended
        self._resyncing = False
        self._buffer = b""  # a header cut by the end of a chunk; if resyncing, what may be a BEGIN_REQUEST's
        self._starts: list[int] = []  # offsets in _buffer, or at its end, at which chunks began
        # Bytes still to come of the current record: BEGIN_REQUEST's body, PARAMS, and skipped content.
        self._begin_left = 0
        self._begin = b""
        self._params_left = 0
        self._skip_left = 0

    @property
    def buffered(self) -> int:
        """Bytes of content in memory: always less than 64 KiB."""
        return len(self._buffer) + len(self._begin) + (self._pairs.buffered if self._pairs else 0)

    def feed(self, data: bytes) -> list[Event]:
        """Return the events these bytes complete, in order. Feed the bytes of one system call: resyncing needs that."""
        events: list[Event] = []
        if not data:
            return events
        at = 0
        self._starts.append(len(self._buffer))
        while at < len(data):
            try:
                at = self._step(data, at, events)
            except _MalformedError as exc:
                events.append(self._skip_to_next_request(str(exc)))
                # The record that began in an earlier chunk was not one: this chunk, or one since, may begin a request.
                at = self._resync(data)
        if not self._buffer:
            self._starts.clear()
        return events

    def _step(self, data: bytes, at: int, events: list[Event]) -> int:
        """Parse some bytes from `at` on; return the offset of the next ones."""
        if self._resyncing:
            return self._resync(data)
        if self._begin_left:
            piece = data[at : at + self._begin_left]
            self._begin_left -= len(piece)
            self._begin += piece
            if not self._begin_left:
                events.append(self._begin_event())
            return at + len(piece)
        if self._params_left:
            piece = data[at : at + self._params_left]
            self._params_left -= len(piece)
            if self._pairs:
                self._pairs.feed(piece)
            return at + len(piece)
        if self._skip_left:
            skipped = min(self._skip_left, len(data) - at)
            self._skip_left -= skipped
            return at + skipped
        if at:
            self._starts.clear()  # the chunk began inside a valid record, possibly with data from the client
        piece = data[at : at + _HEADER.size - len(self._buffer)]
        header = self._buffer + piece
        if len(header) < _HEADER.size:
            self._buffer = header
        else:
            self._open_record(header, events)
            self._buffer = b""
            self._starts.clear()
        return at + len(piece)

    def _resync(self, data: bytes) -> int:
        """Look for a BEGIN_REQUEST where a chunk began; return where its header ends in `data`, or len(data)."""
        before = len(self._buffer)
        held = self._buffer + data[: _HEADER.size]
        for start in self._starts:
            header = held[start : start + _HEADER.size]
            if _matches_begin(header):
                if len(header) < _HEADER.size:
                    self._buffer = header
                    self._starts = [other - start for other in self._starts if other >= start]
                    return len(data)
                self._buffer = b""
                self._starts.clear()
                self._resyncing = False
                self._open_record(header, [])
                return start + _HEADER.size - before
        self._buffer = b""
        self._starts.clear()
        return len(data)

    def _open_record(self, header: bytes, events: list[Event]) -> None:
        version, kind, request_id, length, padding = _HEADER.unpack(header)
        if version != 1:
            raise _MalformedError(f"a record of FastCGI version {version}, not 1")
        self._skip_left = padding
        if kind == _BEGIN_REQUEST:
            if length != _BEGIN.size:
                raise _MalformedError(f"a BEGIN_REQUEST of {length} bytes, not {_BEGIN.size}")
            self._close_request()
            self._request_id, self._begin_left = request_id, length
        elif kind == _PARAMS:
            self._check_id("PARAMS", request_id)
            if self._pairs is None:
                raise _MalformedError("PARAMS after the end of PARAMS")
            if length:
                self._params_left = length
            else:
                events.append(self._params_event(self._pairs))
        elif kind == _ABORT_REQUEST:
            self._check_id("ABORT_REQUEST", request_id)
            self._close_request()
            self._skip_left += length
            events.append(Aborted(request_id))
        else:
            self._skip_left += length
            # Some clients omit the empty PARAMS; php accepts any other record instead (fcgi_read_request, 8.2).
            if kind == _STDIN and request_id == self._request_id and self._pairs is not None:
                events.append(self._params_event(self._pairs))

    def _begin_event(self) -> Begun:
        (role, flags), self._begin = _BEGIN.unpack(self._begin), b""
        if role not in _ROLES:
            raise _MalformedError(f"a BEGIN_REQUEST for role {role}, which php does not play")
        assert self._request_id is not None
        self._pairs = _Pairs(self._wanted, self._value_limit)
        return Begun(self._request_id, role, bool(flags & _KEEP_CONNECTION))

    def _params_event(self, pairs: _Pairs) -> Params:
        if not pairs.complete:
            raise _MalformedError("PARAMS that end within a pair")
        assert self._request_id is not None
        self._pairs = None
        return Params(self._request_id, pairs.values)

    def _check_id(self, what: str, request_id: int) -> None:
        if self._request_id is None:
            raise _MalformedError(f"{what} without a request")
        if request_id != self._request_id:
            raise _MalformedError(f"{what} for request {request_id} within request {self._request_id}")

    def _skip_to_next_request(self, why: str) -> Malformed:
        self.malformed_count += 1
        self._close_request()
        self._resyncing = True
        self._begin_left = self._params_left = self._skip_left = 0
        return Malformed(why)

    def _close_request(self) -> None:
        """Drop the open request."""
        self._request_id = self._pairs = None


class _MalformedError(Exception):
    """The stream cannot be followed; never leaves this module."""


class _Pairs:
    """Wanted name-value pairs of one request (section 3.4), from content cut anywhere."""

    def __init__(self, wanted: Mapping[int, list[bytes]], value_limit: int) -> None:
        self.values: dict[bytes, Value] = {}
        self._wanted = wanted
        self._value_limit = value_limit
        self._kept_bytes = 0  # in values
        self._lengths = b""  # of the current pair, cut by the end of a piece; nothing of its name
        self._name_left = 0
        self._name_length = 0
        self._names: list[bytes] = []  # wanted names that match the current one so far, so that it need not be stored
        self._value_left = 0
        self._value_length = 0
        self._text = bytearray()

    @property
    def buffered(self) -> int:
        return self._kept_bytes + len(self._text) + len(self._lengths)

    @property
    def complete(self) -> bool:
        """True if no pair is cut."""
        return not (self._lengths or self._name_left or self._value_left)

    def feed(self, content: bytes) -> None:
        at = 0
        while at < len(content):
            if self._name_left:
                piece = content[at : at + self._name_left]
                done = self._name_length - self._name_left
                self._names = [name for name in self._names if name.startswith(piece, done)]
                self._name_left -= len(piece)
                at += len(piece)
            elif self._value_left:
                taken = min(self._value_left, len(content) - at)
                if self._names:
                    room = min(
                        self._value_limit - len(self._text), KEPT_LIMIT_BYTES - self._kept_bytes - len(self._text)
                    )
                    self._text += content[at : at + min(taken, max(0, room))]
                self._value_left -= taken
                at += taken
            else:
                at += self._begin_pair(content[at : at + _LENGTHS_MAX_BYTES])
            if self.complete:
                self._end_pair()

    def _begin_pair(self, head: bytes) -> int:
        """Parse the lengths of a name and its value; return how many bytes they took."""
        head, before = self._lengths + head, len(self._lengths)
        name = _length(head, 0)
        value = _length(head, name[1]) if name else None
        if name is None or value is None:
            self._lengths = head
            return len(head) - before
        if name[0] + value[0] > _PAIR_LIMIT_BYTES:
            raise _MalformedError(f"a parameter of {name[0]} + {value[0]} bytes, more than a record holds")
        self._lengths = b""
        self._name_left = self._name_length = name[0]
        self._value_left = self._value_length = value[0]
        self._names = self._wanted.get(name[0], [])
        return value[1] - before

    def _end_pair(self) -> None:
        for name in self._names:  # at most one
            replaced = self.values.get(name)
            self._kept_bytes += len(self._text) - (len(replaced.text) if replaced else 0)
            self.values[name] = Value(bytes(self._text), self._value_length)
        self._text.clear()


def _length(head: bytes, at: int) -> tuple[int, int] | None:
    """Return the length encoded at `at`, and the offset behind it; None if it is cut."""
    if at >= len(head):
        return None
    if head[at] < 0x80:
        return head[at], at + 1
    if at + 4 > len(head):
        return None
    return int.from_bytes(head[at : at + 4], "big") & 0x7FFF_FFFF, at + 4
