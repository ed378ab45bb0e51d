"""Two recordings compared, as rows for CSV and TSV."""

from __future__ import annotations

from collections.abc import Iterator

from tracer.analysis.diff import Row
from tracer.analysis.diff_change import Figure

_FIELDS = ("change", "why", "before", "after", "shift", "low", "high")
HEADER = (
    "key", "container", "requests_before", "requests_after", "outcome",
    *(f"{figure.value}_{field}" for figure in Figure for field in _FIELDS),
)  # fmt: skip


def cells(row: Row) -> list[object]:
    """The cells of a row, in the order of HEADER."""
    return [
        row.key, row.container, row.requests_before, row.requests_after, row.outcome.value, *_figures(row)
    ]  # fmt: skip


def _figures(row: Row) -> Iterator[object]:
    for figure in Figure:
        change = row.changes[figure]
        yield change.kind.value
        yield None if change.why is None else change.why.value
        yield from (change.before, change.after, change.shift, change.low, change.high)
