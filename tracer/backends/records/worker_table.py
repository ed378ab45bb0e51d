"""The workers and masters under watch, as user space knows them: where they run, their pools, births and deaths."""

from __future__ import annotations

import dataclasses
import os

from tracer.backends.records.request_decoder import NO_ORIGIN, Origin, exit_text
from tracer.backends.records.request_structs import PROCESS_EVENT, EventKind
from tracer.facts import Ending, Note, Place, Worker
from tracer.targets import containers
from tracer.targets.processes import MASTER_TITLE, Process, pool_of, process
from tracer.targets.resolve import Target

_KILLED = f"{Ending.KILLED.value}:KILL"
_TICK_NS = 1_000_000_000 // os.sysconf("SC_CLK_TCK")


@dataclasses.dataclass(slots=True)
class TrackedWorker:
    """A worker under watch. `wanted` is False if it is known to be of a pool that was not asked for."""

    fact: Worker
    target: Target
    wanted: bool
    origin: Origin = NO_ORIGIN  # of its requests


class WorkerTable:
    """Keeps the workers by pid, and turns their births, titles and deaths into Worker facts.

    `masters` has the target of each live master, by pid. Events are `struct process_event`s.
    """

    def __init__(self, clock_offset_ns: int) -> None:
        """`clock_offset_ns` is Unix time minus CLOCK_MONOTONIC."""
        self._offset = clock_offset_ns
        self.workers: dict[int, TrackedWorker] = {}
        self.masters: dict[int, Target] = {}
        self.sees_oom = False  # a death by the OOM killer comes as OOM_DIED
        self._gone: set[int] = set()
        # By the pid and the start of a master, or of a worker without one; and the roots of their pools.
        self._places: dict[tuple[int, int], Place] = {}
        self._roots: dict[tuple[int, int, str | None], str] = {}

    def add(self, worker: Process, target: Target) -> Worker:
        """Enter a worker that existed before it was watched, and return its fact."""
        fact = Worker(worker.pid, worker.start_ticks, worker.pool, target.php.shown_version, None, None, None)
        self.workers[worker.pid] = TrackedWorker(fact, target, wanted=target.wants(worker.pool))
        self._set_origin(self.workers[worker.pid])
        return fact

    def _set_origin(self, worker: TrackedWorker) -> None:
        """Find out where a worker runs: where its master does, but for its root, which its pool may have changed.

        One that has ended before anyone could look has the root of others of its pool, or that of its master.
        """
        fact, master = worker.fact, worker.target.master
        ticks = fact.start_ticks or 0
        parent = (fact.pid, ticks) if master is None else (master.pid, master.start_ticks)
        if parent not in self._places:
            self._places[parent] = place_of(parent[0])
        place = self._places[parent]
        pool = (*parent, fact.pool)
        root = containers.root_of(fact.pid)
        if root is not None:
            self._roots[pool] = root
        place = place._replace(root=self._roots.get(pool, place.root))
        worker.origin = (fact.start_ticks, None if master is None else master.pid, *place)

    def born(self, event: bytes) -> Worker | None:
        """Enter a new child of a master, or of a worker, and return its fact.

        A worker that forks before it served anything turns out to be a master.

        None if its parent is not ours, or if only some pools are wanted: the title that names its pool is not yet set.
        """
        _, pid, parent, _, at, boot, _ = PROCESS_EVENT.unpack(event)
        target = self.masters.get(parent) or self._daemonized(parent) or self._target_of(parent)
        if target is None:
            return None
        ticks = boot // _TICK_NS if boot else None
        fact = Worker(pid, ticks, None, target.php.shown_version, at + self._offset, None, None)
        self.workers[pid] = TrackedWorker(fact, target, wanted=True)
        self._set_origin(self.workers[pid])
        # titled() will tell its pool; until then that may be one that was not asked for.
        return fact if target.pools is None else None

    def _daemonized(self, pid: int) -> Target | None:
        """Make a master of what looked like a worker until it forked one; None if it is not known.

        php-fpm does so after a graceful reload with `daemonize = yes`: the master executes php-fpm anew, which forks
        itself and ends (fpm_unix_init_main() in sapi/fpm/fpm/fpm_unix.c, PHP 7.4 to 8.5).
        """
        tracked = self.workers.get(pid)
        found = None if tracked is None or tracked.fact.pool is not None else process(pid)
        if tracked is None or found is None or not found.title.startswith(MASTER_TITLE):
            return None
        del self.workers[pid]
        self.masters[pid] = dataclasses.replace(tracked.target, master=found)
        return self.masters[pid]

    def titled(self, event: bytes) -> Worker | None:
        """Set a worker's pool and return its fact; None if that pool is not wanted, or the worker is unknown."""
        _, pid, _, _, _, _, title = PROCESS_EVENT.unpack(event)
        tracked = self.workers.get(pid) or self.adopt_unknown(pid)
        if tracked is None:
            return None
        text = title.split(b"\0", 1)[0]
        pool = pool_of(text.decode("utf-8", "surrogateescape"))
        if len(text) == len(title) and pool is not None:
            pool = _whole_name(pool, pid, tracked.target)
        tracked.fact = tracked.fact._replace(pool=pool)
        tracked.wanted = tracked.target.wants(pool)
        if tracked.wanted:
            self._set_origin(
                tracked
            )  # php-fpm has changed its root by now: fpm_child_init(), fpm_children.c, 7.4 to 8.5
        return tracked.fact if tracked.wanted else None

    def adopt_unknown(self, pid: int) -> TrackedWorker | None:
        """Enter a worker whose birth was lost; None if it has ended, or is not a child of a process of ours."""
        found = process(pid)
        target = None if found is None else self._target_of(found.parent_pid)
        if found is None or target is None:
            return None
        self.add(found, target)
        return self.workers[pid]

    def _target_of(self, parent: int) -> Target | None:
        """Return the target of a master, or of a worker that is wanted."""
        tracked = self.workers.get(parent)
        return self.masters.get(parent) or (tracked.target if tracked is not None and tracked.wanted else None)

    def _forget_places(self, pid: int) -> None:
        """Forget where a process ran that has ended, if it is one of those that others go by."""
        for known in [known for known in self._places if known[0] == pid]:
            del self._places[known]
            self._roots = {pool: root for pool, root in self._roots.items() if pool[:2] != known}

    def died(self, event: bytes) -> Worker | None:
        """Remove a worker and return its last fact; None if it is not ours, or not wanted. Removes masters, too."""
        kind, pid, _, exit_code, at, _, _ = PROCESS_EVENT.unpack(event)
        self.masters.pop(pid, None)
        self._forget_places(pid)
        tracked = self.workers.pop(pid, None)
        if tracked is None or not tracked.wanted or kind not in (EventKind.DIED, EventKind.OOM_DIED):
            return None
        if tracked.fact.pool is None and tracked.target.pools is not None:
            return None  # it died before it was known to be of a pool that is wanted
        ended, notes = exit_text(exit_code), None
        if ended == _KILLED and (kind == EventKind.OOM_DIED or not self.sees_oom):
            notes = (Note.OOM if kind == EventKind.OOM_DIED else Note.OOM_UNKNOWN).value
        return tracked.fact._replace(died_ns=at + self._offset, exit=ended, notes=notes)

    def pool(self, pid: int) -> str | None:
        """Return the worker's pool; None if it is not known."""
        tracked = self.workers.get(pid)
        return None if tracked is None else tracked.fact.pool

    def missing_pids(self) -> list[int]:
        """Return the pids under watch that exist neither now nor at the last call: their death was not delivered.

        Two calls, since the event of a death may still be on its way at the first.
        """
        gone = {pid for pid in (*self.workers, *self.masters) if not os.path.exists(f"/proc/{pid}")}
        sure, self._gone = gone & self._gone, gone
        return sorted(sure)

    def mark_gone(self, pid: int, now_ns: int) -> Worker | None:
        """Remove one of missing_pids() and return its last fact, with the time but not the cause of its death.

        None if it was a master, or not wanted. `now_ns` is Unix time.
        """
        self.masters.pop(pid, None)
        self._forget_places(pid)
        tracked = self.workers.pop(pid, None)
        if tracked is None or not tracked.wanted:
            return None
        return tracked.fact._replace(died_ns=now_ns, exit="unknown")


def place_of(pid: int) -> Place:
    """Return the place where a process runs."""
    found = containers.surroundings(pid)
    return Place(found.name, found.container_id, found.cgroup, found.namespaces, containers.root_of(pid))


def _whole_name(cut: str, pid: int, target: Target) -> str:
    """The name of a pool of which the event has only the beginning: from the process, or the one that was asked for."""
    found = process(pid)
    if found is not None and found.pool is not None and found.pool.startswith(cut):
        return found.pool
    return next((pool for pool in sorted(target.pools or ()) if pool.startswith(cut)), cut)
