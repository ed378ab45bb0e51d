"""Requests one by one, as NDJSON, CSV or TSV: the columns of a recording and those derived from them."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from typing import TextIO

from tracer.facts import Place, Request
from tracer.reporters.delimited import render_csv, render_tsv
from tracer.reporters.json_report import json_text

DERIVED = ("growth_bytes",)
COLUMNS = (*Request._fields, *DERIVED)
# awk counts columns from the left: those that people rank by come first, and the order never changes.
_FIRST = ("native_kept", "growth_bytes", "script", "uri")
TSV_COLUMNS = (*_FIRST, *(name for name in Request._fields if name not in _FIRST))
_TEXTS = tuple(Request._fields.index(name) for name in ("pool", "method", "uri", "script", *Place._fields))


def render_ndjson(requests: Iterable[Request], out: TextIO) -> None:
    """Write one JSON object per request, on a line of its own."""
    for request in requests:
        row = dict(zip(COLUMNS, _row(request), strict=True))
        for index in _TEXTS:
            text = request[index]
            row[COLUMNS[index]] = json_text(text) if isinstance(text, str) else text
        out.write(json.dumps(row) + "\n")


def render_requests_csv(requests: Iterable[Request], out: TextIO) -> None:
    """Write a row per request, columns as in COLUMNS."""
    render_csv(COLUMNS, map(_row, requests), out)


def render_requests_tsv(requests: Iterable[Request], out: TextIO) -> None:
    """Write a row per request, columns as in TSV_COLUMNS."""
    render_tsv(TSV_COLUMNS, _tsv_rows(requests), out)


def _row(request: Request) -> tuple[object, ...]:
    return (*request, request.growth)


def _tsv_rows(requests: Iterable[Request]) -> Iterator[list[object]]:
    order = [COLUMNS.index(name) for name in TSV_COLUMNS]
    for request in requests:
        row = _row(request)
        yield [row[index] for index in order]
