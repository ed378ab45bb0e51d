"""Requests with what they grew by in, a flame out: weighed, compared, and with the many small routes as one."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from tracer.analysis.flame.file_matching import FileMapping
from tracer.analysis.flame.growth_table import Grown, GrowthTable, Stack, is_small
from tracer.analysis.flame.node import Kind, Node
from tracer.analysis.flame.tree import FileMatchingTree, Tree
from tracer.facts import STACK_LOST, UNREADABLE, Frame, FrameKind, Metric, Request

# What of a Request is needed here.
COLUMNS = (
    "uri", "script", "ending", "anon_before", "anon_end", "anon_after", "zend_real_before", "zend_real_end",
    "zend_used_end",
)  # fmt: skip

NOT_SAMPLED = Frame(FrameKind.MARK.value, "[not sampled]", None, None)
_NOT_SAMPLED = (NOT_SAMPLED,)
_FEW = 10  # so many small routes are shown one by one


class FlameBuilder:
    """Takes requests with what they grew by; finish() makes the tree of them. One builder, one tree.

    Routes with less than a fiftieth of the whole are one tower, if there are more than a few of them:
    where every product has a page of its own, a tower for each could not be seen, and what all of
    them have in common would be in none.
    """

    def __init__(self, metric: Metric, *, retained: bool = False, difference: bool = False) -> None:
        """With `retained`, each request's growth is scaled to what its worker natively kept of it.

        A `difference` is with what add_before() is given, be it nothing.
        """
        self._difference = difference
        self.metric = metric
        self._retained = retained
        self.places = GrowthTable()
        self._before = GrowthTable()
        self.requests = 0
        self.requests_kept = 0  # that left something behind
        self.requests_before = 0
        self.unsampled = 0  # bytes without a stack: no event fell into them
        self.unreadable = 0  # bytes whose stack could not be read to its end, or was lost
        self.others = 0  # routes that are one tower
        self.others_bytes = 0  # its width
        self.moved: tuple[str, str] | None = None  # the folder of before that is taken for one of after

    @property
    def given_back(self) -> int:
        """Bytes: what stacks gave back beyond what they added in the same request."""
        return self.places.given_back

    def add(self, request: Request, grown: Grown) -> None:
        self.requests += 1
        self.requests_kept += self._retained and (request.native_growth or 0) > 0
        self.places.add(request, self._weighed(request, grown))

    def add_before(self, request: Request, grown: Grown) -> None:
        """The same of the recording that is compared with."""
        self.requests_before += 1
        self._before.add(request, self._weighed(request, grown))

    def finish(self) -> Node:
        """The tree's root. In a difference, what was before is scaled to as many requests as there are now."""
        scale = self.requests / self.requests_before if self.requests_before and self.requests else 1.0
        root = self._matched(scale) if self._difference else self._tree()
        for node in _upwards(root):
            node.bytes = node.own + sum(child.bytes for child in node.children.values())
            node.samples = node.own_samples + sum(child.samples for child in node.children.values())
            if self._difference:
                own = round(node.own_before * scale)
                node.before = own + sum(child.before or 0 for child in node.children.values())
            if node.label == NOT_SAMPLED.name and node.kind is Kind.MARK:
                self.unsampled += node.own
            if node.children:
                node.children = {
                    name: child
                    for name, child in sorted(node.children.items(), key=lambda item: (-item[1].bytes, item[0]))
                    if child.bytes or child.before
                }
        self.unreadable = _unreadable(root)
        return root

    def _tree(self) -> Node:
        tree = Tree()
        for route, script, stack, size, samples in self.places.renamed(self._others(self.places.sizes())):
            leaf = tree.leaf(route, script, stack)
            leaf.own += size
            leaf.own_samples += samples
        return tree.root

    def _matched(self, scale: float) -> Node:
        sizes = self.places.sizes()
        for route, size in self._before.sizes().items():
            sizes[route] = max(sizes.get(route, 0), round(size * scale))
        others = self._others(sizes)
        moved = FileMapping(self._before.files(), self.places.files())
        self.moved = moved.folders
        tree = FileMatchingTree(moved)
        for route, script, stack, size, samples in self.places.renamed(others):
            leaf = tree.leaf(route, script, stack, before=False)
            leaf.own += size
            leaf.own_samples += samples
        for route, script, stack, size, _ in self._before.renamed(others):
            tree.leaf(route, script, stack, before=True).own_before += size
        tree.name_lines()
        return tree.root

    def _others(self, sizes: dict[str | None, int]) -> dict[str | None, str]:
        """The name of the tower of each route that has none of its own."""
        whole = sum(sizes.values())
        grown = {route for route, size in sizes.items() if route is not None and size}
        small = {route for route in grown if is_small(sizes[route], whole)}
        together = self.places.together | self._before.together
        if len(small) <= _FEW and None not in sizes:
            return {}
        together -= {hash(route) for route in grown - small}
        self.others = len(together | {hash(route) for route in small})
        self.others_bytes = sum(sizes[route] for route in small) + sizes.get(None, 0)
        return dict.fromkeys((*small, None), f"({self.others:,} other routes)")

    def _weighed(self, request: Request, grown: Grown) -> Iterable[tuple[Stack, int, int]]:
        if self._retained:
            return _scaled(request, grown)
        if self.metric is Metric.ZEND and request.zend_used_end is not None:
            rest = request.zend_used_end - sum(size for _, size, _ in grown)
            if rest:
                return [*grown, (_NOT_SAMPLED, rest, 0)]
        return grown


def _scaled(request: Request, grown: Grown) -> Iterator[tuple[Stack, int, int]]:
    """Shares of what the request kept, in proportion to what was added; their sum is exact."""
    kept = request.native_growth
    if kept is None or kept <= 0:
        return
    added = [(stack, size, samples) for stack, size, samples in grown if size > 0]
    total = sum(size for _, size, _ in added)
    if not total:
        yield _NOT_SAMPLED, kept, 0
        return
    so_far = given = 0
    for stack, size, samples in added:
        so_far += size
        share = kept * so_far // total - given
        given += share
        yield stack, share, samples


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


def _upwards(root: Node) -> list[Node]:
    """All nodes, each behind what is below it. No recursion: stacks may be deeper than Python's."""
    found, pending = [], [root]
    while pending:
        node = pending.pop()
        found.append(node)
        pending.extend(node.children.values())
    found.reverse()
    return found
