"""Routes: uris with their variable parts folded, so that requests for the same page are one route.

A part of a path is a value by its form (route_parts.py), or since many others come in its place (route_tree.py); the
user's patterns (route_patterns.py) win over both. What a route is does not depend on the order of requests where
all are learned before the first route is asked for. However hostile the uris are, memory and time are bounded.
"""

from __future__ import annotations

import re
from collections.abc import Hashable, Iterable, Sequence
from typing import NamedTuple

from tracer.analysis.route_parts import MOST_PARTS, QUERY, path_part, path_parts, query_values
from tracer.analysis.route_patterns import RoutePatterns
from tracer.analysis.route_tree import MANY, RouteTree, Spot
from tracer.facts import Request

OTHER_ROUTES = "(other routes)"
UNKNOWN_URI = "(unknown uri)"
_MOST_ROUTES = 5000
_MOST_CACHED = 16_384  # uris; twice as many may be in memory
_LONGEST_CACHED = 512  # characters
_COUNT_AT = 64  # requests of a known uri that are counted together
_NUMBER = re.compile("/[0-9]+(?![^/])")


def route_of(uri: str) -> str:
    """Return `/user/{n}/edit` for `/user/123/edit?tab=2`: the route by the form of the parts alone."""
    return "/".join(path_parts(uri.partition("?")[0]))


class RouteKey(NamedTuple):
    """A route of a script. Several sites of one server may have a route of the same name."""

    route: str
    script: str | None  # None: of all scripts


class Routes:
    """Finds the route of each uri.

    learn() what is known beforehand, and then settle(). Without that, only the form of a part makes it a value.
    """

    def __init__(self, patterns: RoutePatterns | None = None, query: Sequence[str] = ()) -> None:
        """`query` names the parameters that are part of a route: `/admin-ajax.php?action=save`."""
        self._patterns = patterns or RoutePatterns()
        self._query = tuple(query)
        self._tree = self._new_tree()
        self._of_patterns: dict[str, RouteTree] = {}  # values of query parameters, by pattern
        self._known: set[str] = set()
        self._recent: dict[str, str] = {}  # routes by uri
        self._older: dict[str, str] = {}
        self._folders: dict[str, tuple[str, Spot | None]] = {}  # by all but the last part: its route, and its spot
        self._learned: dict[str, dict[str, int]] = {}  # requests by folder and last part that are not in the tree yet
        self._learned_parts = 0

    @staticmethod
    def _new_tree() -> RouteTree:
        return RouteTree()

    def learn(self, uri: str, requests: int = 1) -> None:
        """Count requests for a uri."""
        pattern, path, values = self._split(uri)
        if pattern is not None or values or _is_long(path):
            self._add(pattern, path, values, requests)
            return
        folder, slash, last = _NUMBER.sub("/{n}", path).rpartition("/")
        learned = self._learned.setdefault(folder + slash, {})
        if last in learned:
            learned[last] += requests
        else:
            learned[last] = requests
            self._learned_parts += 1
            if self._learned_parts > _MOST_CACHED:
                self._add_learned()

    def settle(self) -> None:
        """Decide, by what was learned, what is a value, and which routes are too rare to be told apart."""
        self._add_learned()
        for tree in (self._tree, *self._of_patterns.values()):
            tree.settle()
        self._folders.clear()
        heaviest = self._tree.heaviest(_MOST_ROUTES)
        if heaviest is not None:
            self._known = {self._text(None, names) for names in heaviest}

    def of(self, uri: str) -> str:
        """The route of a uri; (other routes) if there are too many."""
        route = self._recent.get(uri) or self._older.get(uri)
        if route is None:
            route = self._found(uri) if uri != OTHER_ROUTES else uri
            if len(uri) <= _LONGEST_CACHED:
                if len(self._recent) >= _MOST_CACHED:
                    self._older, self._recent = self._recent, {}
                self._recent[uri] = route
        return route

    def _found(self, uri: str) -> str:
        pattern, path, values = self._split(uri)
        if pattern is not None and not values:
            return pattern  # the user's, of whom there are not too many
        if values or _is_long(path):
            return self._made(pattern, path, values)
        folder, slash, last = _NUMBER.sub("/{n}", path).rpartition("/")
        folder += slash
        known = self._folders.get(folder)
        if known is None:
            if len(self._folders) >= _MOST_CACHED:
                self._folders.clear()
            names, spot = self._tree.names_and_spot(_folder_parts(folder))
            known = self._folders[folder] = "".join([name + "/" for name in names]), spot
        begin, spot = known
        return self._counted(begin + self._tree.name_in(spot, path_part(last)))

    def _made(self, pattern: str | None, path: str, values: list[str]) -> str:
        tree = self._tree if pattern is None else self._of_patterns.get(pattern)
        parts = self._parts(pattern, path, values)
        return self._counted(self._text(pattern, parts if tree is None else tree.names(parts)))

    def _counted(self, route: str) -> str:
        """The route, unless there are too many."""
        if route not in self._known:
            if len(self._known) >= _MOST_ROUTES:
                return OTHER_ROUTES
            self._known.add(route)
        return route

    def _split(self, uri: str) -> tuple[str | None, str, list[str]]:
        """The pattern that the uri matches, its path, and the values of the parameters; [] if it has none."""
        path, _, query = uri.partition("?")
        pattern = self._patterns.match(path) if self._patterns else None
        values = query_values(query, self._query) if self._query and query else []
        return pattern, path, values if any(values) else []

    @staticmethod
    def _parts(pattern: str | None, path: str, values: list[str]) -> list[str]:
        parts = path_parts(path) if pattern is None else []
        return [*parts, QUERY, *values] if values else parts

    def _add(self, pattern: str | None, path: str, values: list[str], requests: int) -> None:
        if pattern is None:
            self._tree.add(self._parts(None, path, values), requests)
        elif values:
            tree = self._of_patterns.get(pattern)
            if tree is None:
                tree = self._of_patterns[pattern] = self._new_tree()
            tree.add(self._parts(pattern, path, values), requests)

    def _add_learned(self) -> None:
        for folder, requests in self._learned.items():
            self._tree.add_all(_folder_parts(folder), [(path_part(last), count) for last, count in requests.items()])
        self._learned.clear()
        self._learned_parts = 0

    def _text(self, pattern: str | None, names: Sequence[str]) -> str:
        """The route of a pattern, or of a path, whose values and those of parameters have these names."""
        if not self._query:
            return "/".join(names)  # a pattern has no names without a query
        path: Sequence[str] = names
        values: Sequence[str] = ()
        if len(names) > len(self._query) and names[-1 - len(self._query)] == QUERY:
            path, values = names[: -1 - len(self._query)], names[-len(self._query) :]
        text = "/".join(path) if pattern is None else pattern
        pairs = "&".join(f"{name}={value}" for name, value in zip(self._query, values, strict=False) if value)
        return f"{text}?{pairs}" if pairs else text


