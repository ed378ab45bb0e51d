"""phptrace info: tell where and how a recording was made, what it holds, and what it lacks."""

from __future__ import annotations

import sys

import click

from tracer.analysis.contents import Contents, Counts, contents
from tracer.commands.messages import is_internal, not_traced
from tracer.recording.reader import Reader
from tracer.reporters import contents as reporter

_RENDER = {"text": reporter.render, "json": reporter.render_json}


@click.command()
@click.argument("file", metavar="FILE")
@click.option(
    "--format", "form", type=click.Choice(tuple(_RENDER)), default="text", show_default=True, help="Output format."
)
def info(file: str, form: str) -> None:
    """Show how a recording was made, and what it holds and lacks.

    FILE is a recording of `phptrace record`.
    """
    with Reader(file) as recording:
        totals = recording.totals()
        first_ns, last_ns = recording.span() or (None, None)
        found = contents_of(recording, Counts(totals.requests, totals.incomplete, totals.counted, first_ns, last_ns))
    _RENDER[form](found, sys.stdout)


def contents_of(recording: Reader, counts: Counts) -> Contents:
    """Sum up a recording with these requests."""
    meta = recording.meta
    lacking = meta.get("lacking")
    return contents(
        recording.path,
        recording.size,
        recording.schema,
        meta,
        counts,
        recording.workers(),
        recording.losses(),
        not_traced(meta),
        [text for text in lacking if isinstance(text, str) and not is_internal(text)]
        if isinstance(lacking, list)
        else None,
    )
