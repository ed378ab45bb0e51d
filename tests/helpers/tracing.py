"""A backend attached to real workers, and every fact it gave."""

from __future__ import annotations

from waiting import wait_for

from tracer.backends import Backend
from tracer.facts import Fact, Growth, Loss, Request, Worker
from tracer.targets.resolve import targets


class Tracer:
    """Attached from construction to close()."""

    def __init__(self, backend: Backend, *names: str, symbols: bool = True) -> None:
        """`names` are targets as on the command line; without `symbols`, PHP's functions need not be found."""
        self.backend = backend
        self.backend.attach(targets(names, symbols=symbols))
        self.facts: list[Fact] = []
        self._taken = 0

    @property
    def requests(self) -> list[Request]:
        return [fact for fact in self.facts if isinstance(fact, Request)]

    @property
    def growths(self) -> list[Growth]:
        return [fact for fact in self.facts if isinstance(fact, Growth)]

    @property
    def workers(self) -> list[Worker]:
        return [fact for fact in self.facts if isinstance(fact, Worker)]

    @property
    def losses(self) -> list[Loss]:
        return [fact for fact in self.facts if isinstance(fact, Loss)]

    @property
    def lost(self) -> int:
        return sum(loss.lost for loss in self.losses)

    def poll(self) -> None:
        self.facts += self.backend.poll(0.02)

    def next(self, count: int = 1) -> list[Request]:
        """Wait for the next requests, in order of arrival: the client has its answer before the worker is done."""

        def arrived() -> bool:
            self.poll()
            return len(self.requests) >= self._taken + count

        wait_for(arrived, f"{count} requests to be delivered")
        found = self.requests[self._taken : self._taken + count]
        self._taken += count
        return found

    def close(self) -> None:
        self.facts += self.backend.close()
