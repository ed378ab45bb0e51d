"""phptrace report: rank the routes or scripts of one recording, or of several together."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence

import click

from tracer.analysis.balance import COLUMNS as BALANCE_COLUMNS
from tracer.analysis.balance import Balance, Balancing
from tracer.analysis.between import COLUMNS as BETWEEN_COLUMNS
from tracer.analysis.between import Between, BetweenRequests
from tracer.analysis.flame.heaviest import Heaviest, heaviest_stacks
from tracer.analysis.group import Group
from tracer.analysis.heading import Heading
from tracer.analysis.ranking import COLUMNS, GroupBy, Ranking
from tracer.analysis.routes import Routes
from tracer.analysis.start import Parts, parts
from tracer.analysis.supplements import COLUMNS as SUPPLEMENT_COLUMNS
from tracer.analysis.supplements import Supplements
from tracer.analysis.tally import Tally
from tracer.capture import Filter
from tracer.commands.filtering import Moment, Selection, selection_options, span_of
from tracer.commands.flame_input import View, add_recording, chosen_view, flame_builder, title_and_notes
from tracer.commands.messages import is_verbose, not_traced, notice
from tracer.commands.options import require_option, route_options, stack_metric_options
from tracer.commands.ranking_options import ranking_options
from tracer.commands.recordings import recordings_of
from tracer.commands.routing import RouteOptions, default_group
from tracer.errors import RecordingError, UsageError
from tracer.facts import Metric
from tracer.recording.reader import Reader
from tracer.reporters import (
    balance_text,
    findings,
    heading,
    host_text,
    json_report,
    ranking_table,
    stack_text,
    supplements,
    table,
)
from tracer.reporters.columns import Column
from tracer.reporters.delimited import render_csv, render_tsv
from tracer.reporters.ranking_table import TableOptions
from tracer.reporters.verdict_text import Source
from tracer.stderr import say

log = logging.getLogger(__name__)
_FILTERS = tuple(field.name for field in dataclasses.fields(Filter))  # options that leave requests out


@dataclasses.dataclass(frozen=True, slots=True)
class _Report:
    """All that a format may show."""

    every: Sequence[Group]
    top: int | None  # how many of them to show; None: all
    tally: Tally
    options: TableOptions
    heading: Heading
    heaviest: Heaviest | None  # None: without --stacks
    ranking: Ranking
    balance: Balance
    between: Between
    parts: Parts | None  # None: some requests are left out
    source: Source
    supplements: Supplements

    @property
    def groups(self) -> Sequence[Group]:
        """The groups to show."""
        return self.every[: self.top]


def _table(report: _Report) -> None:
    root = ranking_table.common_root(report.every, report.options.by)
    console = table.console_for(sys.stdout)
    console.print(heading.lines(report.heading, report.tally, root, console.width))
    console.print()
    findings.render(report.every, sys.stdout, by=report.options.by, source=report.source, root=root)
    named = [group for group in report.every if group.key is not None]
    shown = named[: report.top]
    remarks = [*table.remarks(report.ranking), *balance_text.large_parts(report.between)]
    if report.parts is not None:
        remarks += balance_text.large_growth(report.parts)
    ranking_table.render(
        [*shown, *(group for group in report.every if group.key is None)],
        report.tally,
        sys.stdout,
        dataclasses.replace(report.options, root=root),
        hidden=len(named) - len(shown),
        remarks=remarks,
    )
    supplements.render(report.supplements, sys.stdout, top=report.top, places=report.ranking.places())
    if report.heaviest is not None:
        stack_text.render(report.heaviest, sys.stdout)


def _json(report: _Report) -> None:
    json_report.render(
        report.groups,
        report.tally,
        sys.stdout,
        report.heaviest,
        report.balance,
        between=report.between,
        parts=report.parts,
        together=report.ranking.together(),
        places=report.ranking.places(),
        why_not_estimated=report.ranking.why_not_estimated(),
        mismatch=report.ranking.mismatch(),
        group_by=report.options.by.value,
        source=report.source,
        more=supplements.document(report.supplements, report.ranking.places()),
    )


def _csv(report: _Report) -> None:
    render_csv(Group.__slots__, _cells(report), sys.stdout)
    say(table.summary(report.tally))


def _tsv(report: _Report) -> None:
    render_tsv(Group.__slots__, _cells(report), sys.stdout)
    say(table.summary(report.tally))


def _cells(report: _Report) -> list[tuple[object, ...]]:
    return [
        tuple(
            group.verdict and group.verdict.kind.value if name == "verdict" else getattr(group, name)
            for name in Group.__slots__
        )
        for group in report.groups
    ]


_RENDER: dict[str, Callable[[_Report], None]] = {"table": _table, "json": _json, "csv": _csv, "tsv": _tsv}
_WITH_STACKS = ("table", "json")


@click.command()
@click.argument("files", nargs=-1, required=True, metavar="FILE...")
@ranking_options("route if a script serves several routes, else script")
@route_options
@selection_options
@click.option(
    "--stacks", is_flag=True, help="Also show the call stacks that grew the workers most, at most as many as -n says."
)
@stack_metric_options(note=" Requires --stacks.")
@click.option(
    "--format",
    "form",
    type=click.Choice(tuple(_RENDER)),
    default="table",
    show_default=True,
    help=f"Output format. With --stacks, only {' or '.join(_WITH_STACKS)}.",
)
def report(
    files: Sequence[str],
    group_by: str | None,
    sort: Column,
    columns: tuple[Column, ...] | None,
    top: int,
    routes: str | None,
    route_query: str | None,
    uri: str | None,
    script: str | None,
    slow: float | None,
    since: Moment | None,
    until: Moment | None,
    form: str,
    stacks: bool,
    metric: str | None,
    retained: bool,
) -> None:
    """Rank routes or scripts by how much memory their requests kept.

    FILE is a recording of `phptrace record`. The requests of several recordings are ranked together.
    """
    options = RouteOptions.of(routes, route_query)
    selection = Selection.of(uri, script, slow, since, until)
    if stacks:
        if form not in _WITH_STACKS:
            raise UsageError(
                f"cannot use --stacks with --format {form}: it has no place for call stacks. Use --format"
                f" {' or '.join(_WITH_STACKS)}, or `phptrace flame --format folded`."
            )
    else:
        require_option("stacks", "metric", "retained")
    heaviest = None
    with contextlib.ExitStack() as stack:
        recordings = recordings_of(files, stack)
        found = options.learned(recordings)
        by = default_group(recordings, found) if group_by is None else GroupBy(group_by)
        if stacks:
            view = chosen_view(recordings, None if metric is None else Metric(metric), retained=retained)
            heaviest = _heaviest(recordings, view, found, top, selection)
        ranking, tally, balancing, gaps = Ranking(by, routes=found), Tally(), Balancing(), BetweenRequests()
        source, about = Source(tuple(files)), Heading(filters=selection.shown())
        # A part of the requests says little on what is a leak: a cache that fills looks like one while it does.
        whole = Ranking(by, routes=found) if selection else None
        beside = Supplements(by, found)
        memory = [line for recording in recordings for line in host_text.recorded_lines(recording.meta)]
        for recording in recordings:
            _add_recording(recording, ranking, tally, balancing, gaps, beside, selection, whole)
            about.add(recording.path, recording.meta, recording.workers(), span_of(recording))
            source = _with(source, recording.meta)
    balance, between = balancing.result(), gaps.result()
    every = ranking.groups(sort.order, lost=tally.lost)
    if whole is not None:
        every = _judged_by(whole.groups(lost=tally.lost), every)
        if not tally.requests:
            notice("no request fits the filter: " + ", ".join(selection.shown()))
    sums = None if selection else parts(every, between)
    shown_as = TableOptions(by, sort, columns, legend=is_verbose())
    _RENDER[form](
        _Report(every, top or None, tally, shown_as, about, heaviest, ranking, balance, between, sums, source, beside)
    )
    lines = [balance_text.line(balance), balance_text.between_line(between), balance_text.shared_line(between)]
    if sums is not None:
        lines += [balance_text.start_line(sums), balance_text.parts_line(sums)]
    lines += memory
    for line in lines:
        log.info("%s", line)
    if balance.doubtful:
        log.warning("%s", balance_text.warning(balance))


def _judged_by(whole: Iterable[Group], groups: Iterable[Group]) -> list[Group]:
    """The groups with the verdicts on all requests of each."""
    verdicts = {(group.key, group.container): group.verdict for group in whole}
    return [dataclasses.replace(one, verdict=verdicts.get((one.key, one.container), one.verdict)) for one in groups]


def _with(source: Source, meta: Mapping[str, object]) -> Source:
    """The source, and a recording more."""
    named = meta.get("targets")
    targets = tuple(str(name) for name in named) if isinstance(named, list) else ()
    new = tuple(name for name in targets if name not in source.targets)
    return dataclasses.replace(source, targets=source.targets + new, stacks=source.stacks or "stacks" in meta)


def _add_recording(
    recording: Reader,
    ranking: Ranking,
    tally: Tally,
    balancing: Balancing,
    gaps: BetweenRequests,
    beside: Supplements,
    selection: Selection,
    whole: Ranking | None,
) -> None:
    """Add a recording to each; to `whole` all its requests, whatever the selection."""
    tally.unended += not recording.ended
    tally.not_traced += not_traced(recording.meta)
    workers = recording.workers()
    tally.add_all(workers, host=str(recording.meta.get("host")))
    looks = recording.looks()
    filtered = _limited_by(recording.meta, _FILTERS)
    keep = selection.within(recording)
    partial = filtered or bool(keep)
    ranking.begin_recording(workers, looks, filtered=partial, frees=recording.has_freed)
    if whole is not None:
        whole.begin_recording(workers, looks, filtered=filtered, frees=recording.has_freed)
    gaps.begin(requests_left_out=filtered)
    beside.begin_recording(workers, recording.meta, requests_left_out=filtered, selected=bool(keep))
    tally.add_all(recording.forks())  # before the requests, which name them
    losses = recording.losses()
    tally.add_all(losses)
    # After --count requests, those that come during the last looks are not recorded.
    left_out = _limited_by(recording.meta, (*_FILTERS, "count"))
    balanced = balancing.begin(looks, requests_lost=bool(losses), requests_left_out=left_out)
    everything = not keep
    columns = (*COLUMNS, *BETWEEN_COLUMNS, *SUPPLEMENT_COLUMNS, *(BALANCE_COLUMNS if balanced else ()))
    for request, freed in recording.requests_and_freed(columns):
        gaps.add(request)
        if balanced:
            balancing.add(request)
        shown = everything or keep.keeps(request)
        beside.add(request, shown=shown)
        if shown:
            tally.add(request)
        else:
            tally.left_out += 1
        try:
            ranking.add(request, freed, shown=shown, in_time=shown or keep.in_time(request))
            if whole is not None:
                whole.add(request, freed)
        except OverflowError as exc:
            raise RecordingError(
                f"cannot read {recording.path}: it is corrupt, with memory figures of more than 64 bits. Record again."
            ) from exc


def _limited_by(meta: Mapping[str, object], names: Iterable[str]) -> bool:
    """True if the recording was made with one of these options."""
    options = meta.get("options")
    return isinstance(options, dict) and any(options.get(name) is not None for name in names)


def _heaviest(recordings: Sequence[Reader], view: View, routes: Routes, top: int, selection: Selection) -> Heaviest:
    builder, tally, about = flame_builder(view, routes)
    for recording in recordings:
        add_recording(recording, builder, tally, about, keeps=selection.within(recording).keeps)
    builder.finish()
    title, notes = title_and_notes(builder, about, tally, view, diff=False)
    return heaviest_stacks(builder.growth, title, notes, top)
