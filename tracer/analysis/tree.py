"""Makes the nodes of a flame: each function once in each place, under a name that tells it from its neighbours."""

from __future__ import annotations

import os
from typing import NamedTuple

from tracer.analysis.flame import Kind, Node
from tracer.analysis.places import Stack
from tracer.facts import Frame


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
