"""phptrace attach: watch the culprit rise to the top while it happens."""

from __future__ import annotations

import contextlib
import sys
from typing import Any

import click

from tracer.analysis.ranking import GroupBy, Ranking, Sort
from tracer.analysis.tally import Tally
from tracer.capture import Progress, Stop, capture
from tracer.commands.attaching import IDLE_REMARK, Plan, attached, finish, notice
from tracer.commands.options import ranking, tracing
from tracer.facts import Fact, Request
from tracer.recording.writer import Writer, check_output
from tracer.reporters.live import LiveView, Status
from tracer.reporters.request_lines import Lines
from tracer.reporters.table import summary

# Hours of a busy site fit in some tens of megabytes.
_WINDOW = 4096
_MAX_GROUPS = 5000


@click.command()
@tracing
@ranking
@click.option("-o", "--output", metavar="FILE", help="Record to this file, too.")
def attach(output: str | None, group_by: str, sort: str, top: int, **options: Any) -> None:
    """Show live which script grows the workers of TARGET: php-fpm, php-fpm:POOL, or a PID.

    On a terminal a ranking that is redrawn every second; piped, one line a request. Ctrl-C ends it.
    """
    plan = Plan.of(**options)
    if output is not None:
        check_output(output, force=plan.force)
    tally = Tally()
    rows = Ranking(GroupBy(group_by), window=_WINDOW, max_groups=_MAX_GROUPS)
    live = sys.stdout.isatty()
    with contextlib.ExitStack() as stack:
        stop = stack.enter_context(Stop().on_signals())
        tracing = stack.enter_context(attached(plan))
        file = stack.enter_context(Writer(output, tracing.meta(plan), force=plan.force)) if output is not None else None
        view = stack.enter_context(LiveView(sys.stdout, sort=Sort(sort), top=top or None)) if live else None
        lines = None if live else Lines(sys.stdout)
        backend = tracing.choice.backend
        warned = False

        def consume(facts: list[Fact]) -> None:
            tally.add_all(facts)
            if file is not None:
                file.add(facts)
            for fact in facts:
                if isinstance(fact, Request):
                    if lines is None:
                        rows.add(fact)
                    else:
                        lines.add(fact)
            if lines is not None:
                lines.flush()

        def tick(progress: Progress) -> None:
            nonlocal warned
            if file is not None:
                file.flush()
            if view is not None:
                view.update(rows, tally, status(progress))
            elif progress.idle and not warned:
                warned = True
                notice(IDLE_REMARK)

        def status(progress: Progress) -> Status:
            remark = IDLE_REMARK if progress.idle else None
            if rows.overflow:
                remark = f"{rows.overflow} requests of further {group_by}s are counted but not ranked"
            return Status(
                tracing.shown, backend.name, progress.watched, progress.elapsed_s, progress.requests_per_s, remark
            )

        if view is not None:
            view.update(rows, tally, status(Progress(watched=backend.watched)))
        why, progress = capture(
            backend, consume, stop=stop, duration_s=plan.duration_s, count=plan.count, keep=plan.keep, tick=tick
        )
        if view is not None:
            progress.requests_per_s = progress.seen / progress.elapsed_s if progress.elapsed_s else 0.0
            view.update(rows, tally, status(progress))
    if not live:
        notice(summary(tally))
    finish(why, progress, tally, plan)
