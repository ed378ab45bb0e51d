"""phptrace report: the ranking of one recording, or of several together."""

from __future__ import annotations

import sys
from collections.abc import Sequence

import click

from tracer.analysis.flame.heaviest import Heaviest, heaviest_stacks
from tracer.analysis.ranking import Group, GroupBy, Ranking, Sort, columns_of
from tracer.analysis.tally import Tally
from tracer.commands.flame_input import add_recording, flame_builder, remarks
from tracer.commands.options import ranking, refuse_alone, stack_metric
from tracer.errors import RecordingError, UsageError
from tracer.facts import Metric
from tracer.recording.reader import Reader
from tracer.reporters import json_report, stack_text, table
from tracer.reporters.delimited import render_csv, render_tsv


@click.command()
@click.argument("files", nargs=-1, required=True, metavar="FILE...")
@ranking
@click.option("--stacks", is_flag=True, help="Also the heaviest call stacks, as many as -n; see flame.")
@stack_metric
@click.option(
    "--format", "form", type=click.Choice(("table", "json", "csv", "tsv")), default="table", show_default=True
)
def report(
    files: Sequence[str], group_by: str, sort: str, top: int, form: str, stacks: bool, metric: str, retained: bool
) -> None:
    """Rank what the requests in FILE did to memory; several recordings are taken together."""
    heaviest = None
    if stacks:
        if form not in ("table", "json"):
            raise UsageError(f"--stacks is for --format table and json, not {form}: take `flame --format folded`")
        heaviest = _heaviest(files, Metric(metric), retained=retained, top=top)
    else:
        refuse_alone("stacks", "metric", "retained")
    rows, tally = Ranking(GroupBy(group_by)), Tally()
    for path in files:
        with Reader(path) as recording:
            tally.unended += not recording.ended
            workers = recording.workers()
            tally.add_all(workers, host=str(recording.meta.get("host")))
            rows.begin_recording(workers)
            tally.add_all(recording.losses())
            for request in recording.requests(columns_of(rows.by)):
                tally.add(request)
                try:
                    rows.add(request)
                except OverflowError as exc:
                    raise RecordingError(f"{path} holds figures that no memory can have") from exc
    every = rows.groups(Sort(sort))
    shown = every[: top or None]
    if form == "json":
        json_report.render(shown, tally, sys.stdout, heaviest)
    elif form == "table":
        hidden = len(every) - len(shown)
        table.render(shown, tally, sys.stdout, by=GroupBy(group_by), sort=Sort(sort), hidden=hidden)
        if heaviest is not None:
            stack_text.render(heaviest, sys.stdout)
    else:
        cells = [tuple(getattr(group, name) for name in Group.__slots__) for group in shown]
        render = render_csv if form == "csv" else render_tsv
        render(Group.__slots__, cells, sys.stdout)
        click.echo(f"phptrace: {table.summary(tally)}", err=True)


def _heaviest(files: Sequence[str], metric: Metric, *, retained: bool, top: int) -> Heaviest:
    builder, tally, said = flame_builder(metric, retained=retained)
    for path in files:
        add_recording(path, builder, tally, said)
    builder.finish()
    title, lines = remarks(metric, builder, said, tally, retained=retained, diff=False)
    return heaviest_stacks(builder.growth, title, lines, top)
