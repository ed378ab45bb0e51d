"""Tables of call stacks that no Writer wrote are refused, and those of older schemas read."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from samples import COMPLETE, FIND, MAIN, WITH_STACKS, altered, growth, recording, request, within
from stack_recordings import read

from tracer.errors import RecordingError
from tracer.facts import Metric
from tracer.recording.reader import Reader
from tracer.recording.schema import SCHEMA


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "r.phptrace"


RECORDINGS = Path(__file__).resolve().parents[2] / "recordings"


def refused(path: Path, why: str) -> None:
    with pytest.raises(RecordingError, match=why), within(20):
        read(path)


def test_a_recording_of_the_schema_that_knew_no_stacks_but_has_their_tables_is_refused(path):
    altered(recording(path, [COMPLETE]), "PRAGMA user_version = 1")

    with pytest.raises(RecordingError, match="its tables are not those of schema 1"):
        Reader(str(path))


@pytest.fixture
def real(path: Path) -> Callable[..., Path]:
    """A recording with stacks, after these SQL statements. Its stacks: 1 is MAIN, 2 is MAIN, FIND."""

    def make(*statements: str) -> Path:
        recording(path, [COMPLETE, growth(101, MAIN), growth(103, MAIN, FIND), COMPLETE], WITH_STACKS)
        return altered(path, *statements)

    return make


@pytest.mark.parametrize(
    ("statement", "why"),
    [
        ("UPDATE stack SET parent = 2 WHERE id = 1", "a stack that does not end"),
        ("UPDATE stack SET parent = 2 WHERE id = 2", "a stack that does not end"),
        ("UPDATE stack SET parent = 7 WHERE id = 2", "a stack that does not end"),
        ("DELETE FROM stack WHERE id = 2", "a stack that does not end"),
        ("UPDATE growth SET stack = -1 WHERE stack = 2", "a stack that does not end"),
        ("DELETE FROM frame WHERE id = 1", "a stack of a frame that is not there"),
        ("UPDATE stack SET frame = 7 WHERE id = 2", "a stack of a frame that is not there"),
        ("UPDATE frame SET kind = 'nonsense' WHERE id = 2", "a frame of an unknown kind"),
        ("UPDATE growth SET request = 3", "growth of a request that is not there"),
        ("UPDATE growth SET request = 0", "growth of a request that is not there"),
        ("UPDATE growth SET request = -1", "growth of a request that is not there"),
        ("DELETE FROM request_row", "growth of a request that is not there"),
        ("DELETE FROM request_row WHERE id = 1", "growth of a request that is not there"),
    ],
)
def test_stacks_that_no_writer_wrote_are_refused(real, statement, why):
    refused(real(statement), rf"is damaged or cut short \({why}\)")


def test_growth_is_its_requests_when_earlier_ones_were_deleted_with_theirs(path):
    other = request(nth=5)
    recording(path, [COMPLETE, growth(101, MAIN), other, growth(103, FIND, of=other)])

    altered(path, "DELETE FROM request_row WHERE id = 1", "DELETE FROM growth WHERE request = 1")

    with Reader(str(path)) as file:
        found = [(one.nth, grown) for one, grown in file.grown(Metric.RSS, ("nth",))]
    assert found == [(5, [((FIND,), 103, 1)])]


def test_a_stack_without_end_is_refused_however_many_frames_it_has(real):
    chain = "WITH RECURSIVE n(i) AS (SELECT 3 UNION ALL SELECT i + 1 FROM n WHERE i < 100000)"
    path = real(f"{chain} INSERT INTO stack SELECT i, i - 1, 1 FROM n", "UPDATE growth SET stack = 100000")

    refused(path, "a stack that does not end")


def test_growth_of_an_unknown_metric_is_not_shown(real):
    path = real("UPDATE growth SET metric = 'nonsense' WHERE stack = 2")

    assert {metric: read(path, metric) for metric in Metric} == {
        metric: [[((MAIN,), 101, 1)] if metric is Metric.RSS else [], []] for metric in Metric
    }


@pytest.mark.parametrize("table", ["frame", "stack", "growth"])
def test_a_recording_without_one_of_the_tables_is_refused(real, table):
    path = real(f"DROP TABLE {table}")

    with pytest.raises(RecordingError, match=f"its tables are not those of schema {SCHEMA}"):
        Reader(str(path))


@pytest.mark.parametrize("schema", [1, 2, 3])
def test_a_recording_without_growth_of_a_metric_says_so(schema):
    with Reader(str(RECORDINGS / f"schema-{schema}.phptrace")) as file:
        assert file.has_growth(Metric.RSS) is (schema >= 2)
        assert not file.has_growth(Metric.RETAINED)
