"""Flame graphs for tests: made by hand, or built of requests, and taken apart again."""

from __future__ import annotations

from typing import Any

from tracer.analysis.flame.builder import FlameBuilder
from tracer.analysis.flame.growth_table import GrowthByStack
from tracer.analysis.flame.node import Flame, Kind, Node
from tracer.facts import Metric, Request

HOSTILE = [
    "<script>alert(1)</script>", "]]>", "]]><script>alert(1)</script>", "\"' onload='alert(1)' x=\"", "nul \0 here",
    "byte \udcff", "lone \ud800", "\x1b[2J", "\u202egnp.exe", "a&b&lt;c&#0;", "a;b", "two\nlines\r\ttab",
    "\ufffe\uffff", "</title></svg><svg onload='alert(1)'>", "N" * 10_007,
]  # fmt: skip


def node(
    label: str, size: int, *children: Node, kind: Kind = Kind.USER, before: int | None = None, **more: Any
) -> Node:
    return Node(label, kind, bytes=size, before=before, children={c.detail or c.label: c for c in children}, **more)


def flame(*children: Node, notes: tuple[str, ...] = (), title: str = "rss: page faults") -> Flame:
    """A flame whose root is as large as the children together."""
    before = [child.before for child in children if child.before is not None]
    return Flame(
        node("all", sum(child.bytes for child in children), *children, kind=Kind.ROOT,
             before=sum(before) if before else None),
        title, notes,
    )  # fmt: skip


def built(
    *requests: tuple[Request, GrowthByStack], metric: Metric = Metric.RSS, retained: bool = False
) -> FlameBuilder:
    builder = FlameBuilder(metric, retained=retained)
    for one, grown in requests:
        builder.add(one, grown)
    return builder


def every(root: Node) -> dict[str, Node]:
    found, pending = {}, [("", root)]
    while pending:
        path, node = pending.pop()
        for child in node.children.values():
            name = f"{path} > {child.label}" if path else child.label
            found[name] = child
            pending.append((name, child))
    return found


def sizes(root: Node) -> dict[str, int]:
    return {name: node.bytes for name, node in every(root).items()}


def difference(
    before: list[tuple[Request, GrowthByStack]], after: list[tuple[Request, GrowthByStack]], *, retained: bool = False
) -> FlameBuilder:
    builder = FlameBuilder(Metric.RSS, retained=retained, difference=True)
    for one, grown in after:
        builder.add(one, grown)
    for one, grown in before:
        builder.add_before(one, grown)
    return builder
