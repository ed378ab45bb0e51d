"""The worker that served a request, and its name: pids repeat, on several hosts and over time.

Limits: hosts with the same name are one host; start_ticks count from boot, so two boots may have equal ones.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable
from typing import NamedTuple

from tracer.facts import Place, Request, Worker


class WorkerKey(NamedTuple):
    """A worker. `start_ticks` tells apart the workers that had one pid; None if it is not known."""

    host: str
    pool: str | None
    pid: int
    start_ticks: int | None
    master_pid: int | None
    place: Place


class WorkerNames:
    """Finds the worker of each request, and gives each worker a name."""

    def __init__(self) -> None:
        self._hosts: set[str] = set()
        # By pid, in one recording: when each worker began to serve, ascending, and its start_ticks.
        self._began: dict[int, tuple[list[int], list[int]]] = {}

    def begin_recording(self, workers: Iterable[Worker]) -> None:
        """Forget the workers of the recording before, and take those of the next."""
        self._began = {}
        died: dict[int, int | None] = {}
        known = [(worker.start_ticks, worker) for worker in workers if worker.start_ticks is not None]
        for start_ticks, worker in sorted(known, key=lambda pair: pair[0]):
            times, starts = self._began.setdefault(worker.pid, ([], []))
            # If its birth was not seen, it began after the death of the worker that had the pid before.
            since = died.get(worker.pid) if worker.born_ns is None else worker.born_ns
            died[worker.pid] = None if worker.died_ns is None else worker.died_ns + 1
            if not starts:
                times.append(0)
                starts.append(start_ticks)
            elif since is not None:
                times.append(max(since, times[-1]))
                starts.append(start_ticks)

    def key(self, request: Request) -> WorkerKey:
        """The worker that served the request.

        A request whose start was not seen was running when tracing began: it is the first worker's.
        """
        self._hosts.add(request.host)
        began = self._began.get(request.pid)
        start_ticks = request.start_ticks
        if start_ticks is None and began is not None:  # as in recordings of schema 1 and 2
            times, starts = began
            start_ticks = starts[max(0, bisect_right(times, request.started_ns or 0) - 1)]
        return WorkerKey(request.host, request.pool, request.pid, start_ticks, request.master_pid, request.place)

    def names(self, keys: Iterable[WorkerKey]) -> dict[WorkerKey, str]:
        """A name for each worker: `www/77`; `web1 www/77` if hosts differ; `www/77 #2` for the second with that pid.

        Workers in different places may have one name.
        """
        namesakes: dict[tuple[str, Place], list[WorkerKey]] = {}
        for key in keys:
            name = f"{key.pool}/{key.pid}" if key.pool else str(key.pid)
            if len(self._hosts) > 1:
                name = f"{key.host} {name if key.pool else f'pid {key.pid}'}"
            namesakes.setdefault((name, key.place), []).append(key)
        names = {}
        for (name, _), alike in namesakes.items():
            alike.sort(key=lambda key: (key.start_ticks is not None, key.start_ticks or 0))
            for number, key in enumerate(alike, 1):
                names[key] = f"{name} #{number}" if len(alike) > 1 else name
        return names
