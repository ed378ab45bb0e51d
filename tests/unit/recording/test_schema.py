"""The recording format over time: every schema that was ever written is read, and today's knows every field."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import pytest

from tracer.facts import Footprint, Fork, Frame, Look, Loss, Metric, Place, Release, Request, Worker
from tracer.recording.reader import Reader
from tracer.recording.request_tables import RequestWriter
from tracer.recording.schema import PARTS, SCHEMA, SCHEMAS

# Each was written by the phptrace of its schema, and holds the facts below.
RECORDINGS = Path(__file__).resolve().parents[2] / "recordings"
WITH_STACKS = [schema for schema in SCHEMAS if schema >= 2]

FIRST = Request(
    host="web1", pid=4241, pool="www", nth=1, started_ns=1_700_000_000_123_456_789, duration_ns=12_345_701,
    cpu_ns=7_654_321, method="GET", uri="/index.php", script="/srv/www/index.php", status=200, ending="finished",
    anon_before=10_000_019, anon_end=10_400_009, anon_after=10_524_307, file_before=20_000_003, file_after=20_000_047,
    shmem_before=3_000_017, shmem_after=3_000_029, anon_peak=30_000_001, zend_used_end=401_987, zend_peak=2_921_293,
    zend_real_before=2_097_152, zend_real_peak=4_194_304, zend_real_end=2_359_309, zend_real_after=2_097_152,
    memory_limit=134_217_728, vm_before=250_000_013, vm_after=250_524_301, map_bytes=2_097_169, map_calls=5,
    unmap_bytes=1_572_899, unmap_calls=2, brk_bytes=-8_191, brk_calls=11, native_alloc_bytes=70_096,
    native_alloc_calls=67, native_free_bytes=34_304, native_free_calls=31, native_freed_earlier=1_008,
    native_mapped_bytes=65_536, native_between_bytes=6_192, native_kept=102_336, native_released=600, minor_faults=131,
    major_faults=1, notes=None, start_ticks=7919, master_pid=4231, container="shop", container_id="3f2a" * 16,
    cgroup="/docker/" + "3f2a" * 16, namespaces="mnt:4026532768", root="/srv/jail",
)  # fmt: skip
# Counted, or known, since schema 3.
SINCE_3 = ("start_ticks", "master_pid", *Place._fields,
           "native_alloc_bytes", "native_alloc_calls", "native_free_bytes", "native_free_calls", "native_freed_earlier",
           "native_mapped_bytes", "native_between_bytes", "native_kept", "native_released")  # fmt: skip
BARE = Request(
    **{**dict.fromkeys(Request._fields), "host": "web1", "pid": 4243, "nth": 1, "ending": "cut_off",
       "notes": "start_not_seen"}
)  # fmt: skip
REQUESTS = [
    FIRST,
    FIRST._replace(nth=2, uri="/user/7\udcff", method="POST", status=500, ending="fatal", notes="uri_cut,script_cut"),
    BARE,
    FIRST._replace(nth=3, pool=None, script=None, uri=None, method=None, status=None, ending="killed:SEGV",
                   anon_after=None, notes="end_not_seen"),
]  # fmt: skip
MAIN = Frame("user", "<main>", "/srv/www/index.php", 3)
FIND = Frame("user", "Repo::find", "/srv/app/Repo\udcff.php", 89)
QUERY = Frame("internal", "PDO::query", None, None)

LOOKS = [
    Look(4241, 7919, 1_700_000_000_000_000_003, 9_000_011, 9_000_007, 4_000_016, 0, 4_100_096, 2_097_152, True, True,
         None, None),
    Look(4241, 7919, 1_700_000_001_500_000_009, 8_000_023, 10_600_003, 4_035_808, 0, 4_139_008, 2_101_248, True, False,
         4, None),
    Look(4243, 7927, 1_700_000_000_000_000_013, 0, None, None, None, None, None, False, False, None,
         "it was in a request"),
]  # fmt: skip
FOOTPRINTS = [
    Footprint(4241, 7919, 1_700_000_000_700_000_021, 1_300_021, True, 40_000_033, 24_700_009, 1_000_037, 400_031,
              20_000_041, 23_000_039, 5_000_047, 0, 11_027),
    Footprint(4231, 7907, 1_700_000_000_900_000_023, 700_057, False, 9_000_049, 3_000_053, None, 100_057, 2_000_063,
              4_000_067, None, None, None),
]  # fmt: skip
FREED = [
    Release(4241, 1_700_000_000_100_000_003, 900, 0, FIRST.started_ns),
    Release(4241, 1_700_000_000_100_000_003, 108, 0, FIRST.started_ns, resized=True),
]
FORKS = [
    Fork(4253, 4241, FIRST.started_ns, 1_700_000_000_500_000_017, None),
    Fork(4259, 4241, None, None, 7_759_463),
]


def as_of(schema: int, request: Request) -> Request:
    """The request as a recording of that schema has it."""
    return request if schema >= 3 else request._replace(**dict.fromkeys(SINCE_3))


def opened(schema: int) -> Reader:
    return Reader(str(RECORDINGS / f"schema-{schema}.phptrace"))


def test_there_is_a_recording_of_every_schema():
    assert {path.name for path in RECORDINGS.iterdir()} == {f"schema-{schema}.phptrace" for schema in SCHEMAS}


@pytest.mark.parametrize("schema", SCHEMAS)
def test_a_recording_of_each_schema_is_read_whole(schema):
    with opened(schema) as file:
        assert list(file.requests()) == [as_of(schema, one) for one in REQUESTS]
        freed = [list(found) for _, found in file.requests_and_freed(("pid", "started_ns"))]
        assert freed == [FREED if schema >= 3 else [], [], [], []]
        assert file.workers() == [
            Worker(4241, 7919, "www", "8.2.36", None, 1_700_000_002_000_000_011, "killed:SEGV")
        ]  # fmt: skip
        assert file.losses() == [Loss(1_700_000_001_000_000_007, 13, "requests: the ring buffer was full")]
        assert file.forks() == (FORKS if schema >= 3 else [])
        assert file.looks() == (LOOKS if schema >= 3 else [])
        assert list(file.footprints()) == (FOOTPRINTS if schema >= 3 else [])
        assert (file.meta["schema"], file.meta["host"], file.ended) == (schema, "web1", True)


@pytest.mark.parametrize("schema", WITH_STACKS)
@pytest.mark.parametrize(
    ("metric", "growth"),
    [
        (Metric.RSS, ((MAIN, FIND), 69_632, 2)),
        (Metric.MAPPED, ((MAIN, FIND, QUERY), 2_097_152, 1)),
        (Metric.ZEND, ((MAIN,), -997, 3)),
    ],
)
def test_the_call_stacks_of_each_schema_are_read(schema, metric, growth):
    with opened(schema) as file:
        assert file.has_stacks
        assert [grown for _, grown in file.grown(metric, ("nth",))] == [[growth], [], [], []]


def test_a_recording_of_the_first_schema_has_no_call_stacks():
    with opened(1) as file:
        assert not file.has_stacks
        assert [grown for _, grown in file.grown(Metric.RSS, ("nth",))] == [[], [], [], []]


@pytest.mark.parametrize("schema", SCHEMAS)
def test_any_sql_tool_reads_the_requests_of_each_schema_as_one_table(schema):
    with sqlite3.connect(f"file:{RECORDINGS / f'schema-{schema}.phptrace'}?mode=ro", uri=True) as connection:
        found = connection.execute("SELECT * FROM request ORDER BY id")
        names = [column[0] for column in found.description]
        rows = [dict(zip(names, row, strict=True)) for row in found.fetchmany(1)]

    known = {name: value for name, value in FIRST._asdict().items() if schema >= 3 or name not in SINCE_3}
    assert rows == [{"id": 1, **known}]


def test_a_field_of_a_request_is_a_column_of_todays_schema_and_in_one_table_only():
    connection = sqlite3.connect(":memory:")
    for statement in SCHEMAS[SCHEMA].values():
        connection.execute(statement)

    def columns(table: str) -> list[str]:
        return [row[1] for row in connection.execute(f"PRAGMA table_info({table})") if row[1] != "id"]

    stored = [name for table in ("request_row", *PARTS) for name in columns(table) if name not in PARTS]
    connection.close()
    # What was freed later is known only then: it has a table of its own.
    assert sorted([*stored, "native_released"]) == sorted(Request._fields)


@pytest.mark.parametrize(("table", "fact"), [("look", Look), ("footprint", Footprint), ("forked", Fork)])
def test_todays_table_of_a_fact_has_its_fields_in_their_order(table, fact):
    connection = sqlite3.connect(":memory:")
    connection.execute(SCHEMAS[SCHEMA][table])
    columns = [row[1] for row in connection.execute(f"PRAGMA table_info({table})")]
    connection.close()

    assert columns == list(fact._fields)


def test_todays_view_has_the_fields_of_a_request_in_their_order():
    connection = sqlite3.connect(":memory:")
    for statement in SCHEMAS[SCHEMA].values():
        connection.execute(statement)
    view = [row[1] for row in connection.execute("PRAGMA table_info(request)")]
    connection.close()

    assert view == ["id", *Request._fields]


def test_parts_that_requests_share_are_stored_once(tmp_path):
    connection = sqlite3.connect(":memory:")
    for statement in SCHEMAS[SCHEMA].values():
        connection.execute(statement)
    writer = RequestWriter()
    for nth in range(1, 1010):
        writer.add(FIRST._replace(nth=nth, uri=f"/{nth % 7}"))
        writer.add(BARE)

    written = writer.write(connection, 3000)

    count = {name: connection.execute(f"SELECT count(*) FROM {name}").fetchone()[0] for name in (*PARTS, "script")}
    connection.close()
    assert written == 2018
    assert count == {
        "page": 8,
        "process": 2,
        "place": 2,
        "outcome": 2,
        "mappings": 2,
        "heap": 2,
        "calls": 2,
        "native": 2,
        "script": 1,
    }


def test_a_writer_that_has_forgotten_a_part_stores_it_again_and_readers_do_not_mind(tmp_path, monkeypatch):
    monkeypatch.setattr("tracer.recording.request_tables._MOST_KNOWN", 2)
    uris = ["/a", "/b", "/c", "/d", "/e", "/a"]
    connection = sqlite3.connect(":memory:")
    for statement in SCHEMAS[SCHEMA].values():
        connection.execute(statement)
    writer = RequestWriter()
    for uri in uris:
        writer.add(FIRST._replace(uri=uri, pid=ord(uri[1])))

    writer.write(connection, 1000)

    found = connection.execute("SELECT uri, pid FROM request ORDER BY id").fetchall()
    pages = connection.execute("SELECT count(*) FROM page").fetchone()[0]
    connection.close()
    assert found == [(uri, ord(uri[1])) for uri in uris]
    assert pages == 6
