"""Two recordings compared, as one JSON document. Fields are only ever added."""

from __future__ import annotations

import json
from typing import Any, TextIO

from tracer.analysis.contents import Contents
from tracer.analysis.diff import Row
from tracer.analysis.diff_change import Change, Figure
from tracer.analysis.diff_shift import ERROR
from tracer.reporters.diff_table import Diff, name
from tracer.reporters.diff_text import conclusion, findings, sentence
from tracer.reporters.json_report import json_text

SCHEMA = 1
_LONGEST_KEY = 1 << 20


def render(diff: Diff, out: TextIO) -> None:
    """Write the document. Keys are not escaped; bytes that are not UTF-8 become U+FFFD, since JSON has no bytes."""
    document: dict[str, Any] = {
        "schema": SCHEMA,
        "group_by": diff.group_by,
        "metric": diff.metric.value,
        "confidence": 1 - ERROR,
        "before": _recording(diff.before),
        "after": _recording(diff.after),
        "cautions": [json_text(line) for line in diff.cautions],
        "conclusion": conclusion(diff.every, diff.metric, diff.group_by),
        "findings": [
            {
                "label": label.lower(),
                "key": json_text(row.key),
                "container": json_text(row.container),
                "figure": change.figure.value,
                "sentence": json_text(f"{name(row, _LONGEST_KEY)} {sentence(change)}."),
            }
            for label, row, change in findings(diff.every, diff.metric)
        ],
        "next": json_text(diff.next_step),
        "moved": None if diff.moved is None else [json_text(folder) for folder in diff.moved],
        "left_out": diff.left_out,
        "hidden": len(diff.every) - len(diff.rows),
        "groups": [_group(row) for row in diff.rows],
    }
    json.dump(document, out, indent=2, allow_nan=False)
    out.write("\n")


def _recording(found: Contents) -> dict[str, Any]:
    return {
        "path": json_text(found.path),
        "host": json_text(found.host),
        "php": [json_text(version) for version in found.php],
        "backend": json_text(found.backend),
        "started_ns": found.started_ns,
        "requests": found.requests,
        "incomplete": found.incomplete,
        "counted": found.counted,
        "workers": found.workers,
        "lost": found.lost,
        "closed": found.closed,
        "recording_schema": found.schema,
    }


def _group(row: Row) -> dict[str, Any]:
    return {
        "key": json_text(row.key),
        "container": json_text(row.container),
        "requests_before": row.requests_before,
        "requests_after": row.requests_after,
        "outcome": row.outcome.value,
        **{figure.value: _change(row.changes[figure]) for figure in Figure},
    }


def _change(change: Change) -> dict[str, Any]:
    return {
        "change": change.kind.value,
        "why": None if change.why is None else change.why.value,
        "before": change.before,
        "after": change.after,
        "shift": change.shift,
        "low": change.low,
        "high": change.high,
        "estimated": change.estimated,
        "requests_before": change.requests_before,
        "requests_after": change.requests_after,
        "evidence": sentence(change),
    }
