"""One recording: a SQLite file that any SQL tool reads. Write, read, describe.

Written in one transaction a second in WAL mode, so that it can be read while it grows and is whole
up to the last second after a SIGKILL; a clean end folds the journal in and leaves a single file.
Reading needs neither root nor PHP nor a kernel. A recording may come from a stranger: it is opened
read-only, its schema has to be ours to the letter, and texts in it are not trusted to be UTF-8.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import sqlite3
import stat
import time
import urllib.parse
from collections.abc import Iterable, Iterator, Sequence
from types import TracebackType
from typing import Any

from tracer.errors import IncompleteError, RecordingError, UsageError
from tracer.facts import Fact, Growth, Loss, Metric, Request, Stack, Worker
from tracer.output_file import create
from tracer.recording.stack_tables import TABLES as STACK_TABLES
from tracer.recording.stack_tables import StackReader, StackWriter

SCHEMA = 2
SUFFIX = ".phptrace"
_STEP = 1000
# "PTRC": identifies the file as ours in SQLite's header (PRAGMA application_id).
_APPLICATION_ID = 0x50545243
_SIDE_FILES = ("-wal", "-shm", "-journal")

_TEXT = ("host", "pool", "method", "uri", "script", "ending", "notes")
_NOT_NULL = ("host", "pid", "nth", "ending")
_REQUEST_COLUMNS = ",\n  ".join(
    f"{name} {'TEXT' if name in _TEXT else 'INTEGER'}{' NOT NULL' if name in _NOT_NULL else ''}"
    for name in Request._fields
)
_TABLES = {
    "request": f"CREATE TABLE request (\n  id INTEGER PRIMARY KEY,\n  {_REQUEST_COLUMNS}\n) STRICT",
    "worker": """CREATE TABLE worker (
  pid INTEGER NOT NULL,
  start_ticks INTEGER,
  pool TEXT,
  php_version TEXT,
  born_ns INTEGER,
  died_ns INTEGER,
  exit TEXT,
  UNIQUE (pid, start_ticks)
) STRICT""",
    "loss": "CREATE TABLE loss (\n  at_ns INTEGER NOT NULL,\n  lost INTEGER NOT NULL,\n  why TEXT NOT NULL\n) STRICT",
    "meta": "CREATE TABLE meta (\n  name TEXT PRIMARY KEY,\n  value TEXT NOT NULL\n) STRICT",
}
# By schema: 2 added call stacks.
_TABLES_OF = {1: _TABLES, 2: {**_TABLES, **STACK_TABLES}}
# Text arrives as bytes: what is not UTF-8 must not fail, and must come back as it was.
_INSERT_REQUEST = (
    f"INSERT INTO request ({', '.join(Request._fields)}) VALUES ("
    + ", ".join("CAST(? AS TEXT)" if name in _TEXT else "?" for name in Request._fields)
    + ")"
)
_INSERT_WORKER = (
    "INSERT OR REPLACE INTO worker (pid, start_ticks, pool, php_version, born_ns, died_ns, exit)"
    " VALUES (?, ?, CAST(? AS TEXT), ?, ?, ?, ?)"
)
_TEXT_AT = tuple(Request._fields.index(name) for name in ("pool", "method", "uri", "script"))


class Writer:
    """Appends facts to a new recording. Use as a context manager; flush() now and then."""

    def __init__(self, path: str, meta: dict[str, Any], *, force: bool = False) -> None:
        """Creates the file, mode 0600, never through a symlink; nor does SQLite open its journals through one.

        UsageError if it exists and `force` is not given, or cannot be created. Under sudo it belongs
        to the user who called it, who will want to read it.
        """
        self.path = path
        self._requests: list[Sequence[Any]] = []
        self._others: list[Worker | Loss] = []
        self._added = 0  # requests, which is the id of the last
        self._last: tuple[int, int] | None = None  # its pid and nth
        self._stacks = StackWriter()
        self._connection: sqlite3.Connection | None = None
        inode = _create(path, force=force)
        with _writing(path):
            # Absolute, since to SQLite some names, as `:memory:`, are no files.
            connection = sqlite3.connect(os.path.abspath(path), isolation_level=None, timeout=5.0)
            self._connection = connection
            # Between creating and opening, somebody who owns the directory could have changed the name.
            if os.stat(path, follow_symlinks=False).st_ino != inode:
                raise UsageError(f"{path} was replaced while it was being created")
            # Safe against a killed process; a crash of the machine may cost the last seconds.
            connection.execute("PRAGMA synchronous = OFF")
            connection.execute("BEGIN")
            connection.execute(f"PRAGMA application_id = {_APPLICATION_ID}")
            for statement in _TABLES_OF[SCHEMA].values():
                connection.execute(statement)
            connection.execute(f"PRAGMA user_version = {SCHEMA}")
            rows = [(name, json.dumps(value)) for name, value in {"schema": SCHEMA, **meta}.items()]
            connection.executemany("INSERT INTO meta VALUES (?, ?)", rows)
            connection.execute("COMMIT")
            # Only now: so the file by itself says what it is, whenever this process is killed.
            connection.execute("PRAGMA journal_mode = WAL")

    def add(self, facts: Iterable[Fact]) -> None:
        """Takes the facts; they are on disk after the next flush(), or when there are many."""
        for fact in facts:
            if isinstance(fact, Request):
                self._requests.append(fact)
                self._added += 1
                self._last = fact.pid, fact.nth
            elif isinstance(fact, Growth):
                if self._last != (fact.pid, fact.nth):
                    raise ValueError("growth that does not follow its request")
                self._stacks.add(self._added, fact)
            else:
                self._others.append(fact)
        if len(self._requests) >= _STEP:
            self.flush()

    def flush(self) -> None:
        """Writes what was added. IncompleteError if that fails; what is on disk stays readable."""
        if self._connection is None:
            return
        if self._stacks.refused:
            why = "call stacks: more different ones than a recording holds; what they grew by is under [stack lost]"
            self._others.append(Loss(time.time_ns(), self._stacks.refused, why))
            self._stacks.refused = 0
        # In small steps, so that what fits on a disk that fills up is there.
        while self._requests or self._others or self._stacks.pending:
            with _writing(self.path), self._transaction(self._connection) as connection:
                for fact in self._others:
                    if isinstance(fact, Worker):
                        connection.execute(_INSERT_WORKER, _bytes_at(fact, (2,)))
                    else:
                        connection.execute("INSERT INTO loss VALUES (?, ?, CAST(? AS TEXT))", _bytes_at(fact, (2,)))
                connection.executemany(_INSERT_REQUEST, map(_storable, self._requests[:_STEP]))
                self._stacks.write(connection, self._added - len(self._requests[_STEP:]))
            del self._requests[:_STEP]
            self._stacks.written()
            self._others.clear()

    @contextlib.contextmanager
    def _transaction(self, connection: sqlite3.Connection) -> Iterator[sqlite3.Connection]:
        connection.execute("BEGIN")
        try:
            yield connection
            connection.execute("COMMIT")
        except sqlite3.Error:
            with contextlib.suppress(sqlite3.Error):
                connection.execute("ROLLBACK")
            raise

    def note(self, name: str, value: Any) -> None:
        """Sets an entry of `meta`."""
        if self._connection is not None:
            with _writing(self.path):
                self._connection.execute("INSERT OR REPLACE INTO meta VALUES (?, ?)", (name, json.dumps(value)))

    def close(self, *, ended: bool = True) -> None:
        """Writes what is left and folds the journal into the file; `ended` says that this is all there was."""
        connection = self._connection
        if connection is None:
            return
        try:
            self.flush()
            with _writing(self.path):
                if ended:
                    connection.execute("INSERT OR IGNORE INTO meta VALUES ('ended', '{}')")
                try:
                    connection.execute("PRAGMA journal_mode = DELETE")
                except sqlite3.OperationalError:
                    # Somebody has the file open to read it. The journal stays, but nothing is in it alone.
                    connection.execute("PRAGMA wal_checkpoint(PASSIVE)")
        finally:
            self._connection = None
            connection.close()

    def __enter__(self) -> Writer:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None:
            self.close()
            return
        with contextlib.suppress(IncompleteError):
            self.close(ended=False)


def _selected(columns: Iterable[str]) -> str:
    wanted = set(columns)
    return ", ".join(name if name in wanted else "NULL" for name in Request._fields)


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


def check_output(path: str, *, force: bool) -> None:
    """UsageError if a Writer could not be made there, as far as can be told without touching anything."""
    directory = os.path.dirname(path) or "."
    if not path or not os.path.isdir(directory):
        raise UsageError(f"cannot write {path!r}: there is no directory {directory}")
    for name in (path, *(path + suffix for suffix in _SIDE_FILES)):
        try:
            mode = os.lstat(name).st_mode
        except OSError:
            continue
        if not (stat.S_ISREG(mode) or stat.S_ISLNK(mode)):  # root would replace /dev/null
            kind = "is a directory" if stat.S_ISDIR(mode) else "is not a file"
            raise UsageError(f"cannot write {path}: {name} {kind}")
        if not force:
            raise UsageError(f"{name} exists. Choose another name, or overwrite it with -f.")


def _create(path: str, *, force: bool) -> int:
    """A new, empty file of that name; returns its inode."""
    check_output(path, force=force)
    for name in (path, *(path + suffix for suffix in _SIDE_FILES)):
        try:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(name)
        except OSError as exc:
            raise UsageError(f"cannot overwrite {name}: {exc.strerror}") from exc
    try:
        descriptor = create(path)
    except FileExistsError as exc:
        raise UsageError(f"cannot write {path}: {exc.strerror}") from exc
    try:
        return os.fstat(descriptor).st_ino
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def _writing(path: str) -> Iterator[None]:
    try:
        yield
    except sqlite3.Error as exc:
        raise IncompleteError(f"cannot write {path}: {exc}. What was written before can be read.") from exc


def _storable(request: Sequence[Any]) -> Sequence[Any]:
    """The row, with text that is not plain ASCII as bytes: SQLite's UTF-8 knows no lone surrogates.

    A plain tuple: sqlite3 takes a third longer to bind a subclass of it.
    """
    for index in _TEXT_AT:
        text = request[index]
        if text is not None and not text.isascii():
            return _bytes_at(request, _TEXT_AT)
    return tuple(request)


def _bytes_at(row: Sequence[Any], at: Sequence[int]) -> list[Any]:
    values = list(row)
    for index in at:
        if values[index] is not None:
            values[index] = values[index].encode("utf-8", "surrogateescape")
    return values


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
        if not head.startswith(b"SQLite format 3\0") or int.from_bytes(head[68:72], "big") != _APPLICATION_ID:
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
            if found != _TABLES_OF.get(self._schema):
                raise RecordingError(
                    f"{self.path} is not a phptrace recording: its tables are not those of schema {self._schema}"
                )
            # STRICT holds for who writes through SQLite; a forged file may have any type in any column.
            (verdict,) = self._connection.execute("PRAGMA quick_check(1)").fetchone()
            if verdict != "ok":
                raise RecordingError(f"{self.path} is damaged: {verdict}")
            return {name: json.loads(value) for name, value in self._connection.execute("SELECT name, value FROM meta")}

    def requests(self, columns: Iterable[str] = Request._fields) -> Iterator[Request]:
        """Every request, in the order they ended; fields not in `columns` are None, which reads faster."""
        make = Request._make
        with self.reading():
            for row in self._connection.execute(f"SELECT {_selected(columns)} FROM request ORDER BY id"):
                yield make(row)

    @property
    def has_stacks(self) -> bool:
        """Whether it was recorded with call stacks; those may have been none."""
        return "stacks" in self.meta

    def grown(self, metric: Metric, columns: Iterable[str]) -> Iterator[tuple[Request, list[tuple[Stack, int, int]]]]:
        """Every request, as requests() has it, with what it grew by: (stack, bytes, samples)."""
        with self.reading():
            growths = StackReader(self._connection).growths(metric) if self._schema >= 2 else iter(())
            due = next(growths, None)
            for number, *row in self._connection.execute(f"SELECT id, {_selected(columns)} FROM request ORDER BY id"):
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
