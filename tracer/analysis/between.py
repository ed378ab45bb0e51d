"""The memory of workers outside of their requests, from what the requests themselves say of it, with both backends.

Between two requests a worker changes by the difference of the later one's start and the earlier one's end. Limits: what
it gains before its first request and after its last is not seen, and a worker is known by its pid within a recording.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from operator import itemgetter

from tracer.facts import Request

# Fields of Request that a BetweenRequests needs.
COLUMNS = ("pid", "nth", "anon_before", "anon_after", "shmem_before", "shmem_after")
_VALUES = itemgetter(*map(Request._fields.index, COLUMNS))
_LARGE_SHARE = 0.05
_LARGE_BYTES = 1 << 20
_WORKERS_MAX = 8192


@dataclasses.dataclass(frozen=True, slots=True)
class Between:
    """Change of the workers' memory in and between their requests, in bytes; None: not known, and `why` says why.

    grew = in_requests + between_requests + not_known, exactly.
    """

    workers: int  # that served a request
    grew: int | None = None  # anonymous memory, from each worker's first sample to its last
    in_requests: int | None = None
    between_requests: int | None = None
    workers_between: int = 0  # that changed between requests
    not_known: int | None = None  # in or between requests: where a request is missing, or a sample of one
    shared_memory: int | None = None  # change of resident shared memory from first sample to last, no part of `grew`
    workers_shared: int = 0  # of which it changed
    why: str | None = None

    @property
    def much_between(self) -> bool:
        """True if the workers changed between requests by more than 5 % of their growth and 1 MiB."""
        return self._is_much(self.between_requests)

    @property
    def much_shared(self) -> bool:
        """True if shared memory changed by more than 5 % of the growth of anonymous memory and 1 MiB."""
        return self._is_much(self.shared_memory)

    def _is_much(self, part: int | None) -> bool:
        return abs(part or 0) > max(_LARGE_SHARE * abs(self.grew or 0), _LARGE_BYTES)


class _Worker:
    """A worker: its last request, its last samples, and what they have changed by."""

    __slots__ = ("anon", "between", "ended", "nth", "shared", "shmem")

    def __init__(self) -> None:
        self.nth = 0
        self.anon: int | None = None
        self.ended = False  # True if `anon` is of the end of that request
        self.between = 0
        self.shmem: int | None = None
        self.shared = 0


class BetweenRequests:
    """Adds up what workers change by between their requests. begin() a recording, add() its requests in order.

    When it knows too many workers, it forgets those that served no request for the longest time: they have ended.
    """

    def __init__(self) -> None:
        """No worker has been seen."""
        self._latest: dict[int, _Worker] = {}  # by pid
        self._older: dict[int, _Worker] = {}
        self._count = 0
        self._missing = "requests in between were lost"
        self._pairs = 0  # of requests of a worker that follow on each other
        self._unknown: Counter[str] = Counter()  # of these, by the reason
        self._anon_known = self._shmem_known = False  # True if there are two samples of a worker
        self._in_requests = 0
        self._between = 0
        self._changed = 0
        self._not_known = 0
        self._shared = 0
        self._shared_changed = 0

    def begin(self, *, requests_left_out: bool = False) -> None:
        """Begin a recording; the workers of the one before are others. `requests_left_out`: a filter did."""
        self._close(self._latest)
        self._close(self._older)
        self._missing = f"requests in between were {'left out by a filter' if requests_left_out else 'lost'}"

    def add(self, request: Request) -> None:
        """Take a worker's next request."""
        values = pid, nth, before, after, shmem_before, shmem_after = _VALUES(request)
        worker = self._latest.get(pid) or self._of_before(pid)
        if nth <= worker.nth:
            worker = self._successor(pid, worker)
        elif nth == worker.nth + 1 and worker.ended and worker.shmem is not None and None not in values:
            # As most are: the same as below, in half the time.
            worker.between += before - worker.anon
            self._in_requests += after - before
            worker.shared += shmem_after - worker.shmem
            worker.nth, worker.anon, worker.shmem = nth, after, shmem_after
            self._pairs += 1
            self._anon_known = self._shmem_known = True
            return
        self._follow(worker, nth, start_seen=before is not None)
        self._sample(worker, before, after)
        for sample in (shmem_before, shmem_after):
            if sample is not None:
                if worker.shmem is not None:
                    self._shmem_known = True
                    worker.shared += sample - worker.shmem
                worker.shmem = sample

    def _follow(self, worker: _Worker, nth: int, *, start_seen: bool) -> None:
        """Take note that the worker serves another request, or its first."""
        if worker.nth:
            self._pairs += 1
            if nth > worker.nth + 1:
                self._unknown[self._missing] += 1
                worker.ended = False
            elif not (start_seen and worker.ended):
                self._unknown["the end of a request, or the start of the next, was not seen"] += 1
        worker.nth = nth

    def _sample(self, worker: _Worker, before: int | None, after: int | None) -> None:
        """Add up anonymous memory at the start and the end of a request."""
        if before is not None:
            if worker.anon is not None:
                self._anon_known = True
                if worker.ended:
                    worker.between += before - worker.anon
                else:
                    self._not_known += before - worker.anon
            worker.anon, worker.ended = before, False
        if after is not None:
            if worker.anon is not None:
                self._anon_known = True
                if before is not None:
                    self._in_requests += after - worker.anon
                else:
                    self._not_known += after - worker.anon
            worker.anon, worker.ended = after, True

    def _of_before(self, pid: int) -> _Worker:
        """The worker, which served none of the last requests; a new one if it is not known."""
        worker = self._older.pop(pid, None)
        if len(self._latest) >= _WORKERS_MAX:
            self._close(self._older)
            self._older, self._latest = self._latest, {}
        if worker is None:
            self._count += 1
            worker = _Worker()
        self._latest[pid] = worker
        return worker

    def _successor(self, pid: int, ended: _Worker) -> _Worker:
        """The worker that has the pid of one that has ended."""
        self._close({pid: ended})
        self._count += 1
        worker = self._latest[pid] = _Worker()
        return worker

    def _close(self, workers: dict[int, _Worker]) -> None:
        """Add up what these have changed by, and empty the table."""
        for worker in workers.values():
            self._between += worker.between
            self._changed += worker.between != 0
            self._shared += worker.shared
            self._shared_changed += worker.shared != 0
        workers.clear()

    def result(self) -> Between:
        """The sums. Call it last."""
        self.begin()
        return Between(
            workers=self._count,
            grew=self._in_requests + self._between + self._not_known if self._anon_known else None,
            in_requests=self._in_requests if self._anon_known else None,
            between_requests=self._between if self._pairs > self._unknown.total() else None,
            workers_between=self._changed,
            not_known=self._not_known if self._anon_known else None,
            shared_memory=self._shared if self._shmem_known else None,
            workers_shared=self._shared_changed,
            why=self._why(),
        )

    def _why(self) -> str | None:
        if not self._pairs:
            return "no worker served two requests"
        return "; ".join(f"{count:,} of {self._pairs:,} times {why}" for why, count in self._unknown.items()) or None
