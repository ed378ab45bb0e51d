"""The options of every verb that shows a ranking, and the columns that --sort and --columns name."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import click

from tracer.analysis.ranking import GroupBy
from tracer.commands.options import Command, WholeNumber, all_of
from tracer.reporters.columns import COLUMNS, DEFAULT_SORT, Column, column


class _SortColumn(click.ParamType):
    """A column by which rows can be sorted."""

    name = "column"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Column:
        if isinstance(value, Column):
            return value
        (found,) = _columns(self, [str(value)], param, ctx)
        if not found.sorts:
            self.fail(f"{value!r} is a column that cannot sort. Write {_names(sorting=True)}.", param, ctx)
        return found


class _ColumnList(click.ParamType):
    """Columns, separated by commas."""

    name = "columns"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[Column, ...]:
        if not isinstance(value, str):
            return tuple(value)
        return tuple(dict.fromkeys(_columns(self, value.split(","), param, ctx)))


def _columns(
    kind: click.ParamType, names: Sequence[str], param: click.Parameter | None, ctx: click.Context | None
) -> list[Column]:
    try:
        return [column(name) for name in names]
    except ValueError as exc:
        kind.fail(str(exc), param, ctx)


def _names(*, sorting: bool) -> str:
    names = [one.name for one in COLUMNS if one.sorts or not sorting]
    return f"{', '.join(names[:-1])} or {names[-1]}"


def ranking_options(default: str) -> Callable[[Command], Command]:
    """Return a decorator that adds the options of every verb that shows a ranking.

    `default` tells by what requests are grouped without --group-by.
    """
    return all_of(
        click.option(
            "--group-by",
            type=click.Choice([by.value for by in GroupBy]),
            help="Show one row per route (a URI with placeholders for its variable parts), script, URI, worker, pool or"
            " container. A route, script, URI or pool that two containers have is two rows."
            f" Default: {default}.",
        ),
        click.option(
            "--sort",
            type=_SortColumn(),
            default=DEFAULT_SORT.name,
            show_default=True,
            help="Sort by this column of --columns, the largest first; key is the name of the row, in alphabetical"
            " order.",
        ),
        click.option(
            "--columns",
            type=_ColumnList(),
            metavar="NAMES",
            help="Show these columns in the table, such as kept,/req,total. "
            + ", ".join(f"{one.name} ({one.meaning})" for one in COLUMNS if one.name != "key")
            + ". Default: those that fit.",
        ),
        click.option(
            "-n",
            "--top",
            type=WholeNumber(0),
            metavar="N",
            default=20,
            show_default=True,
            help="Show at most this many rows; 0 shows all.",
        ),
    )
