"""A ranking as a table for people: at most 100 cells wide with the default columns."""

from __future__ import annotations

import dataclasses
import os.path
from collections.abc import Iterable, Sequence
from typing import Literal, TextIO

from rich.cells import cell_len
from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from tracer.analysis.group import Group
from tracer.analysis.ranking import GroupBy
from tracer.analysis.tally import Tally
from tracer.reporters.columns import COLUMNS, Column, default_columns, kept_text, legend
from tracer.reporters.table import console_for, shorten, show_key, summary
from tracer.units import counted, printable, show_bytes

_MIN_KEY = 19
_MOST_WIDTH = 160
_CONTAINER = "CONTAINER"  # a column that is shown where requests ran in several
_MOST_CONTAINER = 28  # cells
_KEY, _VERDICT = COLUMNS[:2]


@dataclasses.dataclass(frozen=True, slots=True)
class TableOptions:
    """The choices for a table of a ranking. `columns` None: the default ones; `root` is cut off the keys."""

    by: GroupBy
    sort: Column
    columns: tuple[Column, ...] | None = None
    root: str = ""
    legend: bool = False


@dataclasses.dataclass(frozen=True, slots=True)
class RankingTable:
    """The table of groups that have a key, and the columns that it had no room for."""

    table: RenderableType
    columns: tuple[Column, ...]
    dropped: tuple[Column, ...]

    def remarks(self) -> list[str]:
        """A line on the columns that are missing, if there are any."""
        names = ", ".join(one.header for one in self.dropped)
        return [f"no room for {names}: --columns chooses"] if names else []


def render(
    groups: Sequence[Group],
    tally: Tally,
    out: TextIO,
    options: TableOptions,
    *,
    hidden: int,
    remarks: Sequence[str] = (),
) -> None:
    """Write the ranking, the remarks, the summary and, if it is asked for, the legend.

    `hidden` is how many groups with a key are not among `groups`; `remarks` come before the summary.
    """
    console = console_for(out, 100 if options.columns is None else _MOST_WIDTH)
    shown = ranking_table(groups, options, console.width)
    console.print(shown.table)
    if hidden:
        console.print(Text(f"… and {hidden} more: -n 0 shows all"))
    for remark in [*without_key(groups, options.by), *remarks]:
        console.print(Text(remark))
    console.print(Text(summary(tally)))
    for line in [*shown.remarks(), *([legend(shown.columns)] if options.legend else [])]:
        console.print(Text(line, style="dim"))


def ranking_table(groups: Sequence[Group], options: TableOptions, width: int) -> RankingTable:
    """The table, as wide as that. Groups without a key are no rows of it; a narrow terminal has fewer columns."""
    wanted = _wanted(groups, options)
    groups = [group for group in groups if group.key is not None]
    containers = [None if group.container is None else shorten(printable(group.container), _MOST_CONTAINER)
                  for group in groups]  # fmt: skip
    wide = max((cell_len(name) + 1 for name in containers if name is not None), default=0)
    wide = max(wide, len(_CONTAINER) + 1) if wide else 0
    cells = {one.name: [_cell(one, group) for group in groups] for one in wanted}
    widths = {one.name: max([one.width, *map(cell_len, (_header(one, options.sort), *map(str, cells[one.name])))])
              for one in wanted}  # fmt: skip
    columns = _fitting(wanted, widths, width - wide, options)
    key_width = max(_MIN_KEY, _room(columns, widths, min(width, _MOST_WIDTH) - wide))
    table = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0), header_style="bold")
    name = options.by.value.upper() + ("↓" if options.sort is _KEY else "")
    table.add_column(name, no_wrap=True, min_width=_MIN_KEY, max_width=key_width)
    if wide:
        table.add_column(_CONTAINER, no_wrap=True, min_width=wide - 1)
    for one in columns:
        side: Literal["left", "right"] = "left" if one.left else "right"
        table.add_column(_header(one, options.sort), justify=side, no_wrap=True, min_width=widths[one.name])
    for at, group in enumerate(groups):
        key = Text(shorten(show_key(group.key, options.root), key_width))
        place = [Text(containers[at] or "")] if wide else []
        table.add_row(key, *place, *(cells[one.name][at] for one in columns))
    return RankingTable(table, tuple(columns), tuple(one for one in wanted if one not in columns))


