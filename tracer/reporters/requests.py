"""Requests one by one, as NDJSON, CSV or TSV: the columns of a recording and those derived from them."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from typing import TextIO

from tracer.analysis.routes import route_of
from tracer.facts import Place, Request
from tracer.reporters.delimited import render_csv, render_tsv
from tracer.reporters.json_report import json_text

DERIVED = ("growth_bytes", "route")
COLUMNS = (*Request._fields, *DERIVED)
# awk counts columns from the left: those that people rank by come first, and the order never changes.
_FIRST = ("native_kept", "growth_bytes", "script", "uri")
TSV_COLUMNS = (*_FIRST, *(name for name in COLUMNS if name not in _FIRST))
_TEXTS = ("pool", "method", "uri", "script", *Place._fields, "route")

RouteOf = Callable[[str], str]


def render_ndjson(requests: Iterable[Request], out: TextIO, route: RouteOf = route_of) -> None:
    """Write one JSON object per request, on a line of its own."""
    for cells in _rows(requests, route):
        row = dict(zip(COLUMNS, cells, strict=True))
        for name in _TEXTS:
            text = row[name]
            row[name] = json_text(text) if isinstance(text, str) else text
        out.write(json.dumps(row) + "\n")


def render_requests_csv(requests: Iterable[Request], out: TextIO, route: RouteOf = route_of) -> None:
    """Write a row per request, columns as in COLUMNS."""
    render_csv(COLUMNS, _rows(requests, route), out)


def render_requests_tsv(requests: Iterable[Request], out: TextIO, route: RouteOf = route_of) -> None:
    """Write a row per request, columns as in TSV_COLUMNS."""
    order = [COLUMNS.index(name) for name in TSV_COLUMNS]
    render_tsv(TSV_COLUMNS, ([row[index] for index in order] for row in _rows(requests, route)), out)


def _rows(requests: Iterable[Request], route: RouteOf) -> Iterator[tuple[object, ...]]:
    for request in requests:
        yield *request, request.growth, None if request.uri is None else route(request.uri)
