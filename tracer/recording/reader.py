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
from array import array
from collections.abc import Iterable, Iterator, Sequence
from types import TracebackType
from typing import Any

from tracer.errors import RecordingError
from tracer.facts import Ending, Footprint, Fork, Look, Loss, Metric, Note, Release, Request, Stack, Worker
from tracer.recording.request_tables import check_ids
from tracer.recording.schema import APPLICATION_ID, SCHEMA, SCHEMAS, SIDE_FILES
from tracer.recording.stack_tables import StackReader

# Texts that are kept, and the bytes of the longest: most rows have the same host, pool, container and script as others.
_MOST_TEXTS, _LONGEST_TEXT = 16_384, 512
_COPY = "Copy it again, with its -wal file if there is one, or record again."


@dataclasses.dataclass(frozen=True, slots=True)
class Totals:
    """Number of facts that a recording holds, and of those that it lacks."""

    requests: int
    incomplete: int  # requests whose start or end was not seen
    counted: int  # requests whose native memory was counted
    lost: int  # facts that could not be delivered
    workers: int
    workers_died: int  # killed by a signal


class _Texts(dict[bytes, str]):
    """The texts of a file by their bytes. One that comes again is the same object: it is neither decoded nor hashed."""

    def __missing__(self, raw: bytes) -> str:
        text = raw.decode("utf-8", "surrogateescape")
        if len(raw) <= _LONGEST_TEXT:
            if len(self) >= _MOST_TEXTS:
                self.clear()
            self[raw] = text
        return text