def without_key(groups: Iterable[Group], by: GroupBy) -> list[str]:
    """A line on the groups that have no key: how many requests they are, and what these kept; [] if there is none."""
    left = [group for group in groups if group.key is None]
    if not left:
        return []
    incomplete = sum(group.incomplete for group in left)
    requests = counted(sum(group.requests for group in left), "request")
    parts = [f"{requests} {_WITHOUT_KEY.get(by, f'of no known {by.value}')}"]
    parts += [f"{incomplete:,} incomplete"] if incomplete else []
    known = [group for group in left if group.kept_bytes is not None]
    if len(left) == 1 and left[0].kept_high is not None:
        parts.append(f"kept {kept_text(left[0], left[0].kept_bytes, left[0].requests)}")
    elif known:
        parts.append(f"kept {show_bytes(sum(group.kept_bytes or 0 for group in known), signed=True)}")
    grown = [group.growth_bytes for group in left if group.growth_bytes is not None]
    if grown and len(known) < len(left):
        parts.append(f"their workers grew {show_bytes(sum(grown), signed=True)}")
    return [f"(none): {', '.join(parts)}"]


def common_root(groups: Iterable[Group], by: GroupBy) -> str:
    """The folder in which all scripts are, with a slash at its end; empty if there is none, or one script only."""
    keys = {group.key for group in groups if group.key is not None} if by is GroupBy.SCRIPT else set()
    if len(keys) < 2:
        return ""
    root = "/".join([*os.path.commonprefix([key.split("/")[:-1] for key in keys]), ""])
    return root if root.startswith("/") and root != "/" else ""


def has_errors(groups: Iterable[Group]) -> bool:
    """True if one of the requests ended by a fatal error, or with a status of 5xx."""
    return any(group.fatal or group.status_5xx for group in groups)


def _wanted(groups: Sequence[Group], options: TableOptions) -> list[Column]:
    if options.columns is not None:
        return [one for one in options.columns if one is not _KEY]
    found = default_columns(options.by, options.sort, errors=has_errors(groups))
    judged = any(group.verdict is not None for group in groups)
    return [one for one in found if judged or one is not _VERDICT]


def _fitting(wanted: Sequence[Column], widths: dict[str, int], width: int, options: TableOptions) -> list[Column]:
    """The columns that there is room for: those that the user chose give way from the right, others as `spare` says."""
    columns = list(wanted)
    while columns and _room(columns, widths, width) < _MIN_KEY:
        if options.columns is not None:
            columns.pop()
            continue
        spare = max(columns, key=lambda one: one.spare if one is not options.sort else 0)
        if not spare.spare or spare is options.sort:
            break
        columns.remove(spare)
    return columns


def _room(columns: Iterable[Column], widths: dict[str, int], width: int) -> int:
    """Cells that the columns leave for the key."""
    return width - sum(widths[one.name] + 1 for one in columns) - 1


def _header(one: Column, sort: Column) -> str:
    return one.header + ("↓" if one is sort else "")


def _cell(one: Column, group: Group) -> Text:
    """The figure, dim if it is nothing, so that the others stand out."""
    text = one.cell(group)
    return Text(text, style="dim" if text in ("0", "-") else one.style(group))


_WITHOUT_KEY = {
    GroupBy.SCRIPT: "that ran no script (404), or whose script was not seen",
    GroupBy.ROUTE: "that ran no script (404), or whose script was not seen",
    GroupBy.URI: "whose URI was not seen",
}
