"""phptrace record: write one recording, to read later."""

from __future__ import annotations

import datetime
import os
import re
import shutil
import sys
import tempfile
from typing import Any

import click
from rich.console import Console
from rich.text import Text

from tracer.analysis.tally import Tally
from tracer.capture import Progress, Stop, capture
from tracer.commands.attaching import IDLE_NOTE, Plan, finish, session
from tracer.commands.messages import notice
from tracer.commands.options import attach_options, require_option, stack_recording_options
from tracer.commands.terminal import stopping_without_it
from tracer.errors import UsageError
from tracer.facts import Fact
from tracer.looks import looks_at
from tracer.output_file import STDOUT
from tracer.recording.schema import SUFFIX
from tracer.recording.writer import Writer, check_output
from tracer.reporters.table import summary


@click.command()
@attach_options
@stack_recording_options
@click.option(
    "-o",
    "--output",
    metavar="FILE",
    help="Write the recording to this file; - is stdout. Default: phptrace-TARGET-TIME.phptrace in the current"
    " directory.",
)
def record(output: str | None, **options: Any) -> None:
    """Record every request to a file, to read later.

    TARGET is php-fpm (every master on this host), php-fpm:POOL, container:NAME or container:ID (the masters in that
    container), cgroup:PATH, or a PID. The PID of a master selects all its workers.

    Recording stops at Ctrl-C, after --duration or after --count. Read the file with `phptrace report`, `flame` or
    `export`, or with any SQLite tool.
    """
    if not options["stacks"]:
        require_option("stacks", "max_depth", "every", "hz", "retained_after")
    plan = Plan.of(**options)
    path = _default_name(plan) if output is None else output
    if path not in ("-", *STDOUT):
        check_output(path, force=plan.force)
        _record(plan, path)
        return
    if sys.stdout.isatty():
        raise UsageError(
            "cannot write a recording to a terminal: it is a binary file. Use -o FILE.phptrace, or redirect stdout."
        )
    with tempfile.TemporaryDirectory(prefix="phptrace-") as directory:
        temporary = os.path.join(directory, "recording" + SUFFIX)
        try:
            _record(plan, temporary)
        finally:
            if os.path.exists(temporary):
                with open(temporary, "rb") as file:
                    shutil.copyfileobj(file, sys.stdout.buffer)
                sys.stdout.buffer.flush()


def _default_name(plan: Plan) -> str:
    target = re.sub(r"[^A-Za-z0-9]+", "-", plan.names[0]).strip("-")
    return f"phptrace-{target}-{datetime.datetime.now(datetime.UTC):%Y%m%dT%H%M%SZ}{SUFFIX}"


def _record(plan: Plan, path: str) -> None:
    tally = Tally()
    with (
        Stop().on_signals() as stop,
        session(plan) as running,
        Writer(path, running.meta(plan), force=plan.force) as file,
    ):

        def consume(facts: list[Fact]) -> None:
            tally.add_all(facts)
            file.add(facts)

        tally.not_traced = running.not_traced
        progress_line = _ProgressLine(tally, stop)
        lacking = tuple(running.watch.lacking)

        def note_lacking() -> None:
            """Note also what masters lack that were started later."""
            nonlocal lacking
            if (now := tuple(running.watch.lacking)) != lacking:
                lacking = now
                file.note("lacking", list(now))

        def tick(progress: Progress) -> None:
            file.flush()
            note_lacking()
            progress_line.show(progress)

        notice(f"recording to {path}" + ("" if plan.duration_s or plan.count else " until Ctrl-C"))
        why, progress = capture(
            running.watch,
            consume,
            stop=stop,
            duration_s=plan.duration_s,
            count=plan.count,
            keep=plan.keep,
            tick=tick,
            looks=looks_at(running.targets),
        )
        progress_line.clear()
        note_lacking()
        file.note("memory_ended", running.memory())
        file.note("ended", {"why": why.value, "elapsed_s": progress.elapsed_s, "seen": progress.seen})
    notice(f"{path}: {summary(tally)}")
    finish(why, progress, tally, plan)


class _ProgressLine:
    """One line on stderr that is overwritten; nothing if stderr is not a terminal."""

    def __init__(self, tally: Tally, stop: Stop) -> None:
        """`stop` is asked to stop when the terminal goes away."""
        quiet = click.get_current_context().find_root().params.get("quiet")
        self._console = Console(stderr=True, highlight=False) if sys.stderr.isatty() and not quiet else None
        self._tally = tally
        self._stop = stop
        self._warned = False

    def show(self, progress: Progress) -> None:
        """Overwrite the line with the current state; warn once if no request was seen."""
        if progress.idle and not self._warned:
            self._warned = True
            notice(IDLE_NOTE)
        with stopping_without_it(self._stop):
            self._overwrite(progress)

    def _overwrite(self, progress: Progress) -> None:
        if self._console is not None:
            line = f"{progress.elapsed_s:.0f} s · {progress.requests_per_s:,.0f} requests/s · {summary(self._tally)}"
            self._console.print(
                Text(line.splitlines()[0][: self._console.width - 1]), end="\r", overflow="crop", no_wrap=True
            )

    def clear(self) -> None:
        """Blank the line."""
        with stopping_without_it(self._stop):
            self._blank()

    def _blank(self) -> None:
        if self._console is not None:
            self._console.print(" " * (self._console.width - 1), end="\r")
