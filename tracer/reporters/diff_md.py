"""Two recordings compared, as Markdown for a merge request.

Keys are hostile: they are code, in which no Markdown and no HTML has an effect, and what would end the code or a cell
of the table is escaped as printable() escapes.
"""

from __future__ import annotations

from typing import TextIO

from tracer.analysis.diff import Row
from tracer.analysis.diff_change import Figure
from tracer.reporters.diff_table import Diff, requests
from tracer.reporters.diff_text import NAMES, cell, conclusion, findings, sentence, subject
from tracer.reporters.table import shorten, show_key
from tracer.units import printable

_LONGEST = 120
# In code, a backtick ends it, and in a table, a bar ends the cell, even in code.
_ENDS = {ord("`"): "\\x60", ord("|"): "\\x7c"}


def render(diff: Diff, out: TextIO) -> None:
    """Write a heading, the findings and the table."""
    out.write(f"### phptrace: {conclusion(diff.every, diff.metric, diff.group_by)}\n\n")
    for label, row, change in findings(diff.every, diff.metric):
        out.write(f"* **{label.capitalize()}**: {_name(row)} {_text(sentence(change))}.\n")
    if diff.next_step is not None:
        out.write(f"* Next: {code(diff.next_step)}\n")
    for line in diff.cautions:
        out.write(f"* **Caution**: {code(line)}\n")
    out.write(f"* {code(subject(diff.before, diff.before.lost))}\n* {code(subject(diff.after, diff.after.lost))}\n")
    if diff.rows:
        names = [diff.group_by, "outcome", "requests", *(NAMES[figure] for figure in Figure)]
        out.write(f"\n| {' | '.join(names)} |\n|{'---|' * 2}{'---:|' * (len(names) - 2)}\n")
        for row in diff.rows:
            cells = [_name(row), row.outcome.value, requests(row), *(cell(row.changes[one]) for one in Figure)]
            out.write(f"| {' | '.join(cells)} |\n")
    hidden = len(diff.every) - len(diff.rows)
    if hidden:
        out.write(f"\n{hidden:,} more are not shown.\n")
    out.write(
        "\nChanges are per request. A figure with a sign is sure at 99.9 %; = no change that matters, ? unclear, - not"
        " measured.\n"
    )


def code(shown: str) -> str:
    """Text that is escaped for a terminal, as code in Markdown."""
    return f"`{shown.translate(_ENDS) or ' '}`"


def _name(row: Row) -> str:
    key = code(shorten(show_key(row.key), _LONGEST))
    return key if row.container is None else f"{key} in {code(shorten(printable(row.container), _LONGEST))}"


def _text(text: str) -> str:
    """Our own words, with a `<` or `~` in which Markdown sees nothing."""
    return text.replace("~", "\\~").replace("<", "&lt;")
