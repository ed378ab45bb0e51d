"""The workers that served the requests of a ranking: each found by one look-up a request, with what is known of it."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable
from typing import Any

from tracer.analysis.open_requests import OpenValues
from tracer.analysis.verdict.worker_levels import Level
from tracer.facts import Place, Request, WorkerId

_WORKERS_MAX = 8192
_REMEMBERED_MAX = 1 << 18  # of all workers together: 50 to 100 bytes each
_PLACE_AT = -len(Place._fields)  # the fields of a Place are the last of a Request


class SeenWorker:
    """A worker. The next one that gets its pid is another one."""

    __slots__ = ("groups", "last_nth", "level", "nth", "number", "open", "place", "remembered", "routes")

    def __init__(self, number: int, place: tuple[Any, ...]) -> None:
        """`number`: no other one of the ranking has it. `place`: the fields of its Place."""
        self.number = number
        self.place = place
        self.nth = 0  # of its latest request
        self.last_nth = 0  # of the one before
        self.level = Level()
        self.groups: dict[Hashable, Any] = {}  # that it served, by name
        self.routes: dict[str | None, set[Hashable]] = {}  # that it served, by script
        self.remembered = 0  # groups and routes
        self.open: tuple[OpenValues, int] | None = None  # its latest request, if that was counted


class SeenWorkers:
    """Finds the worker of each request. Forgets those that served no request for the longest time: they have ended."""

    def __init__(self) -> None:
        """No worker has been seen."""
        self._workers: OrderedDict[WorkerId, SeenWorker] = OrderedDict()
        self._number = 0
        self._remembered = 0

    def of(self, request: Request) -> SeenWorker:
        """Call it once a request, in order."""
        name = request.worker
        worker = self._workers.get(name)
        # The count of a worker's requests begins anew where another worker got the pid.
        if worker is None or request.nth <= worker.nth:
            if worker is not None:
                self._remembered -= worker.remembered
            self._number += 1
            worker = self._workers[name] = SeenWorker(self._number, request[_PLACE_AT:])
            if len(self._workers) > _WORKERS_MAX:
                self._forget_one()
        self._workers.move_to_end(name)
        worker.last_nth = worker.nth
        worker.nth = request.nth
        return worker

    @staticmethod
    def follow(worker: SeenWorker, latest: tuple[OpenValues, int] | None) -> None:
        """Close the request before the worker's latest one, if that one was counted.

        `latest`: where it is, and its number there; None: it was not counted.
        """
        before = worker.open
        # Where a filter left out the one after it, nobody knows whether that was counted.
        if before is not None and (latest is not None or worker.nth > worker.last_nth + 1):
            values, number = before
            values.close(number)
        worker.open = latest

    def remember(self, worker: SeenWorker) -> None:
        """Take note that one more group or route of the worker is remembered, which served the latest request."""
        worker.remembered += 1
        self._remembered += 1
        while self._remembered > _REMEMBERED_MAX and len(self._workers) > 1:
            self._forget_one()

    def _forget_one(self) -> None:
        _, idle = self._workers.popitem(last=False)
        self._remembered -= idle.remembered
