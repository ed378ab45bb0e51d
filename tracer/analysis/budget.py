"""The memory that a pool may use: what the user gives it, or what its cgroup and its host leave."""

from __future__ import annotations

import dataclasses
import enum
from collections.abc import Sequence

from tracer.analysis.memory_split import Limited, Snapshot, Split

RESERVE = 0.05  # of the budget


class BudgetFrom(enum.Enum):
    """Where a budget comes from."""

    GIVEN = "given"
    CGROUP = "cgroup"
    HOST = "host"


@dataclasses.dataclass(frozen=True, slots=True)
class Budget:
    """Memory for one pool, in bytes."""

    source: BudgetFrom
    total: int
    others: int = 0  # of the total: what others have eaten
    cgroup: str | None = None  # untrusted

    @property
    def reserve(self) -> int:
        """For what was not measured: the kernel's own memory for processes and sockets, page cache, errors."""
        return int(self.total * RESERVE)

    @property
    def usable(self) -> int:
        """Bytes that are left for the pool."""
        return max(0, self.total - self.others - self.reserve)


def budget_of(pool_now: int, masters: Sequence[int], began: Snapshot, ended: Snapshot) -> Budget | None:
    """Return the default budget: of the cgroup's limit and the host's memory, the one that leaves less; None: unknown.

    `pool_now`: bytes that the pool has itself.
    """
    found = []
    # Where the master had ended before the recording did, only the first snapshot has its cgroup.
    limited = _cgroup_of(masters, ended, began)
    if limited is not None and limited.split.total is not None:
        found.append(_limited(limited, limited.split.total, pool_now))
    for host in (ended.host, began.host):
        if host is not None and host.total is not None:
            found.append(_of_host(host, host.total, pool_now))
            break
    return min(found, key=lambda one: one.usable, default=None)


def _cgroup_of(masters: Sequence[int], *snapshots: Snapshot) -> Limited | None:
    """The cgroup of one of the masters in the first snapshot that has it; the only one of a snapshot if none has."""
    every = [snapshot.cgroups for snapshot in snapshots]
    known = [one for cgroups in every for one in cgroups if set(one.pids) & set(masters)]
    alone = [cgroups[0] for cgroups in every if len(cgroups) == 1]
    return next(iter([*known, *alone]), None)


def _limited(limited: Limited, total: int, pool_now: int) -> Budget:
    others = max(0, limited.split.eaten - pool_now)
    return Budget(BudgetFrom.CGROUP, total, others, limited.path)


def _of_host(host: Split, total: int, pool_now: int) -> Budget:
    used = host.eaten if host.available is None else total - host.available
    return Budget(BudgetFrom.HOST, total, max(0, used - pool_now))
