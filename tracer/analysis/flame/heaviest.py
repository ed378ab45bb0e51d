"""The call stacks that added most memory, one by one: for terminals and tickets."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from tracer.analysis.flame.growth_table import GrowthRow, GrowthTable, Script
from tracer.analysis.flame.tree import detail_of


@dataclasses.dataclass(frozen=True, slots=True)
class HeavyStack:
    """A stack of one script, over all routes that led to it. Texts are not escaped."""

    script: str
    frames: tuple[str, ...]  # the innermost first
    routes: tuple[str, ...]  # most bytes first
    bytes: int
    samples: int
    container: str | None = None  # None: all scripts ran in one


@dataclasses.dataclass(frozen=True, slots=True)
class Heaviest:
    """The stacks with most bytes, in order; `total` is the bytes of all stacks, hidden ones included."""

    title: str
    total: int
    stacks: tuple[HeavyStack, ...]
    hidden: int  # how many stacks are not in `stacks`
    notes: tuple[str, ...]


def heaviest_stacks(growth: GrowthTable, title: str, notes: Sequence[str], top: int) -> Heaviest:
    """The `top` stacks with most bytes; all if `top` is 0."""
    places = growth.places()
    found: dict[tuple[Script, int], list[GrowthRow]] = {}
    for row in growth.rows():
        if row.bytes:
            found.setdefault((row.script, row.stack), []).append(row)
    frames: dict[int, tuple[str, ...]] = {}
    for _, number in found:
        if number not in frames:
            frames[number] = tuple(detail_of(frame) for frame in reversed(growth.stacks[number]))
    stacks = [
        HeavyStack(
            script=script.name,
            frames=frames[number],
            routes=tuple(_route(part) for part in sorted(parts, key=lambda part: (-part.bytes, _route(part)))),
            bytes=sum(part.bytes for part in parts),
            samples=sum(part.samples for part in parts),
            container=places[script.place] if len(places) > 1 else None,
        )
        for (script, number), parts in found.items()
    ]
    total = sum(stack.bytes for stack in stacks)
    stacks.sort(key=lambda stack: (-stack.bytes, stack.script, stack.container or "", stack.frames))
    shown = stacks[: top or None]
    return Heaviest(title, total, tuple(shown), len(stacks) - len(shown), tuple(notes))


def _route(row: GrowthRow) -> str:
    return "(other routes)" if row.route is None else row.route
