"""Growth as a tree: route, script, PHP call stack; each node as wide as the bytes that went through it."""

from __future__ import annotations

import dataclasses
import enum
import os
from collections.abc import Iterable, Iterator, Sequence

from tracer.analysis.routes import route_of
from tracer.facts import STACK_LOST, UNREADABLE, Frame, FrameKind, Request, Weight

# What of a Request is needed here.
COLUMNS = (
    "uri", "script", "ending", "anon_before", "anon_end", "anon_after", "zend_real_before", "zend_real_end",
    "zend_used_end",
)  # fmt: skip

NOT_SAMPLED = Frame(FrameKind.MARK.value, "[not sampled]", None, None)

Grown = Sequence[tuple[tuple[Frame, ...], int, int]]  # (stack, bytes, samples)


class Kind(enum.Enum):
    """What a node of a flame is."""

    ROOT = "root"
    ROUTE = "route"
    SCRIPT = "script"
    USER = "user"  # a PHP function, or a file's own code
    INTERNAL = "internal"  # a function of PHP itself or of an extension
    MARK = "mark"  # no function: `[no php]`, `[truncated]`, `[not sampled]`


@dataclasses.dataclass(slots=True)
class Node:
    """A function in one place of the tree, with what was added in it and in what it called.

    `label` and `detail` come from strangers and are not escaped. `bytes` is inclusive and never
    negative; so is `before`, which a flame of a difference has besides: the same in the other
    recording. `samples` is how many events were seen, inclusive, too.
    """

    label: str  # `Repo::hydrate repo.php:88`
    kind: Kind
    detail: str = ""  # where label is short: the whole path, `Repo::hydrate /srv/app/repo.php:88`
    bytes: int = 0
    samples: int = 0
    before: int | None = None
    children: dict[str, Node] = dataclasses.field(default_factory=dict)  # by detail
    own: int = 0  # of bytes, what was added right here
    own_before: int = 0
    own_samples: int = 0

    @property
    def width(self) -> int:
        """What the node is drawn by: in a difference, the wider of the two, or of what stands on it."""
        return max(self.bytes, self.before or 0, sum(child.width for child in self.children.values()))


@dataclasses.dataclass(frozen=True, slots=True)
class Flame:
    """A tree and what has to be said about it."""

    root: Node
    title: str  # `rss: page faults of the workers, every 16 pages`
    remarks: tuple[str, ...]  # what the weight does not see, what was lost; a line each