class Reader:
    """One recording, opened for reading. Use as a context manager."""

    def __init__(self, path: str) -> None:
        """Open the recording.

        Raises RecordingError if it is not a recording, has a newer schema, is damaged, or cannot be read.
        """
        self.path = path
        head = _head(path)
        self._file = os.path.realpath(path)  # SQLite follows links, and reads what is beside the file itself
        if not head:
            raise RecordingError(
                f"cannot read {path}: it is empty, since phptrace was killed before it wrote anything. Record again."
            )
        if not head.startswith(b"SQLite format 3\0") or int.from_bytes(head[68:72], "big") != APPLICATION_ID:
            raise RecordingError(
                f"cannot read {path}: it is not a phptrace recording. Name a file that `phptrace record` wrote."
            )
        self._schema = schema = int.from_bytes(head[60:64], "big")
        if schema > SCHEMA:
            raise RecordingError(
                f"cannot read {path}: it has schema {schema}, and this phptrace reads up to {SCHEMA}."
                " Use a newer phptrace."
            )
        page, pages = int.from_bytes(head[16:18], "big"), int.from_bytes(head[28:32], "big")
        self._refuse_side_files()
        # With a journal beside it, the rest may be there: the disk is full, or the writer is still running.
        if not os.path.exists(self._file + "-wal") and os.path.getsize(path) < (65536 if page == 1 else page) * pages:
            raise RecordingError(f"cannot read {path}: it is damaged or cut short. {_COPY}")
        self._connection = self._open(self._file, in_wal_mode=head[18] == 2)
        try:
            self.meta: dict[str, Any] = self._checked()
        except BaseException:
            self._connection.close()
            raise

    def _refuse_side_files(self) -> None:
        """RecordingError if what SQLite would read beside the file is no file: a FIFO would hold it up for ever."""
        for name in (self._file + suffix for suffix in SIDE_FILES):
            with contextlib.suppress(FileNotFoundError):
                if not stat.S_ISREG(os.lstat(name).st_mode):
                    raise RecordingError(
                        f"cannot read {self.path}: {name} is not a regular file. Copy the recording without it."
                    )

    def _checked(self) -> dict[str, Any]:
        """Check that the file is what it claims to be and return the entries of `meta`."""
        with self.reading():
            found = dict(self._connection.execute("SELECT name, sql FROM sqlite_schema WHERE sql IS NOT NULL"))
            if found != SCHEMAS.get(self._schema):
                raise RecordingError(
                    f"cannot read {self.path}: it is not a phptrace recording (its tables are not those of schema"
                    f" {self._schema}). Name a file that `phptrace record` wrote."
                )
            # STRICT binds only what is written through SQLite; a crafted file may have any type in any column.
            (verdict,) = self._connection.execute("PRAGMA quick_check(1)").fetchone()
            if verdict != "ok":
                raise RecordingError(f"cannot read {self.path}: it is damaged ({verdict}). {_COPY}")
            if self._schema >= 3:
                check_ids(self._connection)
            # Fields that an older schema lacks are NULL.
            self._columns = {row[1] for row in self._connection.execute("PRAGMA table_info(request)")}
            return {name: json.loads(value) for name, value in self._connection.execute("SELECT name, value FROM meta")}

    def requests(self, columns: Iterable[str] = Request._fields) -> Iterator[Request]:
        """Yield every request in the order of their ends. Fields not in `columns` are None, which reads faster.

        Raises RecordingError if the file turns out to be damaged.
        """
        make = Request._make
        with self.reading():
            for row in self._connection.execute(f"SELECT {self._selected(columns)} FROM request ORDER BY id"):
                yield make(row)

    @property
    def has_freed(self) -> bool:
        """True if a request freed blocks of an earlier one."""
        if self._schema < 3:
            return False
        with self.reading():
            return bool(self._connection.execute("SELECT EXISTS (SELECT 1 FROM freed_earlier)").fetchone()[0])

    def requests_and_freed(self, columns: Iterable[str]) -> Iterator[tuple[Request, Sequence[Release]]]:
        """Yield every request, as requests() does, with what it freed of the blocks of earlier ones."""
        with self.reading():
            one = self._connection.execute
            freed: Iterator[tuple[int, int, int, int]] = iter(())
            if self._schema >= 3:
                freed = one("SELECT request, owner_started_ns, resized, bytes FROM freed_earlier ORDER BY request")
            due = next(freed, None)
            requests = map(Request._make, one(f"SELECT {self._selected(columns)} FROM request ORDER BY id"))
            if due is None:
                for request in requests:
                    yield request, ()
                return
            for (number,), request in zip(one("SELECT id FROM request ORDER BY id"), requests, strict=True):
                releases: list[Release] = []
                while due is not None and due[0] <= number:
                    _, owner, resized, size = due
                    releases.append(Release(request.pid, owner, size, 0, request.started_ns, bool(resized)))
                    due = next(freed, None)
                yield request, releases

    def pages(self) -> Iterator[tuple[str | None, str | None, int]]:
        """Yield (uri, script, requests) for all requests, of which those with the same page come together.

        It takes a tenth of the time of requests(). A pair of uri and script may come several times.
        """
        with self.reading():
            if self._schema < 3:
                wanted = "SELECT uri, script, count(*) FROM request GROUP BY uri, script"
                yield from self._connection.execute(wanted)
                return
            (pages,) = self._connection.execute("SELECT count(*) FROM page").fetchone()
            counts = array("Q", bytes(8 * (pages + 1)))  # by id: check_ids() has seen that there is no gap
            for (page,) in self._connection.execute("SELECT page FROM request_row"):
                counts[page] += 1
            for page, uri, script in self._connection.execute(
                "SELECT page.id, uri, name FROM page LEFT JOIN script ON script.id = page.script ORDER BY page.id"
            ):
                if counts[page]:
                    yield uri, script, counts[page]

    def _selected(self, columns: Iterable[str]) -> str:
        wanted = self._columns.intersection(columns)
        return ", ".join(name if name in wanted else "NULL" for name in Request._fields)

    @property
    def has_stacks(self) -> bool:
        """True if call stacks were recorded, even if there were none."""
        return "stacks" in self.meta

    def has_growth(self, metric: Metric) -> bool:
        """True if some call stack grew by that metric."""
        with self.reading():
            return self._schema >= 2 and StackReader(self._connection, self._schema).has(metric)

    @property
    def counts_native(self) -> bool:
        """True if some requests' native allocations were counted."""
        with self.reading():
            wanted = "SELECT EXISTS (SELECT 1 FROM request WHERE native_kept IS NOT NULL)"
            return "native_kept" in self._columns and bool(self._connection.execute(wanted).fetchone()[0])

    def grown(self, metric: Metric, columns: Iterable[str]) -> Iterator[tuple[Request, list[tuple[Stack, int, int]]]]:
        """Yield every request, as requests() does, with its growth by call stack: [(stack, bytes, samples)]."""
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
        """The last known state of every worker."""
        columns = ", ".join(Worker._fields[: None if self._schema >= 3 else -1])
        with self.reading():
            found = [Worker(*row) for row in self._connection.execute(f"SELECT {columns} FROM worker")]
        if self._schema < 3:
            killed = f"{Ending.KILLED.value}:KILL"
            found = [one._replace(notes=Note.OOM_UNKNOWN.value) if one.exit == killed else one for one in found]
        return found

    def forks(self) -> list[Fork]:
        """Every process that a worker forked and that served nothing; none before schema 3."""
        if self._schema < 3:
            return []
        with self.reading():
            rows = self._connection.execute(f"SELECT {', '.join(Fork._fields)} FROM forked ORDER BY rowid")
            return [Fork._make(row) for row in rows]

    def looks(self) -> list[Look]:
        """Every look at a worker, in their order; none before schema 3."""
        if self._schema < 3:
            return []
        with self.reading():
            rows = self._connection.execute(f"SELECT {', '.join(Look._fields)} FROM look ORDER BY rowid")
            found = [Look._make(row) for row in rows]
            return [look._replace(settled=bool(look.settled), in_accept=bool(look.in_accept)) for look in found]

    def footprints(self) -> Iterator[Footprint]:
        """Yield every sample of the memory of workers and masters, in their order; none before schema 3."""
        if self._schema < 3:
            return
        with self.reading():
            rows = self._connection.execute(f"SELECT {', '.join(Footprint._fields)} FROM footprint ORDER BY rowid")
            for row in rows:
                found = Footprint._make(row)
                yield found._replace(idle=bool(found.idle))

    def losses(self) -> list[Loss]:
        """Every loss, in the order they were noticed."""
        with self.reading():
            return [Loss._make(row) for row in self._connection.execute("SELECT at_ns, lost, why FROM loss")]

    @property
    def schema(self) -> int:
        """The version of its tables."""
        return self._schema

    @property
    def identity(self) -> tuple[int, int]:
        """(device, inode): equal for two names of one file."""
        found = os.stat(self.path)
        return found.st_dev, found.st_ino

    @property
    def size(self) -> int:
        """Bytes on disk, with the journal that a recording has until it is closed."""
        return sum(os.path.getsize(path) for path in (self._file, self._file + "-wal") if os.path.exists(path))

    def span(self) -> tuple[int, int] | None:
        """When the first request began and the last one ended, in Unix time; None if that is not known."""
        with self.reading():
            first, last = self._connection.execute(
                "SELECT min(started_ns), max(started_ns + coalesce(duration_ns, 0)) FROM request"
            ).fetchone()
            # What exceeds 64 bits is a float.
            return None if first is None else (first, min(int(last), (1 << 63) - 1))

    def totals(self) -> Totals:
        """Count what the recording holds and lacks."""
        with self.reading():
            one = self._connection.execute
            counted = "native_kept IS NOT NULL" if "native_kept" in self._columns else "FALSE"
            requests, incomplete, native = one(
                "SELECT count(*), count(*) FILTER (WHERE anon_before IS NULL OR anon_after IS NULL OR ending = ?),"
                f" count(*) FILTER (WHERE {counted}) FROM request",
                (Ending.CUT_OFF.value,),
            ).fetchone()
            (lost,) = one("SELECT coalesce(sum(lost), 0) FROM loss").fetchone()
            workers, died = one("SELECT count(*), count(*) FILTER (WHERE exit LIKE 'killed:%') FROM worker").fetchone()
            return Totals(requests, incomplete, native, lost, workers, died)

    @property
    def ended(self) -> bool:
        """True if the recording was closed; False if phptrace was killed, ran out of disk, or is still writing."""
        return "ended" in self.meta

    def close(self) -> None:
        """Close the file."""
        self._connection.close()

    def __enter__(self) -> Reader:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @contextlib.contextmanager
    def reading(self) -> Iterator[None]:
        """Turn what SQLite finds wrong with the file into a RecordingError."""
        try:
            yield
        except (sqlite3.Error, ValueError, TypeError, RecursionError) as exc:
            if os.path.exists(self._file + "-wal") and "unable to open" in str(exc):
                raise RecordingError(
                    f"cannot read {self.path}: it was not closed, and SQLite has to create a file beside it to read its"
                    f" journal. Copy it and {self._file}-wal to a directory of your own."
                ) from exc
            raise RecordingError(f"cannot read {self.path}: it is damaged or cut short ({exc}). {_COPY}") from exc

    def _open(self, path: str, *, in_wal_mode: bool) -> sqlite3.Connection:
        with self.reading():
            uri = f"file:{urllib.parse.quote(os.fsencode(os.path.abspath(path)))}?mode=ro"
            # SQLite creates files beside a file in WAL mode. Where it may not, no writer of ours can be running.
            may_write = os.access(os.path.dirname(path) or ".", os.W_OK)
            if in_wal_mode and not may_write and not os.path.exists(path + "-wal"):
                uri += "&immutable=1"
            connection = sqlite3.connect(uri, uri=True, isolation_level=None, timeout=5.0)
            connection.text_factory = _Texts().__getitem__
            connection.execute("PRAGMA trusted_schema = OFF")
            connection.execute("PRAGMA cell_size_check = ON")
            connection.execute("PRAGMA query_only = ON")
            return connection


def _head(path: str) -> bytes:
    """The first 100 bytes of the file: SQLite's header. Raises RecordingError."""
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):
            raise RecordingError(
                f"cannot read {path}: it is not a regular file. Name a file that `phptrace record` wrote."
            )
        with open(path, "rb") as file:
            return file.read(100)
    except FileNotFoundError as exc:
        raise RecordingError(f"cannot read {path}: there is no such file. Check its name.") from exc
    except (OSError, ValueError) as exc:
        reason = exc.strerror if isinstance(exc, OSError) else exc
        raise RecordingError(f"cannot read {path}: {reason}. Check its name and permissions.") from exc
