"""Base class of Together and Restarts: polls several backends in turn."""

from __future__ import annotations

import abc
import time
from collections.abc import Sequence

from tracer.backends import Backend, longest
from tracer.facts import Fact, Request

_POLL_S = 0.05


class Several(abc.ABC):
    """Polls backends, of which the first waits for facts."""

    def __init__(self) -> None:
        """No fact is waiting."""
        self._pending: list[Fact] = []  # of a poll() that failed

    @property
    @abc.abstractmethod
    def _backends(self) -> Sequence[Backend]:
        """At least one."""

    def _more(self) -> list[Fact]:
        """Further facts, after each round of polls."""
        return []

    @property
    def watched(self) -> int:
        """See the Watch protocol."""
        return sum(backend.watched for backend in self._backends)

    def poll(self, timeout_s: float) -> list[Fact]:
        """See the Watch protocol."""
        deadline = time.monotonic() + timeout_s
        while True:
            facts, self._pending = self._pending, []
            first, *others = self._backends
            try:
                facts += first.poll(max(0.0, min(_POLL_S, deadline - time.monotonic())))
                for backend in others:
                    facts += backend.poll(0.0)
                facts += self._more()
            except BaseException:
                self._pending = facts
                raise
            if facts or time.monotonic() >= deadline:
                return facts

    def in_flight(self, seconds: float) -> list[Request]:
        """See the Watch protocol."""
        return longest((one for backend in self._backends for one in backend.in_flight(seconds)), seconds)

    def close(self) -> list[Fact]:
        """See the Watch protocol."""
        facts, self._pending = self._pending, []
        for backend in self._backends:
            facts += backend.close()
        return facts
