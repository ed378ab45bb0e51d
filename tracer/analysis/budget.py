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
    for snapshot in (ended, began):
        limited = next((one for one in snapshot.cgroups if set(one.pids) & set(masters)), None)
        if limited is None and len(snapshot.cgroups) == 1:
            limited = snapshot.cgroups[0]
        if limited is not None and limited.split.total is not None:
            found.append(_limited(limited, limited.split.total, pool_now))
        if snapshot.host is not None and snapshot.host.total is not None:
            found.append(_of_host(snapshot.host, snapshot.host.total, pool_now))
        if found:
            return min(found, key=lambda one: one.usable)
    return None


def _limited(limited: Limited, total: int, pool_now: int) -> Budget:
    others = max(0, limited.split.eaten - pool_now)
    return Budget(BudgetFrom.CGROUP, total, others, limited.path)


def _of_host(host: Split, total: int, pool_now: int) -> Budget:
    used = host.eaten if host.available is None else total - host.available
    return Budget(BudgetFrom.HOST, total, max(0, used - pool_now))
