"""Where growth was added: by route, script and call stack, in memory that does not follow the number of routes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

from tracer.analysis.routes import route_of
from tracer.facts import Request, Stack

Grown = Sequence[tuple[Stack, int, int]]  # (stack, bytes, samples)

# Stacks of routes, each counted once a route, some 150 bytes each: what uris without end may take.
_MOST = 300_000


class Place(NamedTuple):
    """A call stack of one script and one route, and what was added at its end."""

    route: str | None  # None: of routes that there was no room for one by one
    script: str
    stack: int  # its index in Places.stacks
    bytes: int  # never negative
    samples: int


class GrowthTable:
    """Adds up growth. Where there are too many places, the routes with least so far are put together, as None."""

    def __init__(self) -> None:
        self.stacks: list[Stack] = []
        self.given_back = 0  # bytes: what stacks gave back beyond what they added in the same request
        self._numbers: dict[Stack, int] = {}
        self._by_id: dict[int, int] = {}  # of those in `stacks`, which keeps them: their hash is as long as they are
        self._added: dict[tuple[str | None, str], dict[int, list[int]]] = {}  # [bytes, samples] by stack
        self.together: set[int] = set()  # hashes of the routes that are None: enough to count them
        self._count = 0
        self._most = _MOST

    def add(self, request: Request, grown: Iterable[tuple[Stack, int, int]]) -> None:
        """Each request by itself: what one gives back makes another's growth no less."""
        net: dict[int, list[int]] = {}
        for stack, size, samples in grown:
            number = self._by_id.get(id(stack))
            if number is None:
                number = self._number(stack)
            both = net.get(number)
            if both is None:
                net[number] = [size, samples]
            else:
                both[0] += size
                both[1] += samples
        if net:
            self._put(_base(request), net)

    def __iter__(self) -> Iterator[Place]:
        for (route, script), added in self._added.items():
            for number, (size, samples) in added.items():
                yield Place(route, script, number, size, samples)

    def renamed(self, routes: Mapping[str | None, str]) -> Iterator[tuple[str, str, Stack, int, int]]:
        """(route, script, stack, bytes, samples), with the routes in it called so; those of one name add up.

        There has to be a name for None.
        """
        found: dict[tuple[str, str], dict[int, list[int]]] = {}
        for (route, script), added in self._added.items():
            name = routes[route] if route is None else routes.get(route, route)
            renamed = found.setdefault((name, script), {})
            for number, (size, samples) in added.items():
                _add(renamed, number, size, samples)
        for (name, script), added in found.items():
            for number, (size, samples) in added.items():
                yield name, script, self.stacks[number], size, samples

    def sizes(self) -> dict[str | None, int]:
        """Bytes by route."""
        found: dict[str | None, int] = {}
        for (route, _), added in self._added.items():
            found[route] = found.get(route, 0) + sum(size for size, _ in added.values())
        return found

    def files(self) -> set[str]:
        """All scripts, and all files of functions."""
        frames = {frame for stack in self.stacks for frame in stack}
        return {script for _, script in self._added} | {frame.file for frame in frames if frame.file is not None}

    def _number(self, stack: Stack) -> int:
        number = self._numbers.get(stack)
        if number is None:
            number = self._numbers[stack] = self._by_id[id(stack)] = len(self.stacks)
            self.stacks.append(stack)
        return number

    def _put(self, base: tuple[str | None, str], net: dict[int, list[int]]) -> None:
        for number in [number for number, (size, _) in net.items() if size < 0]:
            self.given_back -= net.pop(number)[0]
        if not net:
            return
        added = self._added.setdefault(base, {})
        before = len(added)
        for number, (size, samples) in net.items():
            _add(added, number, size, samples)
        self._count += len(added) - before
        if self._count > self._most:
            self._put_together()

    def _put_together(self) -> None:
        """Halves the places, as far as they are of small routes."""
        sizes = self.sizes()
        whole = sum(sizes.values())
        bases: dict[str | None, list[tuple[str | None, str]]] = {}
        for base in self._added:
            bases.setdefault(base[0], []).append(base)
        for size, route in sorted((size, route) for route, size in sizes.items() if route is not None):
            if self._count <= self._most // 2 or not is_small(size, whole):
                break
            if size:
                self.together.add(hash(route))
            for base in bases[route]:
                added = self._added.pop(base)
                others = self._added.setdefault((None, base[1]), {})
                self._count -= len(added) + len(others)
                for number, both in added.items():
                    _add(others, number, *both)
                self._count += len(others)
        # Where what is left needs more room than there is, not at every request.
        self._most = max(_MOST, 2 * self._count)


def is_small(size: int, whole: int) -> bool:
    """Whether a route with so many bytes of all has no need of a tower of its own: less than a fiftieth."""
    return not size or size * 50 < whole


def _add(places: dict[int, list[int]], stack: int, size: int, samples: int) -> None:
    known = places.get(stack)
    if known is None:
        places[stack] = [size, samples]
    else:
        known[0] += size
        known[1] += samples


def _base(request: Request) -> tuple[str, str]:
    route = "(unknown uri)" if request.uri is None else route_of(request.uri)
    return route, "(no script)" if request.script is None else request.script
