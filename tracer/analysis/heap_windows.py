"""The growth of malloc's heap between two looks at a worker, less what its counted requests kept of it.

The rest was kept by the requests that were not counted: exact, whichever of them kept it. Looks that were not taken in
accept(), or are uncertain, are left out, and so are windows in which a request is missing.
"""

from __future__ import annotations

import dataclasses
from collections import deque
from collections.abc import Hashable, Iterable

from tracer.facts import Look, Request


@dataclasses.dataclass(slots=True)
class HeapWindow:
    """The requests of one worker between two looks. Bytes."""

    began_ns: int  # Unix time
    growth: int = 0  # of memory in use, all requests
    counted: int = 0  # of that, by requests that were counted: allocated less freed
    requests: int = 0  # all
    first_runs: int = 0  # growth of resident memory by first runs that were not counted
    uncounted: dict[Hashable, int] = dataclasses.field(default_factory=dict)  # requests by key
    whole: bool = True  # False: requests are missing


@dataclasses.dataclass(slots=True)
class _Worker:
    looks: deque[Look]
    window: HeapWindow | None = None
    began: Look | None = None  # the look at its start
    nth: int = 0


class HeapWindows:
    """Takes requests in the order of each worker."""

    def __init__(self) -> None:
        """Without looks there are no windows."""
        self._workers: dict[int, _Worker] = {}
        self._windows: list[HeapWindow] = []  # that have ended

    def begin_recording(self, looks: Iterable[Look]) -> None:
        """Take the looks at the workers of the recording whose requests come next."""
        self._windows = self.windows()
        self._workers = {}
        for look in sorted(looks, key=lambda look: look.at_ns):
            # Not in accept(), a worker may be in a request, which has its own memory in the heap.
            if look.in_accept and look.malloc_in_use is not None and not look.malloc_uncertain:
                self._workers.setdefault(look.pid, _Worker(deque())).looks.append(look)

    def add(self, request: Request, key: Hashable, *, first: bool) -> None:
        """Take a request of the group `key`. `first`: it is its worker's first for this script."""
        worker = self._workers.get(request.pid)
        if worker is None or request.started_ns is None:
            return
        if worker.looks and worker.looks[0].at_ns < request.started_ns:
            self._look(worker, request.started_ns)
        window = worker.window
        missing = request.nth != worker.nth + 1 and worker.nth != 0
        worker.nth = request.nth
        if window is None:
            return
        if missing or not request.complete:
            window.whole = False
        window.requests += 1
        net = request.native_net
        if net is not None:
            window.counted += net
            return
        window.uncounted[key] = window.uncounted.get(key, 0) + 1
        if first:
            window.first_runs += max(0, request.growth or 0)

    def _look(self, worker: _Worker, before_ns: int) -> None:
        """Take the looks before that time."""
        look = worker.looks.popleft()
        while worker.looks and worker.looks[0].at_ns < before_ns:
            look = worker.looks.popleft()
        window = _ended(worker, look)
        if window is not None:
            self._windows.append(window)
        worker.window, worker.began = HeapWindow(look.at_ns), look

    def windows(self) -> list[HeapWindow]:
        """Windows so far in which requests were not counted, from the earliest on."""
        ended = [_ended(worker, worker.looks[-1]) for worker in self._workers.values() if worker.looks]
        found = self._windows + [window for window in ended if window is not None]
        return sorted(found, key=lambda window: window.began_ns)


def _ended(worker: _Worker, look: Look) -> HeapWindow | None:
    """The worker's window, if it ends with that look; None if it has none, or it says nothing."""
    window, began = worker.window, worker.began
    if window is None or began is None or not window.whole or not window.uncounted:
        return None
    # Another worker may have got the pid.
    if look.start_ticks != began.start_ticks:
        return None
    return dataclasses.replace(window, growth=(look.malloc_in_use or 0) - (began.malloc_in_use or 0))
