"""The routes of requests, as the options --routes and --route-query define them."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from tracer.analysis.ranking import GroupBy
from tracer.analysis.route_patterns import MOST_BYTES, RoutePatterns, parse_patterns
from tracer.analysis.routes import LiveRoutes, Routes
from tracer.errors import UsageError
from tracer.recording.reader import Reader

log = logging.getLogger(__name__)
_MOST_PARAMETERS = 8
_MOST_SCRIPTS = 10_000


class RouteOptions(NamedTuple):
    """The values of route_options, checked."""

    patterns: RoutePatterns
    query: tuple[str, ...]  # names of parameters

    @classmethod
    def of(cls, routes: str | None, route_query: str | None) -> RouteOptions:
        """Read the file of patterns, and the names. UsageError if that is not possible."""
        return cls(RoutePatterns() if routes is None else _patterns(routes), _parameters(route_query))

    def live(self) -> LiveRoutes:
        """Routes that are learned from the requests that are traced."""
        return LiveRoutes(self.patterns, self.query)

    def learned(self, recordings: Iterable[Reader]) -> Routes:
        """Routes that are learned from all requests of the recordings. Warn of those that have no query strings."""
        routes = Routes(self.patterns, self.query)
        for recording in recordings:
            options = recording.meta.get("options")
            if self.query and not (isinstance(options, dict) and options.get("query") == "keep"):
                log.warning(
                    "--route-query has no effect on %s: query strings were removed. Record with --query keep.",
                    recording.path,
                )
            for uri, _, requests in recording.pages():
                if uri is not None:
                    routes.learn(uri, requests)
        routes.settle()
        return routes


def default_group(recordings: Iterable[Reader], routes: Routes) -> GroupBy:
    """ROUTE if one of the scripts serves several routes, else SCRIPT."""
    known: dict[str, str] = {}
    for recording in recordings:
        for uri, script, _ in recording.pages():
            if uri is None or script is None:
                continue
            route = routes.of(uri)
            if known.get(script, route) != route:
                return GroupBy.ROUTE
            if len(known) < _MOST_SCRIPTS:
                known[script] = route
    return GroupBy.SCRIPT


def _patterns(path: str) -> RoutePatterns:
    try:
        with open(path, "rb") as file:
            content = file.read(MOST_BYTES + 1)
    except (OSError, ValueError) as exc:
        reason = exc.strerror if isinstance(exc, OSError) else exc
        raise UsageError(f"cannot read {path}: {reason}. Check the file that --routes names.") from exc
    if len(content) > MOST_BYTES:
        raise UsageError(
            f"cannot use --routes {path}: it has more than {MOST_BYTES // 1024} KiB. Leave some patterns out."
        )
    try:
        return parse_patterns(content.decode("utf-8", "surrogateescape"))
    except ValueError as exc:
        raise UsageError(f"cannot use --routes {path}: {exc}. Correct that line.") from exc


def _parameters(names: str | None) -> tuple[str, ...]:
    found: Sequence[str] = () if names is None else [name.strip() for name in names.split(",")]
    if names is not None and not all(found):
        raise UsageError(f"cannot use --route-query {names!r}: a name is empty. Write names such as action,page.")
    if len(found) > _MOST_PARAMETERS:
        raise UsageError(
            f"cannot use --route-query with {len(found)} names: {_MOST_PARAMETERS} are allowed. Leave some out."
        )
    return tuple(dict.fromkeys(found))
