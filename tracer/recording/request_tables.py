"""The tables of a recording that hold requests: parts that many requests share, and a row that names them.

A request is taken apart here and put together again by the view `request` (schema.py). Which column is in which
table is written there alone.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterable, Sequence
from operator import itemgetter
from typing import Any

from tracer.facts import Request
from tracer.recording.integers import saturated
from tracer.recording.schema import PARTS, SCHEMA, SCHEMAS

_Part = tuple[Any, ...]
# Ids of a part that a writer knows, twice. One that it has forgotten gets a second id, which readers do not mind.
_MOST_KNOWN = 4096


class RequestWriter:
    """Takes requests apart and keeps the rows until they are written."""

    def __init__(self) -> None:
        self._scripts = _Ids("script")
        self._pages = _Ids("page", self._page_row)
        self._parts = [(_getter(_columns(name)), _Ids(name)) for name in PARTS if name != "page"]
        # Most requests share all their parts but the page with an earlier one: one look-up instead of five.
        self._all_but_page = _getter(name for part in PARTS if part != "page" for name in _columns(part))
        self._page_of = _getter(_columns("page"))
        self._known: dict[_Part, list[int]] = {}
        own = [name for name in _columns("request_row") if name not in PARTS]
        self._own = _getter(own)
        self._insert = _insertion("request_row", ("id", *PARTS, *own))
        self._rows: list[tuple[int | None, ...]] = []
        self.count = 0  # requests added, which is the id of the last

    @property
    def pending(self) -> int:
        """Requests that are not written yet."""
        return len(self._rows)

    def add(self, request: Request) -> None:
        """Take one request. Its id is one more than that of the request before."""
        self.count += 1
        parts = self._all_but_page(request)
        ids = self._known.get(parts)
        if ids is None:
            if len(self._known) >= _MOST_KNOWN:
                self._known.clear()
            ids = self._known[parts] = [table.id_of(part_of(request)) for part_of, table in self._parts]
        self._rows.append((self.count, self._pages.id_of(self._page_of(request)), *ids, *self._own(request)))

    def write(self, connection: sqlite3.Connection, most: int) -> int:
        """Write at most that many requests and return the id of the last one written. Call in a transaction."""
        for table in self._tables():
            table.write(connection)
        connection.executemany(self._insert, self._rows[:most])
        return self.count - len(self._rows[most:])

    def saturate(self) -> None:
        """Make every integer that is not written yet fit in 64 bits."""
        for table in self._tables():
            table.saturate()
        self._rows = [saturated(row) for row in self._rows]

    def written(self, most: int) -> None:
        """Forget the rows of the last write(), which have been committed."""
        for table in self._tables():
            table.written()
        del self._rows[:most]

    def _tables(self) -> list[_Ids]:
        return [self._scripts, self._pages, *(table for _, table in self._parts)]

    def _page_row(self, page: _Part) -> _Part:
        """The row of a page: a script has many uris, so its name is in a table of its own."""
        method, uri, script = page
        return method, uri, None if script is None else self._scripts.id_of((script,))


class _Ids:
    """Gives each distinct part of a request its id, from 1 without a gap, and keeps the rows that are new."""

    def __init__(self, table: str, row: Callable[[_Part], _Part] | None = None) -> None:
        """`row` makes the columns behind `id` of a part; by default they are the part itself."""
        types = _columns(table)
        self._texts = [at for at, name in enumerate(types, 1) if types[name] == "TEXT"]
        self._insert = _insertion(table, ("id", *types), texts=self._texts)
        self._row = row
        self._new: list[_Part] = []
        self._count = 0
        self._latest: dict[_Part, int] = {}
        self._older: dict[_Part, int] = {}

    def id_of(self, part: _Part) -> int:
        """Return the id of that part."""
        found = self._latest.get(part)
        if found is None:
            found = self._older.get(part) or self._add(part)
            if len(self._latest) >= _MOST_KNOWN:
                self._older, self._latest = self._latest, {}
            self._latest[part] = found
        return found

    def _add(self, part: _Part) -> int:
        self._count += 1
        row = (self._count, *(self._row(part) if self._row else part))
        self._new.append(_storable(row, self._texts))
        return self._count

    def write(self, connection: sqlite3.Connection) -> None:
        """Write the rows that are new."""
        connection.executemany(self._insert, self._new)

    def saturate(self) -> None:
        """Make every integer that is not written yet fit in 64 bits."""
        self._new = [saturated(row) for row in self._new]

    def written(self) -> None:
        """Forget the rows of the last write(), which have been committed."""
        self._new.clear()


def check_ids(connection: sqlite3.Connection) -> None:
    """Raise ValueError if a request of the file names a part that is not there."""
    ids = ", ".join(f"min({part}), max({part})" for part in PARTS)
    found = connection.execute(f"SELECT {ids} FROM request_row").fetchone()
    for part, least, most in zip(PARTS, found[::2], found[1::2], strict=True):
        _check_range(connection, part, least, most)
    _check_range(connection, "script", *connection.execute("SELECT min(script), max(script) FROM page").fetchone())


def _check_range(connection: sqlite3.Connection, table: str, least: int | None, most: int | None) -> None:
    count, first, last = connection.execute(f"SELECT count(*), min(id), max(id) FROM {table}").fetchone()
    without_gap = count == 0 or (first == 1 and last == count)
    if not without_gap or (least is not None and (least < 1 or (most or 0) > count)):
        raise ValueError(f"a request refers to a {table} that is not there")


def _columns(table: str) -> dict[str, str]:
    """Type by name of each column but `id` of a table of today's schema."""
    connection = sqlite3.connect(":memory:")
    try:
        connection.execute(SCHEMAS[SCHEMA][table])
        return {row[1]: row[2] for row in connection.execute(f"PRAGMA table_info({table})") if row[1] != "id"}
    finally:
        connection.close()


def _getter(columns: Iterable[str]) -> Callable[[Request], _Part]:
    return itemgetter(*map(Request._fields.index, columns))


def _insertion(table: str, columns: Sequence[str], *, texts: Sequence[int] = ()) -> str:
    # Text arrives as bytes where it is not ASCII: what is not UTF-8 must not fail, and must come back as it was.
    values = ", ".join("CAST(? AS TEXT)" if at in texts else "?" for at in range(len(columns)))
    return f"INSERT INTO {table} ({', '.join(columns)}) VALUES ({values})"


def _storable(row: _Part, texts: Sequence[int]) -> _Part:
    """The row, with text that is not plain ASCII as bytes: SQLite's UTF-8 knows no lone surrogates."""
    values = list(row)
    for at in texts:
        text = values[at]
        if text is not None and not text.isascii():
            values[at] = text.encode("utf-8", "surrogateescape")
    return tuple(values)
