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


# Requests in flight that are named.
_IN_FLIGHT_MAX = 5


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
        self.in_flight: list[Request] = []  # those that grew most of the requests that tracing cut off, and grew so far
        self.not_traced: list[str] = []  # sentences on processes that were meant and not traced
        self._alive: set[tuple[str | None, int, int | None]] = set()  # workers that are not known to have ended
        self.workers = 0  # different ones that were seen
        self.born = 0
        self.died = 0
        # By the worker and the start of its request; and the names of these requests, as far as they came later.
        self._forks: dict[tuple[int, int | None], Forked] = {}

    def add_all(self, facts: Iterable[Fact], host: str | None = None) -> None:
        """Count the facts, as add() does."""
        for fact in facts:
            self.add(fact, host)

    def _add_worker(self, worker: Worker, host: str | None) -> None:
        key = host, worker.pid, worker.start_ticks
        if key not in self._alive:
            self.workers += 1
            self.born += worker.born_ns is not None
            self._alive.add(key)
        if worker.died_ns is not None:
            self.died += 1
            self._alive.discard(key)

    def _add_in_flight(self, request: Request) -> None:
        self.in_flight.append(request)
        self.in_flight.sort(key=lambda one: one.growth or 0, reverse=True)
        del self.in_flight[_IN_FLIGHT_MAX:]

    def add(self, fact: Fact, host: str | None = None) -> None:
        """Count a fact. `host` is the host of a Worker, which does not name it; None if all are of one host."""
        if isinstance(fact, Request):
            self.requests += 1
            self.counted += fact.native_kept is not None
            if not fact.complete:
                self.incomplete += 1
                if fact.growth is not None:
                    self._add_in_flight(fact)
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
            self._add_worker(fact, host)
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
