"""phptrace diff: compare two recordings, route by route, and fail where a deploy made one worse."""

from __future__ import annotations

import contextlib
import dataclasses
import gc
import sys
from collections.abc import Callable, Iterator, Sequence

import click

from tracer.analysis.contents import Contents, Counts
from tracer.analysis.diff import Comparison, Row, is_rise
from tracer.analysis.diff_alike import not_alike
from tracer.analysis.diff_change import Figure, Kind
from tracer.analysis.diff_side import COLUMNS, Side
from tracer.analysis.ranking import GroupBy
from tracer.analysis.routes import Routes
from tracer.capture import Filter
from tracer.commands.info import contents_of
from tracer.commands.options import WholeNumber, route_options
from tracer.commands.routing import RouteOptions, default_group
from tracer.errors import IncompleteError, OverLimitError, RecordingError, UsageError
from tracer.recording.reader import Reader
from tracer.reporters import diff_json, diff_md, diff_rows, diff_table
from tracer.reporters.delimited import render_csv, render_tsv
from tracer.reporters.diff_table import Diff
from tracer.reporters.diff_text import NAMES, amount
from tracer.units import counted, parse_duration, parse_size

_FILTERS = tuple(field.name for field in dataclasses.fields(Filter))  # options that leave requests out
_DECIDED = (Kind.ROSE, Kind.FELL, Kind.SAME, Kind.WARM_UP)
_RENDER: dict[str, Callable[[Diff], None]] = {
    "table": lambda diff: diff_table.render(diff, sys.stdout),
    "json": lambda diff: diff_json.render(diff, sys.stdout),
    "md": lambda diff: diff_md.render(diff, sys.stdout),
    "csv": lambda diff: render_csv(diff_rows.HEADER, map(diff_rows.cells, diff.rows), sys.stdout),
    "tsv": lambda diff: render_tsv(diff_rows.HEADER, map(diff_rows.cells, diff.rows), sys.stdout),
}


@click.command()
@click.argument("before", metavar="BEFORE")
@click.argument("after", metavar="AFTER")
@click.option(
    "--group-by",
    type=click.Choice([by.value for by in (GroupBy.ROUTE, GroupBy.SCRIPT, GroupBy.URI)]),
    help="Compare routes (URIs with placeholders for their variable parts), scripts or URIs. Default: route if a script"
    " serves several routes, else script.",
)
@click.option(
    "--metric",
    type=click.Choice([figure.value for figure in Figure]),
    default=Figure.KEPT.value,
    show_default=True,
    help="Sort and judge by kept (native memory that a request does not free), rise (memory that it adds to its worker"
    " while it runs), zend (peak of PHP's own heap) or duration. All four are shown.",
)
@click.option(
    "--fail-over",
    metavar="LIMIT",
    help="Exit with 1 if the metric of a route surely rose by more than this per request, such as 64K, or 20ms for"
    " duration. With kept, also if a new route surely keeps more. Exit with 8 if the metric is unclear for every"
    " route.",
)
@click.option(
    "-n",
    "--top",
    type=WholeNumber(0),
    metavar="N",
    default=20,
    show_default=True,
    help="Show at most this many rows; 0 shows all.",
)
@click.option(
    "--min-requests",
    type=WholeNumber(1),
    metavar="N",
    default=1,
    show_default=True,
    help="Leave out routes with fewer requests in both recordings.",
)
@route_options
@click.option(
    "--format",
    "form",
    type=click.Choice(tuple(_RENDER)),
    default="table",
    show_default=True,
    help="Output format; md is Markdown for a merge request.",
)
def diff(
    before: str,
    after: str,
    group_by: str | None,
    metric: str,
    fail_over: str | None,
    top: int,
    min_requests: int,
    routes: str | None,
    route_query: str | None,
    form: str,
) -> None:
    """Compare two recordings, such as those before and after a deploy.

    \b
      phptrace diff before.phptrace after.phptrace
      phptrace diff --fail-over 64K before.phptrace after.phptrace   # exits 1 if a route keeps that much more

    BEFORE and AFTER are recordings of `phptrace record`. Changes are per request, so neither the length of a recording
    nor its traffic matters. A change is only called one if it is sure at 99.9 %.
    """
    figure = Figure(metric)
    limit = None if fail_over is None else _limit(fail_over, figure)
    options = RouteOptions.of(routes, route_query)
    with contextlib.ExitStack() as stack:
        stack.enter_context(_without_collection())
        recordings = [stack.enter_context(Reader(path)) for path in (before, after)]
        found = options.learned(recordings)
        by = default_group(recordings, found) if group_by is None else GroupBy(group_by)
        compared = _compared(recordings, by, found, figure, min_requests, top)
    try:
        _RENDER[form](compared)
    finally:  # also if nobody reads all of it, as in `| head`
        if limit is not None:
            _check(compared, limit)


