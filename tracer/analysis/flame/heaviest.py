"""The call stacks at which most was added, one by one: for terminals and tickets."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from tracer.analysis.flame.growth_table import GrowthTable, Place
from tracer.analysis.flame.tree import detail_of


@dataclasses.dataclass(frozen=True, slots=True)
class HeavyStack:
    """A stack of one script, whatever the routes that led there. Texts are not escaped."""

    script: str
    frames: tuple[str, ...]  # the innermost first
    routes: tuple[str, ...]  # those with most bytes first
    bytes: int
    samples: int


@dataclasses.dataclass(frozen=True, slots=True)
class Heaviest:
    """The stacks with most bytes, in order; `total` is of all."""

    title: str
    total: int
    stacks: tuple[HeavyStack, ...]
    hidden: int  # how many more there are
    notes: tuple[str, ...]


def heaviest_stacks(places: GrowthTable, title: str, notes: Sequence[str], top: int) -> Heaviest:
    """The `top` heaviest of all that was added; 0: all."""
    found: dict[tuple[str, int], list[Place]] = {}
    for place in places:
        if place.bytes:
            found.setdefault((place.script, place.stack), []).append(place)
    frames: dict[int, tuple[str, ...]] = {}
    for _, number in found:
        if number not in frames:
            frames[number] = tuple(detail_of(frame) for frame in reversed(places.stacks[number]))
    stacks = [
        HeavyStack(
            script=script,
            frames=frames[number],
            routes=tuple(_route(part) for part in sorted(parts, key=lambda part: (-part.bytes, _route(part)))),
            bytes=sum(part.bytes for part in parts),
            samples=sum(part.samples for part in parts),
        )
        for (script, number), parts in found.items()
    ]
    total = sum(stack.bytes for stack in stacks)
    stacks.sort(key=lambda stack: (-stack.bytes, stack.script, stack.frames))
    shown = stacks[: top or None]
    return Heaviest(title, total, tuple(shown), len(stacks) - len(shown), tuple(notes))


def _route(place: Place) -> str:
    return "(other routes)" if place.route is None else place.route
