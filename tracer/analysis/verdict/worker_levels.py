"""How far each worker's memory has risen, over all its requests, without the chunks that Zend keeps for later.

A *level* is the worker's anonymous memory between two requests. The one that raises it above all before is named.
"""

from __future__ import annotations

from collections import OrderedDict
from operator import itemgetter

from tracer.facts import Request, WorkerId

_WORKERS_MAX = 8192
_FIRST_CHUNK = 2 << 20  # which Zend never gives back
SETTLED = 3  # requests after which a worker's start is over
_VALUES = itemgetter(*map(Request._fields.index, ("nth", "anon_before", "anon_after", "zend_real_after")))


class Level:
    """The memory of one worker, in bytes. None: not measured yet."""

    __slots__ = ("first", "last", "nth", "served", "settled", "top")

    def __init__(self) -> None:
        self.nth = 0  # of its last request
        self.served = 0
        self.first: int | None = None
        self.settled: int | None = None  # after its first few requests
        self.top: int | None = None
        self.last: int | None = None


class WorkerLevels:
    """Takes every request once, in order. Forgets the workers that served none for the longest time."""

    def __init__(self) -> None:
        """No worker has been seen."""
        self._levels: OrderedDict[WorkerId, Level] = OrderedDict()

    def add(self, request: Request) -> tuple[Level, int]:
        """Return the request's worker, and how many bytes it raised that worker above all levels before."""
        nth, before, after, zend_real = _VALUES(request)
        key = request.worker
        level = self._levels.get(key)
        # The count of a worker's requests begins anew where another worker got the pid.
        if level is None or nth <= level.nth:
            level = self._levels[key] = Level()
            if len(self._levels) > _WORKERS_MAX:
                self._levels.popitem(last=False)
        else:
            self._levels.move_to_end(key)
        level.nth = nth
        level.served += 1
        if after is None or before is None:
            return level, 0
        kept_by_zend = zend_real - _FIRST_CHUNK if zend_real is not None and zend_real > _FIRST_CHUNK else 0
        level.last = now = after - kept_by_zend
        if level.top is None:
            level.first = level.top = min(before, now)
        raised = now - level.top
        if raised > 0:
            level.top = now
        if level.served == SETTLED:
            level.settled = level.top
        return level, max(0, raised)
