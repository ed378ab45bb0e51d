"""The memory of a pool's workers between requests, by what each has to itself, and what they have together.

The kernel counts a page as private if one process maps it. That is not the same as what one more worker would cost:
shared memory of which one worker alone has used a page is still the whole pool's, and a page of a file is page cache.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection

from tracer.analysis.busy_workers import rounded_up
from tracer.facts import Footprint

_MOST_WORKERS = 8192
_WorkerKey = tuple[int, int]  # pid and start_ticks


def own_bytes(found: Footprint) -> int:
    """Bytes that the process has to itself, and would not share with one more: anonymous memory and page tables.

    At least half of a page of shared memory that two or more map is not counted as its own in `pss_shmem`, all of one
    that it maps alone is. So twice that, without all it maps, is private at least; that part of `private_dirty` is
    shared memory.
    """
    alone = 0
    if found.pss_shmem is not None and found.shmem is not None:
        alone = max(0, 2 * found.pss_shmem - found.shmem)
    return max(0, found.private_dirty - alone) + (found.swap_pss or 0) + (found.page_tables or 0)


def shared_bytes(found: Footprint) -> int:
    """Bytes that exist once for all workers: shared memory, and pages of the master that none has written to."""
    alone = own_bytes(found) - (found.swap_pss or 0) - (found.page_tables or 0)
    return (found.shmem or 0) + max(0, found.anonymous - alone)


def file_bytes(found: Footprint) -> int:
    """Bytes of page cache that it maps: programs, libraries, and other files."""
    return max(0, found.rss - found.anonymous - (found.shmem or 0))


class PoolMemory:
    """Takes the footprints of one pool's workers and masters, in their order."""

    def __init__(self, workers: Collection[_WorkerKey], masters: Collection[int]) -> None:
        """`workers`: (pid, start_ticks); `masters`: pids."""
        self._workers = workers
        self._masters = masters
        self._idle: dict[_WorkerKey, int] = {}  # own_bytes() of the last sample
        self._busy: dict[_WorkerKey, int] = {}
        self._first: dict[_WorkerKey, int] = {}  # own_bytes() of the first sample between requests
        self._grown_before = 0  # of workers that are no longer in _idle
        self._earlier: Counter[int] = Counter()  # of workers that are no longer in _idle
        self.samples = 0  # of workers
        self.shared = 0
        self.files = 0
        self.master = 0

    def add(self, found: Footprint) -> None:
        """Take a sample, if it is of this pool."""
        key = found.pid, found.start_ticks
        if key in self._workers:
            self.samples += 1
            self.shared = max(self.shared, shared_bytes(found))
            self.files = max(self.files, file_bytes(found))
            self._put(self._idle if found.idle else self._busy, key, own_bytes(found))
            if found.idle:
                self._first.setdefault(key, own_bytes(found))
        elif found.pid in self._masters:
            self.master = max(self.master, own_bytes(found))

    def _put(self, of: dict[_WorkerKey, int], key: _WorkerKey, size: int) -> None:
        if key not in of and len(of) >= _MOST_WORKERS:
            oldest = next(iter(of))
            last = of.pop(oldest)
            if of is self._idle:
                self._earlier[rounded_up(last)] += 1
                self._grown_before += max(0, last - self._first.pop(oldest))
        of[key] = size

    @property
    def workers(self) -> int:
        """Workers that were sampled between requests; if none was, those that were sampled in one."""
        return len(self._idle) + self._earlier.total() or len(self._busy)

    @property
    def only_busy(self) -> bool:
        """True if no worker was ever found between two requests."""
        return not self._idle and bool(self._busy)

    @property
    def grown(self) -> int:
        """Bytes that workers grew by between their first and their last sample between requests, warm-up included."""
        grew = (max(0, last - self._first[key]) for key, last in self._idle.items())
        return self._grown_before + sum(grew)

    def idle_sizes(self) -> list[int]:
        """Own bytes of each worker when it was sampled last between requests; in one, if no worker was between two."""
        if self.only_busy:
            return sorted(self._busy.values())
        return sorted([*self._idle.values(), *self._earlier.elements()])

    def now(self, alive: Collection[_WorkerKey]) -> int:
        """Bytes that these workers had at their last samples, with what they share; others count as the mean."""
        known = [size for key, size in {**self._busy, **self._idle}.items() if key in alive]
        sizes = known or self.idle_sizes()
        mean = sum(sizes) // len(sizes) if sizes else 0
        return sum(known) + mean * (len(alive) - len(known)) + self.shared + self.master
