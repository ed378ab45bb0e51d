"""phptrace export: every request of a recording, for other tools."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator, Sequence
from typing import TextIO

import click

from tracer.analysis.tally import Tally
from tracer.capture import Filter
from tracer.commands.options import DURATION, SIZE
from tracer.errors import UsageError
from tracer.facts import Request
from tracer.recording import Reader
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
        if os.path.exists(output) and any(os.path.samefile(output, path) for path in files):
            raise UsageError(f"{output} is what is to be exported: choose another name")
        out = stack.enter_context(_opened(output, force=force))
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


@contextlib.contextmanager
def _opened(path: str, *, force: bool) -> Iterator[TextIO]:
    if path == "-":
        yield sys.stdout
        return
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    if os.path.lexists(path) and not (os.path.isfile(path) or os.path.islink(path)):
        raise UsageError(f"cannot write {path}: it is not a file")
    try:
        if force:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(path)
        descriptor = os.open(path, flags, 0o600)
    except FileExistsError as exc:
        raise UsageError(f"{path} exists. Choose another name, or overwrite it with -f.") from exc
    except OSError as exc:
        raise UsageError(f"cannot write {path}: {exc.strerror}") from exc
    with open(descriptor, "w", encoding="utf-8", newline="") as out:
        yield out
