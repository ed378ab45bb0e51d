"""Send records through a pipe, from the tracing process to its parent. Without a time-out, the writer never waits."""

from __future__ import annotations

import contextlib
import enum
import errno
import fcntl
import os
import select
import struct
from collections import deque

_HEAD = struct.Struct("<IB")
_PIPE_BYTES = 1 << 20
_F_SETPIPE_SZ = 1031
_MAX_WAITING_BYTES = 16 << 20  # records beyond this are dropped and counted
_READ_BYTES = 1 << 20


class Channel(enum.IntEnum):
    """Kind of a record."""

    REQUESTS = 0  # a record of bpf/request_events.h, as BPF's ring has them
    STACKS = 1  # a record of bpf/growth_events.h
    ATTACHED = 2  # JSON: the result of attaching
    LOST = 3  # eight bytes: how many records were lost
    MALFORMED = 4  # eight bytes: how often a connection was malformed
    UNARMED = 5  # eight bytes: the pid of a worker that is skipped because it has its own SIGTRAP handler
    ABANDONED = 6  # eight bytes: the pid of a process that is no longer traced; then text: why
    FAILED = 7  # text: why no worker is traced any more


class PipeWriter:
    """Writing end. It must not block: a worker may be stopped meanwhile."""

    def __init__(self, fd: int) -> None:
        """`fd` is made non-blocking; the caller closes it."""
        self._fd = fd
        os.set_blocking(fd, False)
        # This may exceed an unprivileged user's limit: then the pipe stays at 64 KiB.
        with contextlib.suppress(OSError):
            fcntl.fcntl(fd, _F_SETPIPE_SZ, _PIPE_BYTES)
        self._waiting: deque[bytes] = deque()
        self._bytes = 0
        self._lost = 0

    @property
    def waiting(self) -> bool:
        """True if some records are not written yet."""
        return bool(self._waiting)

    def put(self, channel: Channel, record: bytes) -> None:
        """Keep the record until flush(); drop and count it if too much is waiting."""
        if self._bytes > _MAX_WAITING_BYTES:
            self._lost += 1
            return
        framed = _HEAD.pack(len(record), channel) + record
        self._waiting.append(framed)
        self._bytes += len(framed)

    def flush(self, timeout_s: float = 0.0) -> None:
        """Write as much as the pipe takes, waiting up to `timeout_s` for room.

        Raises BrokenPipeError if the reader is gone.
        """
        while self._waiting or self._lost:
            if self._lost and self._bytes <= _MAX_WAITING_BYTES // 2:
                lost, self._lost = self._lost, 0
                self.put(Channel.LOST, lost.to_bytes(8, "little"))
            try:
                written = os.write(self._fd, self._waiting[0])
            except BlockingIOError:
                if timeout_s and _wait_ready(self._fd, select.POLLOUT, timeout_s):
                    continue
                return
            except OSError as exc:
                if exc.errno == errno.EPIPE:
                    raise BrokenPipeError("cannot write to the pipe: its reader has ended") from exc
                raise
            self._bytes -= written
            if written == len(self._waiting[0]):
                self._waiting.popleft()
            else:
                self._waiting[0] = self._waiting[0][written:]


class PipeReader:
    """Reading end."""

    def __init__(self, fd: int) -> None:
        """`fd` is made non-blocking; the caller closes it."""
        self._fd = fd
        os.set_blocking(fd, False)
        self._rest = b""
        self.ended = False  # the writer is gone

    def records(self, timeout_s: float) -> list[tuple[Channel, bytes]]:
        """Return the complete records received, waiting up to `timeout_s` for data."""
        if not self.ended and timeout_s > 0:
            _wait_ready(self._fd, select.POLLIN, timeout_s)
        pieces = [self._rest]
        while not self.ended:
            try:
                piece = os.read(self._fd, _READ_BYTES)
            except BlockingIOError:
                break
            self.ended = not piece
            pieces.append(piece)
        content = b"".join(pieces)
        found, at = [], 0
        while at + _HEAD.size <= len(content):
            size, channel = _HEAD.unpack_from(content, at)
            if at + _HEAD.size + size > len(content):
                break
            found.append((Channel(channel), content[at + _HEAD.size : at + _HEAD.size + size]))
            at += _HEAD.size + size
        self._rest = content[at:]
        return found


def _wait_ready(fd: int, what: int, timeout_s: float) -> bool:
    poll = select.poll()
    poll.register(fd, what)
    return bool(poll.poll(timeout_s * 1000))
