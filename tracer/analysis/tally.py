"""Counts what was seen, what was seen only in part, and what was lost."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable

from tracer.facts import Ending, Fact, Fork, Loss, Request, Worker


@dataclasses.dataclass(slots=True)
class Forked:
    """The processes that the requests of one uri forked, and that served nothing."""

    by: str | None  # the uri, or else the script; None: not known, or between requests
    processes: int = 0
    alive: int = 0  # when tracing ended
    anon: int = 0  # bytes of those alive, together


class Tally:
    """Counts facts as they come. Every output shows these counts next to its findings."""

    def __init__(self) -> None:
        self.requests = 0
        self.incomplete = 0  # requests seen only in part
        self.killed = 0  # requests ended by a signal that killed the worker
        self.fatal = 0
        self.uri_unknown = 0
        self.counted = 0  # requests whose native memory was counted
        self.lost = 0
        self.unended = 0  # recordings that were not closed: how much is missing is unknown
        self.losses: dict[str, int] = {}
        self._workers: set[tuple[str | None, int, int | None]] = set()
        self.born = 0
        self.died = 0
        # By the worker and the start of its request; and the names of these requests, as far as they came later.
        self._forks: dict[tuple[int, int | None], Forked] = {}

    @property
    def workers(self) -> int:
        """Number of different workers seen."""
        return len(self._workers)

    def add_all(self, facts: Iterable[Fact], host: str | None = None) -> None:
        """Count the facts, as add() does."""
        for fact in facts:
            self.add(fact, host)

    def add(self, fact: Fact, host: str | None = None) -> None:
        """Count a fact. `host` is the host of a Worker, which does not name it; None if all are of one host."""
        if isinstance(fact, Request):
            self.requests += 1
            self.counted += fact.native_kept is not None
            if fact.anon_before is None or fact.anon_after is None:
                self.incomplete += 1
            elif fact.uri is None:
                self.uri_unknown += 1
            if fact.ending != Ending.FINISHED.value:
                self.killed += fact.ending.startswith(Ending.KILLED.value)
                self.fatal += fact.ending == Ending.FATAL.value
            if self._forks and (forked := self._forks.get((fact.pid, fact.started_ns))) is not None:
                forked.by = fact.uri or fact.script
        elif isinstance(fact, Fork):
            forked = self._forks.setdefault((fact.parent_pid, fact.started_ns), Forked(None))
            forked.processes += 1
            forked.alive += fact.ended_ns is None
            forked.anon += fact.anon or 0
        elif isinstance(fact, Worker):
            key = host, fact.pid, fact.start_ticks
            if key not in self._workers:
                self._workers.add(key)
                self.born += fact.born_ns is not None
            self.died += fact.died_ns is not None
        elif isinstance(fact, Loss):
            self.lost += fact.lost
            self.losses[fact.why] = self.losses.get(fact.why, 0) + fact.lost

    def forked(self) -> list[Forked]:
        """The processes that workers forked, by uri, the most first. A uri is known if its request came after them."""
        found: dict[str | None, Forked] = {}
        for one in self._forks.values():
            same = found.setdefault(one.by, Forked(one.by))
            same.processes += one.processes
            same.alive += one.alive
            same.anon += one.anon
        return sorted(found.values(), key=lambda forked: -forked.processes)
