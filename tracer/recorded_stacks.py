"""The tables of a recording that say in which call stack a request grew.

A stack is a row that names its innermost frame and the stack of the caller, so that stacks share what
they have in common; growth names the innermost.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from itertools import groupby
from operator import itemgetter
from typing import Any

from tracer.facts import STACK_LOST, Frame, FrameKind, Growth, Weight

TABLES = {
    "frame": """CREATE TABLE frame (
  id INTEGER PRIMARY KEY,
  kind TEXT NOT NULL,
  name TEXT NOT NULL,
  file TEXT,
  line INTEGER
) STRICT""",
    "stack": """CREATE TABLE stack (
  id INTEGER PRIMARY KEY,
  parent INTEGER,
  frame INTEGER NOT NULL
) STRICT""",
    "growth": """CREATE TABLE growth (
  request INTEGER NOT NULL,
  stack INTEGER NOT NULL,
  weight TEXT NOT NULL,
  bytes INTEGER NOT NULL,
  samples INTEGER NOT NULL
) STRICT""",
}
# Distinct frames, and stacks, that are kept: a script may make up function names without end.
_MOST = 500_000
_MOST_FRAMES = 1025  # of one stack, when read, one mark included: a forged file may have a cycle
_MOST_KNOWN = 4_000_000  # frames of stacks that are kept together, when read
_KINDS = frozenset(kind.value for kind in FrameKind)

Stack = tuple[Frame, ...]


class StackWriter:
    """Gives each frame and stack its number, and keeps the rows until they are written."""

    def __init__(self) -> None:
        self._frames: dict[Frame, int] = {}
        self._stacks: dict[tuple[int | None, int], int] = {}
        self._ids: dict[Stack, int] = {}
        self._new_frames: list[tuple[Any, ...]] = []
        self._new_stacks: list[tuple[int, int | None, int]] = []
        self._growths: list[tuple[int, int, str, int, int]] = []
        self.refused = 0  # growths whose stack there was no room for, since last asked

    @property
    def pending(self) -> bool:
        return bool(self._growths)

    def add(self, request: int, growth: Growth) -> None:
        """`request` is the id of the row the growth belongs to; ids never decrease."""
        stack = self._id(growth.stack)
        if stack is None:
            self.refused += 1
            stack = self._id((STACK_LOST,))
        if stack is not None:
            self._growths.append((request, stack, growth.weight, growth.bytes, growth.samples))

    def write(self, connection: sqlite3.Connection, up_to: int) -> None:
        """Writes what is new, as far as it belongs to requests up to that id. Call in a transaction."""
        frames = "INSERT INTO frame VALUES (?, ?, CAST(? AS TEXT), CAST(? AS TEXT), ?)"
        connection.executemany(frames, self._new_frames)
        connection.executemany("INSERT INTO stack VALUES (?, ?, ?)", self._new_stacks)
        due = next((at for at, row in enumerate(self._growths) if row[0] > up_to), len(self._growths))
        connection.executemany("INSERT INTO growth VALUES (?, ?, ?, ?, ?)", self._growths[:due])
        self._written = due

    def written(self) -> None:
        """What write() wrote has been committed."""
        self._new_frames.clear()
        self._new_stacks.clear()
        del self._growths[: self._written]

    def _id(self, stack: Stack) -> int | None:
        found = self._ids.get(stack)
        if found is not None:
            return found
        room = len(self._stacks) < _MOST or stack == (STACK_LOST,)
        at: int | None = None
        for frame in stack:
            if not room and frame not in self._frames:
                return None
            key = at, self._frame(frame)
            known = self._stacks.get(key)
            if known is None:
                if not room:
                    return None
                known = self._stacks[key] = len(self._stacks) + 1
                self._new_stacks.append((known, *key))
            at = known
        if at is not None and len(self._ids) < _MOST:
            self._ids[stack] = at
        return at

    def _frame(self, frame: Frame) -> int:
        known = self._frames.get(frame)
        if known is None:
            known = self._frames[frame] = len(self._frames) + 1
            self._new_frames.append((known, frame.kind, _raw(frame.name), _raw(frame.file), frame.line))
        return known


def _raw(text: str | None) -> bytes | None:
    """SQLite's UTF-8 knows no lone surrogates."""
    return None if text is None else text.encode("utf-8", "surrogateescape")


class StackReader:
    """Reads the tables again. ValueError for what no Writer wrote."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection
        self._frames = {row[0]: Frame._make(row[1:]) for row in connection.execute("SELECT * FROM frame")}
        self._stacks = {row[0]: (row[1], row[2]) for row in connection.execute("SELECT * FROM stack")}
        if any(frame.kind not in _KINDS for frame in self._frames.values()):
            raise ValueError("a frame of an unknown kind")
        self._known: dict[int, Stack] = {}
        self._known_frames = 0

    def growths(self, weight: Weight) -> Iterator[tuple[int, list[tuple[Stack, int, int]]]]:
        """(request id, [(stack, bytes, samples)]) of every request that grew by that weight, in their order."""
        rows = self._connection.execute(
            "SELECT request, stack, bytes, samples FROM growth WHERE weight = ? ORDER BY request, rowid",
            (weight.value,),
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
