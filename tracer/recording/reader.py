"""Reads a recording, of this schema or an older one. Needs neither root nor PHP nor a kernel.

A recording may come from anywhere: it is opened read-only, its tables have to be those of its schema to the letter,
and texts in it are not trusted to be UTF-8.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import sqlite3
import stat
import urllib.parse
from collections.abc import Iterable, Iterator
from types import TracebackType
from typing import Any

from tracer.errors import RecordingError
from tracer.facts import Loss, Metric, Request, Worker
from tracer.recording.request_tables import check_ids
from tracer.recording.schema import APPLICATION_ID, SCHEMA, SCHEMAS
from tracer.recording.stack_tables import Stack, StackReader


@dataclasses.dataclass(frozen=True, slots=True)
class Totals:
    """How much a recording holds, and how much of what happened it does not."""

    requests: int
    incomplete: int  # requests of which only a part was seen
    lost: int
    workers: int
    workers_died: int  # killed by a signal


class Reader:
    """One recording, opened for reading. Use as a context manager."""

    def __init__(self, path: str) -> None:
        """RecordingError if it is no recording, is of a newer schema, is damaged, or cannot be read."""
        self.path = path
        head = _head(path)
        if not head:
            raise RecordingError(f"the recording {path} is empty: phptrace was killed before it wrote anything")
        if not head.startswith(b"SQLite format 3\0") or int.from_bytes(head[68:72], "big") != APPLICATION_ID:
            raise RecordingError(f"{path} is not a phptrace recording")
        self._schema = schema = int.from_bytes(head[60:64], "big")
        if schema > SCHEMA:
            raise RecordingError(
                f"{path} has schema {schema}; this phptrace reads up to {SCHEMA}. Read it with a newer phptrace."
            )
        page, pages = int.from_bytes(head[16:18], "big"), int.from_bytes(head[28:32], "big")
        # With a journal beside it, the rest may be there: a disk that is full, or a writer at work.
        if not os.path.exists(path + "-wal") and os.path.getsize(path) < (65536 if page == 1 else page) * pages:
            raise RecordingError(f"{path} is damaged or cut short")
        self._connection = self._open(path, in_wal_mode=head[18] == 2)
        try:
            self.meta: dict[str, Any] = self._checked()
        except BaseException:
            self._connection.close()
            raise

    def _checked(self) -> dict[str, Any]:
        """The entries of `meta`, when the file has been found to be what it says."""
        with self.reading():
            found = dict(self._connection.execute("SELECT name, sql FROM sqlite_schema WHERE sql IS NOT NULL"))
            if found != SCHEMAS.get(self._schema):
                raise RecordingError(
                    f"{self.path} is not a phptrace recording: its tables are not those of schema {self._schema}"
                )
            # STRICT holds for who writes through SQLite; a forged file may have any type in any column.
            (verdict,) = self._connection.execute("PRAGMA quick_check(1)").fetchone()
            if verdict != "ok":
                raise RecordingError(f"{self.path} is damaged: {verdict}")
            if self._schema >= 3:
                check_ids(self._connection)
            # Fields that an older schema lacks are NULL.
            self._columns = {row[1] for row in self._connection.execute("PRAGMA table_info(request)")}
            return {name: json.loads(value) for name, value in self._connection.execute("SELECT name, value FROM meta")}

    def requests(self, columns: Iterable[str] = Request._fields) -> Iterator[Request]:
        """Every request, in the order they ended; fields not in `columns` are None, which reads faster."""
        make = Request._make
        with self.reading():
            for row in self._connection.execute(f"SELECT {self._selected(columns)} FROM request ORDER BY id"):
                yield make(row)

    def _selected(self, columns: Iterable[str]) -> str:
        wanted = self._columns.intersection(columns)
        return ", ".join(name if name in wanted else "NULL" for name in Request._fields)

    @property
    def has_stacks(self) -> bool:
        """Whether it was recorded with call stacks; those may have been none."""
        return "stacks" in self.meta

    def grown(self, metric: Metric, columns: Iterable[str]) -> Iterator[tuple[Request, list[tuple[Stack, int, int]]]]:
        """Every request, as requests() has it, with what it grew by: (stack, bytes, samples)."""
        with self.reading():
            growths = StackReader(self._connection, self._schema).growths(metric) if self._schema >= 2 else iter(())
            due = next(growths, None)
            for number, *row in self._connection.execute(
                f"SELECT id, {self._selected(columns)} FROM request ORDER BY id"
            ):
                found: list[tuple[Stack, int, int]] = []
                if due is not None and due[0] == number:
                    found = due[1]
                    due = next(growths, None)
                yield Request._make(row), found
            if due is not None:
                raise ValueError("growth of a request that is not there")

    def workers(self) -> list[Worker]:
        with self.reading():
            return [
                Worker._make(row) for row in self._connection.execute(f"SELECT {', '.join(Worker._fields)} FROM worker")
            ]

    def losses(self) -> list[Loss]:
        with self.reading():
            return [Loss._make(row) for row in self._connection.execute("SELECT at_ns, lost, why FROM loss")]

    def totals(self) -> Totals:
        with self.reading():
            one = self._connection.execute
            requests, incomplete = one(
                "SELECT count(*), count(*) FILTER (WHERE anon_before IS NULL OR anon_after IS NULL) FROM request"
            ).fetchone()
            (lost,) = one("SELECT coalesce(sum(lost), 0) FROM loss").fetchone()
            workers, died = one("SELECT count(*), count(*) FILTER (WHERE exit LIKE 'killed:%') FROM worker").fetchone()
            return Totals(requests, incomplete, lost, workers, died)

    @property
    def ended(self) -> bool:
        """Whether the recording came to its end: otherwise phptrace was killed, or its disk full, or it is at work."""
        return "ended" in self.meta

    def close(self) -> None:
        self._connection.close()

    def __enter__(self) -> Reader:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @contextlib.contextmanager
    def reading(self) -> Iterator[None]:
        """Turns what SQLite finds wrong with the file into a RecordingError."""
        try:
            yield
        except (sqlite3.Error, ValueError, TypeError, RecursionError) as exc:
            if os.path.exists(self.path + "-wal") and "unable to open" in str(exc):
                raise RecordingError(
                    f"{self.path} was not ended, and SQLite has to make a file beside it to read its journal:"
                    f" copy it and {self.path}-wal to a folder of your own"
                ) from exc
            raise RecordingError(f"{self.path} is damaged or cut short: {exc}") from exc

    def _open(self, path: str, *, in_wal_mode: bool) -> sqlite3.Connection:
        with self.reading():
            uri = f"file:{urllib.parse.quote(os.fsencode(os.path.abspath(path)))}?mode=ro"
            # SQLite would make files beside one in WAL mode; where it may not, there can be no writer of ours.
            may_write = os.access(os.path.dirname(path) or ".", os.W_OK)
            if in_wal_mode and not may_write and not os.path.exists(path + "-wal"):
                uri += "&immutable=1"
            connection = sqlite3.connect(uri, uri=True, isolation_level=None, timeout=5.0)
            connection.text_factory = lambda raw: raw.decode("utf-8", "surrogateescape")
            connection.execute("PRAGMA trusted_schema = OFF")
            connection.execute("PRAGMA cell_size_check = ON")
            connection.execute("PRAGMA query_only = ON")
            return connection


def _head(path: str) -> bytes:
    """The file's first 100 bytes: SQLite's header."""
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):
            raise RecordingError(f"there is no recording {path}: that is not a file")
        with open(path, "rb") as file:
            return file.read(100)
    except FileNotFoundError as exc:
        raise RecordingError(f"there is no recording {path}") from exc
    except (OSError, ValueError) as exc:
        reason = exc.strerror if isinstance(exc, OSError) else exc
        raise RecordingError(f"cannot read the recording {path}: {reason}") from exc
