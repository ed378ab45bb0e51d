"""The tables of a recording that say in which call stack a request grew.

A stack is a row that names its innermost frame and the stack of the caller, so that stacks share what
they have in common; growth names the innermost.
"""

from __future__ import annotations

import hashlib
import sqlite3
import struct
import weakref
from collections.abc import Callable, Iterator
from itertools import groupby
from operator import itemgetter
from typing import Any, Generic, TypeVar

from tracer.facts import STACK_LOST, Frame, FrameKind, Growth, Metric, Stack
from tracer.recording.integers import saturated

# Distinct frames, and stacks, that are recorded: a script may make up function names without end.
_MOST = 500_000
# Of those, how many numbers a writer has in memory, and of how many frames whole stacks, each twice: some 25 MB.
_MOST_STACK_NUMBERS = 25_000
_MOST_FRAME_NUMBERS = 10_000
_MOST_STACKED = 250_000
_TEMPORARY = ""  # SQLite: a file that has no name any more when it is open, in $SQLITE_TMPDIR, $TMPDIR or /var/tmp
_MOST_FRAMES = 1025  # of one stack, when read, one mark included: a crafted file may have a cycle
_MOST_KNOWN = 4_000_000  # frames of stacks that are kept together, when read
_PAIR = struct.Struct(">qq")  # in the order of the parents
_KINDS = frozenset(kind.value for kind in FrameKind)

_Key = TypeVar("_Key")


class StackWriter:
    """Gives each frame and each stack its number and keeps the rows until they are written."""

    def __init__(self) -> None:
        self._frames: _Numbers[Frame] = _Numbers(_MOST_FRAME_NUMBERS, _digest)
        self._stacks: _Numbers[tuple[int, int]] = _Numbers(_MOST_STACK_NUMBERS, _pair)  # (parent or 0, frame)
        self._ids: dict[Stack, int] = {}  # those used recently
        self._older_ids: dict[Stack, int] = {}
        self._stacked = 0  # the room that _ids takes, in frames
        self._new_frames: list[tuple[Any, ...]] = []
        self._new_stacks: list[tuple[int, int | None, int]] = []
        self._growths: list[tuple[Any, ...]] = []
        self.refused = 0  # growths whose stack there was no room for, since last asked

    @property
    def pending(self) -> bool:
        """True if some growth is not written yet."""
        return bool(self._growths)

    def add(self, request: int, growth: Growth) -> None:
        """Take the growth of the request with that id. Ids decrease only for Metric.RETAINED, which comes late."""
        stack = self._id(growth.stack)
        if stack is None:
            self.refused += 1
            stack = self._id((STACK_LOST,))
        if stack is not None:
            self._growths.append((request, stack, growth.metric, growth.bytes, growth.samples))

    def write(self, connection: sqlite3.Connection, up_to: int) -> None:
        """Write what is new, for requests up to that id. Call in a transaction."""
        frames = "INSERT INTO frame VALUES (?, ?, CAST(? AS TEXT), CAST(? AS TEXT), ?)"
        connection.executemany(frames, self._new_frames)
        connection.executemany("INSERT INTO stack VALUES (?, ?, ?)", self._new_stacks)
        due = next((at for at, row in enumerate(self._growths) if row[0] > up_to), len(self._growths))
        connection.executemany("INSERT INTO growth VALUES (?, ?, ?, ?, ?)", self._growths[:due])
        self._written = due

    def saturate(self) -> None:
        """Make every integer that is not written yet fit in 64 bits."""
        self._new_frames = [saturated(row) for row in self._new_frames]
        self._growths = [saturated(row) for row in self._growths]

    def written(self) -> None:
        """Forget the rows of the last write(), which have been committed."""
        self._new_frames.clear()
        self._new_stacks.clear()
        del self._growths[: self._written]

    def _id(self, stack: Stack) -> int | None:
        found = self._ids.get(stack)
        if found is None:
            found = self._older_ids.get(stack) or self._number(stack)
            if found is not None:
                self._keep(stack, found)
        return found

    def _keep(self, stack: Stack, number: int) -> None:
        self._ids[stack] = number
        self._stacked += len(stack) + 20  # an entry of a dict is as large as so many
        if self._stacked > _MOST_STACKED:
            self._older_ids, self._ids, self._stacked = self._ids, {}, 0

    def _number(self, stack: Stack) -> int | None:
        room = self._stacks.count < _MOST or stack == (STACK_LOST,)
        at: int | None = None
        new = False  # whether the frame is, or the stack so far: then it needs not be looked for in what there is
        for frame in stack:
            number = self._frames.get(frame)
            if number is None:
                if not room:
                    return None
                new = True
                number = self._frames.add(frame)
                self._new_frames.append((number, frame.kind, _raw(frame.name), _raw(frame.file), frame.line))
            key = at or 0, number
            known = None if new else self._stacks.get(key)
            if known is None:
                if not room:
                    return None
                new = True
                known = self._stacks.add(key)
                self._new_stacks.append((known, at, number))
            at = known
        return at


