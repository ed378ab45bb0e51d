"""Routes whose requests came near a limit of PHP or php-fpm, or ended by a fatal error.

Zend's peak is compared with memory_limit, the time of a request with request_terminate_timeout, and its CPU time with
max_execution_time, as PHP does on Linux. Limits: the two timeouts are those of the pool's configuration when the
recording began, if it was read; a script may have changed the second. A fatal error has many causes; whether it was
memory_limit is not recorded.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from operator import itemgetter
from typing import Any, NamedTuple

from tracer.analysis.routes import OTHER_ROUTES, RouteKey, RouteNames, Routes
from tracer.facts import Ending, Place, Request

COLUMNS = (
    *Place._fields, "host", "master_pid", "pool", "uri", "script", "ending", "started_ns", "duration_ns", "cpu_ns",
    "zend_peak", "memory_limit",
)  # fmt: skip
NEAR = 0.8  # of a limit
_ROUTES_MAX = 5000
_TIMEOUTS_MAX = 1000
_TERMINATED = "killed:TERM"  # by the master: fpm_request_check_timed_out(), sapi/fpm/fpm/fpm_request.c, PHP 7.4 to 8.5
_TERMINATED_EARLY_NS = 100_000_000  # php-fpm's clock starts before ours
_FATAL = Ending.FATAL.value
_MEMORY = itemgetter(*map(Request._fields.index, ("ending", "zend_peak", "memory_limit")))
_TIMES = itemgetter(*map(Request._fields.index, ("master_pid", "pool", "ending", "duration_ns", "cpu_ns")))


class Timeouts(NamedTuple):
    """The timeouts of a pool, in seconds. 0: none; None: not known."""

    host: str
    master_pid: int
    pool: str
    request_terminate_timeout_s: float | None
    max_execution_time_s: float | None


@dataclasses.dataclass(slots=True)
class Worst:
    """The request of a route that came nearest to a limit, and how many came near it."""

    near: int = 0  # requests that took 80 % of it or more
    share: float = 0.0
    used: int = 0  # bytes or nanoseconds
    limit: int = 0  # the same
    uri: str | None = None
    started_ns: int | None = None

    def add(self, request: Request, used: int, limit: int) -> None:
        """Take a request that came near the limit."""
        self.near += 1
        share = used / limit
        if share > self.share:
            self.share, self.used, self.limit = share, used, limit
            self.uri, self.started_ns = request.uri, request.started_ns


@dataclasses.dataclass(slots=True)
class RouteLimits:
    """The errors and near misses of the requests of one route of a script. None: no request came near."""

    route: str | None = None  # None: no script ran, or it was not seen
    script: str | None = None
    container: str | None = None  # None if all ran in one place
    fatal: int = 0
    fatal_near_memory_limit: int = 0  # of these, those whose peak was near the limit
    fatal_uri: str | None = None  # of the last one
    fatal_at_ns: int | None = None
    terminated: int = 0  # killed after request_terminate_timeout
    memory_limit: Worst | None = None  # by requests without a fatal error
    request_terminate_timeout: Worst | None = None
    max_execution_time: Worst | None = None


class Limits:
    """Takes the requests of recordings one by one. Routes beyond the 5,000th share a row."""

    def __init__(self, routes: Routes | None = None) -> None:
        """`routes` finds the route of a uri. None: by its form alone."""
        self._route_of = RouteNames(routes or Routes()).key
        self._found: dict[tuple[Place, RouteKey | None], RouteLimits] = {}
        self._timeouts: dict[tuple[object, object], tuple[int, int]] = {}  # ns, by master and pool; 0: none
        self.timeouts: list[Timeouts] = []
        self.without_timeouts = 0  # recordings

    def begin_recording(self, meta: Mapping[str, object]) -> None:
        """Take the timeouts of the recording whose requests are added next."""
        known = list(_timeouts(meta))
        self.timeouts = (self.timeouts + known)[:_TIMEOUTS_MAX]
        self.without_timeouts += not known
        self._timeouts = {
            (one.master_pid, one.pool): (_ns(one.request_terminate_timeout_s), _ns(one.max_execution_time_s))
            for one in known
            if one.request_terminate_timeout_s or one.max_execution_time_s
        }

    @property
    def compares_times(self) -> bool:
        """True if a pool of this recording has a timeout that is known."""
        return bool(self._timeouts)

    def add(self, request: Request) -> None:
        """Take one request."""
        ending, peak, limit = _MEMORY(request)
        near = is_near(peak, limit)
        if ending == _FATAL:
            row = self._row(request)
            row.fatal += 1
            row.fatal_near_memory_limit += near
            row.fatal_uri, row.fatal_at_ns = request.uri, request.started_ns
        elif near:
            row = self._row(request)
            row.memory_limit = _worst(row.memory_limit, request, peak, limit)
        if self._timeouts:
            self._add_times(request)

    def _add_times(self, request: Request) -> None:
        master, pool, ending, duration, cpu = _TIMES(request)
        terminate, execution = self._timeouts.get((master, pool), (0, 0))
        if terminate and duration is not None and duration >= NEAR * terminate:
            row = self._row(request)
            row.request_terminate_timeout = _worst(row.request_terminate_timeout, request, duration, terminate)
            row.terminated += ending == _TERMINATED and duration >= terminate - _TERMINATED_EARLY_NS
        if execution and cpu is not None and cpu >= NEAR * execution:
            row = self._row(request)
            row.max_execution_time = _worst(row.max_execution_time, request, cpu, execution)

    def _row(self, request: Request) -> RouteLimits:
        key = request.place, self._route_of(request)
        row = self._found.get(key)
        if row is None:
            if len(self._found) >= _ROUTES_MAX:
                key = Place(), RouteKey(OTHER_ROUTES, None)
            row = self._found.setdefault(key, RouteLimits())
        return row

    def routes(self, places: Mapping[Place, str]) -> list[RouteLimits]:
        """The routes that have anything to report, by their names. `places`: the name of each where requests ran."""
        found = [
            dataclasses.replace(
                row,
                route=None if key is None else key.route,
                script=None if key is None else key.script,
                container=places.get(place) if len(places) > 1 else None,
            )
            for (place, key), row in self._found.items()
        ]
        return sorted(found, key=lambda row: (row.route or "", row.script or "", row.container or ""))


def is_near(used: int | None, limit: int | None) -> bool:
    """True if so much of a limit is near it. A limit of 0 or less is none."""
    return used is not None and limit is not None and used >= NEAR * limit and limit > 0


def _worst(worst: Worst | None, request: Request, used: int, limit: int) -> Worst:
    worst = worst or Worst()
    worst.add(request, used, limit)
    return worst


def _ns(seconds: float | None) -> int:
    return round((seconds or 0) * 1e9)


def _timeouts(meta: Mapping[str, object]) -> Iterable[Timeouts]:
    """The timeouts that a recording has, which may be malformed."""
    found = meta.get("timeouts")
    for entry in found[:_TIMEOUTS_MAX] if isinstance(found, list) else ():
        if not isinstance(entry, dict):
            continue
        master, pool = entry.get("master_pid"), entry.get("pool")
        if isinstance(master, int) and isinstance(pool, str):
            yield Timeouts(
                str(meta.get("host")),
                master,
                pool,
                _seconds(entry.get("request_terminate_timeout_s")),
                _seconds(entry.get("max_execution_time_s")),
            )


def _seconds(value: Any) -> float | None:
    return float(value) if isinstance(value, int | float) and 0 <= value < 1e9 else None
