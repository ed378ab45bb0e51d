"""Untrusted recordings: damaged, cut short, of another schema, or made to deceive.

A Reader raises RecordingError or gives what is there; never another exception.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from samples import COMPLETE, PROPERTY, altered, recording

from tracer.errors import RecordingError
from tracer.facts import Loss, Worker
from tracer.recording.reader import Reader
from tracer.recording.schema import SCHEMA

FACTS = [
    *(COMPLETE._replace(nth=nth, uri="/" + "u" * (nth * 37 % 997)) for nth in range(101)),
    Worker(4241, 7919, "www", "8.2.36", None, None, None),
    Loss(1, 13, "x"),
]

PAGE = 4096  # SQLite's default


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "r.phptrace"


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return recording(tmp_path_factory.mktemp("whole") / "r.phptrace", FACTS, {"host": "web1"}).read_bytes()


def refused(path: Path, why: str) -> None:
    with pytest.raises(RecordingError, match=why):
        Reader(str(path))


def read_everything(path: Path) -> None:
    with contextlib.suppress(RecordingError), Reader(str(path)) as found:
        for read in (lambda: list(found.requests()), found.workers, found.losses, found.totals):
            with contextlib.suppress(RecordingError):
                read()


def retyped(path: Path, table: str, insert: str, *values: object) -> Path:
    """The recording with a row of types its tables do not allow, which SQLite checks on writing only."""
    connection = sqlite3.connect(path, isolation_level=None)
    (sql,) = connection.execute("SELECT sql FROM sqlite_schema WHERE name = ?", (table,)).fetchone()
    loose = sql.removesuffix(" STRICT").replace(" NOT NULL", "").replace(" INTEGER", " ANY").replace(" TEXT", " ANY")
    connection.execute(f"DROP TABLE {table}")
    connection.execute(loose.replace("id ANY PRIMARY KEY", "id INTEGER PRIMARY KEY"))
    connection.execute(insert, values)
    connection.execute("PRAGMA writable_schema = ON")
    connection.execute("UPDATE sqlite_schema SET sql = ? WHERE name = ?", (sql, table))
    connection.close()
    return path


def test_a_file_that_is_not_there_is_refused(path):
    refused(path, "there is no such file")


def test_a_directory_is_refused(tmp_path):
    refused(tmp_path, "is not a regular file")


@pytest.mark.parametrize("content", [b"", b"PTRC", b"SQLite format 3\0", b"SQLite format 3\0" + bytes(84), bytes(4096)])
def test_a_file_that_is_not_a_recording_is_refused(path, content):
    path.write_bytes(content)

    refused(path, "it is not a phptrace recording|it is empty")


def test_a_database_of_another_program_is_refused(path):
    altered(path, "CREATE TABLE request (id INTEGER PRIMARY KEY)", "PRAGMA application_id = 7")

    refused(path, "is not a phptrace recording")


def test_a_newer_schema_is_refused_with_what_to_do(path):
    altered(recording(path, [COMPLETE]), "PRAGMA user_version = 4")

    refused(path, "has schema 4, and this phptrace reads up to 3. Use a newer phptrace")


@pytest.mark.parametrize(
    "statement",
    [
        "CREATE TABLE extra (x)",
        "CREATE INDEX by_uri ON page (uri)",
        "CREATE VIEW v AS SELECT 1",
        "CREATE TRIGGER t AFTER INSERT ON loss BEGIN SELECT 1; END",
        "DROP TABLE loss",
        "ALTER TABLE worker RENAME TO workers",
        "ALTER TABLE request_row ADD COLUMN extra INTEGER",
        "ALTER TABLE page ADD COLUMN extra INTEGER",
        "ALTER TABLE request_row ADD COLUMN notes TEXT",
        "DROP VIEW request",
    ],
)
def test_tables_that_differ_from_the_schema_are_refused(path, statement):
    altered(recording(path, [COMPLETE]), statement)

    refused(path, f"its tables are not those of schema {SCHEMA}")


def test_a_view_in_place_of_a_table_is_refused(path):
    altered(
        recording(path, [COMPLETE]), "DROP TABLE loss", "CREATE VIEW loss AS SELECT 1 AS at_ns, 2 AS lost, 'x' AS why"
    )

    refused(path, f"its tables are not those of schema {SCHEMA}")


def cut_short(path: Path, whole: bytes, length: int) -> None:
    """Read so much of it: RecordingError, or all that was in it, where the cut was in an index."""
    path.write_bytes(whole[:length])
    try:
        with Reader(str(path)) as found:
            everything = [*found.requests(), *found.workers(), *found.losses()]
    except RecordingError:
        return
    assert everything == FACTS


@PROPERTY
@given(share=st.floats(0, 1))
def test_a_recording_that_lacks_a_page_or_more_is_refused_unless_nothing_is_missing(path, whole, share):
    cut_short(path, whole, int((len(whole) - PAGE) * share))


def test_a_recording_that_lacks_a_part_of_its_last_page_is_refused_unless_nothing_is_missing(path, whole):
    for length in range(len(whole) - PAGE, len(whole), 61):
        cut_short(path, whole, length)


def test_a_recording_without_its_second_half_is_refused(path, whole):
    path.write_bytes(whole[: len(whole) // 2])

    refused(path, "damaged or cut short")


@PROPERTY
@given(damage=st.lists(st.tuples(st.floats(0, 1), st.binary(min_size=1, max_size=8)), min_size=1, max_size=5))
def test_a_recording_that_is_damaged_anywhere_is_read_or_refused(path, whole, damage):
    blob = bytearray(whole)
    for share, change in damage:
        at = int(share * (len(blob) - len(change)))
        blob[at : at + len(change)] = change
    path.write_bytes(blob)

    read_everything(path)


@pytest.mark.parametrize(
    ("statement", "part"),
    [
        ("UPDATE request_row SET page = 102 WHERE id = 7", "page"),
        ("UPDATE request_row SET process = 0", "process"),
        ("UPDATE request_row SET heap = -1 WHERE id = 101", "heap"),
        ("DELETE FROM calls", "calls"),
        ("DELETE FROM page WHERE id = 13", "page"),
        ("UPDATE outcome SET id = 2", "outcome"),
        ("UPDATE page SET script = 2 WHERE id = 3", "script"),
        ("DELETE FROM script", "script"),
    ],
)
def test_a_request_that_names_a_part_that_is_not_there_is_refused(path, statement, part):
    altered(recording(path, FACTS), statement)

    refused(path, rf"is damaged or cut short \(a request refers to a {part} that is not there\)")


@pytest.mark.parametrize("value", ["", "{", "nonsense", '"unfinished', "\x1b"])
def test_meta_data_that_is_not_json_is_refused(path, value):
    altered(recording(path), "INSERT INTO meta VALUES ('x', ?)", values=(value,))

    refused(path, "is damaged or cut short")


def test_meta_data_with_a_number_of_thousands_of_digits_is_refused(path):
    altered(recording(path), "INSERT INTO meta VALUES ('x', ?)", values=("9" * 5000,))

    read_everything(path)


def test_meta_data_that_nests_too_deep_is_refused(path):
    altered(recording(path), "INSERT INTO meta VALUES ('x', ?)", values=("[" * 100_000,))

    read_everything(path)


def test_meta_data_of_another_type_is_refused(path):
    retyped(recording(path), "meta", "INSERT INTO meta VALUES ('x', ?)", 7)

    read_everything(path)


@pytest.mark.parametrize(
    ("table", "column", "value"),
    [
        ("request_row", "anon_before", "text"),
        ("request_row", "duration_ns", 0.5),
        ("request_row", "page", "1"),
        ("script", "name", 7),
        ("script", "name", b"\0"),
        ("page", "uri", 7),
        ("outcome", "ending", None),
        ("heap", "zend_real_end", 0.5),
    ],
)
def test_a_column_of_another_type_is_refused(path, table, column, value):
    row = {column: value}
    names, marks = ", ".join(row), ", ".join("?" * len(row))
    retyped(recording(path), table, f"INSERT INTO {table} ({names}) VALUES ({marks})", *row.values())

    refused(path, "damaged")


def test_a_name_that_no_file_can_have_is_refused():
    refused(Path("/" + "r" * 300), "File name too long. Check its name")


@pytest.fixture
def without_rights():
    """Go on as a user without rights if the test runs as root, who may read everything."""
    if os.geteuid() == 0:
        os.seteuid(65534)
    yield
    os.seteuid(os.getuid())


@pytest.fixture
def closed(tmp_path):
    """A directory that nobody may enter, but root."""
    directory = tmp_path / "closed"
    directory.mkdir(mode=0)
    yield directory
    directory.chmod(0o700)  # so that it can be removed


def test_a_recording_in_a_directory_that_may_not_be_entered_is_refused(closed, without_rights):
    refused(closed / "r.phptrace", "Permission denied")


def test_a_recording_that_may_not_be_read_is_refused(private, without_rights):
    refused(private, "Permission denied")


@pytest.fixture
def private(path):
    recording(path).chmod(0)
    return path


def test_a_recording_in_a_directory_that_may_not_be_written_can_be_read(path):
    recording(path, [COMPLETE])
    path.parent.chmod(0o500)

    with Reader(str(path)) as found:
        assert list(found.requests()) == [COMPLETE]
    path.parent.chmod(0o700)


@pytest.mark.parametrize("name", ["a b.phptrace", "50%.phptrace", "what?.phptrace", "a#b.phptrace", "'quoted'"])
def test_a_recording_may_have_any_name(tmp_path, name):
    recording(tmp_path / name, [COMPLETE])

    with Reader(str(tmp_path / name)) as found:
        assert list(found.requests()) == [COMPLETE]


def test_a_recording_may_have_a_name_that_is_not_utf8(tmp_path):
    recording(tmp_path / "\udcff", [COMPLETE])

    with Reader(str(tmp_path / "\udcff")) as found:
        assert list(found.requests()) == [COMPLETE]


def test_reading_a_recording_changes_nothing(path, whole):
    path.write_bytes(whole)

    read_everything(path)

    assert path.read_bytes() == whole
    assert [one.name for one in path.parent.iterdir()] == [path.name]
