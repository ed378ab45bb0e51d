"""Builds a flame graph from requests and their growth: retained growth, differences, small routes as one tower."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from tracer.analysis.flame.file_matching import FileMapping
from tracer.analysis.flame.growth_table import GrowthByStack, GrowthTable, is_small
from tracer.analysis.flame.node import Kind, Node
from tracer.analysis.flame.tree import FileMatchingTree, Tree
from tracer.analysis.routes import Routes
from tracer.facts import STACK_LOST, UNREADABLE, Frame, FrameKind, Metric, Place, Request, Stack

# Fields of Request that a FlameBuilder needs.
COLUMNS = (
    "uri", "script", "ending", "anon_before", "anon_end", "anon_after", "zend_real_before", "zend_real_end",
    "zend_used_end", "native_kept", "native_released", *Place._fields,
)  # fmt: skip

NOT_SAMPLED = Frame(FrameKind.MARK.value, "[not sampled]", None, None)
_NOT_SAMPLED = (NOT_SAMPLED,)
_FEW = 10  # up to this many small routes have a tower each


class FlameBuilder:
    """Takes requests and their growth by stack; finish() makes the tree of them. One builder makes one tree.

    If more than a few routes have less than a fiftieth of the whole, they are one tower: on a site with
    a page for every product, a tower for each would be too narrow to see, and no tower would show
    what they have in common.
    """

    def __init__(
        self, metric: Metric, *, routes: Routes | None = None, retained: bool = False, difference: bool = False
    ) -> None:
        """`routes` finds the route of a uri. None: by its form alone.

        With `retained`, growth is scaled to what was kept natively: kept_bytes().

        The retained blocks and the page faults outside Zend's heap are scaled for each route and script, since most
        requests that keep something have few samples; other metrics for each request.
        With `difference`, the tree compares what add() was given with what add_before() was given, if only nothing.
        """
        self._difference = difference
        self.metric = metric
        self._retained = retained
        self._scaled_by_route = retained and metric in (Metric.RETAINED, Metric.NATIVE)
        routes = routes or Routes()
        self.growth = GrowthTable(routes)
        self._growth_before = GrowthTable(routes)
        self.requests = 0
        self.requests_kept = 0  # requests that kept something; 0 without `retained`
        self.requests_counted = 0  # requests whose native allocations were counted
        self.requests_before = 0
        self.unsampled = 0  # bytes without a stack: no event fell into them
        self.unreadable = 0  # bytes whose stack could not be read to its end, or was lost
        self.others = 0  # routes that are one tower
        self.others_bytes = 0  # the width of that tower
        self.moved: tuple[str, str] | None = None  # a folder before, and the folder after that it is taken for

    @property
    def given_back(self) -> int:
        """Bytes that stacks freed beyond what they added in the same request."""
        return self.growth.given_back

    def add(self, request: Request, grown: GrowthByStack) -> None:
        """Add a request and its growth."""
        self.requests += 1
        self.requests_counted += request.native_kept is not None
        self.requests_kept += self._retained and (self._kept(request) or 0) > 0
        self._add(self.growth, request, grown)

    def add_before(self, request: Request, grown: GrowthByStack) -> None:
        """Add a request of the recording to compare with."""
        self.requests_before += 1
        self._add(self._growth_before, request, grown)

    def _add(self, growth: GrowthTable, request: Request, grown: GrowthByStack) -> None:
        if not self._scaled_by_route:
            growth.add(request, self._attributed(request, grown))
            return
        growth.add(request, grown)
        kept = self._kept(request)
        if kept is not None:
            growth.add_kept(request, kept)

    def _kept(self, request: Request) -> int | None:
        """Bytes that the request kept, as far as this metric shows it: blocks are only those of counted requests."""
        if self.metric is Metric.RETAINED and request.native_kept is None:
            return None
        return kept_bytes(request)

    def finish(self) -> Node:
        """The root of the tree; sets the counters that describe it: unsampled, unreadable, others, moved.

        In a difference, bytes before are scaled to as many requests as there are now.
        """
        for growth in (self.growth, self._growth_before):
            growth.scale_to_kept(_NOT_SAMPLED)
        scale = self.requests / self.requests_before if self.requests_before and self.requests else 1.0
        root = self._difference_tree(scale) if self._difference else self._single_tree()
        for node in _children_first(root):
            self._sum_up(node, scale)
        self.unreadable = _unreadable(root)
        return root

    def _sum_up(self, node: Node, scale: float) -> None:
        """Set the inclusive figures of a node from those of its children; drop and sort the children."""
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

    def _single_tree(self) -> Node:
        tree = Tree()
        places = self.growth.places()
        for route, script, stack, size, samples in self.growth.named_rows(
            self._tower_names(self.growth.bytes_by_route())
        ):
            leaf = tree.leaf(route, script.name, stack, container=places[script.place] if len(places) > 1 else None)
            leaf.own += size
            leaf.own_samples += samples
        return tree.root

    def _difference_tree(self, scale: float) -> Node:
        sizes = self.growth.bytes_by_route()
        for route, size in self._growth_before.bytes_by_route().items():
            sizes[route] = max(sizes.get(route, 0), round(size * scale))
        names = self._tower_names(sizes)
        mapping = FileMapping(self._growth_before.files(), self.growth.files())
        self.moved = mapping.folders
        tree = FileMatchingTree(mapping)
        # Each recording has names of its own: a container that was made anew has another id, and often the same name.
        after, before = self.growth.places(), self._growth_before.places()
        several = max(len(after), len(before)) > 1
        for route, script, stack, size, samples in self.growth.named_rows(names):
            container = after[script.place] if several else None
            leaf = tree.leaf(route, script.name, stack, before=False, container=container)
            leaf.own += size
            leaf.own_samples += samples
        for route, script, stack, size, _ in self._growth_before.named_rows(names):
            container = before[script.place] if several else None
            tree.leaf(route, script.name, stack, before=True, container=container).own_before += size
        tree.add_line_numbers()
        return tree.root

    def _tower_names(self, sizes: dict[str | None, int]) -> dict[str | None, str]:
        """The name of the common tower, by route, for the routes that have no tower of their own."""
        whole = sum(sizes.values())
        grown = {route for route, size in sizes.items() if route is not None and size}
        small = {route for route in grown if is_small(sizes[route], whole)}
        merged = self.growth.merged_routes | self._growth_before.merged_routes
        if len(small) <= _FEW and None not in sizes:
            return {}
        merged -= {hash(route) for route in grown - small}
        self.others = len(merged | {hash(route) for route in small})
        self.others_bytes = sum(sizes[route] for route in small) + sizes.get(None, 0)
        return dict.fromkeys((*small, None), f"({self.others:,} other routes)")

    def _attributed(self, request: Request, grown: GrowthByStack) -> Iterable[tuple[Stack, int, int]]:
        if self._retained:
            return _scaled_to_kept(request, grown)
        if self.metric is Metric.ZEND and request.zend_used_end is not None:
            rest = request.zend_used_end - sum(size for _, size, _ in grown)
            if rest:
                return [*grown, (_NOT_SAMPLED, rest, 0)]
        return grown


def kept_bytes(request: Request) -> int | None:
    """Bytes of native memory that a request kept and nobody freed since; None if that is not known.

    Where its calls were not counted, the growth until the script's end stands for it, less Zend's new chunks: all that
    is known, though it may be another script's.
    """
    if request.native_kept is not None:
        return request.native_retained
    end, before = request.anon_end, request.anon_before
    real_end, real_before = request.zend_real_end, request.zend_real_before
    if end is None or before is None or real_end is None or real_before is None:
        return None
    growth = end - before
    return growth if growth <= 0 else max(0, growth - max(0, real_end - real_before))


def _scaled_to_kept(request: Request, grown: GrowthByStack) -> Iterator[tuple[Stack, int, int]]:
    """Shares of what the request kept, in proportion to what each stack added; their sum is exact."""
    kept = kept_bytes(request)
    if kept is None or kept <= 0:
        return
    added = [(stack, size, samples) for stack, size, samples in grown if size > 0]
    total = sum(size for _, size, _ in added)
    if not total:
        yield _NOT_SAMPLED, kept, 0
        return
    so_far = shared_out = 0
    for stack, size, samples in added:
        so_far += size
        share = kept * so_far // total - shared_out
        shared_out += share
        yield stack, share, samples


def _unreadable(root: Node) -> int:
    """Bytes below the marks [unreadable] and [stack lost], nested ones once; in a difference, of the larger side."""
    total, pending = 0, [root]
    while pending:
        node = pending.pop()
        if node.kind is Kind.MARK and node.label in (UNREADABLE.name, STACK_LOST.name):
            total += max(node.bytes, node.before or 0)
        else:
            pending.extend(node.children.values())
    return total


def _children_first(root: Node) -> list[Node]:
    """All nodes, each after its children. Not recursive: a PHP stack may be deeper than Python's."""
    found, pending = [], [root]
    while pending:
        node = pending.pop()
        found.append(node)
        pending.extend(node.children.values())
    found.reverse()
    return found