def _folder_parts(folder: str) -> list[str]:
    """The parts of a path of which a slash is the end, or of none."""
    return path_parts(folder[:-1]) if folder else []


def _is_long(path: str) -> bool:
    """True if path_parts() may leave out some of its parts, or none of it is worth to be remembered."""
    return len(path) > _LONGEST_CACHED or path.count("/") >= MOST_PARTS


class LiveRoutes(Routes):
    """Learns while routes are asked for, for a view that is shown meanwhile.

    A route that was shown keeps its name as long as its requests can be told by it: the parts that came first in their
    place have the names of their own until there are too many, from when on they are values.
    """

    def __init__(self, patterns: RoutePatterns | None = None, query: Sequence[str] = ()) -> None:
        super().__init__(patterns, query)
        self._counts: dict[str, int] = {}  # of the uris in _recent: requests that are not counted yet
        self._folded = 0

    @staticmethod
    def _new_tree() -> RouteTree:
        return RouteTree(known=MANY)

    def of(self, uri: str) -> str:
        """The route of the uri of a request, which is counted."""
        route = self._recent.get(uri)
        if route is not None:
            counted = self._counts[uri] + 1
            if counted < _COUNT_AT:
                self._counts[uri] = counted
                return route
            requests = self._counts.pop(uri)
        else:
            requests = 0
        pattern, path, values = self._split(uri)
        self._add(pattern, path, values, requests + 1)
        folded = sum(tree.folded for tree in (self._tree, *self._of_patterns.values()))
        if folded != self._folded or len(self._counts) >= _MOST_CACHED:
            self._folded = folded
            self._recent.clear()
            self._counts.clear()
        route = self._made(pattern, path, values) if uri != OTHER_ROUTES else uri
        if len(uri) <= _LONGEST_CACHED:
            self._recent[uri] = route
            self._counts[uri] = 0
        return route


class RouteNames:
    """Finds the route of each request, and gives each a name."""

    def __init__(self, routes: Routes) -> None:
        """`routes` finds the route of a uri."""
        self._routes = routes
        self._keys: dict[str, dict[str, RouteKey]] = {}  # by script and route: to make one takes longer than all else
        self._cached = 0

    def key(self, request: Request) -> RouteKey | None:
        """The route of the script that ran; None if none did, or it was not seen."""
        if request.script is None:
            return None
        route = UNKNOWN_URI if request.uri is None else self._routes.of(request.uri)
        keys = self._keys.get(request.script)
        key = None if keys is None else keys.get(route)
        if key is None:
            key = RouteKey(route, None if route == OTHER_ROUTES else request.script)
            if self._cached >= _MOST_ROUTES:
                self._keys.clear()
                self._cached = 0
            self._keys.setdefault(request.script, {})[route] = key
            self._cached += 1
        return key

    @staticmethod
    def names(keys: Iterable[Hashable]) -> dict[RouteKey, str]:
        """A name for each route: `/cart`, or `/cart (shop-b)` where several scripts have that route."""
        namesakes: dict[str, set[RouteKey]] = {}
        for key in keys:
            if isinstance(key, RouteKey):
                namesakes.setdefault(key.route, set()).add(key)
        names = {}
        for route, alike in namesakes.items():
            scripts = _different([key.script or "" for key in alike]) if len(alike) > 1 else [""]
            for key, script in zip(alike, scripts, strict=True):
                names[key] = f"{route} ({script})" if script else route
        return names


def _different(paths: Sequence[str]) -> list[str]:
    """The paths without the folders at their beginning, and the parts at their end, that all of them have."""
    split = [path.split("/") for path in paths]
    least = min(map(len, split))
    start = end = 0
    while start < least and len({parts[start] for parts in split}) == 1:
        start += 1
    while end < least - start and len({parts[-1 - end] for parts in split}) == 1:
        end += 1
    short = ["/".join(parts[start : len(parts) - end]) for parts in split]
    return short if all(short) else list(paths)
