"""Writes a recording.

In one transaction a second in WAL mode, so that it can be read while it grows and is whole up to the last second after
a SIGKILL; a clean end folds the journal in and leaves a single file.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import sqlite3
import struct
import time
from collections.abc import Iterable, Iterator, Sequence
from types import TracebackType
from typing import Any

from tracer.errors import IncompleteError, UsageError
from tracer.facts import Fact, Footprint, Fork, Growth, Look, Loss, Metric, Release, Request, Retained, Worker
from tracer.output_file import check_folder, create, is_taken
from tracer.output_place import refuse_foreign_place
from tracer.recording.integers import saturated
from tracer.recording.recent_rows import RecentRows
from tracer.recording.request_tables import RequestWriter
from tracer.recording.schema import APPLICATION_ID, SCHEMA, SCHEMAS, SIDE_FILES
from tracer.recording.stack_tables import StackWriter

_STEP = 1000
_LOCKED_BYTE = 1 << 62  # SQLite's locks are at 1 GiB: PENDING_BYTE in os.h, SQLite 3.40
# Text arrives as bytes: what is not UTF-8 must not fail, and must come back as it was.
_INSERT_WORKER = (
    "INSERT OR REPLACE INTO worker (pid, start_ticks, pool, php_version, born_ns, died_ns, exit, notes)"
    " VALUES (?, ?, CAST(? AS TEXT), ?, ?, ?, ?, ?)"
)

# A sum of more than 64 bits is a REAL, which the cast makes the nearest INTEGER.
_INSERT_RELEASE = (
    "INSERT INTO released (pid, started_ns, bytes, blocks) VALUES (?, ?, ?, ?) ON CONFLICT DO UPDATE"
    " SET bytes = CAST(bytes + excluded.bytes AS INTEGER), blocks = CAST(blocks + excluded.blocks AS INTEGER)"
)
_INSERT_FREED = (
    "INSERT INTO freed_earlier (request, owner_started_ns, resized, bytes) VALUES (?, ?, ?, ?) ON CONFLICT DO UPDATE"
    " SET bytes = CAST(bytes + excluded.bytes AS INTEGER)"
)
_INSERT_FORK = f"INSERT INTO forked VALUES ({', '.join('?' * len(Fork._fields))})"
_INSERT_LOOK = f"INSERT INTO look VALUES ({', '.join('?' * len(Look._fields))})"
_INSERT_FOOTPRINT = f"INSERT INTO footprint VALUES ({', '.join('?' * len(Footprint._fields))})"


class Writer:
    """Appends facts to a new recording. Use as a context manager; flush() now and then."""

    def __init__(self, path: str, meta: dict[str, Any], *, force: bool = False) -> None:
        """Create the file, mode 0600, never through a symlink; SQLite opens no journal through one either.

        Raises UsageError if it exists and `force` is not given, or if it cannot be created. Under sudo the file
        belongs to the user who called sudo.
        """
        self.path = path
        self._requests = RequestWriter()
        self._others: list[Worker | Fork | Loss | Release | Look | Footprint] = []
        self._freeing: dict[int, list[Release]] = {}  # by pid: blocks freed by a request that has not ended
        self._freed: list[tuple[int, int, int, int]] = []  # rows of freed_earlier
        self._last: tuple[int, int] | None = None  # pid and nth of the last request
        self._with_stacks = "stacks" in meta
        self._recent = RecentRows()
        self._stacks = StackWriter()
        self._connection: sqlite3.Connection | None = None
        self._descriptor: int | None = _create(path, force=force)
        try:
            self._open(path, self._descriptor, meta)
        except BaseException:
            if self._connection is not None:
                self._connection.close()
            os.close(self._descriptor)
            raise

    def _open(self, path: str, descriptor: int, meta: dict[str, Any]) -> None:
        """Make a recording of the new file, which is also open as that descriptor."""
        with _writing(path):
            # Absolute, since SQLite does not take some names, such as `:memory:`, for files.
            connection = sqlite3.connect(os.path.abspath(path), isolation_level=None, timeout=5.0)
            self._connection = connection
            # The owner of the directory could have replaced the file between its creation and this.
            if _times_open(descriptor) < 2:
                raise _replaced(path)
            # Safe against a killed process; a crash of the machine may cost the last seconds.
            connection.execute("PRAGMA synchronous = OFF")
            connection.execute("BEGIN")
            connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
            for statement in SCHEMAS[SCHEMA].values():
                connection.execute(statement)
            connection.execute(f"PRAGMA user_version = {SCHEMA}")
            rows = [(name, json.dumps(value)) for name, value in {"schema": SCHEMA, **meta}.items()]
            connection.executemany("INSERT INTO meta VALUES (?, ?)", rows)
            connection.execute("COMMIT")
            # Not earlier: without its journal the file is already a recording, whenever this process is killed.
            connection.execute("PRAGMA journal_mode = WAL")
            connection.execute("BEGIN IMMEDIATE")
            connection.execute("COMMIT")
        owners = {os.geteuid(), os.fstat(descriptor).st_uid}
        for suffix in ("-wal", "-shm"):
            with contextlib.suppress(FileNotFoundError):
                if os.lstat(path + suffix).st_uid not in owners:
                    raise _replaced(path + suffix)

    def add(self, facts: Iterable[Fact]) -> None:
        """Take the facts. They are on disk after the next flush(), or earlier when there are many.

        Raises ValueError if a Growth does not follow its Request; IncompleteError as flush() does.
        """
        for fact in facts:
            if isinstance(fact, Request):
                self._requests.add(fact)
                self._last = fact.pid, fact.nth
                if fact.pid in self._freeing:
                    self._freed += self._freed_by(fact)
                if self._with_stacks and fact.native_alloc_calls is not None:  # some of its blocks may be retained
                    self._recent.add(fact.pid, fact.nth, self._requests.count)
            elif isinstance(fact, Growth):
                if self._last != (fact.pid, fact.nth):
                    raise ValueError("growth does not follow its request")
                self._stacks.add(self._requests.count, fact)
            elif isinstance(fact, Retained):
                self._add_retained(fact)
            else:
                self._others.append(fact)
                if isinstance(fact, Release) and fact.freed_by_ns is not None:
                    self._freeing.setdefault(fact.pid, []).append(fact)
                elif isinstance(fact, Worker) and fact.died_ns is not None:
                    self._recent.ended(fact.pid)
                    self._freeing.pop(fact.pid, None)
        if self._requests.pending >= _STEP:
            self.flush()

    def _freed_by(self, request: Request) -> Iterator[tuple[int, int, int, int]]:
        """Yield rows for the blocks of earlier requests that this one freed, which was added last."""
        for fact in self._freeing.pop(request.pid):
            if fact.freed_by_ns == request.started_ns:
                yield self._requests.count, fact.started_ns, fact.resized, fact.bytes

    def _add_retained(self, fact: Retained) -> None:
        """Take what a request retained, if the request was kept: it may have been filtered out."""
        row = self._recent.find(fact.pid, fact.nth)
        if row is not None:
            growth = Growth(fact.pid, fact.nth, Metric.RETAINED.value, fact.stack, fact.bytes, fact.samples)
            self._stacks.add(row, growth)

    def flush(self) -> None:
        """Write what was added. Raises IncompleteError if that fails; what is on disk stays readable."""
        if self._connection is None:
            return
        if self._stacks.refused:
            why = "call stacks: too many distinct ones for a recording; their growth is under [stack lost]"
            self._others.append(Loss(time.time_ns(), self._stacks.refused, why))
            self._stacks.refused = 0
        if self._recent.lost:
            why = "growth events of retained memory: their requests ended too long ago"
            self._others.append(Loss(time.time_ns(), self._recent.lost, why))
            self._recent.lost = 0
        # In small steps: on a disk that fills up, all that fits is written.
        while self._requests.pending or self._others or self._stacks.pending:
            with _writing(self.path):
                try:
                    self._write_step(self._connection)
                except OverflowError:  # a figure of more than 64 bits
                    self._saturate()
                    self._write_step(self._connection)
            self._requests.written(_STEP)
            self._stacks.written()
            self._others.clear()
            self._freed.clear()

    def _write_step(self, connection: sqlite3.Connection) -> None:
        with _transaction(connection):
            for fact in self._others:
                if isinstance(fact, Worker):
                    connection.execute(_INSERT_WORKER, _bytes_at(fact, (2,)))
                elif isinstance(fact, Release):
                    if fact.started_ns:
                        connection.execute(_INSERT_RELEASE, fact[:4])
                elif isinstance(fact, Fork):
                    connection.execute(_INSERT_FORK, fact)
                elif isinstance(fact, Look):
                    connection.execute(_INSERT_LOOK, fact)
                elif isinstance(fact, Footprint):
                    connection.execute(_INSERT_FOOTPRINT, fact)
                else:
                    connection.execute("INSERT INTO loss VALUES (?, ?, CAST(? AS TEXT))", _bytes_at(fact, (2,)))
            connection.executemany(_INSERT_FREED, self._freed)
            self._stacks.write(connection, up_to=self._requests.write(connection, _STEP))

    def _saturate(self) -> None:
        """Make every figure that waits to be written fit in 64 bits."""
        self._others = [type(fact)._make(saturated(fact)) for fact in self._others]
        self._freed = [saturated(row) for row in self._freed]
        self._requests.saturate()
        self._stacks.saturate()

    def note(self, name: str, value: Any) -> None:
        """Set an entry of `meta`. Raises IncompleteError if that fails."""
        if self._connection is not None:
            with _writing(self.path):
                self._connection.execute("INSERT OR REPLACE INTO meta VALUES (?, ?)", (name, json.dumps(value)))

    def close(self, *, ended: bool = True) -> None:
        """Write what is left and fold the journal into the file. Idempotent.

        `ended` marks the recording as complete. Raises IncompleteError as flush() does; the file is closed anyway.
        """
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
                    # A reader has the file open. The journal stays, and the file holds all that is in it.
                    connection.execute("PRAGMA wal_checkpoint(PASSIVE)")
        finally:
            self._connection = None
            connection.close()
            # Not earlier: to close one descriptor of a file gives up what locks SQLite has on it.
            if self._descriptor is not None:
                os.close(self._descriptor)
                self._descriptor = None

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


def check_output(path: str, *, force: bool) -> None:
    """Raise UsageError if a Writer could not create that file. Nothing is changed."""
    directory = os.path.dirname(path) or "."
    if not path:
        raise UsageError("cannot write the recording: the file name is empty. Name a file with -o.")
    if not os.path.isdir(directory):
        raise UsageError(f"cannot write {path}: there is no directory {directory}. Create it, or choose another name.")
    for name in (path, *(path + suffix for suffix in SIDE_FILES)):
        if is_taken(name, path, force=force) and name == path:
            _refuse_if_written(path)
    if not force:
        refuse_foreign_place(path)
    check_folder(directory, path)


def _refuse_if_written(path: str) -> None:
    """UsageError if another phptrace records to that file. One that cannot be opened is left to who replaces it."""
    with contextlib.suppress(OSError):
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            locked = not _lock(descriptor, fcntl.F_RDLCK)
        finally:
            os.close(descriptor)
        if locked:
            raise UsageError(f"cannot write {path}: another phptrace records to it. Choose another name.")


def _lock(descriptor: int, kind: int) -> bool:
    """Take the lock that a recording's writer has as long as it lives; False if somebody else has it.

    `kind`: F_WRLCK for a writer, F_RDLCK to see if there is one. It belongs to the open file, and not to the process as
    SQLite's locks do. It is of one byte far behind those: on NFS, flock() would be a lock of the whole file, and keep
    SQLite from its own (flock(2)).
    """
    lock = struct.pack("hhqqi4x", kind, os.SEEK_SET, _LOCKED_BYTE, 1, 0)  # struct flock: bits/fcntl.h, glibc 2.36
    try:
        fcntl.fcntl(descriptor, fcntl.F_OFD_SETLK, lock)
    except OSError as exc:  # others: a file system without such locks
        return exc.errno not in (errno.EAGAIN, errno.EACCES)
    return True


def _create(path: str, *, force: bool) -> int:
    """Create a new, empty file of that name, and lock it. Return its descriptor."""
    check_output(path, force=force)
    for name in (path, *(path + suffix for suffix in SIDE_FILES)):
        try:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(name)
        except OSError as exc:
            raise UsageError(f"cannot overwrite {name}: {exc.strerror}. Choose another name.") from exc
    try:
        descriptor = create(path)
    except FileExistsError as exc:
        raise UsageError(f"cannot write {path}: {exc.strerror}. Choose another name.") from exc
    _lock(descriptor, fcntl.F_WRLCK)
    return descriptor


def _times_open(descriptor: int) -> int:
    """How often this process has the file of that descriptor open."""
    found, times = os.fstat(descriptor), 0
    for name in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):
            times += os.path.samestat(found, os.fstat(int(name)))
    return times


def _replaced(path: str) -> UsageError:
    return UsageError(
        f"cannot write {path}: another process replaced it while phptrace created it. Choose a directory that no other"
        " user may write to."
    )


@contextlib.contextmanager
def _transaction(connection: sqlite3.Connection) -> Iterator[None]:
    connection.execute("BEGIN")
    try:
        yield
        connection.execute("COMMIT")
    except BaseException:
        with contextlib.suppress(sqlite3.Error):
            connection.execute("ROLLBACK")
        raise


@contextlib.contextmanager
def _writing(path: str) -> Iterator[None]:
    try:
        yield
    except sqlite3.Error as exc:
        raise IncompleteError(
            f"cannot write {path}: {exc}. Record to another disk. What was written before can be read."
        ) from exc


def _bytes_at(row: Sequence[Any], at: Sequence[int]) -> list[Any]:
    values = list(row)
    for index in at:
        if values[index] is not None:
            values[index] = values[index].encode("utf-8", "surrogateescape")
    return values
