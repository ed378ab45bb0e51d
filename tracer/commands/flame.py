"""phptrace flame: show which PHP functions made the workers grow, as a picture or for other tools."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Sequence

import click

from tracer.analysis.flame.node import Flame
from tracer.commands.flame_input import (
    add_recording,
    chosen_view,
    flame_builder,
    folded_routes_note,
    title_and_notes,
)
from tracer.commands.options import route_options, stack_metric_options
from tracer.commands.recordings import recordings_of
from tracer.commands.routing import RouteOptions
from tracer.errors import UsageError
from tracer.facts import Metric
from tracer.output_file import opened, refuse_own_input
from tracer.recording.reader import Reader
from tracer.reporters.flame import folded, speedscope, svg
from tracer.reporters.table import summary
from tracer.stderr import say
from tracer.units import counted, printable

_RENDER = {"svg": svg.render, "folded": folded.render, "speedscope": speedscope.render}
_SUFFIXES = {".svg": "svg", ".folded": "folded", ".txt": "folded", ".json": "speedscope"}


@click.command()
@click.argument("files", nargs=-1, required=True, metavar="FILE...")
@stack_metric_options()
@route_options
@click.option(
    "--format",
    "form",
    type=click.Choice(tuple(_RENDER)),
    help="Output format: a picture (svg), or input for flamegraph.pl (folded) or speedscope.app. Default: from the"
    " extension of -o, else svg.",
)
@click.option(
    "--diff", is_flag=True, help="Compare two recordings, the earlier one first: red frames grew, blue frames shrank."
)
@click.option("-o", "--output", metavar="FILE", default="-", help="Write to this file; - is stdout, the default.")
@click.option("-f", "--force", is_flag=True, help="Overwrite the output file if it exists.")
def flame(
    files: Sequence[str],
    metric: str | None,
    retained: bool,
    routes: str | None,
    route_query: str | None,
    form: str | None,
    diff: bool,
    output: str,
    force: bool,
) -> None:
    """Draw a flame graph of the PHP functions that made the workers grow.

    \b
      phptrace flame s.phptrace -o growth.svg
      phptrace flame --diff before.phptrace after.phptrace -o diff.svg

    From the top, frames are the route (a URI with placeholders for its variable parts), the script, and the PHP
    functions that the script called. The wider a frame, the more bytes. Record FILE with `phptrace record --stacks`.
    The requests of several recordings are added up.
    """
    form = form or _SUFFIXES.get(os.path.splitext(output)[1], "svg")
    if diff and len(files) != 2:
        raise UsageError(
            f"cannot compare {counted(len(files), 'recording')}: --diff takes exactly two. Write"
            " `phptrace flame --diff BEFORE AFTER`."
        )
    if output == "-" and form == "svg" and sys.stdout.isatty():
        raise UsageError("cannot write SVG to a terminal: it is a picture. Use -o FILE.svg or --format folded.")
    refuse_own_input(output, files)
    options = RouteOptions.of(routes, route_query)
    with contextlib.ExitStack() as stack:
        recordings = [stack.enter_context(Reader(path)) for path in files] if diff else recordings_of(files, stack)
        view = chosen_view(recordings, None if metric is None else Metric(metric), retained=retained)
        builder, tally, about = flame_builder(view, options.learned(recordings), difference=diff)
        if diff:
            add_recording(recordings[0], builder, tally, about, before=True)
        for recording in recordings[1:] if diff else recordings:
            add_recording(recording, builder, tally, about)
    root = builder.finish()
    title, notes = title_and_notes(builder, about, tally, view, diff=diff)
    notes += folded_routes_note(builder) + summary(tally).splitlines()
    with opened(output, force=force) as out:
        _RENDER[form](Flame(root, title, tuple(notes)), out)
    for note in notes if form != "svg" else ():
        say(printable(note))
