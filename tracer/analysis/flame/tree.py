"""Makes the nodes of a flame graph: a function is one node at each place, and its siblings have other names."""

from __future__ import annotations

import os
from typing import NamedTuple

from tracer.analysis.flame.file_matching import FileMapping, without_line
from tracer.analysis.flame.node import Kind, Node
from tracer.facts import Frame, Stack

_MAX_LINES = 3  # line numbers shown of one function in a difference


class _Texts(NamedTuple):
    key: str
    label: str
    detail: str
    kind: Kind


class Tree:
    """Nodes of recordings that are added up: a function at two lines is two nodes."""

    def __init__(self) -> None:
        self.root = Node("all", Kind.ROOT, "all")
        self._texts: dict[Frame, _Texts] = {}

    def leaf(self, route: str, script: str, stack: Stack, *, container: str | None = None) -> Node:
        """The node at the end of the stack; new nodes on the way are added.

        `container` is the name of the script's; None if all scripts ran in one.
        """
        script = _in_container(script, container)
        node = child(child(self.root, Kind.ROUTE, route, route), Kind.SCRIPT, script, script)
        for frame in stack:
            texts = self._texts.get(frame)
            if texts is None:
                label, detail = label_and_detail(frame, _line(frame))
                texts = self._texts[frame] = _Texts(detail, label, detail, Kind(frame.kind))
            found = node.children.get(texts.key)
            if found is None:
                found = node.children[texts.key] = Node(texts.label, texts.kind, texts.detail)
            node = found
        return node


class FileMatchingTree:
    """Nodes of two recordings: a function is one node, even if its file was moved or its line is another.

    Add the stacks of the recording after first: nodes have its names.
    """

    def __init__(self, mapping: FileMapping) -> None:
        self.root = Node("all", Kind.ROOT, "all")
        self._mapping = mapping
        self._keys: tuple[dict[Frame, str], dict[Frame, str]] = {}, {}  # after, before
        # By id() of the node: the node, True if only the recording before has it, its first frame, its lines.
        self._seen: dict[int, tuple[Node, bool, Frame, set[int]]] = {}

    def leaf(self, route: str, script: str, stack: Stack, *, before: bool, container: str | None = None) -> Node:
        """The node at the end of the stack; new nodes on the way are added.

        A file has its name in the recording after, or in the one before if it is gone. `container`: as for Tree.
        """
        key = _in_container(self._mapping.new_name(script) if before else script, container)
        text = _in_container(script, container)
        node = child(child(self.root, Kind.ROUTE, route, route), Kind.SCRIPT, text, key)
        keys = self._keys[before]
        for frame in stack:
            key = keys.get(frame) or keys.setdefault(frame, self._key(frame, before=before))
            found = node.children.get(key)
            if found is None:
                label, detail = label_and_detail(frame, "")
                found = node.children[key] = Node(label, Kind(frame.kind), detail)
                self._seen[id(found)] = found, before, frame, set()
            node = found
            _, of, _, lines = self._seen[id(node)]
            if of == before and frame.line is not None:
                lines.add(frame.line)
        return node

    def add_line_numbers(self) -> None:
        """Put line numbers into the labels, after the last leaf(): those of after, or of before if it is gone."""
        for node, _, frame, lines in self._seen.values():
            if lines:
                named = ",".join(map(str, sorted(lines)[:_MAX_LINES])) + (",…" if len(lines) > _MAX_LINES else "")
                node.label, node.detail = label_and_detail(frame, f":{named}")

    def _key(self, frame: Frame, *, before: bool) -> str:
        if frame.file is None:
            return frame.name
        return f"{frame.name} {self._mapping.new_name(frame.file) if before else without_line(frame.file)}"


def child(node: Node, kind: Kind, text: str, key: str) -> Node:
    """The child of a node with that key; a new one with that text if there is none."""
    found = node.children.get(key)
    if found is None:
        found = node.children[key] = Node(text, kind, text)
    return found


def label_and_detail(frame: Frame, line: str) -> tuple[str, str]:
    """The label of a frame, with the base name of its file, and its detail, with the whole path."""
    if frame.file is None:
        return frame.name, frame.name
    return f"{frame.name} {os.path.basename(frame.file)}{line}", f"{frame.name} {frame.file}{line}"


def detail_of(frame: Frame) -> str:
    """The detail of a frame with its line: `Repo::hydrate /srv/app/repo.php:88`."""
    return label_and_detail(frame, _line(frame))[1]


def _in_container(script: str, container: str | None) -> str:
    return script if container is None else f"{container}: {script}"


def _line(frame: Frame) -> str:
    return "" if frame.line is None else f":{frame.line}"
