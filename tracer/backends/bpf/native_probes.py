"""The part of the BPF backend that counts what workers allocate and free natively: bpf/native.bpf.c.

A pair of uprobe_multi links a worker, so that nobody else pays. A worker's link comes first and its entry in the map
`native_books` after it: what is counted is counted from the next request on, and the kernel's side marks requests
before that as not counted. A pool whose workers allocate more than the budget allows is left alone until enough
of their requests or of their CPU time has gone by. Of a pool with many workers some are counted at a time, by turns.

A link ends between two requests: what a request leaves for the next one to free shows in that. So one more request
runs after the last that counts.
"""

from __future__ import annotations

import dataclasses
import itertools
import logging
import math
import os
import queue
import random
import threading
import time
from collections.abc import Callable, Collection, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from operator import itemgetter
from typing import NamedTuple

from tracer.backends import NativeOptions
from tracer.backends.bpf import uprobe_multi
from tracer.backends.bpf.block_sampling import BlockSampling
from tracer.backends.bpf.maps import Map, MapFullError
from tracer.backends.bpf.native_budget import Places, PoolBudget
from tracer.backends.bpf.native_sites import NativeSites, Sites
from tracer.backends.bpf.programs import Programs
from tracer.backends.records.request_structs import NATIVE_BOOK, NATIVE_BOOK_FIELDS, NativeSite
from tracer.backends.records.worker_table import TrackedWorker
from tracer.errors import TargetGoneError, UnsupportedError
from tracer.facts import Fact, Request
from tracer.targets import kernel, processes

log = logging.getLogger(__name__)

# Where each function is counted: at its entry, and where it returns.
_AT_ENTRY = (NativeSite.FREE, NativeSite.REALLOC, NativeSite.MEMALIGN)
_AT_RETURN = (NativeSite.MALLOC, NativeSite.CALLOC, NativeSite.REALLOC, NativeSite.MEMALIGN)
# At the entry, too, where blocks are sampled: which one is taken is chosen before it is returned.
_AT_ENTRY_TO_SAMPLE = (*_AT_ENTRY, NativeSite.MALLOC, NativeSite.CALLOC)
# Links that are closed at a time, when tracing ends.
_CLOSERS = 16
# Blocks whose request is remembered, of all workers; the kernel needs some 80 bytes for each.
_OWNED_MAX = 262_144
# A link that is to end waits so long for its worker's next requests.
_LAST_REQUESTS_S = 10.0
_BOOK_NAMES = tuple(name for name, _ in NATIVE_BOOK_FIELDS)


class _Book(NamedTuple):
    """The fields of a worker's `struct native_book` that the loader reads."""

    request: int  # 0 between requests
    ended: int  # requests since the link
    hits: int


@dataclasses.dataclass(slots=True)
class _Link:
    descriptors: tuple[int, ...]
    pool: PoolBudget
    slow: bool
    made_at: float  # time.monotonic()
    hits: int = 0  # at the last look
    ends_after: int | None = None  # requests since the link; None: it is not to end
    ends_at: float = math.inf  # at the latest; time.monotonic()

    @property
    def hits_per_s(self) -> float:
        return self.hits / max(0.001, time.monotonic() - self.made_at)


class _Closing:
    """The descriptors of one link, which are closed at the same time: the kernel waits some 30 ms for each."""

    def __init__(self, link: _Link, hits_per_s: float) -> None:
        self.link = link
        self.hits_per_s = hits_per_s
        self.began_at = time.monotonic()
        self._open = len(link.descriptors)
        self._lock = threading.Lock()

    def close(self, descriptor: int) -> bool:
        """True if it was the last one."""
        os.close(descriptor)
        with self._lock:
            self._open -= 1
            return self._open == 0


