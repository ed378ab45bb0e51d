"""How far a worker's memory has risen, over all its requests, without the chunks that Zend keeps for later.

A *level* is the worker's anonymous memory between two requests. The one that raises it above all before is named.
"""

from __future__ import annotations

_FIRST_CHUNK = 2 << 20  # which Zend never gives back
SETTLED = 3  # requests after which a worker's start is over


class Level:
    """The memory of one worker, in bytes. None: not measured yet."""

    __slots__ = ("first", "last", "served", "settled", "top")

    def __init__(self) -> None:
        """No request has been added."""
        self.served = 0
        self.first: int | None = None
        self.settled: int | None = None  # after its first few requests
        self.top: int | None = None
        self.last: int | None = None

    def add(self, before: int | None, after: int | None, zend_real: int | None) -> int:
        """Take the worker's next request. Return how many bytes it raised the worker above all levels before.

        `zend_real`: the size of Zend's heap after it.
        """
        self.served += 1
        if after is None or before is None:
            return 0
        kept_by_zend = zend_real - _FIRST_CHUNK if zend_real is not None and zend_real > _FIRST_CHUNK else 0
        self.last = now = after - kept_by_zend
        top = self.top
        if top is None:
            self.first = self.top = top = before if before < now else now
        raised = now - top
        if raised > 0:
            self.top = now
        if self.served == SETTLED:
            self.settled = self.top
        return raised if raised > 0 else 0
