"""The workers and masters under watch, as user space knows them: who they are and when they came and went."""

from __future__ import annotations

import dataclasses
import os

from tracer.backends.records.request_decoder import exit_text
from tracer.backends.records.request_structs import PROCESS_EVENT, EventKind
from tracer.facts import Worker
from tracer.targets.processes import Process, pool_of, process
from tracer.targets.resolve import Target

_TICK_NS = 1_000_000_000 // os.sysconf("SC_CLK_TCK")


@dataclasses.dataclass(slots=True)
class TrackedWorker:
    """A worker under watch; `wanted` says whether its pool is one that was asked for."""

    fact: Worker
    target: Target
    wanted: bool


class WorkerTable:
    """Keeps the workers by pid and turns what the kernel says of them into Worker facts."""

    def __init__(self, clock_offset_ns: int) -> None:
        self._offset = clock_offset_ns
        self.workers: dict[int, TrackedWorker] = {}
        self.masters: dict[int, Target] = {}
        self._gone: set[int] = set()

    def add(self, worker: Process, target: Target) -> Worker:
        """A worker that was there already."""
        fact = Worker(worker.pid, worker.start_ticks, worker.pool, target.php.shown_version, None, None, None)
        self.workers[worker.pid] = TrackedWorker(fact, target, wanted=target.wants(worker.pool))
        return fact

    def born(self, event: bytes) -> Worker | None:
        """A master's new child, unless it may be of a pool that is not wanted: its title is not yet set."""
        _, pid, parent, _, at, boot, _ = PROCESS_EVENT.unpack(event)
        target = self.masters.get(parent)
        if target is None:
            return None
        ticks = boot // _TICK_NS if boot else None
        fact = Worker(pid, ticks, None, target.php.shown_version, at + self._offset, None, None)
        self.workers[pid] = TrackedWorker(fact, target, wanted=True)
        # Of which pool it is, titled() will say; until then it may be one nobody asked for.
        return fact if target.pools is None else None

    def titled(self, event: bytes) -> Worker | None:
        """A worker whose pool is known now; None if it is not of a pool that is wanted."""
        _, pid, _, _, _, _, title = PROCESS_EVENT.unpack(event)
        watched = self.workers.get(pid) or self.adopt_unknown(pid)
        if watched is None:
            return None
        pool = pool_of(title.split(b"\0", 1)[0].decode("utf-8", "surrogateescape"))
        watched.fact = watched.fact._replace(pool=pool)
        watched.wanted = watched.target.wants(pool)
        return watched.fact if watched.wanted else None

    def adopt_unknown(self, pid: int) -> TrackedWorker | None:
        """A worker whose birth was not seen (its event was lost), if it is still there to be asked."""
        found = process(pid)
        target = None if found is None else self.masters.get(found.parent_pid)
        if found is None or target is None:
            return None
        self.add(found, target)
        return self.workers[pid]

    def died(self, event: bytes) -> Worker | None:
        """The last fact about a worker; None if it is none of ours. Masters are taken off, too."""
        kind, pid, _, exit_code, at, _, _ = PROCESS_EVENT.unpack(event)
        self.masters.pop(pid, None)
        watched = self.workers.pop(pid, None)
        if watched is None or not watched.wanted or kind != EventKind.DIED:
            return None
        if watched.fact.pool is None and watched.target.pools is not None:
            return None  # it died before it was known to be of a pool that is wanted
        return watched.fact._replace(died_ns=at + self._offset, exit=exit_text(exit_code))

    def pool(self, pid: int) -> str | None:
        watched = self.workers.get(pid)
        return None if watched is None else watched.fact.pool

    def missing(self) -> list[int]:
        """Pids under watch that do not exist, now or when last asked: their death was not delivered.

        Asked twice, since the news of a death may still be on its way.
        """
        gone = {pid for pid in (*self.workers, *self.masters) if not os.path.exists(f"/proc/{pid}")}
        sure, self._gone = gone & self._gone, gone
        return sorted(sure)

    def mark_gone(self, pid: int, now_ns: int) -> Worker | None:
        """What is left to say of one of missing(): when it was missed, not how it ended."""
        self.masters.pop(pid, None)
        watched = self.workers.pop(pid, None)
        if watched is None or not watched.wanted:
            return None
        return watched.fact._replace(died_ns=now_ns, exit="unknown")
