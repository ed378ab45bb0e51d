"""The part of the BPF backend that counts what workers allocate and free natively: bpf/native.bpf.c.

A pair of uprobe_multi links a worker, so that nobody else pays. A worker's link comes first and its entry in the map
`native_books` after it: what is counted is counted from the next request on, and the kernel's side marks requests
before that as not counted. A pool whose workers allocate more than the budget allows is left alone until enough
of their CPU time has gone by. Of a pool with many workers some are counted at a time, by turns.
"""

from __future__ import annotations

import dataclasses
import logging
import os
import queue
import random
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor

from tracer.backends import NativeOptions
from tracer.backends.bpf import uprobe_multi
from tracer.backends.bpf.block_sampling import BlockSampling
from tracer.backends.bpf.maps import Map, MapFullError
from tracer.backends.bpf.native_budget import PoolBudget
from tracer.backends.bpf.programs import Programs
from tracer.backends.records.request_structs import NATIVE_BOOK, NATIVE_BOOK_FIELDS, NativeSite
from tracer.backends.records.worker_table import TrackedWorker
from tracer.errors import TargetGoneError, UnsupportedError
from tracer.facts import Fact, Request
from tracer.targets import allocator, kernel, processes
from tracer.targets.elf import Image

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


@dataclasses.dataclass(frozen=True, slots=True)
class _Sites:
    """Where a C library is probed: the file, and file offsets by cookie."""

    image: Image
    by_cookie: dict[int, int]


