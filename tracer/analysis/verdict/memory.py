"""The effect of the requests of a group on the memory of their workers, apart from native memory that they kept."""

from __future__ import annotations

import heapq
from operator import itemgetter
from typing import NamedTuple

from tracer.analysis.verdict.worker_levels import SETTLED, Level
from tracer.facts import Request

_STEPS = 3  # of one worker
_CONCENTRATED = 0.8
_STEP = 1 << 20
_STAYED = 0.5
_VALUES = itemgetter(
    *map(
        Request._fields.index,
        ("anon_before", "anon_after", "anon_peak", "file_before", "file_after", "shmem_before", "shmem_after"),
    )
)


class HighWater(NamedTuple):
    """Few requests raised workers above all levels before, and the workers stayed there. Bytes."""

    workers: int  # that were raised
    raised: int  # of the worker that was raised most
    before: int  # of that worker: resident memory at its largest step
    after: int
    raised_all: int  # of all workers together


class _Raised:
    __slots__ = ("steps", "total")

    def __init__(self) -> None:
        self.total = 0
        self.steps: list[tuple[int, int, int]] = []  # the largest: bytes, before, after


class Memory:
    """Takes the requests of a group one by one. Keeps a few figures of each of the workers that came last."""

    __slots__ = ("_raised", "_workers_max", "complete", "rise_max", "served", "shared", "workers")

    def __init__(self, workers_max: int = 4096) -> None:
        """`workers_max`: of how many workers there are figures: of those that came last."""
        self._workers_max = workers_max
        self.workers = 0  # that served any
        self.complete = 0
        self.rise_max = 0  # the most that one of them needed beyond what its worker had
        self.shared = 0  # growth of file, once a worker has started, and of shmem
        self.served: dict[Level, int] = {}  # requests, by worker
        self._raised: dict[Level, _Raised] = {}

    def add(self, request: Request, level: Level, raised: int) -> None:
        """Take a request, its worker, and the bytes by which it raised that."""
        before, after, peak, file_before, file_after, shmem_before, shmem_after = _VALUES(request)
        served = self.served
        if level in served:
            served[level] += 1
        else:
            served[level] = 1
            self.workers += 1
            if len(served) > self._workers_max:
                oldest = next(iter(served))
                del served[oldest]
                self._raised.pop(oldest, None)
        if before is None or after is None:
            return
        self.complete += 1
        if peak is not None and peak - before > self.rise_max:
            self.rise_max = peak - before
        # A worker's first requests touch the code of PHP and its libraries: some MiB, of whichever script comes first.
        if file_after is not None and file_before is not None and level.served > SETTLED:
            self.shared += file_after - file_before
        if shmem_after is not None and shmem_before is not None:
            self.shared += shmem_after - shmem_before
        if raised:
            found = self._raised.get(level)
            if found is None:
                found = self._raised[level] = _Raised()
            found.total += raised
            step = raised, before, after
            if len(found.steps) < _STEPS:
                heapq.heappush(found.steps, step)
            else:
                heapq.heappushpop(found.steps, step)

    def high_water(self) -> HighWater | None:
        """The steps that most of the rise of the workers came in; None if it came otherwise."""
        found: list[tuple[int, int, int]] = []
        every = total = 0
        for level, raised in self._raised.items():
            every += raised.total
            steps = [step for step in raised.steps if step[0] >= _STEP]
            size = sum(step[0] for step in steps)
            stayed = level.last is not None and level.top is not None and level.top - level.last <= _STAYED * size
            if size >= _CONCENTRATED * raised.total and steps and stayed:
                _, before, after = max(steps)
                found.append((size, before, after))
                total += size
        if not found or total < _CONCENTRATED * every:
            return None
        size, before, after = max(found)
        return HighWater(len(found), size, before, after, total)

    @property
    def raised(self) -> int:
        """Bytes by which the requests raised their workers, each above all its levels before."""
        return sum(one.total for one in self._raised.values())

    @property
    def workers_grew(self) -> int:
        """The growth of the workers that served any, over their whole life: this group's, and that of all others."""
        return sum(
            max(0, level.top - (level.settled if level.settled is not None else level.first))
            for level in self.served
            if level.top is not None and level.first is not None
        )
