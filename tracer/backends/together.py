"""Several backends as one: each watches the targets that no better one can trace."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence

from tracer.backends import Backend
from tracer.backends.several import Several
from tracer.targets.resolve import Target


class Together(Several):
    """See the Backend protocol. The targets of each backend are given at construction, not to attach()."""

    def __init__(self, parts: Sequence[tuple[Backend, Sequence[Target]]]) -> None:
        """`parts`: each backend with its targets, the preferred first."""
        super().__init__()
        self._parts = parts
        self.name = "+".join(backend.name for backend in self._backends)
        self.attaching = self.name  # of the backend whose attach() began last

    @property
    def _backends(self) -> list[Backend]:
        return [backend for backend, _ in self._parts]

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

        The preferred one last: ptrace forks a process, which would keep the memory of BPF's compiler and its ring.
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

    @property
    def parts(self) -> Sequence[Backend]:
        """The backends, the preferred first."""
        return self._backends