@dataclasses.dataclass(slots=True)
class _Link:
    descriptors: tuple[int, ...]
    pool: PoolBudget
    calls: int = 0  # counted so far, at the last look


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
            for name in ("native_books", "events", "lost"):
                self._programs.share(name, shared(name).fd)
            if blocks is not None:
                for name, descriptor in {"workers": shared("workers").fd, **blocks.maps}.items():
                    self._programs.share(name, descriptor)
            self._at_entry, self._at_return = (
                self._programs.fd(name, attach_type=uprobe_multi.TRACE_UPROBE_MULTI)
                for name in ("on_native", "on_native_return")
            )
        except UnsupportedError:
            self._programs.close()
            raise
        self.lacking: list[str] = []
        self._links: dict[int, _Link] = {}
        self._turns: dict[int, int] = {}  # by pid, the number of the last turn that ended; for those that had one
        self._turns_ended = 0
        self._left_out: set[int] = set()  # workers that cannot be counted
        self._closed_soon: set[int] = set()  # workers whose links are being closed
        self._pools: dict[tuple[int | None, str | None], PoolBudget] = {}
        self._sites: dict[tuple[int, ...], _Sites | None] = {}
        self._closing: queue.SimpleQueue[tuple[int, tuple[int, ...]] | None] = queue.SimpleQueue()
        self._closer = threading.Thread(target=self._close_links, daemon=True)
        self._closer.start()

    def look(self, workers: Mapping[int, TrackedWorker], facts: Iterable[Fact] = ()) -> None:
        """Link workers that are new, within the budget; `facts` are those since the last call, which earn it.

        UnsupportedError if the counting is required, and a worker cannot be counted.
        """
        for fact in facts:
            if isinstance(fact, Request) and fact.cpu_ns and (worker := workers.get(fact.pid)) is not None:
                self._pool(worker).earn(fact.cpu_ns)
        self._spend(workers)
        waiting = {
            pid: worker
            for pid, worker in workers.items()
            if worker.wanted and pid not in self._links and pid not in self._left_out
        }
        self._make_room(waiting)
        for pid, worker in sorted(waiting.items(), key=lambda item: self._turns.get(item[0], 0)):
            # Two links at a time would count each call twice.
            if pid not in self._closed_soon and self._pool(worker).has_room:
                self._link(pid, worker)

    def _make_room(self, waiting: Mapping[int, TrackedWorker]) -> None:
        """End the turn of the worker that was linked first, in pools where others wait for theirs."""
        now = time.monotonic()
        for pool in {id(pool): pool for pool in map(self._pool, waiting.values())}.values():
            if pool.turn_is_over(now):
                first = next(pid for pid, link in self._links.items() if link.pool is pool)
                self._unlink(first)
                self._turns_ended += 1
                self._turns[first] = self._turns_ended
                if self._blocks is not None:
                    self._blocks.links_gone(first)

    def gone(self, pid: int) -> None:
        """Forget that worker, which has ended."""
        self._unlink(pid)
        self._turns.pop(pid, None)
        self._left_out.discard(pid)

    def stop(self) -> None:
        """Take all links off and wait for that. Idempotent."""
        descriptors = [descriptor for link in self._links.values() for descriptor in link.descriptors]
        for pid in list(self._links):
            self._forget(pid)
        # The kernel waits some 30 ms for each, so at the same time for all.
        with ThreadPoolExecutor(_CLOSERS) as closers:
            list(closers.map(os.close, descriptors))
        if self._closer.is_alive():
            self._closing.put(None)
            self._closer.join()

    def close(self) -> None:
        """Take all links off, and unload the program. Idempotent."""
        self.stop()
        self._programs.close()
        for sites in self._sites.values():
            if sites is not None:
                sites.image.close()
        self._sites.clear()

    def _pool(self, worker: TrackedWorker) -> PoolBudget:
        master = worker.target.master
        key = (master.pid if master else None, worker.fact.pool)
        if key not in self._pools:
            self._pools[key] = PoolBudget(self._options.budget, self._options.advance_s)
        return self._pools[key]

    def _spend(self, workers: Mapping[int, TrackedWorker]) -> None:
        """Take what the counting has cost from the budgets, and end the counting of pools that have spent theirs."""
        for pid, link in self._links.items():
            book = self._books.get(pid)
            worker = workers.get(pid)
            # A new worker's pool is known from its first request on, and pays then.
            if book is None or worker is None or worker.fact.pool is None:
                continue
            pool = self._pool(worker)
            if pool is not link.pool:
                link.pool.linked -= 1
                pool.linked += 1
                link.pool = pool
            _, allocated, _, freed, *_ = NATIVE_BOOK.unpack(book)
            pool.spend(allocated + freed - link.calls, sampled=self._blocks is not None)
            link.calls = allocated + freed
        for pool in self._pools.values():
            pool.settle()
        for pid in [pid for pid, link in self._links.items() if link.pool.paused]:
            self._unlink(pid)
            if self._blocks is not None:
                self._blocks.links_gone(pid)

    def _link(self, pid: int, worker: TrackedWorker) -> None:
        pool = self._pool(worker)
        sites = self._sites_of(pid, worker)
        if sites is None:
            self._left_out.add(pid)
            return
        try:
            descriptors = self._links_of(pid, sites)
        except TargetGoneError:
            return
        except UnsupportedError as exc:
            self._left_out.add(pid)
            self._lack(str(exc), exc)
            return
        self._links[pid] = _Link(descriptors, pool)
        pool.linked += 1
        try:
            self._books[pid] = _new_book(self._first_gap())
        except MapFullError:
            self._unlink(pid)
            self._left_out.add(pid)

    def _links_of(self, pid: int, sites: _Sites) -> tuple[int, ...]:
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

    def _unlink(self, pid: int) -> None:
        """Stop counting that worker. Returns at once: the kernel takes some 30 ms for it."""
        link = self._forget(pid)
        if link is not None:
            self._closed_soon.add(pid)
            self._closing.put((pid, link.descriptors))

    def _forget(self, pid: int) -> _Link | None:
        """Take the worker's link out of the table, and its book out of the map; the descriptors stay to be closed."""
        link = self._links.pop(pid, None)
        if link is not None:
            link.pool.linked -= 1
            self._books.remove(pid)
        return link

    def _sites_of(self, pid: int, worker: TrackedWorker) -> _Sites | None:
        """The sites in the C library of that worker's PHP; None if they are not known."""
        master = worker.target.master
        key = (*worker.target.php.image.identity, master.pid if master else pid)
        if key not in self._sites:
            self._sites[key] = self._found_sites(pid)
        return self._sites[key]

    def _found_sites(self, pid: int) -> _Sites | None:
        try:
            substitute = allocator.substitute(pid)
            image = processes.open_libc(pid) if substitute is None else None
        except OSError:
            return None
        if substitute is not None:
            self._lack(f"the workers use {substitute} instead of the C library's malloc")
            return None
        if image is None:
            self._lack("the workers' C library was not found")
            return None
        try:
            found = allocator.inspect(image)
        except UnsupportedError as exc:
            image.close()
            self._lack(str(exc), exc)
            return None
        if not found.usable:
            image.close()
            unknown = ", ".join(found.missing)
            self._lack(f"phptrace does not know the machine code of {unknown} in the C library")
            return None
        return _Sites(image, {int(NativeSite[name.upper()]): offset for name, offset in found.sites.items()})

    def _lack(self, why: str, error: UnsupportedError | None = None) -> None:
        """Note that a worker is not counted; raise `error`, or one that says `why`, if counting is required."""
        if self._options.required:
            raise error or UnsupportedError(f"cannot count native memory: {why}. Use --native auto.")
        text = f"native memory not counted: {why}"
        if text not in self.lacking:
            self.lacking.append(text)
            log.warning("%s", text)

    def _close_links(self) -> None:
        while (closing := self._closing.get()) is not None:
            pid, descriptors = closing
            for descriptor in descriptors:
                os.close(descriptor)
            self._closed_soon.discard(pid)


def _new_book(gap: int) -> bytes:
    """A book without a call, which begins now; `gap` bytes are allocated before the first block is sampled."""
    values = dict.fromkeys((name for name, _ in NATIVE_BOOK_FIELDS), 0)
    values["since_ns"] = time.clock_gettime_ns(time.CLOCK_MONOTONIC)
    values["gap"] = gap
    return NATIVE_BOOK.pack(*values.values())
