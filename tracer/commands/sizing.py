"""phptrace sizing: how many workers fit into the memory that there is, from a recording."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Sequence

import click

from tracer.analysis.budget import Budget, BudgetFrom, budget_of
from tracer.analysis.memory_split import recorded
from tracer.analysis.pool_memory import PoolMemory
from tracer.analysis.ranking import COLUMNS as RANKING_COLUMNS
from tracer.analysis.ranking import GroupBy, Ranking
from tracer.analysis.routes import UNKNOWN_URI, Routes
from tracer.analysis.sizing import COLUMNS, Growth, Load, Sizing, growth, size
from tracer.capture import Filter
from tracer.commands.options import SIZE, route_options
from tracer.commands.routing import RouteOptions
from tracer.errors import IncompleteError, RecordingError, UsageError
from tracer.facts import Worker
from tracer.recording.reader import Reader
from tracer.reporters import sizing as reporter
from tracer.reporters.sizing import About
from tracer.units import printable

_RENDER = {"text": reporter.render, "json": reporter.render_json}
_MOST_NAMED = 10
_MOST_MASTERS = 1024


@click.command()
@click.argument("file", metavar="FILE")
@click.option(
    "--budget",
    type=SIZE,
    metavar="SIZE",
    help="Memory for this pool, such as 4G. Default: the limit of its cgroup or the memory of the host, without what"
    " others had eaten of it when the recording ended.",
)
@click.option("--pool", metavar="NAME", help="The pool. Required if the recording has several.")
@route_options
@click.option(
    "--format", "form", type=click.Choice(tuple(_RENDER)), default="text", show_default=True, help="Output format."
)
def sizing(
    file: str, budget: int | None, pool: str | None, routes: str | None, route_query: str | None, form: str
) -> None:
    """Recommend pm.max_children, pm.max_requests and memory_limit.

    FILE is a recording of `phptrace record`. The arithmetic is printed line by line, and a block for www.conf at the
    end. A setting that the recording cannot answer is refused with the reason.
    """
    with Reader(file) as recording:
        workers = recording.workers()
        pool = _chosen(workers, pool)
        found = _sized(recording, workers, pool, budget, RouteOptions.of(routes, route_query))
        began, ended = recorded(recording.meta)
        host = recording.meta.get("host")
        about = About(
            file,
            pool,
            host if isinstance(host, str) else None,
            _seconds(recording),
            sum(worker.pool == pool for worker in workers),
            ended.cpus or began.cpus,
            tuple(sorted({one.pool for one in workers if one.pool and one.pool != pool})) if budget is None else (),
        )
    try:
        _RENDER[form](found, about, sys.stdout)
    finally:  # also if nobody reads all of it, as in `| head`
        if found.children.most is None:
            raise IncompleteError(
                f"cannot recommend pm.max_children: {found.children.why}. All that is known is above."
            )


def _chosen(workers: Sequence[Worker], pool: str | None) -> str | None:
    """Return the pool to size; None: that of workers without a name. UsageError if it is not clear."""
    pools = sorted({worker.pool for worker in workers if worker.pool is not None})
    if pool is not None:
        if pool not in pools:
            raise UsageError(
                f"cannot size the pool {printable(pool)}: it is not in the recording. Choose one of {_named(pools)}."
            )
        return pool
    if len(pools) > 1:
        raise UsageError(
            f"cannot size several pools at once: each has its own settings. Use --pool with one of {_named(pools)}."
        )
    return pools[0] if pools else None


def _named(pools: Sequence[str]) -> str:
    names = [printable(name) for name in pools[:_MOST_NAMED]]
    more = len(pools) - len(names)
    return ", ".join(names) + (f" and {more:,} more" if more else "") if names else "none"


def _sized(
    recording: Reader, workers: Sequence[Worker], pool: str | None, budget: int | None, options: RouteOptions
) -> Sizing:
    of_pool = {(one.pid, one.start_ticks): one for one in workers if one.pool == pool and one.start_ticks is not None}
    filtered = _is_filtered(recording)
    load, grows, masters = _served(recording, list(of_pool.values()), pool, options.learned([recording]), filtered)
    memory = PoolMemory(of_pool.keys(), masters)
    for footprint in recording.footprints():
        memory.add(footprint)
    alive = {key for key, worker in of_pool.items() if worker.died_ns is None}
    allowed = Budget(BudgetFrom.GIVEN, budget) if budget is not None else None
    allowed = allowed or budget_of(memory.now(alive), tuple(masters), *recorded(recording.meta))
    return size(load, memory, grows, allowed, whole=not filtered)


def _served(
    recording: Reader, workers: Sequence[Worker], pool: str | None, routes: Routes, filtered: bool
) -> tuple[Load, Growth, set[int]]:
    """Return the needs of the pool's requests, the growth that they leave, and its masters."""
    ranking, load = Ranking(GroupBy.ROUTE, routes=routes), Load()
    known = {(worker.pid, worker.start_ticks) for worker in workers}
    looks = [look for look in recording.looks() if (look.pid, look.start_ticks) in known]
    ranking.begin_recording(workers, looks, filtered=filtered)
    masters: set[int] = set()
    containers: set[str | None] = set()
    for request, freed in recording.requests_and_freed((*RANKING_COLUMNS, *COLUMNS)):
        if request.pool != pool:
            continue
        load.add(request, UNKNOWN_URI if request.uri is None else routes.of(request.uri))
        if request.master_pid is not None and len(masters) < _MOST_MASTERS:
            masters.add(request.master_pid)
        containers.add(request.container_id or request.container or request.namespaces)
        if len(containers) > 1:
            raise UsageError(
                f"cannot size the pool {printable(pool or '')}: the recording has it in several containers. Record one"
                " of them with container:NAME."
            )
        try:
            ranking.add(request, freed)
        except OverflowError as exc:
            raise RecordingError(
                f"cannot read {recording.path}: it is corrupt, with memory figures of more than 64 bits. Record again."
            ) from exc
    return load, growth(ranking.groups(lost=sum(loss.lost for loss in recording.losses()))), masters


def _is_filtered(recording: Reader) -> bool:
    """True if the recording was made with an option that leaves requests out."""
    given = recording.meta.get("options")
    return isinstance(given, dict) and any(given.get(field.name) is not None for field in dataclasses.fields(Filter))


def _seconds(recording: Reader) -> float | None:
    """Seconds that the recording took, or else those between its first request and its last."""
    ended = recording.meta.get("ended")
    elapsed = ended.get("elapsed_s") if isinstance(ended, dict) else None
    if isinstance(elapsed, int | float) and 0 < elapsed < 1e9:
        return float(elapsed)
    span = recording.span()
    return None if span is None or span[1] <= span[0] else (span[1] - span[0]) / 1e9
