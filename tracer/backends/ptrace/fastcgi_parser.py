"""From the bytes a worker reads from one connection to where requests begin, and the parameters wanted of them.

Pure: no system calls, no clock. One reader a connection. FastCGI 1.0 specification, section 3; where php-fpm is
laxer than it (main/fastcgi.c, 8.2), so is this. What the worker answers is not looked at, so neither are ends.

The bytes may come cut anywhere. After bytes that make no sense, nothing is believed until a *fed chunk* begins with
the header of a BEGIN_REQUEST, itself perhaps cut by later chunks: php reads a header with a call of its own, while
what a client sent (a body, say, when tracing began in its middle) could hold a forged header at any other place.
Before that, the place in the stream is known, and nothing inside a record is ever taken for a header.
"""

from __future__ import annotations

import struct
from collections.abc import Collection, Mapping
from typing import NamedTuple

# All values kept of one request, together; with the few bytes of cut headers and lengths, below 64 KiB.
KEPT_LIMIT_BYTES = 0xFF00


class Value(NamedTuple):
    """A parameter: `text` may be cut, `length` (bytes) never is."""

    text: bytes
    length: int


class Begun(NamedTuple):
    """BEGIN_REQUEST. Whatever request was open on this connection is over: php does not multiplex."""

    request_id: int
    role: int
    keep_connection: bool


class Params(NamedTuple):
    """All parameters are there; the wanted ones, by name. php runs the script after this."""

    request_id: int
    values: dict[bytes, Value]


class Aborted(NamedTuple):
    """ABORT_REQUEST for the open request. php never obeys it: it stops reading, and may well run the script."""

    request_id: int


class GaveUp(NamedTuple):
    """The stream made no sense; what follows is ignored until a request begins. `why` quotes no content."""

    why: str


