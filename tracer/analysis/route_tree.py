"""Learns which parts of paths are names and which are values, such as slugs, by how many different ones there are.

A place in which more than a few dozen different parts come is a place for values: they are one part, `{slug}`. Parts
that many requests have, or below which there is much, keep their names there.

Memory is bounded whatever clients send. Up to 1,024 different parts in one place, the result does not depend on the
order of the requests; beyond that, it may for parts that hardly come often enough to keep their names.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator, Sequence

from tracer.analysis.route_parts import PLACEHOLDERS, QUERY, SLUG

MANY = 64  # different parts in one place, beyond which they are values
_SHARE = 50  # a part that at least one in so many requests has keeps its name
_LEAST = 8  # requests of it, at least
_LEAST_LATER = 64  # and of one that was a value until then
_DIRECTORY = 8  # parts below a part that keeps its name for that
_MOST_KNOWN = 1024  # parts in one place
_MOST_NODES = 60_000  # some 300 bytes each
# Parts that are no names. They are neither counted nor folded.
_FIXED = PLACEHOLDERS | {"", QUERY}


class Spot:
    """A place in paths: which parts come there, and how often."""

    __slots__ = ("children", "light", "own", "requests")

    def __init__(self) -> None:
        self.children: dict[str, Spot] = {}
        self.requests = 0  # with this part, whatever follows
        self.own = 0  # of these: nothing follows
        self.light: dict[str, int] | None = None  # requests by part, of parts that are values; None: none are

    @property
    def is_directory(self) -> bool:
        """True if much is below it, so that it is hardly a value."""
        return self.light is not None or len(self.children) >= _DIRECTORY


class RouteTree:
    """Counts the parts of paths, and tells by what name each part goes."""

    def __init__(self, *, known: int = _MOST_KNOWN) -> None:
        """`known`: so many different parts in one place are remembered; more are values at once."""
        self._root = Spot()
        self._known = known
        self._nodes = 1
        self.folded = 0  # how often parts became values: names may have changed since

    def add(self, parts: Sequence[str], requests: int = 1) -> None:
        """Count requests for the path that has these parts."""
        self.add_all(parts[:-1], [(parts[-1], requests)])

    def add_all(self, folder: Sequence[str], requests: Sequence[tuple[str, int]]) -> None:
        """Count requests for the paths that have these parts and then one more: [(part, requests)]."""
        total = sum([count for _, count in requests])
        spot = self._root
        spot.requests += total
        for part in folder:
            child = spot.children.get(part) or self._new(spot, part, total)
            if child is None:
                return
            spot = child
            spot.requests += total
        for part, count in requests:
            child = spot.children.get(part) or self._new(spot, part, count)
            if child is not None:
                child.requests += count
                child.own += count
        if self._nodes > _MOST_NODES:
            self._shrink()

    def names(self, parts: Sequence[str]) -> list[str]:
        """The parts, with values as `{slug}`."""
        return self.names_and_spot(parts)[0]

    def names_and_spot(self, parts: Sequence[str]) -> tuple[list[str], Spot | None]:
        """The same, and the place after the last of the parts; None if nothing is known of it."""
        names = []
        spot: Spot | None = self._root
        for part in parts:
            name = self.name_in(spot, part)
            names.append(name)
            spot = None if spot is None else spot.children.get(name)
        return names, spot

    @staticmethod
    def name_in(spot: Spot | None, part: str) -> str:
        """The part, or `{slug}` if it is a value in that place. Places change with add() and settle()."""
        if spot is None or spot.light is None or part in spot.children or part in _FIXED:
            return part
        return SLUG

    def settle(self) -> None:
        """Decide anew, by all that was counted, which parts are values."""
        pending = [self._root]
        while pending:
            node = pending.pop()
            if node.light is not None or sum(1 for name in node.children if name not in _FIXED) > MANY:
                self._fold(node)
            pending.extend(node.children.values())

    def heaviest(self, most: int) -> list[tuple[str, ...]] | None:
        """The parts of the paths with most requests, at most so many of them; None if there are no more than that."""
        found = heapq.nsmallest(most + 1, ((-own, names) for names, own in self._paths()))
        return [names for _, names in found[:most]] if len(found) > most else None

    def _paths(self) -> Iterator[tuple[tuple[str, ...], int]]:
        pending: list[tuple[tuple[str, ...], Spot]] = [((), self._root)]
        while pending:
            names, node = pending.pop()
            if node.own:
                yield names, node.own
            pending.extend(((*names, name), child) for name, child in node.children.items())

    def _new(self, node: Spot, part: str, requests: int) -> Spot | None:
        """The node of a part that was not seen there, or is a value there; None if there is no room for it."""
        if part not in _FIXED:
            if node.light is None and len(node.children) >= self._known:
                self._fold(node)
            if node.light is not None:
                seen = node.light.get(part, 0) + requests
                if seen * _SHARE < node.requests or seen < _LEAST_LATER or len(node.children) >= self._known:
                    node.light[part] = seen
                    if len(node.light) > _MOST_KNOWN:
                        _forget_rare(node.light)
                    part = SLUG
                    if SLUG in node.children:
                        return node.children[SLUG]
                else:
                    node.light.pop(part, None)
        if self._nodes > _MOST_NODES + _MOST_KNOWN:
            return None
        self._nodes += 1
        node.children[part] = child = Spot()
        return child

    def _fold(self, node: Spot) -> None:
        """Make values of the parts that neither many requests have nor have many parts below them."""
        names = [name for name in node.children if name not in _FIXED]
        directories = {name for name in names if node.children[name].is_directory}
        if len(directories) > MANY:
            directories.clear()
        least = max(_LEAST, node.requests / _SHARE)
        if node.light is None:
            node.light = {}
        self.folded += 1
        for name in sorted(names):
            child = node.children[name]
            if child.requests >= least or name in directories:
                continue
            del node.children[name]
            node.light[name] = child.requests
            self._put(node, SLUG, child)
        if len(node.light) > _MOST_KNOWN:
            _forget_rare(node.light)

    def _put(self, node: Spot, name: str, child: Spot) -> None:
        """Add what was counted of a child to that of this name."""
        known = node.children.get(name)
        if known is None:
            node.children[name] = child
            return
        self._nodes -= 1
        known.requests += child.requests
        known.own += child.own
        if child.light is not None and known.light is None:
            self._fold(known)
        for below, grandchild in child.children.items():
            if known.light is None or below in _FIXED or below in known.children:
                self._put(known, below, grandchild)
            else:
                known.light[below] = known.light.get(below, 0) + grandchild.requests
                self._put(known, SLUG, grandchild)
        if known.light is None and len(known.children) > self._known:
            self._fold(known)

    def _shrink(self) -> None:
        """Remember fewer parts in each place, until there are fewer in all."""
        while self._nodes > _MOST_NODES // 2 and self._known > _DIRECTORY:
            self._known //= 2
            pending = [self._root]
            while pending:
                node = pending.pop()
                if len(node.children) > self._known:
                    self._fold(node)
                pending.extend(node.children.values())


def _forget_rare(counts: dict[str, int]) -> None:
    """Leave the half that came most."""
    for name in sorted(counts, key=lambda name: (counts[name], name))[: len(counts) // 2]:
        del counts[name]
