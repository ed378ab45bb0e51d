"""Requests as they end, one line each, for pipes and logs."""

from __future__ import annotations

import datetime
from typing import TextIO

from tracer.analysis.places import place_name
from tracer.facts import Place, Request
from tracer.reporters.delimited import tsv_line

HEADER = (
    "time", "pid", "pool", "method", "status", "ending", "duration_ms",
    "growth_bytes", "kept_bytes", "anon_bytes", "zend_peak_bytes", "script", "uri", "notes", "container",
)  # fmt: skip

_NOWHERE = Place()


class RequestLines:
    """Writes tab-separated lines below a header; a value that was not measured is empty."""

    def __init__(self, out: TextIO) -> None:
        """Write the header at once."""
        self._out = out
        out.write("\t".join(HEADER) + "\n")
        out.flush()

    def add(self, request: Request) -> None:
        """Write the line of a request; it may stay in a buffer until flush()."""
        self._out.write(
            tsv_line(
                (
                    _time(request.started_ns),
                    request.pid,
                    request.pool,
                    request.method,
                    request.status,
                    request.ending,
                    None if request.duration_ns is None else f"{request.duration_ns / 1e6:.3f}",
                    request.growth,
                    request.native_kept,
                    request.anon_after,
                    request.zend_peak,
                    request.script,
                    request.uri,
                    request.notes,
                    None if request.place == _NOWHERE else place_name(request.place),
                )
            )
        )

    def flush(self) -> None:
        """Send what was written to the reader of the stream."""
        self._out.flush()


def _time(unix_ns: int | None) -> str | None:
    if unix_ns is None:
        return None
    moment = datetime.datetime.fromtimestamp(unix_ns // 1_000_000_000, datetime.UTC)
    return f"{moment:%Y-%m-%dT%H:%M:%S}.{unix_ns % 1_000_000_000 // 1_000_000:03d}Z"
