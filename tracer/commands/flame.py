"""phptrace flame: which PHP function grew the workers, as a picture or for other tools."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

import click

from tracer.analysis.flame.node import Flame
from tracer.commands.flame_input import add_recording, flame_builder, remarks, together
from tracer.commands.options import stack_metric
from tracer.errors import UsageError
from tracer.facts import Metric
from tracer.output_file import opened, refuse_own_input
from tracer.reporters.flame import folded, speedscope, svg
from tracer.reporters.table import summary
from tracer.units import printable

_RENDER = {"svg": svg.render, "folded": folded.render, "speedscope": speedscope.render}
_SUFFIXES = {".svg": "svg", ".folded": "folded", ".txt": "folded", ".json": "speedscope"}


@click.command()
@click.argument("files", nargs=-1, required=True, metavar="FILE...")
@stack_metric
@click.option("--format", "form", type=click.Choice(tuple(_RENDER)), help="Default: by the name of -o, else svg.")
@click.option("--diff", is_flag=True, help="Compare two recordings: flame --diff BEFORE AFTER.")
@click.option("-o", "--output", metavar="FILE", default="-", help="Where to; - for stdout, the default.")
@click.option("-f", "--force", is_flag=True, help="Overwrite the file of -o.")
def flame(
    files: Sequence[str], metric: str, retained: bool, form: str | None, diff: bool, output: str, force: bool
) -> None:
    """Draw where the requests in FILE grew the workers: route, script, PHP call stack, as wide as their bytes.

    The recording has to be one of `record --stacks`. Several are taken together.
    """
    form = form or _SUFFIXES.get(os.path.splitext(output)[1], "svg")
    if diff and len(files) != 2:
        raise UsageError("--diff compares two recordings: flame --diff BEFORE AFTER")
    if output == "-" and form == "svg" and sys.stdout.isatty():
        raise UsageError("a picture is not for a terminal: name a file with -o growth.svg, or take --format folded")
    refuse_own_input(output, files)
    builder, tally, said = flame_builder(Metric(metric), retained=retained, difference=diff)
    if diff:
        add_recording(files[0], builder, tally, said, before=True)
    for path in files[1:] if diff else files:
        add_recording(path, builder, tally, said)
    root = builder.finish()
    title, lines = remarks(Metric(metric), builder, said, tally, retained=retained, diff=diff)
    lines += together(builder) + summary(tally).splitlines()
    with opened(output, force=force) as out:
        _RENDER[form](Flame(root, title, tuple(lines)), out)
    for line in lines if form != "svg" else ():
        click.echo(f"phptrace: {printable(line)}", err=True)
