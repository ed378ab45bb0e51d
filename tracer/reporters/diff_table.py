"""Two recordings compared, for people: what got worse, in sentences, and a table. 100 characters wide in a pipe."""

from __future__ import annotations

import dataclasses
import shlex
from collections.abc import Sequence
from typing import Literal, TextIO

from rich.cells import cell_len
from rich.console import Console
from rich.table import Table
from rich.text import Text

from tracer.analysis.contents import Contents
from tracer.analysis.diff import Outcome, Row
from tracer.analysis.diff_change import Figure, Kind
from tracer.reporters.diff_text import NAMES, busier, cell, conclusion, doubts, findings, sentence, subject, unclear
from tracer.reporters.table import console_for, shorten, show_key
from tracer.reporters.verdict_text import shown_targets
from tracer.units import printable

_LABEL_WIDTH = 12
_KEY_WIDTH = 40
_MOST_UNCLEAR = 3
_MIN_KEY = 19
_WIDTHS = {"outcome": 8, "requests": 15, "kept": 10, "rise": 10, "zend peak": 10, "duration": 10}
_SPARE = ("requests", "zend peak", "rise")  # columns that are left out if there is no room, in this order
_STYLES = {"WORSE": "bold red", "NEW LEAK": "bold red", "BETTER": "bold green", "CAUTION": "yellow"}
LEGEND = (
    "Changes are per request: kept (native memory that was not freed), rise (memory that a request adds to its worker"
    " while it runs), zend peak (PHP's heap), duration. A figure with a sign is a change that is sure at 99.9 %; = no"
    " change that matters, ? unclear, - not measured. Of a route in one recording only: its mean. A worker's first"
    " request of each route is left out."
)


@dataclasses.dataclass(frozen=True, slots=True)
class Diff:
    """Two recordings compared. `rows` are those that are shown, and `every` all of them."""

    before: Contents
    after: Contents
    rows: Sequence[Row]
    every: Sequence[Row]
    metric: Figure
    group_by: str  # `route`, `script` or `uri`
    moved: tuple[str, str] | None
    left_out: int  # requests of keys that are too many
    stacks: bool  # both have call stacks
    same: bool  # they are one file

    @property
    def next_step(self) -> str | None:
        """A command that shows the functions that need more memory; None if no route does."""
        if all(change.figure is Figure.DURATION for row in self.every for change in row.rises):
            return None
        files = " ".join(printable(shlex.quote(one.path)) for one in (self.before, self.after))
        if self.stacks:
            return f"phptrace flame --diff {files} -o diff.svg"
        return f"phptrace record --stacks -d 60s {shown_targets(self.after.targets)}"

    @property
    def cautions(self) -> list[str]:
        """A line for each reason to doubt the comparison, escaped."""
        found = ["both are the same recording"] if self.same else []
        found += doubts(self.before, self.after)
        remark = busier(self.every)
        found += [] if remark is None else [remark]
        found += [f"{self.left_out:,} requests of further keys are not compared"] if self.left_out else []
        return found

    @property
    def remarks(self) -> list[str]:
        """Sentences that are no doubts, escaped."""
        if self.moved is None:
            return []
        old, new = (printable(folder) + "/" for folder in self.moved)
        return [f"Scripts in {old} before are matched with those in {new} after."]


def render(diff: Diff, out: TextIO) -> None:
    """Write the findings, the table, and what is not in it."""
    console = console_for(out)
    for line in (subject(diff.before, diff.before.lost), subject(diff.after, diff.after.lost)):
        console.print(Text(line))
    console.print()
    for text in diff.cautions:
        _labelled(console, "CAUTION", [text])
    for label, row, change in findings(diff.every, diff.metric):
        _labelled(console, label, [f"{name(row, _KEY_WIDTH)} {sentence(change)}."])
    if diff.next_step is not None:
        _labelled(console, "", [f"Next: {diff.next_step}"])
    console.print(Text(conclusion(diff.every, diff.metric, _noun(diff))))
    console.print()
    if diff.rows:
        console.print(_table(diff, console.width))
    if len(diff.every) > len(diff.rows):
        console.print(Text(f"… and {len(diff.every) - len(diff.rows):,} more: -n 0 shows all"))
    for row, change in unclear(diff.every, diff.metric)[:_MOST_UNCLEAR]:
        console.print(Text(f"? {name(row, _KEY_WIDTH)}: {sentence(change)}."))
    for remark in diff.remarks:
        console.print(Text(remark))
    console.print(Text(LEGEND, style="dim"))


def name(row: Row, width: int) -> str:
    """The row's key for a terminal, with its container if there are several."""
    key = shorten(show_key(row.key), width)
    return key if row.container is None else f"{key} in {shorten(printable(row.container), width)}"


def _noun(diff: Diff) -> str:
    return "URI" if diff.group_by == "uri" else diff.group_by


def _labelled(console: Console, label: str, sentences: Sequence[str]) -> None:
    start = Text.assemble((f"{label:{_LABEL_WIDTH}}", _STYLES.get(label, "bold")))
    for text in sentences:
        for line in Text(text).wrap(console, console.width - _LABEL_WIDTH, overflow="fold"):
            line.rstrip()
            console.print(start + line)
            start = Text(" " * _LABEL_WIDTH)


def _table(diff: Diff, width: int) -> Table:
    columns = dict(_WIDTHS)
    for spare in _SPARE:
        if width - sum(wide + 1 for wide in columns.values()) - 1 < _MIN_KEY:
            del columns[spare]
    key_width = max(_MIN_KEY, min(width, 160) - sum(wide + 1 for wide in columns.values()) - 1)
    keys = [_cut(row, key_width) for row in diff.rows]
    table = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0), header_style="bold")
    table.add_column(diff.group_by, no_wrap=True, min_width=_MIN_KEY, max_width=key_width)
    for column, least in columns.items():
        side: Literal["left", "right"] = "left" if column == "outcome" else "right"
        table.add_column(column, justify=side, no_wrap=True, min_width=least)
    for key, row in zip(keys, diff.rows, strict=True):
        table.add_row(key, *[_cell(row, column) for column in columns])
    return table


def _cut(row: Row, width: int) -> Text:
    """The key, and the container behind it, in so many cells."""
    if row.container is None:
        return Text(shorten(show_key(row.key), width))
    container = shorten(printable(row.container), width // 3)
    return Text(f"{shorten(show_key(row.key), width - cell_len(container) - 3)} ({container})")


def _cell(row: Row, column: str) -> Text:
    if column == "outcome":
        worse = row.outcome in (Outcome.WORSE, Outcome.NEW_LEAK)
        return Text(row.outcome.value, style="red" if worse else "")
    if column == "requests":
        return Text(requests(row))
    figure = next(figure for figure in Figure if NAMES[figure] == column)
    change = row.changes[figure]
    return Text(cell(change), style="" if change.kind in (Kind.ROSE, Kind.FELL, Kind.NEW) else "dim")


def requests(row: Row) -> str:
    """The requests before and after: `132 → 140`; `-` where there was none."""
    return " → ".join(f"{count:,}" if count else "-" for count in (row.requests_before, row.requests_after))
