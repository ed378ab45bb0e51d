"""One fact has one name on its way: C's struct, its mirror, the decoder, facts.Request, the recording's tables."""

from __future__ import annotations

import re
import sqlite3
from itertools import zip_longest
from pathlib import Path

import pytest
from records import record

from tracer.backends.records.request_decoder import ORIGIN, RequestDecoder
from tracer.backends.records.request_structs import REQUEST, REQUEST_FIELDS, Flag
from tracer.facts import Note, Request
from tracer.recording.schema import SCHEMA, SCHEMAS

HEADER = Path(__file__).resolve().parents[4] / "bpf" / "request_events.h"
# Fields of the record from which the decoder works something out, and nothing is copied.
USED_UP = {"kind", "flags", "started_ns", "ended_ns", "exit_code", "script_bytes", "uri_bytes", "script_stored",
           "uri_stored", "pad", "method", "status"}  # fmt: skip
# Fields of a request that the decoder works out.
WORKED_OUT = {
    "host",
    "pool",
    "started_ns",
    "duration_ns",
    "method",
    "uri",
    "script",
    "status",
    "ending",
    "native_kept",
    "native_released",
    "notes",
}


def first_difference(one: list[str], other: list[str]) -> str | None:
    """The first field in which two lists of fields differ; None if there is none."""
    for at, (ours, theirs) in enumerate(zip_longest(one, other)):
        if ours != theirs:
            return f"field {at}: {ours} here, {theirs} there"
    return None


def fields_of_c() -> list[str]:
    [body] = re.findall(r"^struct request \{(.*?)^\};", HEADER.read_text(), re.DOTALL | re.MULTILINE)
    return re.findall(r"^\t(?:__[us]\d\d|char) (\w+)(?:\[\d+\])?;", body, re.MULTILINE)


def columns_of_the_recording() -> list[str]:
    connection = sqlite3.connect(":memory:")
    for statement in SCHEMAS[SCHEMA].values():
        connection.execute(statement)
    found = [row[1] for row in connection.execute("PRAGMA table_info(request)")]
    connection.close()
    return found[1:]


def test_the_first_field_that_differs_is_named():
    assert first_difference(["pid", "nth"], ["pid", "nth"]) is None
    assert first_difference(["pid", "nth", "uri"], ["pid", "url"]) == "field 1: nth here, url there"
    assert first_difference(["pid"], ["pid", "nth"]) == "field 1: None here, nth there"


def test_the_struct_of_c_has_the_fields_of_its_mirror():
    assert first_difference(fields_of_c(), [name for name, _ in REQUEST_FIELDS]) is None


def test_the_recording_has_the_fields_of_a_request():
    assert first_difference(columns_of_the_recording(), list(Request._fields)) is None


def test_the_record_has_the_other_fields_of_a_request_in_their_order():
    copied = [name for name, _ in REQUEST_FIELDS if name not in USED_UP]

    assert first_difference(copied, sorted(copied, key=Request._fields.index)) is None
    assert set(copied) | WORKED_OUT | set(ORIGIN) == set(Request._fields)


def test_the_last_fields_of_a_request_are_those_of_its_worker():
    assert Request._fields[-len(ORIGIN) :] == ORIGIN


@pytest.mark.parametrize("field", [name for name, _ in REQUEST_FIELDS if name not in USED_UP])
def test_a_field_of_the_record_is_the_field_of_that_name_in_the_request(field):
    decoder = RequestDecoder("h", 0, keep_query=False, calls=True)
    names = [name for name, _ in REQUEST_FIELDS]
    values = list(REQUEST.unpack_from(record()))
    values[names.index(field)] = 7919

    found = decoder.request(REQUEST.pack(*values) + record()[REQUEST.size :], "www")

    changed = {name for name in Request._fields if getattr(found, name) == 7919}
    assert changed == {field}


def test_a_flag_and_the_note_it_becomes_are_spelled_alike():
    both = {flag.name for flag in Flag} & {note.name for note in Note}

    assert {note.name: note.value for note in Note} == {note.name: note.name.lower() for note in Note}
    assert {flag.name for flag in Flag} - both == {
        "EXITED", "FATAL", "DETACHED", "MAPPINGS_NOT_READ", "CALLS_NOT_SEEN", "USAGE_NOT_READ", "OOM_VICTIM",
    }  # fmt: skip