class _Numbers(Generic[_Key]):
    """Numbers from 1. Those used recently are in memory, the others in a temporary file.

    Where that file cannot be created, they are forgotten. A key then gets a second number, which readers
    do not mind, and there is room for fewer keys.
    """

    def __init__(self, most: int, raw: Callable[[_Key], bytes]) -> None:
        """`raw` tells keys apart in the file."""
        self.count = 0
        self._most = most
        self._raw = raw
        self._latest: dict[_Key, int] = {}
        self._older: dict[_Key, int] = {}
        self._file: sqlite3.Connection | None = None
        self._broken = False

    def get(self, key: _Key) -> int | None:
        number = self._latest.get(key)
        if number is None:
            number = self._older.get(key) or self._filed(key)
            if number is not None:
                self._keep(key, number)
        return number

    def add(self, key: _Key) -> int:
        self.count += 1
        self._keep(key, self.count)
        return self.count

    def _keep(self, key: _Key, number: int) -> None:
        self._latest[key] = number
        if len(self._latest) >= self._most:
            if self._older and not self._broken:
                self._put_away(self._older)
            self._older, self._latest = self._latest, {}

    def _put_away(self, numbers: dict[_Key, int]) -> None:
        try:
            if self._file is None:
                self._file = sqlite3.connect(_TEMPORARY, isolation_level=None)
                weakref.finalize(self, self._file.close)
                self._file.execute("PRAGMA journal_mode = OFF")
                self._file.execute("CREATE TABLE number (raw BLOB PRIMARY KEY, number INTEGER) WITHOUT ROWID")
            self._file.execute("BEGIN")
            rows = ((self._raw(key), number) for key, number in numbers.items())
            self._file.executemany("INSERT OR IGNORE INTO number VALUES (?, ?)", rows)
            self._file.execute("COMMIT")
        except sqlite3.Error:
            self._broken = True

    def _filed(self, key: _Key) -> int | None:
        if self._file is None or self._broken:
            return None
        try:
            row = self._file.execute("SELECT number FROM number WHERE raw = ?", (self._raw(key),)).fetchone()
        except sqlite3.Error:
            self._broken = True
            return None
        return None if row is None else int(row[0])


def _digest(frame: Frame) -> bytes:
    return hashlib.blake2b(repr(tuple(frame)).encode(), digest_size=16).digest()


def _pair(key: tuple[int, int]) -> bytes:
    return _PAIR.pack(*key)


def _raw(text: str | None) -> bytes | None:
    """SQLite's UTF-8 knows no lone surrogates."""
    return None if text is None else text.encode("utf-8", "surrogateescape")


class StackReader:
    """Reads the tables again. Its methods raise ValueError for what no Writer wrote."""

    def __init__(self, connection: sqlite3.Connection, schema: int) -> None:
        self._connection = connection
        self._metric = "weight" if schema == 2 else "metric"
        self._frames = {row[0]: Frame._make(row[1:]) for row in connection.execute("SELECT * FROM frame")}
        self._stacks = {row[0]: (row[1], row[2]) for row in connection.execute("SELECT * FROM stack")}
        if any(frame.kind not in _KINDS for frame in self._frames.values()):
            raise ValueError("a frame of an unknown kind")
        self._known: dict[int, Stack] = {}
        self._known_frames = 0

    def has(self, metric: Metric) -> bool:
        """True if there is growth of that metric."""
        wanted = f"SELECT EXISTS (SELECT 1 FROM growth WHERE {self._metric} = ?)"
        return bool(self._connection.execute(wanted, (metric.value,)).fetchone()[0])

    def growths(self, metric: Metric) -> Iterator[tuple[int, list[tuple[Stack, int, int]]]]:
        """Yield (request id, [(stack, bytes, samples)]) for every request that grew by that metric, in their order."""
        rows = self._connection.execute(
            f"SELECT request, stack, bytes, samples FROM growth WHERE {self._metric} = ? ORDER BY request, rowid",
            (metric.value,),
        )
        for request, grown in groupby(rows, key=itemgetter(0)):
            yield request, [(self._stack(stack), size, samples) for _, stack, size, samples in grown]

    def _stack(self, number: int) -> Stack:
        known = self._known.get(number)
        if known is not None:
            return known
        frames: list[Frame] = []
        at: int | None = number
        while at is not None:
            if at not in self._stacks or len(frames) >= _MOST_FRAMES:
                raise ValueError("a stack that does not end")
            at, frame = self._stacks[at]
            if frame not in self._frames:
                raise ValueError("a stack of a frame that is not there")
            frames.append(self._frames[frame])
        found = tuple(reversed(frames))
        self._known_frames += len(found)
        if self._known_frames > _MOST_KNOWN:
            self._known, self._known_frames = {}, len(found)
        self._known[number] = found
        return found