@contextlib.contextmanager
def _without_collection() -> Iterator[None]:
    """Keep Python from looking for cycles, of which requests make none: it takes a twelfth of the time."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


def _compared(
    recordings: Sequence[Reader], by: GroupBy, routes: Routes, metric: Figure, min_requests: int, top: int
) -> Diff:
    read = [_read(recording, by, routes) for recording in recordings]
    (before, about_before), (after, about_after) = read
    comparison = Comparison(by, before, after, not_alike=not_alike(about_before, about_after))
    every = comparison.rows(metric, least_requests=min_requests)
    return Diff(
        before=about_before,
        after=about_after,
        rows=every[: top or None],
        every=every,
        metric=metric,
        group_by=by.value,
        moved=comparison.moved,
        left_out=before.overflow + after.overflow,
        stacks=all(recording.has_stacks for recording in recordings),
        same=len({recording.identity for recording in recordings}) == 1,
    )


def _read(recording: Reader, by: GroupBy, routes: Routes) -> tuple[Side, Contents]:
    side = Side(by, routes)
    options = recording.meta.get("options")
    filtered = isinstance(options, dict) and any(options.get(name) is not None for name in _FILTERS)
    losses = recording.losses()
    side.begin(
        recording.workers(),
        recording.looks(),
        lost=sum(loss.lost for loss in losses),
        filtered=filtered,
        frees=recording.has_freed,
    )
    add = side.add
    try:
        if recording.has_freed:
            for request, freed in recording.requests_and_freed(COLUMNS):
                add(request, freed)
        else:
            for request in recording.requests(COLUMNS):
                add(request)
    except OverflowError as exc:
        raise RecordingError(
            f"cannot read {recording.path}: it is corrupt, with memory figures of more than 64 bits. Record again."
        ) from exc
    groups = side.groups().values()
    counts = Counts(
        side.requests,
        sum(group.incomplete for group in groups),
        sum(group.counted for group in groups),
        None,
        None,
    )
    return side, contents_of(recording, counts)


def _limit(text: str, metric: Figure) -> float:
    """Bytes or nanoseconds of --fail-over."""
    try:
        return parse_duration(text) * 1e9 if metric is Figure.DURATION else float(parse_size(text))
    except ValueError as exc:
        wanted = "a duration. Write 20ms or 1s" if metric is Figure.DURATION else "a size. Write 4096, 64K or 1M"
        raise UsageError(
            f"cannot use --fail-over {text!r} with --metric {metric.value}: it is not {wanted}. Limits are per request."
        ) from exc


def _check(diff: Diff, limit: float) -> None:
    """OverLimitError if a row rose by more than the limit; IncompleteError if nobody knows of any row."""
    over = [row for row in diff.every if _surely_over(row, diff.metric, limit)]
    name, shown = NAMES[diff.metric], amount(diff.metric, limit)
    if over:
        raise OverLimitError(
            f"cannot accept {diff.after.path}: {name} surely rose by more than {shown} a request in"
            f" {counted(len(over), diff.group_by)}, the first of which is {diff_table.name(over[0], 60)}. Fix that, or"
            " raise --fail-over."
        )
    if not any(row.changes[diff.metric].kind in _DECIDED for row in diff.every):
        raise IncompleteError(
            f"cannot decide on --fail-over: {name} is unclear for every {diff.group_by} of both recordings. Record more"
            " requests, in the same way."
        )


def _surely_over(row: Row, metric: Figure, limit: float) -> bool:
    change = row.changes[metric]
    return is_rise(change) and change.low is not None and change.low > limit
