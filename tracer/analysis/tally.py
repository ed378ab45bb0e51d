"""Counts what was seen, what was seen only in part, and what was lost."""

from __future__ import annotations

import dataclasses
from collections import OrderedDict
from collections.abc import Iterable

from tracer.facts import Ending, Fact, Fork, Loss, Note, Place, Request, Worker


@dataclasses.dataclass(slots=True)
class Forked:
    """The processes that the requests of one uri forked, and that served nothing."""

    by: str | None  # the uri, or else the script; None: not known, between requests, or one of too many
    processes: int = 0
    alive: int = 0  # when tracing ended
    anon: int = 0  # bytes of those alive, together


_PLACE_AT = -len(Place._fields)  # the fields of a Place are the last of a Request
_FINISHED = Ending.FINISHED.value
# Requests in flight that are named.
_IN_FLIGHT_MAX = 5
_IN_FLIGHT_LEAST_NS = 1_000_000_000
# Different names of requests that fork: those that come later are counted together.
_FORKERS_MAX = 10_000
# Requests that forked, whose names are kept for processes that end later.
_FORKERS_KEPT = 1_000


class Tally:
    """Counts facts as they come. Every output shows these counts next to its findings."""

    def __init__(self) -> None:
        self.requests = 0
        self.incomplete = 0  # requests seen only in part
        self.incomplete_growth = 0  # of these: the growth of their workers, as far as it was seen
        self.left_out = 0  # requests of the recordings that a filter of the report leaves out
        self.killed = 0  # requests ended by a signal that killed the worker
        self.fatal = 0
        self.uri_unknown = 0
        self.counted = 0  # requests whose native memory was counted
        self.lost = 0
        self.unended = 0  # recordings that were not closed: how much is missing is unknown
        self.losses: dict[str, int] = {}
        self.in_flight: list[Request] = []  # of the requests that tracing cut off, those whose worker grew most
        self.several_places = False  # requests ran in more than one
        self._place: tuple[object, ...] | None = None  # of the first one
        self.not_traced: list[str] = []  # sentences on processes that were meant and not traced
        self._alive: set[tuple[str | None, int, int | None]] = set()  # workers that are not known to have ended
        self.workers = 0  # different ones that were seen
        self.born = 0
        self.died = 0
        self._forked: dict[str | None, Forked] = {}  # by the name of the request
        # By worker, then by the start of its request, which may come yet and name it.
        self._unnamed: dict[int, OrderedDict[int, Forked]] = {}
        self._forkers: OrderedDict[tuple[int, int], str | None] = (
            OrderedDict()
        )  # names of the last requests that forked

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
            if self._unnamed:
                for forked in self._unnamed.pop(worker.pid, OrderedDict()).values():
                    self._add_forked(None, forked)

    def _add_incomplete(self, request: Request) -> None:
        self.incomplete += 1
        growth = request.growth
        if growth is None:
            return
        self.incomplete_growth += growth
        if _runs_on(request):
            self.in_flight.append(request)
            self.in_flight.sort(key=lambda one: one.growth or 0, reverse=True)
            del self.in_flight[_IN_FLIGHT_MAX:]

    def add(self, fact: Fact, host: str | None = None) -> None:
        """Count a fact. `host` is the host of a Worker, which does not name it; None if all are of one host."""
        if isinstance(fact, Request):
            self._add_request(fact)
        elif isinstance(fact, Fork):
            one = Forked(None, 1, int(fact.ended_ns is None), fact.anon or 0)
            if fact.started_ns is None or (fact.parent_pid, fact.started_ns) in self._forkers:
                self._add_forked(self._forkers.get((fact.parent_pid, fact.started_ns or 0)), one)
            else:
                of_worker = self._unnamed.setdefault(fact.parent_pid, OrderedDict())
                _sum(of_worker.setdefault(fact.started_ns, Forked(None)), one)
        elif isinstance(fact, Worker):
            self._add_worker(fact, host)
        elif isinstance(fact, Loss):
            self.lost += fact.lost
            self.losses[fact.why] = self.losses.get(fact.why, 0) + fact.lost

    def _add_request(self, request: Request) -> None:
        self.requests += 1
        if not self.several_places and request[_PLACE_AT:] != self._place:
            self.several_places = self._place is not None
            self._place = request[_PLACE_AT:]
        if request.native_kept is not None:
            self.counted += 1
        ending = request.ending
        if ending == _FINISHED and request.anon_before is not None and request.anon_after is not None:
            # As most are.
            if request.uri is None:
                self.uri_unknown += 1
        else:
            self._add_unfinished(request)
        if self._unnamed and request.pid in self._unnamed:
            self._name_forked(request)

    def _add_unfinished(self, request: Request) -> None:
        """Count what is special in a request that was not seen whole, or did not finish in order."""
        if not request.complete:
            self._add_incomplete(request)
        elif request.uri is None:
            self.uri_unknown += 1
        self.killed += request.ending.startswith(Ending.KILLED.value)
        self.fatal += request.ending == Ending.FATAL.value

    def _name_forked(self, request: Request) -> None:
        """Add what this request forked, and what earlier ones of its worker did, which no request will name."""
        if request.started_ns is None:
            return
        unnamed = self._unnamed[request.pid]
        forked = unnamed.pop(request.started_ns, None)
        if forked is not None:
            name = self._forkers[request.pid, request.started_ns] = request.uri or request.script
            self._add_forked(name, forked)
            if len(self._forkers) > _FORKERS_KEPT:
                self._forkers.popitem(last=False)
        while unnamed and next(iter(unnamed)) < request.started_ns:
            self._add_forked(None, unnamed.popitem(last=False)[1])
        if not unnamed:
            del self._unnamed[request.pid]

    def _add_forked(self, by: str | None, forked: Forked) -> None:
        if by not in self._forked and len(self._forked) >= _FORKERS_MAX:
            by = None
        _sum(self._forked.setdefault(by, Forked(by)), forked)

    def forked(self) -> list[Forked]:
        """The processes that workers forked, by uri, the most first. A uri is known if its request came after them."""
        unnamed = dataclasses.replace(self._forked.get(None) or Forked(None))
        for of_worker in self._unnamed.values():
            for forked in of_worker.values():
                _sum(unnamed, forked)
        named = [forked for by, forked in self._forked.items() if by is not None]
        return sorted([*named, *([unnamed] if unnamed.processes else [])], key=lambda forked: -forked.processes)


def _runs_on(request: Request) -> bool:
    """True if tracing cut it off after a second or more. One that ran when tracing began may have ended long ago."""
    return Note.END_NOT_SEEN.value in (request.notes or "") and (request.duration_ns or 0) >= _IN_FLIGHT_LEAST_NS


def _sum(total: Forked, more: Forked) -> None:
    total.processes += more.processes
    total.alive += more.alive
    total.anon += more.anon