Event = Begun | Params | Aborted | GaveUp

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

    Of parameters that are not `wanted`, neither name nor value is ever stored. Of the wanted ones, `value_limit`
    bytes each and KEPT_LIMIT_BYTES altogether; the last of a name wins, as in php. A chunk given to feed() is not kept.
    """

    def __init__(self, wanted: Collection[bytes], *, value_limit: int = 4096) -> None:
        """`wanted`: names of the parameters to keep; `value_limit`: bytes kept of each value."""
        self.given_up = 0  # how often the stream made no sense, and was ignored until the next BEGIN_REQUEST
        self._wanted: dict[int, list[bytes]] = {}  # by length
        for name in dict.fromkeys(wanted):
            self._wanted.setdefault(len(name), []).append(name)
        self._value_limit = value_limit
        self._request_id: int | None = None  # of the open request
        self._pairs: _Pairs | None = None  # of the open request, until its PARAMS stream has ended
        self._lost = False
        self._held = b""  # of a header cut by the end of a chunk; when lost, of what may be a BEGIN_REQUEST's
        self._starts: list[int] = []  # where in _held, and behind it, chunks began
        # Of the record at hand: what is to come of BEGIN_REQUEST's body, of PARAMS, and of what is skipped.
        self._begin_left = 0
        self._begin = b""
        self._params_left = 0
        self._skip_left = 0

    @property
    def buffered(self) -> int:
        """Content held, in bytes: never as much as 64 KiB."""
        return len(self._held) + len(self._begin) + (self._pairs.buffered if self._pairs else 0)

    def feed(self, data: bytes) -> list[Event]:
        """Events that these bytes completed, in order. Bytes are those of one system call, for finding the way back."""
        events: list[Event] = []
        if not data:
            return events
        at = 0
        self._starts.append(len(self._held))
        while at < len(data):
            try:
                at = self._step(data, at, events)
            except _NonsenseError as nonsense:
                events.append(self._give_up(str(nonsense)))
                # A record that began in an earlier chunk was none: this chunk, or one since, may begin a request.
                at = self._look(data)
        if not self._held:
            self._starts.clear()
        return events

    def _step(self, data: bytes, at: int, events: list[Event]) -> int:
        """Takes some bytes from `at` on; where the next ones are."""
        if self._lost:
            return self._look(data)
        if self._begin_left:
            piece = data[at : at + self._begin_left]
            self._begin_left -= len(piece)
            self._begin += piece
            if not self._begin_left:
                events.append(self._begun())
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
            self._starts.clear()  # the chunk began within a record that was in order, perhaps with what a client sent
        piece = data[at : at + _HEADER.size - len(self._held)]
        header = self._held + piece
        if len(header) < _HEADER.size:
            self._held = header
        else:
            self._open_record(header, events)
            self._held = b""
            self._starts.clear()
        return at + len(piece)

    def _look(self, data: bytes) -> int:
        """Looks for a BEGIN_REQUEST where a chunk began; where in `data` its header ends, or the end of `data`."""
        before = len(self._held)
        held = self._held + data[: _HEADER.size]
        for start in self._starts:
            header = held[start : start + _HEADER.size]
            if _matches_begin(header):
                if len(header) < _HEADER.size:
                    self._held = header
                    self._starts = [other - start for other in self._starts if other >= start]
                    return len(data)
                self._held = b""
                self._starts.clear()
                self._lost = False
                self._open_record(header, [])
                return start + _HEADER.size - before
        self._held = b""
        self._starts.clear()
        return len(data)

    def _open_record(self, header: bytes, events: list[Event]) -> None:
        version, kind, request_id, length, padding = _HEADER.unpack(header)
        if version != 1:
            raise _NonsenseError(f"a record of FastCGI version {version}, not 1")
        self._skip_left = padding
        if kind == _BEGIN_REQUEST:
            if length != _BEGIN.size:
                raise _NonsenseError(f"a BEGIN_REQUEST of {length} bytes, not {_BEGIN.size}")
            self._drop()
            self._request_id, self._begin_left = request_id, length
        elif kind == _PARAMS:
            self._check_id("PARAMS", request_id)
            if self._pairs is None:
                raise _NonsenseError("PARAMS after the end of PARAMS")
            if length:
                self._params_left = length
            else:
                events.append(self._params(self._pairs))
        elif kind == _ABORT_REQUEST:
            self._check_id("ABORT_REQUEST", request_id)
            self._drop()
            self._skip_left += length
            events.append(Aborted(request_id))
        else:
            self._skip_left += length
            # Some clients forget the empty PARAMS; to php any other record will do (fcgi_read_request, 8.2).
            if kind == _STDIN and request_id == self._request_id and self._pairs is not None:
                events.append(self._params(self._pairs))

    def _begun(self) -> Begun:
        (role, flags), self._begin = _BEGIN.unpack(self._begin), b""
        if role not in _ROLES:
            raise _NonsenseError(f"a BEGIN_REQUEST for role {role}, which php does not play")
        assert self._request_id is not None
        self._pairs = _Pairs(self._wanted, self._value_limit)
        return Begun(self._request_id, role, bool(flags & _KEEP_CONNECTION))

    def _params(self, pairs: _Pairs) -> Params:
        if not pairs.whole:
            raise _NonsenseError("PARAMS that end within a pair")
        assert self._request_id is not None
        self._pairs = None
        return Params(self._request_id, pairs.values)

    def _check_id(self, what: str, request_id: int) -> None:
        if self._request_id is None:
            raise _NonsenseError(f"{what} without a request")
        if request_id != self._request_id:
            raise _NonsenseError(f"{what} for request {request_id} within request {self._request_id}")

    def _give_up(self, why: str) -> GaveUp:
        self.given_up += 1
        self._drop()
        self._lost = True
        self._begin_left = self._params_left = self._skip_left = 0
        return GaveUp(why)

    def _drop(self) -> None:
        """Forgets the open request."""
        self._request_id = self._pairs = None


class _NonsenseError(Exception):
    """The stream cannot be followed; never leaves this module."""


class _Pairs:
    """The wanted ones of the name-value pairs of one request (section 3.4), from content cut anywhere."""

    def __init__(self, wanted: Mapping[int, list[bytes]], value_limit: int) -> None:
        self.values: dict[bytes, Value] = {}
        self._wanted = wanted
        self._value_limit = value_limit
        self._kept_bytes = 0  # in values
        self._lengths = b""  # of the pair at hand, cut by the end of a piece; nothing of its name
        self._name_left = 0
        self._name_length = 0
        self._names: list[bytes] = []  # wanted ones that the name at hand may be, so that it need not be stored
        self._value_left = 0
        self._value_length = 0
        self._text = bytearray()

    @property
    def buffered(self) -> int:
        return self._kept_bytes + len(self._text) + len(self._lengths)

    @property
    def whole(self) -> bool:
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
            if self.whole:
                self._end_pair()

    def _begin_pair(self, head: bytes) -> int:
        """Takes the lengths off the content; how many bytes they were."""
        head, before = self._lengths + head, len(self._lengths)
        name = _length(head, 0)
        value = _length(head, name[1]) if name else None
        if name is None or value is None:
            self._lengths = head
            return len(head) - before
        if name[0] + value[0] > _PAIR_LIMIT_BYTES:
            raise _NonsenseError(f"a parameter of {name[0]} + {value[0]} bytes, more than a record holds")
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
    """The length written at `at`, and where it ends; None if it is cut."""
    if at >= len(head):
        return None
    if head[at] < 0x80:
        return head[at], at + 1
    if at + 4 > len(head):
        return None
    return int.from_bytes(head[at : at + 4], "big") & 0x7FFF_FFFF, at + 4
