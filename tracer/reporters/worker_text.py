"""The workers, and the requests that raised each of them, as a table for people."""

from __future__ import annotations

import datetime
from collections.abc import Sequence
from typing import TextIO

from rich.cells import cell_len
from rich.table import Table
from rich.text import Text

from tracer.analysis.high_water import PoolWeight, Step, WorkerMarks
from tracer.reporters.table import console_for, shorten, show_key
from tracer.units import counted, printable, show_bytes

_WORKER_WIDTH = 22
_REQUEST_WIDTH = 32
_PLACE_WIDTH = 28
_LEAST_PLACE = 12
_WITHOUT_SHOWN = 3  # of one pool
_LEAST_SHARE = 0.05  # of a pool's weight
_LEAST_SAVED = 1 << 20
_COLUMNS = ("now", "peak", "from", "to")


def render(workers: Sequence[WorkerMarks], pools: Sequence[PoolWeight], out: TextIO, *, hidden: int) -> None:
    """Write the table of these workers, and a line for each route that weighs much. `hidden`: workers left out."""
    if not workers:
        return
    console = console_for(out)
    console.print()
    table = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0), header_style="bold")
    with_date = _several_days(workers)
    rows = [row for worker in workers for row in _rows(worker, with_date=with_date)]
    table.add_column("worker", no_wrap=True, min_width=max(cell_len(row[0]) for row in rows))
    for name in _COLUMNS:
        table.add_column(name, justify="right", no_wrap=True, min_width=8)
    table.add_column("at (UTC)", no_wrap=True, min_width=max(cell_len(row[-2]) for row in rows))
    table.add_column("raised by", overflow="fold")
    for row in rows:
        table.add_row(*map(Text, row))
    console.print(table)
    if hidden:
        console.print(Text(f"… and {counted(hidden, 'more worker')}: -n 0 shows all"))
    for pool in pools:
        for line in _weights(pool):
            console.print(Text(line))


def _rows(worker: WorkerMarks, *, with_date: bool) -> list[tuple[str, ...]]:
    begin = [_name(worker), *map(show_bytes, (worker.now, worker.peak))]
    found: list[tuple[str, ...]] = []
    for step in worker.steps:
        sizes = show_bytes(step.before), show_bytes(step.after)
        found.append((*begin, *sizes, _time(step, with_date=with_date), _request(step)))
        begin = ["", "", ""]
    if worker.other_steps:
        found.append((*begin, "", "", "", _others(worker)))
    return found or [(*begin, "", "", "", "none raised it")]


def _name(worker: WorkerMarks) -> str:
    """The worker; its container behind it, if there are several, as far as there is room for it."""
    ended = "" if worker.alive else " ended"
    room = _WORKER_WIDTH - len(ended)
    name = shorten(printable(worker.worker), room)
    if worker.container is not None:
        name += f" {shorten(printable(worker.container), max(_LEAST_PLACE, room - cell_len(name) - 1))}"
    return name + ended


def _others(worker: WorkerMarks) -> str:
    steps = f"{worker.other_steps:,} smaller" if worker.steps else counted(worker.other_steps, "step")
    by = "" if worker.other_route is None else f", mostly {shorten(printable(worker.other_route), _REQUEST_WIDTH)}"
    return f"{steps}: {show_bytes(worker.other_bytes, signed=True)}{by}"


def _request(step: Step) -> str:
    name = shorten(show_key(step.uri if step.uri is not None else step.script), _REQUEST_WIDTH)
    return f"{name} (its first)" if step.starts else name


def _time(step: Step, *, with_date: bool) -> str:
    if step.started_ns is None:
        return "-"
    return f"{_moment(step.started_ns):{'%Y-%m-%d %H:%M:%S' if with_date else '%H:%M:%S'}}"


def _moment(unix_ns: int) -> datetime.datetime:
    return datetime.datetime.fromtimestamp(unix_ns // 1_000_000_000, datetime.UTC)


def _several_days(workers: Sequence[WorkerMarks]) -> bool:
    times = [step.started_ns for worker in workers for step in worker.steps if step.started_ns is not None]
    return len({_moment(at).date() for at in times}) > 1


def _weights(pool: PoolWeight) -> list[str]:
    """A line for each of the routes without which the pool would weigh much less."""
    least = max(_LEAST_SAVED, _LEAST_SHARE * pool.weight)
    heavy = [route for route in pool.without if pool.weight - route.weight >= least]
    where = [name for name in (pool.host, pool.container) if name is not None]
    name = " ".join([printable(pool.pool or "workers"), *(shorten(printable(name), _PLACE_WIDTH) for name in where)])
    return [
        f"{name}: {counted(pool.workers, 'worker')} {'has' if pool.workers == 1 else 'have'} {show_bytes(pool.weight)};"
        f" about {show_bytes(route.weight)} without {shorten(printable(route.route), _REQUEST_WIDTH)}, which raised"
        f" {'it' if pool.workers == 1 else f'{route.workers:,} of them'}"
        for route in heavy[:_WITHOUT_SHOWN]
    ]
