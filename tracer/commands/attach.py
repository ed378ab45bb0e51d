"""phptrace attach: watch the culprit rise to the top while it happens."""

from __future__ import annotations

import contextlib
import sys
from typing import Any, Protocol

import click

from tracer.analysis.ranking import LIVE_GROUPS, LIVE_WINDOW, GroupBy, Ranking
from tracer.analysis.tally import Tally
from tracer.capture import Progress, Stop, capture
from tracer.commands.attaching import IDLE_NOTE, Plan, Session, finish, session
from tracer.commands.messages import is_verbose, notice
from tracer.commands.options import attach_options, route_options
from tracer.commands.ranking_options import ranking_options
from tracer.commands.routing import RouteOptions
from tracer.commands.terminal import stopping_without_it
from tracer.errors import UsageError
from tracer.facts import Fact, Release, Request
from tracer.looks import looks_at
from tracer.recording.writer import Writer, check_output
from tracer.reporters.columns import Column
from tracer.reporters.live import LiveView, Status
from tracer.reporters.ranking_table import TableOptions
from tracer.reporters.request_lines import RequestLines
from tracer.reporters.table import summary
from tracer.units import counted

_IN_FLIGHT_S = 5.0  # a request that runs for so long is shown


class _Output(Protocol):
    """Where `attach` shows requests while it runs."""

    def add(self, facts: list[Fact]) -> None: ...
    def update(self, progress: Progress) -> None: ...
    def end(self, progress: Progress) -> None: ...


class _RankingOutput:
    """On a terminal: a ranking that is redrawn at every update."""

    def __init__(self, view: LiveView, ranking: Ranking, tally: Tally, running: Session) -> None:
        self._view = view
        self._ranking = ranking
        self._tally = tally
        self._running = running

    def add(self, facts: list[Fact]) -> None:
        for fact in facts:
            if isinstance(fact, Request):
                self._ranking.add(fact)
            elif isinstance(fact, Release):
                self._ranking.release(fact)

    def update(self, progress: Progress) -> None:
        running = self._running.watch.in_flight(_IN_FLIGHT_S)
        self._view.update(self._ranking, self._tally, self._status(progress), running)

    def end(self, progress: Progress) -> None:
        """Leave a last state that has the mean rate of the whole run."""
        progress.requests_per_s = progress.seen / progress.elapsed_s if progress.elapsed_s else 0.0
        self.update(progress)

    def _status(self, progress: Progress) -> Status:
        note = IDLE_NOTE if progress.idle else None
        if self._ranking.overflow:
            not_ranked = counted(self._ranking.overflow, "request")
            note = f"{not_ranked} counted but not ranked: there are too many different {self._ranking.by.value}s"
        return Status(
            target=self._running.shown,
            backend=self._running.choice.backend.name,
            watched=progress.watched,
            elapsed_s=progress.elapsed_s,
            requests_per_s=progress.requests_per_s,
            note=note,
        )


class _LinesOutput:
    """In a pipe: one line per request, as soon as it ends."""

    def __init__(self) -> None:
        self._lines = RequestLines(sys.stdout)
        self._warned = False

    def add(self, facts: list[Fact]) -> None:
        for fact in facts:
            if isinstance(fact, Request):
                self._lines.add(fact)
        self._lines.flush()

    def update(self, progress: Progress) -> None:
        """Warn once if no request was seen."""
        if progress.idle and not self._warned:
            self._warned = True
            notice(IDLE_NOTE)

    def end(self, progress: Progress) -> None:
        """Every line is written already."""


@click.command()
@attach_options
@ranking_options("route")
@route_options
@click.option(
    "-o", "--output", metavar="FILE", help="Also record the requests to this file, as `phptrace record` does."
)
def attach(
    output: str | None,
    group_by: str | None,
    sort: Column,
    columns: tuple[Column, ...] | None,
    top: int,
    routes: str | None,
    route_query: str | None,
    **options: Any,
) -> None:
    """Show live which routes make the workers grow.

    TARGET is php-fpm (every master on this host), php-fpm:POOL, container:NAME or container:ID (the masters in that
    container), cgroup:PATH, or a PID. The PID of a master selects all its workers.

    On a terminal, phptrace shows a ranking and updates it every second. In a pipe, it writes one line per request and
    ignores --group-by, --sort, --columns and --top. Stop it with Ctrl-C.
    """
    plan = Plan.of(**options)
    found = RouteOptions.of(routes, route_query)
    if found.query and not plan.keep_query:
        raise UsageError("cannot use --route-query: it requires --query keep. Add --query keep.")
    if output is not None:
        check_output(output, force=plan.force)
    tally = Tally()
    by = GroupBy.ROUTE if group_by is None else GroupBy(group_by)
    ranking = Ranking(by, routes=found.live(), window=LIVE_WINDOW, max_groups=LIVE_GROUPS, estimate=not plan.keep)
    live = sys.stdout.isatty()
    shown_on = sys.stdout.fileno() if live else None
    with contextlib.ExitStack() as stack:
        stop = stack.enter_context(Stop().on_signals())
        running = stack.enter_context(session(plan))
        file = stack.enter_context(Writer(output, running.meta(plan), force=plan.force)) if output is not None else None
        shown: _Output
        if live:
            shown_as = TableOptions(by, sort, columns, legend=is_verbose())
            view = stack.enter_context(LiveView(sys.stdout, options=shown_as, top=top or None))
            shown = _RankingOutput(view, ranking, tally, running)
        else:
            tally.not_traced = running.not_traced
            shown = _LinesOutput()

        def consume(facts: list[Fact]) -> None:
            tally.add_all(facts)
            if file is not None:
                file.add(facts)
            shown.add(facts)

        def tick(progress: Progress) -> None:
            if file is not None:
                file.flush()
            with stopping_without_it(stop, shown_on):
                shown.update(progress)

        with stopping_without_it(stop, shown_on):
            shown.update(Progress(watched=running.watch.watched))
        why, progress = capture(
            running.watch,
            consume,
            stop=stop,
            duration_s=plan.duration_s,
            count=plan.count,
            keep=plan.keep,
            tick=tick,
            looks=None if file is None else looks_at(running.targets),
        )
        if file is not None:
            file.note("memory_ended", running.memory())
        with stopping_without_it(stop, shown_on):
            shown.end(progress)
    if not live:
        notice(summary(tally))
    finish(why, progress, tally, plan)
