"""phptrace export: every request of a recording, for other tools."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Sequence

import click

from tracer.analysis.tally import Tally
from tracer.capture import Filter
from tracer.commands.options import DURATION, SIZE
from tracer.facts import Request
from tracer.output_file import opened, refuse_own_input
from tracer.recording.reader import Reader
from tracer.reporters.requests import render_ndjson, render_requests_csv, render_requests_tsv
from tracer.reporters.table import summary

_RENDER = {"ndjson": render_ndjson, "csv": render_requests_csv, "tsv": render_requests_tsv}


@click.command()
@click.argument("files", nargs=-1, required=True, metavar="FILE...")
@click.option("--format", "form", type=click.Choice(tuple(_RENDER)), help="Default: by the name of -o, else ndjson.")
@click.option("-o", "--output", metavar="FILE", default="-", help="Where to; - for stdout, the default.")
@click.option("-f", "--force", is_flag=True, help="Overwrite the file of -o.")
@click.option("--uri", metavar="GLOB", help="Only requests whose URI matches.")
@click.option("--script", metavar="GLOB", help="Only requests whose script matches.")
@click.option("--slow", type=DURATION, help="Only requests that took at least 3s, 500ms.")
@click.option("--min-growth", type=SIZE, help="Only requests after which the worker kept at least 64K, 1M.")
def export(
    files: Sequence[str],
    form: str | None,
    output: str,
    force: bool,
    uri: str | None,
    script: str | None,
    slow: float | None,
    min_growth: int | None,
) -> None:
    """Write every request in FILE: a JSON object a line, or rows for a spreadsheet or awk."""
    keep = Filter(uri, script, None if slow is None else round(slow * 1e9), min_growth)
    by_name = os.path.splitext(output)[1].lstrip(".")
    render = _RENDER[form or (by_name if by_name in _RENDER else "ndjson")]
    tally = Tally()
    with contextlib.ExitStack() as stack:
        recordings = [stack.enter_context(Reader(path)) for path in files]
        refuse_own_input(output, files)
        out = stack.enter_context(opened(output, force=force))
        render(_requests(recordings, keep, tally), out)
    click.echo(f"phptrace: {summary(tally)}", err=True)


def _requests(recordings: Sequence[Reader], keep: Filter, tally: Tally) -> Iterator[Request]:
    for recording in recordings:
        tally.unended += not recording.ended
        tally.add_all(recording.workers())
        tally.add_all(recording.losses())
        for request in recording.requests():
            if keep.keeps(request):
                tally.add(request)
                yield request
