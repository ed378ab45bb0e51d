"""Which requests are a worker's first of their kind, and so fill caches that the later ones find filled."""

from __future__ import annotations

import enum
import functools
from collections import OrderedDict

from tracer.analysis.routes import route_of
from tracer.facts import Request, WorkerId

_WORKERS_MAX = 8192
_RUNS_MAX = 1 << 18  # of all workers together: 50 to 100 bytes each
_SCRIPTS_MAX = 4096  # of one worker; of uris, as many
# Of one script in one worker. Beyond that a new route is a page like others: a site may have one for each article.
_ROUTES_MAX = 64

_route_of = functools.lru_cache(maxsize=16_384)(route_of)


class Run(enum.IntEnum):
    """How often a worker has run what a request asks for."""

    FIRST = 0  # of the script; where requests are grouped by uri, of the uri
    FIRST_OF_ROUTE = 1  # it has run the script for other routes
    LATER = 2


class _Worker:
    __slots__ = ("nth", "routes", "runs")

    def __init__(self) -> None:
        self.nth = 0  # of its last request
        self.runs = 0  # kinds that are known
        self.routes: dict[str | None, set[str | None]] = {}  # by script


class FirstRuns:
    """Tells which requests are the first of their kind in their worker.

    When it knows too much, it forgets the workers that served no request for the longest time: they have ended.
    """

    def __init__(self, *, by_uri: bool = False) -> None:
        """`by_uri`: requests are of one kind if their uris are equal; False: if their scripts and routes are."""
        self._by_uri = by_uri
        self._workers: OrderedDict[WorkerId, _Worker] = OrderedDict()
        self._runs = 0

    def of(self, request: Request) -> Run:
        """Call it once a request, in order."""
        key = request.worker
        worker = self._workers.get(key)
        # The count of a worker's requests begins anew where another worker got the pid.
        if worker is None or request.nth <= worker.nth:
            self._runs -= worker.runs if worker is not None else 0
            worker = self._workers[key] = _Worker()
        self._workers.move_to_end(key)
        worker.nth = request.nth
        before = worker.runs
        run = self._by_uri_of(worker, request) if self._by_uri else self._by_route_of(worker, request)
        if worker.runs > before:
            self._runs += 1
            while len(self._workers) > _WORKERS_MAX or self._runs > _RUNS_MAX:
                _, idle = self._workers.popitem(last=False)
                self._runs -= idle.runs
        return run

    @staticmethod
    def _by_uri_of(worker: _Worker, request: Request) -> Run:
        known = worker.routes.setdefault(None, set())
        if request.uri in known:
            return Run.LATER
        if worker.runs < _SCRIPTS_MAX:
            known.add(request.uri)
            worker.runs += 1
        return Run.FIRST

    @staticmethod
    def _by_route_of(worker: _Worker, request: Request) -> Run:
        route = None if request.uri is None else _route_of(request.uri)
        known = worker.routes.get(request.script)
        if known is None:
            if len(worker.routes) < _SCRIPTS_MAX:
                worker.routes[request.script] = {route}
                worker.runs += 1
            return Run.FIRST
        if route in known or len(known) >= _ROUTES_MAX:
            return Run.LATER
        known.add(route)
        worker.runs += 1
        return Run.FIRST_OF_ROUTE
