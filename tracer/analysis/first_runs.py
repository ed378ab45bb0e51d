"""Which requests are a worker's first of their kind, and so fill caches that the later ones find filled."""

from __future__ import annotations

import enum

from tracer.analysis.routes import Routes
from tracer.analysis.seen_workers import SeenWorker, SeenWorkers
from tracer.facts import Request

_SCRIPTS_MAX = 4096  # of one worker
# Of one script in one worker. Beyond that a new route is a page like others: a site may have one for each article.
_ROUTES_MAX = 64


class Run(enum.IntEnum):
    """How often a worker has run what a request asks for."""

    FIRST = 0  # of the script; where requests are grouped by uri or by route, of that
    FIRST_OF_ROUTE = 1  # it has run the script for other routes
    LATER = 2


class FirstRuns:
    """Tells which requests are the first of their script, or of a route of it, in their worker."""

    def __init__(self, workers: SeenWorkers, routes: Routes | None = None) -> None:
        """`workers` has those that are asked for. `routes` finds the route of a uri; None: by its form alone."""
        self._workers = workers
        self._routes = routes or Routes()

    def of(self, request: Request, worker: SeenWorker) -> Run:
        """Call it once a request, in order."""
        uri = request.uri
        route = None if uri is None else self._routes.of(uri)
        known = worker.routes.get(request.script)
        if known is None:
            if len(worker.routes) < _SCRIPTS_MAX:
                worker.routes[request.script] = {route}
                self._workers.remember(worker)
            return Run.FIRST
        if route in known or len(known) >= _ROUTES_MAX:
            return Run.LATER
        known.add(route)
        self._workers.remember(worker)
        return Run.FIRST_OF_ROUTE
