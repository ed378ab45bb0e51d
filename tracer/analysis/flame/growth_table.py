"""Growth summed by route, script and call stack, in memory that does not follow the number of routes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

from tracer.analysis.places import place_names
from tracer.analysis.routes import UNKNOWN_URI, Routes
from tracer.facts import Place, Request, Stack

GrowthByStack = Sequence[tuple[Stack, int, int]]  # of one request: (stack, bytes, samples)

# Some 150 bytes a row: an upper limit for sites whose URIs never repeat.
_MAX_ROWS = 300_000


class Script(NamedTuple):
    """A script, and the place where it ran: two containers may have different ones of one name."""

    name: str
    place: Place


_Key = tuple[str | None, Script]  # the route, None if it was merged


class GrowthRow(NamedTuple):
    """Bytes and samples added at the end of one call stack, of one script and one route."""

    route: str | None  # None: small routes that were merged
    script: Script
    stack: int  # its index in GrowthTable.stacks
    bytes: int  # never negative
    samples: int


class GrowthTable:
    """Sums up the growth of requests. If there are too many rows, the smallest routes so far are merged into None."""

    def __init__(self, routes: Routes) -> None:
        """`routes` finds the route of a uri."""
        self._routes = routes
        self.stacks: list[Stack] = []
        self.given_back = 0  # bytes that stacks freed beyond what they added in the same request
        self.merged_routes: set[int] = set()  # hashes of the routes merged into None: enough to count them
        self._numbers: dict[Stack, int] = {}  # index in `stacks`
        # The same by id(), for stacks that `stacks` keeps alive: hashing a stack takes as long as it is deep.
        self._numbers_by_id: dict[int, int] = {}
        self._growth: dict[_Key, dict[int, list[int]]] = {}  # [bytes, samples] by stack
        self._kept: dict[_Key, int] = {}  # what scale_to_kept() scales to
        self._row_count = 0
        self._row_limit = _MAX_ROWS

    def add(self, request: Request, grown: Iterable[tuple[Stack, int, int]]) -> None:
        """Add the (stack, bytes, samples) of a request. What it freed does not reduce the growth of another."""
        net: dict[int, list[int]] = {}
        for stack, size, samples in grown:
            number = self._numbers_by_id.get(id(stack))
            if number is None:
                number = self._number(stack)
            both = net.get(number)
            if both is None:
                net[number] = [size, samples]
            else:
                both[0] += size
                both[1] += samples
        if net:
            self._add_net(self._route_and_script(request), net)

    def add_kept(self, request: Request, kept: int) -> None:
        """Add bytes that a request kept, negative if it freed what others kept, for scale_to_kept()."""
        key = self._route_and_script(request)
        if key not in self._kept:
            self._kept[key] = 0
            self._row_count += 1
        self._kept[key] += kept
        if self._row_count > self._row_limit:
            self._merge_small_routes()

    def scale_to_kept(self, without_stack: Stack) -> None:
        """Scale the stacks of each route and script to what their requests kept together, to the byte.

        What is kept by requests that have no stacks gets the stack `without_stack`; if they freed more than they kept,
        it is nothing. Where nothing was added by add_kept(), stacks stay as they are.
        """
        for key, kept in self._kept.items():
            growth = self._growth.pop(key, {})
            if kept > 0:
                self._growth[key] = _scaled(growth, kept) or {self._number(without_stack): [kept, 0]}
        self._kept.clear()

    def rows(self) -> Iterator[GrowthRow]:
        """Every row, in no order."""
        for (route, script), growth in self._growth.items():
            for number, (size, samples) in growth.items():
                yield GrowthRow(route, script, number, size, samples)

    def named_rows(self, names: Mapping[str | None, str]) -> Iterator[tuple[str, Script, Stack, int, int]]:
        """(route, script, stack, bytes, samples) with the routes of `names` renamed; routes of one name add up.

        KeyError if there are merged routes and `names` has no name for None.
        """
        found: dict[tuple[str, Script], dict[int, list[int]]] = {}
        for (route, script), growth in self._growth.items():
            name = names[route] if route is None else names.get(route, route)
            named = found.setdefault((name, script), {})
            for number, (size, samples) in growth.items():
                _add(named, number, size, samples)
        for (name, script), growth in found.items():
            for number, (size, samples) in growth.items():
                yield name, script, self.stacks[number], size, samples

    def places(self) -> dict[Place, str]:
        """The places where the scripts ran, with a name for each, all different."""
        return place_names(script.place for _, script in self._growth | self._kept)

    def bytes_by_route(self) -> dict[str | None, int]:
        """Bytes that each route added, or will have after scale_to_kept(); None: the merged routes."""
        found: dict[str | None, int] = {}
        for key, growth in self._growth.items():
            if key not in self._kept:
                found[key[0]] = found.get(key[0], 0) + sum(size for size, _ in growth.values())
        for (route, _), kept in self._kept.items():
            found[route] = found.get(route, 0) + max(0, kept)
        return found

    def files(self) -> set[str]:
        """The paths of all scripts and of all functions' files."""
        frames = {frame for stack in self.stacks for frame in stack}
        return {script.name for _, script in self._growth} | {frame.file for frame in frames if frame.file is not None}

    def _route_and_script(self, request: Request) -> tuple[str, Script]:
        route = UNKNOWN_URI if request.uri is None else self._routes.of(request.uri)
        return route, Script("(no script)" if request.script is None else request.script, request.place)

    def _number(self, stack: Stack) -> int:
        number = self._numbers.get(stack)
        if number is None:
            number = self._numbers[stack] = self._numbers_by_id[id(stack)] = len(self.stacks)
            self.stacks.append(stack)
        return number

    def _add_net(self, key: _Key, net: dict[int, list[int]]) -> None:
        for number in [number for number, (size, _) in net.items() if size < 0]:
            self.given_back -= net.pop(number)[0]
        if not net:
            return
        growth = self._growth.setdefault(key, {})
        before = len(growth)
        for number, (size, samples) in net.items():
            _add(growth, number, size, samples)
        self._row_count += len(growth) - before
        if self._row_count > self._row_limit:
            self._merge_small_routes()

    def _merge_small_routes(self) -> None:
        """Merge small routes, the smallest first, until half the rows are left or only large routes are."""
        sizes = self.bytes_by_route()
        whole = sum(sizes.values())
        keys: dict[str | None, list[_Key]] = {}
        for key in self._growth | self._kept:
            keys.setdefault(key[0], []).append(key)
        for size, route in sorted((size, route) for route, size in sizes.items() if route is not None):
            if self._row_count <= self._row_limit // 2 or not is_small(size, whole):
                break
            if size:
                self.merged_routes.add(hash(route))
            for key in keys[route]:
                if key in self._kept:
                    self._row_count -= 1
                    self._row_count += (None, key[1]) not in self._kept
                    self._kept[None, key[1]] = self._kept.get((None, key[1]), 0) + self._kept.pop(key)
                growth = self._growth.pop(key, {})
                merged = self._growth.setdefault((None, key[1]), {})
                self._row_count -= len(growth) + len(merged)
                for number, both in growth.items():
                    _add(merged, number, *both)
                self._row_count += len(merged)
        # If the large routes alone need more room than the limit, do not merge again at every request.
        self._row_limit = max(_MAX_ROWS, 2 * self._row_count)


def is_small(size: int, whole: int) -> bool:
    """True if a route has less than a fiftieth of all bytes, so that it needs no tower of its own."""
    return not size or size * 50 < whole


def _add(growth: dict[int, list[int]], stack: int, size: int, samples: int) -> None:
    known = growth.get(stack)
    if known is None:
        growth[stack] = [size, samples]
    else:
        known[0] += size
        known[1] += samples


def _scaled(growth: Mapping[int, Sequence[int]], kept: int) -> dict[int, list[int]]:
    """The same shares of another sum, which is exact; empty if there are no bytes to have a share of."""
    total = sum(size for size, _ in growth.values())
    found: dict[int, list[int]] = {}
    so_far = shared_out = 0
    for number, (size, samples) in growth.items() if total else ():
        so_far += size
        share = kept * so_far // total - shared_out
        shared_out += share
        found[number] = [share, samples]
    return found
