"""What a flame is: a tree of route, script, PHP call stack; each node as wide as the bytes that went through it."""

from __future__ import annotations

import dataclasses
import enum


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
    children: dict[str, Node] = dataclasses.field(default_factory=dict)  # by detail; in a difference by less
    own: int = 0  # of bytes, what was added right here
    own_before: int = 0
    own_samples: int = 0


@dataclasses.dataclass(frozen=True, slots=True)
class Flame:
    """A tree and what has to be said about it."""

    root: Node
    title: str  # `Memory kept by php-fpm:shop, 75 s, 956 requests (sampled page faults)`
    notes: tuple[str, ...]  # what the metric does not see, what was lost; a line each
