"""A FastCGI client that sends what a test wants, well-formed or not. FastCGI 1.0 specification, sections 3 to 5."""

from __future__ import annotations

import contextlib
import dataclasses
import socket
import struct
from collections.abc import Mapping
from pathlib import Path

_BEGIN_REQUEST, _END_REQUEST, _PARAMS, _STDIN, _STDOUT = 1, 3, 4, 5, 6
_RESPONDER = 1


@dataclasses.dataclass(frozen=True, slots=True)
class Response:
    """The answer; `ended` is True if the worker lived to end it."""

    body: bytes
    headers: bytes
    ended: bool

    @property
    def text(self) -> str:
        return self.body.decode()


def request(path: Path, params: Mapping[str, str | bytes], timeout_s: float = 30.0) -> Response:
    """One request over one connection."""
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(timeout_s)
        connection.connect(str(path))
        send(connection, params)
        return receive(connection)


def send(connection: socket.socket, params: Mapping[str, str | bytes]) -> None:
    """A request without a body; it may be received later, or never."""
    connection.sendall(message(params))


def message(params: Mapping[str, str | bytes], *, keep: bool = False, body: bytes = b"") -> bytes:
    """The records of a request; `keep` asks for the connection to be kept."""
    contents = [b""]
    for name, value in params.items():
        pair = _pair(name.encode(), _bytes(value))
        if len(contents[-1]) + len(pair) > 0xFFFF and contents[-1]:  # php reads no pair across two records
            contents.append(b"")
        contents[-1] += pair
    records = [_record(_BEGIN_REQUEST, struct.pack(">HB5x", _RESPONDER, int(keep)))]
    for content in contents:
        records += [_record(_PARAMS, content[at : at + 0xFFFF]) for at in range(0, len(content), 0xFFFF)]
    records.append(_record(_PARAMS, b""))
    records += [_record(_STDIN, body[at : at + 0xFFFF]) for at in range(0, len(body), 0xFFFF)]
    return b"".join([*records, _record(_STDIN, b"")])


def receive(connection: socket.socket) -> Response:
    """Everything until the end of the request, or until the worker hangs up."""
    output, ended = b"", False
    stream = connection.makefile("rb")
    with contextlib.suppress(ConnectionResetError):  # the worker died with something unread
        while len(header := stream.read(8)) == 8:
            _, kind, _, length, padding, _ = struct.unpack(">BBHHBB", header)
            content = stream.read(length + padding)[:length]
            if kind == _STDOUT:
                output += content
            elif kind == _END_REQUEST:
                ended = True
                break
    headers, _, body = output.partition(b"\r\n\r\n")
    return Response(body, headers, ended)


def _record(kind: int, content: bytes) -> bytes:
    return struct.pack(">BBHHBB", 1, kind, 1, len(content), 0, 0) + content


def _pair(name: bytes, value: bytes) -> bytes:
    return _length(len(name)) + _length(len(value)) + name + value


def _length(size: int) -> bytes:
    return struct.pack(">B", size) if size < 128 else struct.pack(">I", size | 0x8000_0000)


def _bytes(value: str | bytes) -> bytes:
    return value if isinstance(value, bytes) else value.encode()