class NativeProbes:
    """Links workers as they come, as far as the budget allows. close() takes all links off."""

    def __init__(
        self,
        shared: Callable[[str], Map],
        options: NativeOptions,
        *,
        workers_max: int,
        blocks: BlockSampling | None = None,
        compiled: Callable[..., Programs] = Programs,
    ) -> None:
        """`shared` gives the maps of request.bpf.c by name. `blocks` samples blocks where they are counted; None: none.

        UnsupportedError if the program does not load: before Linux 6.6 the kernel has no such links.
        """
        self._books = shared("native_books")
        self._options = options
        self._blocks = blocks
        self._programs = compiled("native.bpf.c", WORKERS_MAX=workers_max, OWNED_MAX=_OWNED_MAX)
        try:
            for name in ("native_books", "owners_noted", "events", "lost", "workers", "kernel_layout"):
                self._programs.share(name, shared(name).fd)
            for name, descriptor in (blocks.maps if blocks is not None else {}).items():
                self._programs.share(name, descriptor)
            self._at_entry, self._at_return = (self._programs.fd(name) for name in ("on_native", "on_native_return"))
        except UnsupportedError:
            self._programs.close()
            raise
        self.lacking: list[str] = []
        self._sites = NativeSites(self._lack)
        self._places = Places()
        self._links: dict[int, _Link] = {}
        self._numbers = itertools.count(1)  # of links
        self._since: dict[int, int] = {}  # by pid, when the worker was linked for the first time
        self._turns: dict[int, int] = {}  # by pid, the number of the last turn that ended; for those that had one
        self._turns_ended = 0
        self._left_out: set[int] = set()  # workers that cannot be counted
        self._closed_soon: set[int] = set()  # workers whose links are being closed
        self._pools: dict[tuple[int | None, str | None], PoolBudget] = {}
        self._spent_at = time.monotonic()
        self.lasts_s = math.inf  # after so many seconds a pool has possibly spent its budget
        self._unpaid: queue.SimpleQueue[tuple[PoolBudget, float, float, bool]] = queue.SimpleQueue()
        self._closers = ThreadPoolExecutor(_CLOSERS)

    def look(self, workers: Mapping[int, TrackedWorker], facts: Iterable[Fact] = ()) -> None:
        """Link workers that are new, within the budget; `facts` are those since the last call, which earn it.

        UnsupportedError if the counting is required, and a worker cannot be counted.
        """
        for fact in facts:
            if isinstance(fact, Request) and fact.cpu_ns and (worker := workers.get(fact.pid)) is not None:
                self._pool(worker).earn(fact.cpu_ns)
        self._move(workers)
        books = self._read_books()
        self._spend(books)
        waiting = {
            pid: worker
            for pid, worker in workers.items()
            if worker.wanted and pid not in self._links and pid not in self._left_out
        }
        self._end_turns(waiting, books)
        self._end_links(books)
        for pid, worker in sorted(waiting.items(), key=lambda item: self._turns.get(item[0], 0)):
            # Two links at a time would count each call twice.
            if pid not in self._closed_soon and self._places.free(self._pool(worker)):
                self._link(pid, worker)

    def _move(self, workers: Mapping[int, TrackedWorker]) -> None:
        """Give new workers, whose pool is known from their first request on, a place of their pool; or none."""
        unwanted = []
        for pid, link in self._links.items():
            if (worker := workers.get(pid)) is None or (pool := self._pool(worker)) is link.pool:
                continue
            self._places.give_back(link.pool)
            if not worker.wanted or not self._places.free(pool):
                unwanted.append(pid)
            self._places.take(pool)
            link.pool = pool
        self._unlink(unwanted)

    def _read_books(self) -> dict[int, _Book]:
        """The book of each worker that is linked."""
        found = {}
        for pid in self._links:
            book = self._books.get(pid)
            if book is not None:
                found[pid] = _Book._make(_READ(NATIVE_BOOK.unpack(book)))
        return found

    def _spend(self, books: Mapping[int, _Book]) -> None:
        """Take what the counting has cost from the budgets, and let the links of pools end that have spent theirs."""
        while not self._unpaid.empty():
            pool, hits_per_s, seconds, slow = self._unpaid.get()
            pool.spend_unlinking(hits_per_s, seconds, slow=slow)
        for pid, book in books.items():
            link = self._links[pid]
            link.pool.spend(book.hits - link.hits, slow=link.slow)
            link.hits = book.hits
        now = time.monotonic()
        for pool in self._pools.values():
            pool.settle()
        self.lasts_s = min((pool.pace(now - self._spent_at) for pool in self._pools.values()), default=math.inf)
        self._spent_at = now
        for pid, link in self._links.items():
            if link.pool.paused:
                self._let_end(link, books.get(pid))

    def _end_turns(self, waiting: Mapping[int, TrackedWorker], books: Mapping[int, _Book]) -> None:
        """Let the worker that was linked first give up its place, where others wait for one."""
        pools = {id(pool): pool for pool in map(self._pool, waiting.values())}.values()
        blocked = [pool for pool in pools if not pool.paused and not self._places.free(pool)]
        if not blocked or not self._places.turn_is_over(time.monotonic()):
            return
        lasting = [pid for pid, link in self._links.items() if link.ends_after is None]
        groups = [[pool] for pool in blocked if pool.linked >= self._places.OF_A_POOL]
        # Where no pool has all places that a pool may have, all places are taken.
        for of_these in groups or [list(self._pools.values())]:
            first = next((pid for pid in lasting if self._links[pid].pool in of_these), None)
            if first is not None:
                self._let_end(self._links[first], books.get(first))
                self._turns_ended += 1
                self._turns[first] = self._turns_ended

    def _let_end(self, link: _Link, book: _Book | None) -> None:
        """Let the link end once the request that runs, and one more, have ended; at once if none was counted yet."""
        if link.ends_after is not None:
            return
        running = book is not None and book.request != 0
        ended = book.ended if book is not None else 0
        link.ends_after = ended + running + 1 if ended + running else 0
        link.ends_at = time.monotonic() + _LAST_REQUESTS_S

    def _end_links(self, books: Mapping[int, _Book]) -> None:
        now = time.monotonic()
        self._unlink([
            pid
            for pid, link in self._links.items()
            if link.ends_after is not None
            and (link.pool.overdrawn or now > link.ends_at or pid not in books or books[pid].ended >= link.ends_after)
        ])  # fmt: skip

    def master_replaced(self, pid: int) -> None:
        """Take note that this master has executed a program: its workers may have another C library."""
        self._sites.master_replaced(pid)

    def gone(self, pid: int) -> None:
        """Forget that worker or master, which has ended."""
        self._close_link(pid, ended=True)
        self._turns.pop(pid, None)
        self._since.pop(pid, None)
        self._left_out.discard(pid)
        self._sites.master_replaced(pid)
        for key in [key for key in self._pools if key[0] == pid]:
            del self._pools[key]

    def stop(self) -> None:
        """Take all links off and wait for that. Idempotent."""
        descriptors = [descriptor for link in self._links.values() for descriptor in link.descriptors]
        for pid in list(self._links):
            self._forget(pid)
        # The kernel waits some 30 ms for each, so at the same time for all.
        with ThreadPoolExecutor(_CLOSERS) as closers:
            list(closers.map(os.close, descriptors))
        self._closers.shutdown()

    def close(self) -> None:
        """Take all links off, and unload the program. Idempotent."""
        self.stop()
        self._programs.close()
        self._sites.close()

    def _pool(self, worker: TrackedWorker) -> PoolBudget:
        master = worker.target.master
        key = (master.pid if master else None, worker.fact.pool)
        if key not in self._pools:
            self._pools[key] = PoolBudget(self._options.budget, self._options.advance_s, self._options.later_s)
        return self._pools[key]

    def _link(self, pid: int, worker: TrackedWorker) -> None:
        try:
            sites = self._sites.of(pid, worker)
            descriptors = () if sites is None else self._links_of(pid, sites)
        except TargetGoneError:
            return
        except UnsupportedError as exc:
            self._left_out.add(pid)
            self._lack(str(exc), exc)
            return
        if sites is None:
            self._left_out.add(pid)
            return
        link = self._links[pid] = _Link(descriptors, self._pool(worker), sites.slow, time.monotonic())
        self._places.take(link.pool)
        since = self._since.setdefault(pid, time.clock_gettime_ns(time.CLOCK_MONOTONIC))
        try:
            self._books[pid] = _new_book(pid, next(self._numbers), since, self._first_gap())
        except MapFullError:
            self._unlink([pid])
            self._left_out.add(pid)
            self._lack("the table of workers is full")

    def _links_of(self, pid: int, sites: Sites) -> tuple[int, ...]:
        """Descriptors of the links. TargetGoneError or UnsupportedError if one of them cannot be made."""
        if kernel.filters_refuse_returns() and processes.has_seccomp_filter(pid):
            raise UnsupportedError(
                f"cannot set probes in process {pid}: on this kernel, its seccomp filter forbids probes on returns."
                " Use Linux 6.14 or later."
            )
        wanted = [(self._at_return, _AT_RETURN, True), (self._at_entry, _AT_ENTRY, False)]
        if self._blocks is not None:
            wanted = [
                (self._blocks.program, _AT_RETURN, True),
                (self._at_return, _AT_RETURN, True),
                (self._at_entry, _AT_ENTRY_TO_SAMPLE, False),
            ]
        made: list[int] = []
        try:
            for program, cookies, at_return in wanted:
                places = {int(cookie): sites.by_cookie[cookie] for cookie in cookies if cookie in sites.by_cookie}
                made.append(uprobe_multi.link(program, sites.image.path, places, pid, at_return=at_return))
        except BaseException:
            for descriptor in made:
                os.close(descriptor)
            raise
        return tuple(made)

    def _first_gap(self) -> int:
        """Bytes until the first block that is sampled; 0 if none is."""
        return 0 if self._blocks is None else 1 + round(random.expovariate(1 / self._blocks.mean_gap))

    def _unlink(self, pids: Collection[int]) -> None:
        """Stop counting these workers, if they are counted. Returns at once: the kernel takes some 30 ms for each."""
        unlinked = [pid for pid in pids if self._close_link(pid)]
        if unlinked and self._blocks is not None:
            self._blocks.links_gone(unlinked)

    def _close_link(self, pid: int, *, ended: bool = False) -> bool:
        """True if that worker had a link. `ended`: the worker has, so that its probes cost nothing any more."""
        link = self._forget(pid)
        if link is None:
            return False
        self._closed_soon.add(pid)
        closing = _Closing(link, 0.0 if ended else link.hits_per_s)
        for descriptor in link.descriptors:
            self._closers.submit(self._close, pid, closing, descriptor)
        return True

    def _forget(self, pid: int) -> _Link | None:
        """Take the worker's link out of the table, and its book out of the map; the descriptors stay to be closed."""
        link = self._links.pop(pid, None)
        if link is not None:
            self._places.give_back(link.pool)
            self._books.remove(pid)
        return link

    def _lack(self, why: str, error: UnsupportedError | None = None) -> None:
        """Note that a worker is not counted; raise `error`, or one that says `why`, if counting is required."""
        if self._options.required:
            raise error or UnsupportedError(f"cannot count native memory: {why}. Use --native auto.")
        text = f"native memory not counted: {why}"
        if text not in self.lacking:
            self.lacking.append(text)
            log.warning("%s", text)

    def _close(self, pid: int, closing: _Closing, descriptor: int) -> None:
        if closing.close(descriptor):
            link, seconds = closing.link, time.monotonic() - closing.began_at
            self._unpaid.put((link.pool, closing.hits_per_s, seconds, link.slow))
            self._closed_soon.discard(pid)


_READ = itemgetter(*map(_BOOK_NAMES.index, _Book._fields))


def _new_book(pid: int, link: int, since_ns: int, gap: int) -> bytes:
    """A book without a call, of a worker that was first linked then (CLOCK_MONOTONIC).

    Its main thread allocates for the requests, also before the first. `gap` bytes are allocated before the first block
    is sampled; 0 samples none.
    """
    values: dict[str, int | bytes] = {name: b"" if form.endswith("s") else 0 for name, form in NATIVE_BOOK_FIELDS}
    values.update(thread=pid, link=link, since_ns=since_ns, gap=gap)
    return NATIVE_BOOK.pack(*values.values())
