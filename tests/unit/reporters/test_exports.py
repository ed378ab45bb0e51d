"""Requests one by one, as NDJSON, CSV, TSV and lines: columns, and the escaping of untrusted text."""

from __future__ import annotations

import csv
import io

import pytest
from hypothesis import given
from hypothesis import strategies as st
from samples import COMPLETE, PROPERTY, json_lines, request

from tracer.facts import Request
from tracer.reporters.delimited import render_csv, render_tsv
from tracer.reporters.request_lines import HEADER, RequestLines
from tracer.reporters.requests import COLUMNS, TSV_COLUMNS, render_ndjson, render_requests_csv, render_requests_tsv

# Design, section 5: the public schema of a request in SQL, JSON and CSV.
PUBLIC = """host pid pool nth started_ns duration_ns cpu_ns method uri script status ending anon_before anon_after
file_before file_after shmem_before shmem_after anon_peak zend_used_end zend_peak zend_real_before zend_real_peak
zend_real_after memory_limit vm_before vm_after map_bytes map_calls unmap_bytes unmap_calls brk_bytes brk_calls
minor_faults major_faults notes""".split()
EVIL = "\x1b[2J\x07\x9b31m\u202e\udcff\n\t\0"
ANY_TEXT = st.text(st.characters(), max_size=20)


def test_ndjson_has_the_public_columns_and_those_derived_from_them():
    out = io.StringIO()

    render_ndjson([COMPLETE, request(uri=None)], out)

    first, second = json_lines(out.getvalue())
    assert set(PUBLIC) <= first.keys()
    assert first == {
        **COMPLETE._asdict(),
        "growth_bytes": COMPLETE.growth,
        "route": "/index.php",
    }
    assert (second["uri"], second["route"], second["pid"]) == (None, None, 4241)


def test_ndjson_is_one_line_a_request_whatever_it_holds():
    out = io.StringIO()

    render_ndjson([request(uri=EVIL, script=EVIL, method=EVIL, pool=EVIL)], out)

    assert out.getvalue().isascii()
    [row] = json_lines(out.getvalue())
    assert (
        row["uri"] == row["script"] == row["method"] == row["pool"] == row["route"] == EVIL.replace("\udcff", "\ufffd")
    )


def test_csv_has_the_public_columns():
    out = io.StringIO()

    render_requests_csv([COMPLETE], out)

    header, row = csv.reader(io.StringIO(out.getvalue(), newline=""))
    assert header == [*Request._fields, "growth_bytes", "route"] == list(COLUMNS)
    assert row[:4] == ["web1", "4241", "www", "3"]
    assert row[-2:] == [str(COMPLETE.growth), "/index.php"]


@pytest.mark.parametrize(
    "text", ["=1+1", "+1", "-1", "@SUM(A1)", "=cmd|' /C calc'!A0", "|x", "%x", '="a",b', " =1", "\uff1d1", "\uff0b1"]
)
def test_a_cell_that_a_spreadsheet_would_calculate_is_text(text):
    out = io.StringIO()

    render_csv(["a"], [[text]], out)

    _, [cell] = csv.reader(io.StringIO(out.getvalue(), newline=""))
    assert cell == "'" + text


def test_a_negative_number_is_a_number():
    out = io.StringIO()

    render_csv(["a", "b", "c"], [[-7, None, 0.5]], out)

    assert out.getvalue() == "a,b,c\r\n-7,,0.5\r\n"


@PROPERTY
@given(st.lists(ANY_TEXT, min_size=2, max_size=4))
def test_csv_of_any_text_is_a_row_of_cells_that_are_not_formulas(cells):
    out = io.StringIO()

    render_csv(["h"] * len(cells), [cells], out)

    [_, row] = csv.reader(io.StringIO(out.getvalue(), newline=""))
    assert len(row) == len(cells)
    assert not [cell for cell in row if cell.startswith(("=", "+", "-", "@", "\t", "\r"))]
    assert out.getvalue().count("\n") == 2


@PROPERTY
@given(st.lists(st.one_of(ANY_TEXT, st.none(), st.integers()), min_size=1, max_size=5))
def test_tsv_of_anything_is_a_line_of_cells_without_control_characters(cells):
    out = io.StringIO()

    render_tsv(["h"] * len(cells), [cells], out)

    line = out.getvalue().split("\n")[1]
    assert len(line.split("\t")) == len(cells)
    assert not [c for c in line if (c < " " and c != "\t") or "\x7f" <= c <= "\x9f"]
    assert out.getvalue().count("\n") == 2


def test_tsv_begins_with_the_columns_that_people_rank_by():
    out = io.StringIO()

    render_requests_tsv([request(uri="/a\tb")], out)

    header, row = (line.split("\t") for line in out.getvalue().splitlines())
    assert header[:4] == ["native_kept", "growth_bytes", "script", "uri"]
    assert sorted(header) == sorted(COLUMNS) == sorted(TSV_COLUMNS)
    assert row[:4] == [str(COMPLETE.native_kept), str(COMPLETE.growth), "/srv/www/index.php", "/a\\tb"]


def test_lines_have_a_header_and_a_line_for_each_request():
    out = io.StringIO()

    lines = RequestLines(out)
    lines.add(COMPLETE)
    lines.add(request(started_ns=None, duration_ns=None, anon_after=None, uri=EVIL))

    header, first, second = (dict(zip(HEADER, line.split("\t"), strict=True)) for line in out.getvalue().splitlines())
    assert list(header.values()) == list(HEADER)
    assert (first["time"], first["duration_ms"]) == ("2023-11-14T22:13:20.123Z", "12.346")
    assert (first["growth_bytes"], first["anon_bytes"]) == ("524288", "10524307")
    assert (second["time"], second["duration_ms"], second["growth_bytes"]) == ("", "", "")
    assert second["uri"] == "\\x1b[2J\\x07\\u009b31m\\u202e\\xff\\n\\t\\x00"
