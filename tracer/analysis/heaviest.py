"""The call stacks at which most was added, one by one: for terminals and tickets."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from tracer.analysis.flame import Node, paths


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
    remarks: tuple[str, ...]


def heaviest_stacks(root: Node, title: str, remarks: Sequence[str], top: int) -> Heaviest:
    """The `top` heaviest of a finished flame; 0: all."""
    found: dict[tuple[str, ...], list[tuple[int, int, str]]] = {}
    for path in paths(root):
        route, *rest = path
        key = tuple(node.detail for node in rest)
        found.setdefault(key, []).append((path[-1].own, path[-1].own_samples, route.detail))
    stacks = [
        HeavyStack(
            script=key[0],
            frames=tuple(reversed(key[1:])),
            routes=tuple(route for _, _, route in sorted(parts, key=lambda part: (-part[0], part[2]))),
            bytes=sum(size for size, _, _ in parts),
            samples=sum(samples for _, samples, _ in parts),
        )
        for key, parts in found.items()
    ]
    stacks.sort(key=lambda stack: (-stack.bytes, stack.script, stack.frames))
    shown = stacks[: top or None]
    return Heaviest(title, root.bytes, tuple(shown), len(stacks) - len(shown), tuple(remarks))
