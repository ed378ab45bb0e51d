"""Which requests are a worker's first of their kind, and so fill caches that the later ones find filled."""

from __future__ import annotations

import enum
from collections import OrderedDict
from collections.abc import Hashable

from tracer.analysis.routes import Routes
from tracer.facts import Request, WorkerId

_WORKERS_MAX = 8192
_RUNS_MAX = 1 << 18  # of all workers together: 50 to 100 bytes each
_SCRIPTS_MAX = 4096  # of one worker; of uris, as many
# Of one script in one worker. Beyond that a new route is a page like others: a site may have one for each article.
_ROUTES_MAX = 64


class Run(enum.IntEnum):
    """How often a worker has run what a request asks for."""

    FIRST = 0  # of the script; where requests are grouped by uri or by route, of that
    FIRST_OF_ROUTE = 1  # it has run the script for other routes
    LATER = 2


class _Worker:
    __slots__ = ("nth", "routes", "runs")

    def __init__(self) -> None:
        self.nth = 0  # of its last request
        self.runs = 0  # kinds that are known
        self.routes: dict[str | None, set[Hashable]] = {}  # by script


class FirstRuns:
    """Tells which requests are the first of their kind in their worker.

    When it knows too much, it forgets the workers that served no request for the longest time: they have ended.
    """

    def __init__(self, routes: Routes | None = None, *, by_key: bool = False) -> None:
        """`by_key`: requests are of one kind if their groups are equal; False: if their scripts and routes are."""
        self._routes = routes or Routes()
        self._by_key = by_key
        self._workers: OrderedDict[WorkerId, _Worker] = OrderedDict()
        self._runs = 0

    def of(self, request: Request, key: Hashable = None) -> Run:
        """Call it once a request, in order. `key` is that of its group."""
        process = request.worker
        worker = self._workers.get(process)
        # The count of a worker's requests begins anew where another worker got the pid.
        if worker is None or request.nth <= worker.nth:
            self._runs -= worker.runs if worker is not None else 0
            worker = self._workers[process] = _Worker()
        self._workers.move_to_end(process)
        worker.nth = request.nth
        before = worker.runs
        run = self._by_key_of(worker, key) if self._by_key else self._by_route_of(worker, request)
        if worker.runs > before:
            self._runs += 1
            while len(self._workers) > _WORKERS_MAX or self._runs > _RUNS_MAX:
                _, idle = self._workers.popitem(last=False)
                self._runs -= idle.runs
        return run

    @staticmethod
    def _by_key_of(worker: _Worker, key: Hashable) -> Run:
        known = worker.routes.setdefault(None, set())
        if key in known:
            return Run.LATER
        if worker.runs < _SCRIPTS_MAX:
            known.add(key)
            worker.runs += 1
        return Run.FIRST

    def _by_route_of(self, worker: _Worker, request: Request) -> Run:
        route = None if request.uri is None else self._routes.of(request.uri)
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
