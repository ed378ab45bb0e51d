"""phptrace host: what of this machine's memory is eaten, and what is only borrowed."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Sequence

import click

from tracer.analysis.memory_split import Limited, snapshot
from tracer.analysis.pool_memory import own_bytes, shared_bytes
from tracer.commands.options import WholeNumber
from tracer.errors import NoTargetError, UnsupportedError
from tracer.facts import Footprint
from tracer.reporters import host_text as reporter
from tracer.reporters.host_text import Pool
from tracer.targets import host_memory, processes
from tracer.targets.processes import MASTER_TITLE, Process
from tracer.targets.rollup import rollup

_RENDER = {"text": reporter.render, "json": reporter.render_json}
_MOST_MASTERS = 64
_MOST_READ = 128  # workers of one pool


@click.command()
@click.argument("pids", type=WholeNumber(1), nargs=-1, metavar="[PID]...")
@click.option(
    "--format", "form", type=click.Choice(tuple(_RENDER)), default="text", show_default=True, help="Output format."
)
def host(pids: Sequence[int], form: str) -> None:
    """Show which memory of this host is eaten, and which is only borrowed.

    Also shown is the cgroup of each php-fpm master, or of the processes with these PIDs, and what each pool has. Only
    the memory of the pools needs root. phptrace reads files of the kernel, and traces nothing.
    """
    for pid in pids:
        if processes.process(pid) is None:
            raise NoTargetError(f"cannot show the cgroup of process {pid}: there is no such process. Check the PID.")
    every = list(processes.processes())
    masters = [one for one in every if one.title.startswith(MASTER_TITLE)][:_MOST_MASTERS]
    found = snapshot(host_memory.snapshot(pids or [one.pid for one in masters]))
    pools = [] if pids else list(_pools(masters, every, found.cgroups))
    _RENDER[form](found, pools, sys.stdout, name=os.uname().nodename)


def _pools(masters: Sequence[Process], every: Sequence[Process], cgroups: Sequence[Limited]) -> Iterator[Pool]:
    """Yield the pools of each master, by the titles of its children."""
    for master in masters:
        workers: dict[str, list[int]] = {}
        for one in every:
            if one.parent_pid == master.pid and one.pool is not None:
                workers.setdefault(one.pool, []).append(one.pid)
        cgroup = next((one.path for one in cgroups if master.pid in one.pids), None)
        for name, pids in sorted(workers.items()):
            found = [one for one in map(_footprint, pids[:_MOST_READ]) if one is not None]
            own = sum(map(own_bytes, found))
            shared = max(map(shared_bytes, found), default=0)
            yield Pool(name, master.pid, len(pids), len(found), own, shared, cgroup)


def _footprint(pid: int) -> Footprint | None:
    """The memory of a process now; None if it may not be read."""
    try:
        return Footprint(pid, 0, 0, 0, False, *rollup(pid))
    except (OSError, UnsupportedError):
        return None
