"""The rows of the latest requests of each worker: what a request retained is known some requests later."""

from __future__ import annotations

from array import array
from bisect import bisect_left
from collections import deque

# Of a worker, at least: its requests may end faster than phptrace looks for what they retained.
_LATEST = 2000
# Of workers that have ended, together: what they retained is known some seconds later. 16 bytes each.
_DEAD_ROWS = 500_000
_DEAD_WORKERS = 4096


class _Worker:
    __slots__ = ("cut", "nths", "rows")

    def __init__(self) -> None:
        self.nths = array("q")  # ascending
        self.rows = array("q")
        self.cut = False  # earlier ones were forgotten

    def forget(self, most: int) -> None:
        """Forget that many rows, the earliest."""
        del self.nths[:most], self.rows[:most]
        self.cut = True


class RecentRows:
    """Finds the row of a request by pid and nth. `lost` counts those that were asked for when they were forgotten."""

    def __init__(self) -> None:
        self._workers: dict[int, _Worker] = {}
        self._dead: dict[_Worker, int] = {}  # pids, in the order of their ends
        self._dead_rows = 0
        self._forgotten: deque[tuple[_Worker, int]] = deque()  # dead, without a row
        self.lost = 0

    def add(self, pid: int, nth: int, row: int) -> None:
        """Take the row of a worker's latest request."""
        worker = self._workers.get(pid)
        if worker is None or (worker.nths and nth <= worker.nths[-1]) or (worker.cut and not worker.nths):
            worker = self._workers[pid] = _Worker()  # another worker may have got the pid
        worker.nths.append(nth)
        worker.rows.append(row)
        if len(worker.nths) >= 2 * _LATEST:
            worker.forget(_LATEST)

    def ended(self, pid: int) -> None:
        """Take note that the worker has ended, so that its rows are not needed for long."""
        worker = self._workers.get(pid)
        if worker is None or worker in self._dead:
            return
        self._dead[worker] = pid
        self._dead_rows += len(worker.rows)
        while self._dead_rows > _DEAD_ROWS or len(self._dead) > _DEAD_WORKERS:
            oldest = next(iter(self._dead))
            self._dead_rows -= len(oldest.rows)
            oldest.forget(len(oldest.rows))
            self._forgotten.append((oldest, self._dead.pop(oldest)))
        while len(self._forgotten) > _DEAD_WORKERS:
            worker, pid = self._forgotten.popleft()
            if self._workers.get(pid) is worker:
                del self._workers[pid]

    def find(self, pid: int, nth: int) -> int | None:
        """The row of that request; None if it is not known, as that of a request that was never added."""
        worker = self._workers.get(pid)
        if worker is None:
            return None
        index = bisect_left(worker.nths, nth)
        if index < len(worker.nths) and worker.nths[index] == nth:
            return worker.rows[index]
        self.lost += worker.cut and index == 0
        return None
