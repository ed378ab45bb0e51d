"""Several backends as one: each watches the targets that no better one can trace."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Sequence

from tracer.backends import Backend
from tracer.errors import PhptraceError
from tracer.facts import Fact
from tracer.targets.resolve import Target

_POLL_S = 0.05


class Together:
    """See the Backend protocol. The targets of each backend are given at construction, not to attach()."""

    def __init__(self, parts: Sequence[tuple[Backend, Sequence[Target]]]) -> None:
        """`parts`: each backend with its targets, the preferred first."""
        self._parts = parts
        self._backends = [backend for backend, _ in parts]
        self._pending: list[Fact] = []
        self.name = "+".join(backend.name for backend in self._backends)
        self.attaching = self.name  # of the backend whose attach() began last

    @property
    def watched(self) -> int:
        """See the Backend protocol."""
        return sum(backend.watched for backend in self._backends)

    @property
    def masters(self) -> frozenset[int]:
        """See the Backend protocol."""
        return frozenset(pid for backend in self._backends for pid in backend.masters)

    @property
    def lacking(self) -> Sequence[str]:
        """See the Backend protocol. What only the preferred backend can measure names the processes that lack it."""
        (first, _), *others = self._parts
        found = list(first.lacking)
        for backend, targets in others:
            pids = ", ".join(str(target.pid) for target in targets)
            found += [f"{lack} [{backend.name}, process {pids}]" for lack in backend.lacking]
        return found

    def attach(self, targets: Sequence[Target]) -> None:
        """See the Backend protocol.

        The preferred one last: ptrace forks a process, which must not keep the descriptors of BPF's probes.
        """
        with contextlib.ExitStack() as undo:
            for backend, own in reversed(self._parts):
                self.attaching = backend.name
                backend.attach(own)
                undo.callback(backend.close)
            undo.pop_all()

    def add(self, targets: Sequence[Target]) -> bool:
        """See the Backend protocol: which of its backends is the one is for others to choose."""
        return False

    def poll(self, timeout_s: float) -> list[Fact]:
        """See the Backend protocol."""
        deadline = time.monotonic() + timeout_s
        first, *others = self._backends
        while True:
            facts, self._pending = self._pending, []
            try:
                facts += first.poll(max(0.0, min(_POLL_S, deadline - time.monotonic())))
                for backend in others:
                    facts += backend.poll(0.0)
            except PhptraceError:
                self._pending = facts
                raise
            if facts or time.monotonic() >= deadline:
                return facts

    def close(self) -> list[Fact]:
        """See the Backend protocol."""
        facts, self._pending = self._pending, []
        for backend in self._backends:
            facts += backend.close()
        return facts
