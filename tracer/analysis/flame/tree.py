"""Makes the nodes of a flame: each function once in each place, under a name that tells it from its neighbours."""

from __future__ import annotations

import os
from typing import NamedTuple

from tracer.analysis.flame.file_matching import FileMapping, without_line
from tracer.analysis.flame.growth_table import Stack
from tracer.analysis.flame.node import Kind, Node
from tracer.facts import Frame

_MOST_LINES = 3  # of a function in a difference, that are named


class _Texts(NamedTuple):
    key: str
    label: str
    detail: str
    kind: Kind


class Tree:
    """Nodes of one recording, or of several alike: a function at two lines is two nodes."""

    def __init__(self) -> None:
        self.root = Node("all", Kind.ROOT, "all")
        self._texts: dict[Frame, _Texts] = {}

    def leaf(self, route: str, script: str, stack: Stack) -> Node:
        """The node at the end of the stack."""
        node = child(child(self.root, Kind.ROUTE, route, route), Kind.SCRIPT, script, script)
        for frame in stack:
            texts = self._texts.get(frame)
            if texts is None:
                label, detail = texts_of(frame, _line(frame))
                texts = self._texts[frame] = _Texts(detail, label, detail, Kind(frame.kind))
            found = node.children.get(texts.key)
            if found is None:
                found = node.children[texts.key] = Node(texts.label, texts.kind, texts.detail)
            node = found
        return node


class FileMatchingTree:
    """Nodes of two recordings: a function is one, wherever its file and in whichever line. What came after first."""

    def __init__(self, moved: FileMapping) -> None:
        self.root = Node("all", Kind.ROOT, "all")
        self._moved = moved
        self._keys: tuple[dict[Frame, str], dict[Frame, str]] = {}, {}  # after, before
        self._seen: dict[int, tuple[Node, bool, Frame, set[int]]] = {}  # by id() of the node; whether of before; lines

    def leaf(self, route: str, script: str, stack: Stack, *, before: bool) -> Node:
        """The node at the end of the stack. Files have the names of after, or, where they are gone, of before."""
        key = self._moved.file(script) if before else script
        node = child(child(self.root, Kind.ROUTE, route, route), Kind.SCRIPT, script, key)
        keys = self._keys[before]
        for frame in stack:
            key = keys.get(frame) or keys.setdefault(frame, self._key(frame, before=before))
            found = node.children.get(key)
            if found is None:
                label, detail = texts_of(frame, "")
                found = node.children[key] = Node(label, Kind(frame.kind), detail)
                self._seen[id(found)] = found, before, frame, set()
            node = found
            _, of, _, lines = self._seen[id(node)]
            if of == before and frame.line is not None:
                lines.add(frame.line)
        return node

    def name_lines(self) -> None:
        """Puts the lines into the texts, when all is there; of functions that are not gone, those of after."""
        for node, _, frame, lines in self._seen.values():
            if lines:
                named = ",".join(map(str, sorted(lines)[:_MOST_LINES])) + (",…" if len(lines) > _MOST_LINES else "")
                node.label, node.detail = texts_of(frame, f":{named}")

    def _key(self, frame: Frame, *, before: bool) -> str:
        if frame.file is None:
            return frame.name
        return f"{frame.name} {self._moved.file(frame.file) if before else without_line(frame.file)}"


def child(node: Node, kind: Kind, text: str, key: str) -> Node:
    """The node on it of that key, a new one if there is none."""
    found = node.children.get(key)
    if found is None:
        found = node.children[key] = Node(text, kind, text)
    return found


def texts_of(frame: Frame, line: str) -> tuple[str, str]:
    """A label and a detail: with the file's name, and with its path."""
    if frame.file is None:
        return frame.name, frame.name
    return f"{frame.name} {os.path.basename(frame.file)}{line}", f"{frame.name} {frame.file}{line}"


def detail_of(frame: Frame) -> str:
    """`Repo::hydrate /srv/app/repo.php:88`"""
    return texts_of(frame, _line(frame))[1]


def _line(frame: Frame) -> str:
    return "" if frame.line is None else f":{frame.line}"
