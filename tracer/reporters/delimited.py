"""Rows as CSV or TSV. Untrusted cells are escaped for spreadsheets and terminals."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Sequence
from typing import TextIO

from tracer.units import printable

# A spreadsheet takes a cell that begins with one of these for a formula (OWASP, "CSV Injection").
_FORMULA = ("=", "+", "-", "@", "\t", "\r", "|", "%", "\uff1d", "\uff0b", "\uff0d", "\uff20")


def render_csv(header: Sequence[str], rows: Iterable[Sequence[object]], out: TextIO) -> None:
    """Write RFC 4180. Text is escaped by printable(); a possible formula gets an apostrophe before it."""
    writer = csv.writer(out, lineterminator="\r\n")
    writer.writerow(header)
    for row in rows:
        writer.writerow([_csv_cell(cell) for cell in row])


def render_tsv(header: Sequence[str], rows: Iterable[Sequence[object]], out: TextIO) -> None:
    """Write for awk and sort: one line per row, tabs between cells, none in a cell. None is an empty cell."""
    out.write("\t".join(header) + "\n")
    for row in rows:
        out.write(tsv_line(row))


def tsv_line(row: Sequence[object]) -> str:
    """One row as render_tsv() writes it, with its newline."""
    return (
        "\t".join(["" if cell is None else printable(cell) if isinstance(cell, str) else str(cell) for cell in row])
        + "\n"
    )


def _csv_cell(cell: object) -> object:
    if not isinstance(cell, str):
        return cell
    shown = printable(cell)
    return "'" + shown if shown.lstrip(" ").startswith(_FORMULA) else shown
