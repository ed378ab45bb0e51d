"""A flame graph: a tree of route, script and PHP call stack; a node is as wide as the bytes added in and below it."""

from __future__ import annotations

import dataclasses
import enum


class Kind(enum.Enum):
    """The kind of a node."""

    ROOT = "root"
    ROUTE = "route"
    SCRIPT = "script"
    USER = "user"  # a PHP function, or a file's own code
    INTERNAL = "internal"  # a function of PHP itself or of an extension
    MARK = "mark"  # no function: `[no php]`, `[truncated]`, `[not sampled]`


@dataclasses.dataclass(slots=True)
class Node:
    """A function at one place of the tree, with the bytes that it and its callees added.

    `label` and `detail` are untrusted and not escaped. `bytes` is inclusive and never negative; so is
    `before`, the bytes in the recording to compare with, which only a difference has. `samples` is
    the number of events, inclusive.
    """

    label: str  # `Repo::hydrate repo.php:88`
    kind: Kind
    detail: str = ""  # where label is short: the whole path, `Repo::hydrate /srv/app/repo.php:88`
    bytes: int = 0
    samples: int = 0
    before: int | None = None
    children: dict[str, Node] = dataclasses.field(default_factory=dict)  # by detail; in a difference, by name and file
    own: int = 0  # the part of `bytes` that the node itself added
    own_before: int = 0
    own_samples: int = 0


@dataclasses.dataclass(frozen=True, slots=True)
class Flame:
    """A tree, and the texts to show with it."""

    root: Node
    title: str  # `Memory kept by php-fpm:shop, 75 s, 956 requests (sampled page faults)`
    notes: tuple[str, ...]  # what the metric does not see, what was lost; a line each