class FlameBuilder:
    """Takes requests with what they grew by; finish() makes the tree of them. One builder, one tree."""

    def __init__(self, weight: Weight, *, kept: bool = False, difference: bool = False) -> None:
        """With `kept`, each request's growth is scaled to what its worker natively kept of it.

        A `difference` is with what add_before() is given, be it nothing.
        """
        self._difference = difference
        self.weight = weight
        self._kept = kept
        self._root = Node("all", Kind.ROOT, "all")
        self.requests = 0
        self.requests_kept = 0  # that left something behind
        self.requests_before = 0
        self.given_back = 0  # bytes: what stacks gave back beyond what they added in the same request
        self.unsampled = 0  # bytes without a stack: no event fell into them
        self.unreadable = 0  # bytes whose stack could not be read to its end, or was lost

    def add(self, request: Request, grown: Grown) -> None:
        self.requests += 1
        self.requests_kept += self._kept and (request.native_growth or 0) > 0
        base = self._base(request)
        for stack, (size, samples) in self._netted(request, grown).items():
            if size < 0:
                self.given_back -= size
                continue
            node = _below(base, stack)
            node.own += size
            node.own_samples += samples

    def add_before(self, request: Request, grown: Grown) -> None:
        """The same of the recording that is compared with."""
        self.requests_before += 1
        base = self._base(request)
        for stack, (size, _) in self._netted(request, grown).items():
            if size > 0:
                _below(base, stack).own_before += size

    def finish(self) -> Node:
        """The tree's root. In a difference, what was before is scaled to as many requests as there are now."""
        scale = self.requests / self.requests_before if self.requests_before and self.requests else 1.0
        for node in _upwards(self._root):
            node.bytes = node.own + sum(child.bytes for child in node.children.values())
            node.samples = node.own_samples + sum(child.samples for child in node.children.values())
            if self._difference:
                own = round(node.own_before * scale)
                node.before = own + sum(child.before or 0 for child in node.children.values())
            if node.label == NOT_SAMPLED.name and node.kind is Kind.MARK:
                self.unsampled += node.own
            node.children = {
                name: child
                for name, child in sorted(node.children.items(), key=lambda item: (-item[1].bytes, item[0]))
                if child.bytes or child.before
            }
        self.unreadable = _unreadable(self._root)
        return self._root

    def _base(self, request: Request) -> Node:
        route = "(unknown uri)" if request.uri is None else route_of(request.uri)
        script = "(no script)" if request.script is None else request.script
        return _child(_child(self._root, Kind.ROUTE, route, route), Kind.SCRIPT, script, script)

    def _netted(self, request: Request, grown: Grown) -> dict[tuple[Frame, ...], tuple[int, int]]:
        """(bytes, samples) by stack. Each request by itself: what one gave back makes another's growth no less."""
        found: dict[tuple[Frame, ...], tuple[int, int]] = {}
        for stack, size, samples in self._weighed(request, grown):
            known = found.get(stack, (0, 0))
            found[stack] = known[0] + size, known[1] + samples
        return found

    def _weighed(self, request: Request, grown: Grown) -> Iterator[tuple[tuple[Frame, ...], int, int]]:
        if self._kept:
            yield from self._scaled(request, grown)
            return
        yield from grown
        if self.weight is Weight.ZEND and request.zend_used_end is not None:
            rest = request.zend_used_end - sum(size for _, size, _ in grown)
            if rest:
                yield (NOT_SAMPLED,), rest, 0

    def _scaled(self, request: Request, grown: Grown) -> Iterator[tuple[tuple[Frame, ...], int, int]]:
        """Shares of what the request kept, in proportion to what was added; their sum is exact."""
        kept = request.native_growth
        if kept is None or kept <= 0:
            return
        added = [(stack, size, samples) for stack, size, samples in grown if size > 0]
        total = sum(size for _, size, _ in added)
        if not total:
            yield (NOT_SAMPLED,), kept, 0
            return
        so_far = given = 0
        for stack, size, samples in added:
            so_far += size
            share = kept * so_far // total - given
            given += share
            yield stack, share, samples


def paths(root: Node) -> Iterator[tuple[Node, ...]]:
    """Every path from below the root to a node at which something was added, in no particular order."""
    pending: list[tuple[Node, ...]] = [(child,) for child in root.children.values()]
    while pending:
        path = pending.pop()
        if path[-1].own > 0:
            yield path
        pending.extend((*path, child) for child in path[-1].children.values())


def _unreadable(root: Node) -> int:
    """Bytes below marks that say so, those within another once; in a difference the greater of both sides."""
    total, pending = 0, [root]
    while pending:
        node = pending.pop()
        if node.kind is Kind.MARK and node.label in (UNREADABLE.name, STACK_LOST.name):
            total += max(node.bytes, node.before or 0)
        else:
            pending.extend(node.children.values())
    return total


def _child(node: Node, kind: Kind, label: str, detail: str) -> Node:
    found = node.children.get(detail)
    if found is None:
        found = node.children[detail] = Node(label, kind, detail)
    return found


def _below(base: Node, stack: Iterable[Frame]) -> Node:
    node = base
    for frame in stack:
        label, detail = _texts(frame)
        node = _child(node, Kind(frame.kind), label, detail)
    return node


def _texts(frame: Frame) -> tuple[str, str]:
    if frame.file is None:
        return frame.name, frame.name
    line = "" if frame.line is None else f":{frame.line}"
    return f"{frame.name} {os.path.basename(frame.file)}{line}", f"{frame.name} {frame.file}{line}"


def _upwards(root: Node) -> list[Node]:
    """All nodes, each behind what is below it. No recursion: stacks may be deeper than Python's."""
    found, pending = [], [root]
    while pending:
        node = pending.pop()
        found.append(node)
        pending.extend(node.children.values())
    found.reverse()
    return found
