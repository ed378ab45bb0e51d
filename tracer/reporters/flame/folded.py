"""A flame as folded stacks, `a;b;c 4096`, which flamegraph.pl, inferno and many viewers read.

The root is in no stack. A difference has two numbers, before and after, as difffolded.pl writes them.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import TextIO

from tracer.analysis.flame.node import Flame, Node
from tracer.units import printable

# flamegraph.pl would take this for the first of two columns of numbers: it looks for a number before the last one.
_COLUMN = re.compile(r" (?=\d+(\.\d*)?$)")


def render(flame: Flame, out: TextIO) -> None:
    """Write a line for each node with bytes of its own.

    A `;` in a name is written as `:`, and the space before a number at its end as `\\x20`.
    """
    names: list[str] = []
    for path, before, after in stacks(flame):
        del names[len(path) - 1 :]
        names += [_name(node) for node in path[len(names) :]]
        numbers = f"{after}" if flame.root.before is None else f"{before} {after}"
        if after > 0 or (before > 0 and flame.root.before is not None):
            out.write(f"{';'.join(names)} {numbers}\n")


def stacks(flame: Flame) -> Iterator[tuple[Sequence[Node], int, int]]:
    """Each node but the root, as (the path to it, its own bytes before, its own bytes now).

    Own bytes are those that its children do not explain, at least 0; those before are 0 unless the flame is
    a difference. The path is the same list every time.
    """
    path: list[Node] = []
    waiting = [(child, 0) for child in reversed(flame.root.children.values())]
    while waiting:
        node, depth = waiting.pop()
        del path[depth:]
        path.append(node)
        children = node.children.values()
        before = (node.before or 0) - sum(child.before or 0 for child in children)
        yield path, max(0, before), max(0, node.bytes - sum(child.bytes for child in children))
        waiting += [(child, depth + 1) for child in reversed(children)]


def _name(node: Node) -> str:
    name = printable(node.detail or node.label, code=True).replace(";", ":")
    return _COLUMN.sub(r"\\x20", name)
