"""phptrace export: write every request of a recording for other tools."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Sequence

import click

from tracer.analysis.tally import Tally
from tracer.capture import Filter
from tracer.commands.messages import not_traced
from tracer.commands.options import DURATION, SIZE, route_options
from tracer.commands.recordings import recordings_of
from tracer.commands.routing import RouteOptions
from tracer.facts import Request
from tracer.output_file import opened, refuse_own_input
from tracer.recording.reader import Reader
from tracer.reporters.requests import render_ndjson, render_requests_csv, render_requests_tsv
from tracer.reporters.table import summary
from tracer.stderr import say

_RENDER = {"ndjson": render_ndjson, "csv": render_requests_csv, "tsv": render_requests_tsv}


@click.command()
@click.argument("files", nargs=-1, required=True, metavar="FILE...")
@click.option(
    "--format",
    "form",
    type=click.Choice(tuple(_RENDER)),
    help="Output format. Default: from the extension of -o, else ndjson.",
)
@click.option("-o", "--output", metavar="FILE", default="-", help="Write to this file; - is stdout, the default.")
@click.option("-f", "--force", is_flag=True, help="Overwrite the output file if it exists.")
@route_options
@click.option("--uri", metavar="GLOB", help="Export only requests whose URI matches this shell pattern.")
@click.option("--script", metavar="GLOB", help="Export only requests whose script matches this shell pattern.")
@click.option("--slow", type=DURATION, help="Export only requests that took at least this long, such as 3s or 500ms.")
@click.option(
    "--min-growth",
    type=SIZE,
    help="Export only requests that kept at least this much native memory (outside PHP's own heap) in the worker, such"
    " as 64K or 1M.",
)
def export(
    files: Sequence[str],
    form: str | None,
    output: str,
    force: bool,
    routes: str | None,
    route_query: str | None,
    uri: str | None,
    script: str | None,
    slow: float | None,
    min_growth: int | None,
) -> None:
    """Convert recordings to NDJSON, CSV or TSV, one row per request.

    FILE is a recording of `phptrace record`. The formats are NDJSON (one JSON object per line), CSV for spreadsheets
    and TSV for awk and sort. The column route is the URI with placeholders for its variable parts.
    """
    options = RouteOptions.of(routes, route_query)
    keep = Filter(uri, script, None if slow is None else round(slow * 1e9), min_growth)
    by_name = os.path.splitext(output)[1].lstrip(".")
    render = _RENDER[form or (by_name if by_name in _RENDER else "ndjson")]
    tally = Tally()
    with contextlib.ExitStack() as stack:
        recordings = recordings_of(files, stack)
        refuse_own_input(output, files)
        found = options.learned(recordings)
        out = stack.enter_context(opened(output, force=force))
        render(_requests(recordings, keep, tally), out, found.of)
    say(summary(tally))


def _requests(recordings: Sequence[Reader], keep: Filter, tally: Tally) -> Iterator[Request]:
    for recording in recordings:
        tally.unended += not recording.ended
        tally.not_traced += not_traced(recording.meta)
        tally.add_all(recording.workers(), str(recording.meta.get("host")))
        tally.add_all(recording.losses())
        for request in recording.requests():
            if keep.keeps(request):
                tally.add(request)
                yield request
