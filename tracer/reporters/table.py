"""A ranking as a table for people: at most 100 characters wide with the default columns."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TextIO

from rich.console import Console, RenderableType
from rich.console import Group as Lines
from rich.table import Table
from rich.text import Text

from tracer.analysis.ranking import Group, GroupBy, Sort
from tracer.analysis.tally import Tally
from tracer.units import printable, show_bytes, show_duration

_KEY_WIDTH = 31
_COLUMNS = (
    ("requests", Sort.REQUESTS),
    ("native", Sort.NATIVE),
    ("native/req", None),
    ("growth", Sort.GROWTH),
    ("anon peak", Sort.PEAK),
    ("zend peak", Sort.ZEND),
    ("p95", Sort.DURATION),
)
LEGEND = (
    "native: memory kept while Zend's heap stayed the same size: malloc in extensions, libraries, PHP itself;"
    " /req: its median. growth: all anonymous memory kept, Zend's chunk cache included; it may come back."
    " Peaks: the most any request needed. p95: duration."
)


def render(
    groups: Sequence[Group],
    tally: Tally,
    out: TextIO,
    *,
    by: GroupBy,
    sort: Sort,
    hidden: int,
) -> None:
    """`hidden`: how many groups are not among `groups`."""
    console = console_for(out)
    width = _KEY_WIDTH if out.isatty() else None
    console.print(ranking_table(groups, by=by, sort=sort, key_width=width))
    if hidden:
        console.print(Text(f"… and {hidden} more: -n 0 shows all"))
    console.print(Text(summary(tally)))
    console.print(Text(LEGEND, style="dim"), width=min(console.width, 100))


def console_for(out: TextIO) -> Console:
    """A console that cuts nothing off where there is no terminal to fit."""
    if out.isatty():
        return Console(file=out, highlight=False)
    return Console(file=out, highlight=False, width=100, soft_wrap=True)


def ranking_table(groups: Sequence[Group], *, by: GroupBy, sort: Sort, key_width: int | None) -> RenderableType:
    """The table alone; `key_width` cuts keys from the left, where they tend to be the same."""
    table = Table(box=None, pad_edge=False, padding=(0, 1), header_style="bold")
    table.add_column(by.value, no_wrap=True, overflow="ignore", width=key_width)
    for name, of in _COLUMNS:
        table.add_column(name + ("↓" if of is sort else ""), justify="right", no_wrap=True)
    for group in groups:
        table.add_row(
            Text(shorten(show_key(group.key), key_width)),
            f"{group.requests:,}",
            show_bytes(group.native_growth_bytes, signed=True),
            show_bytes(group.native_growth_p50, signed=True),
            show_bytes(group.growth_bytes, signed=True),
            show_bytes(group.anon_peak_max),
            show_bytes(group.zend_peak_max),
            show_duration(group.duration_p95_ns),
        )
    return Lines(table)


def summary(tally: Tally) -> str:
    """What every output says: how much was seen, in part, or not at all."""
    parts = [
        f"{tally.requests:,} requests",
        f"{tally.workers} workers",
        f"{tally.incomplete} incomplete" + (f" ({tally.killed} killed)" if tally.killed else ""),
        f"{tally.lost} lost",
    ]
    if tally.fatal:
        parts.append(f"{tally.fatal} fatal errors")
    if tally.uri_unknown:
        parts.append(f"{tally.uri_unknown} with unknown uri")
    if tally.died:
        parts.append(f"workers: {tally.born} born, {tally.died} died")
    text = " · ".join(parts)
    for why, lost in tally.losses.items():
        text += f"\nLOST {lost} {why}"
    return text


def show_key(key: str | None) -> str:
    return "(none)" if key is None else printable(key)


def shorten(text: str, width: int | None) -> str:
    """The end of the text, which tells scripts apart better than the beginning."""
    if width is None or len(text) <= width:
        return text
    return "…" + text[len(text) - width + 1 :]
