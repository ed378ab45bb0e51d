"""The part of the BPF backend that counts what workers allocate and free natively: bpf/native.bpf.c.

One uprobe_multi link a worker, so that nobody else pays. A worker's link comes first and its entry in the map
`native_books` after it: what is counted is counted from the next request on, and the kernel's side marks requests
before that as not counted. A pool whose workers allocate more than the budget allows is left alone until enough
of their CPU time has gone by.
"""

from __future__ import annotations

import dataclasses
import logging
import os
import queue
import random
import threading
from collections.abc import Callable, Iterable, Mapping

from tracer.backends.bpf import uprobe_multi
from tracer.backends.bpf.block_sampling import BlockSampling
from tracer.backends.bpf.maps import Map, MapFullError
from tracer.backends.bpf.programs import Programs
from tracer.backends.records.request_structs import NATIVE_BOOK, NATIVE_BOOK_FIELDS, NativeSite
from tracer.backends.records.worker_table import TrackedWorker
from tracer.errors import TargetGoneError, UnsupportedError
from tracer.facts import Fact, Request
from tracer.targets import allocator, kernel, libc, processes
from tracer.targets.elf import Image

log = logging.getLogger(__name__)

# Each link makes every hit of every linked worker 55 ns dearer: that many of a pool at a time.
MOST_OF_A_POOL = 8
# What a counted call costs a worker, in ns of its CPU time: half of an allocation and its free.
CALL_NS = 850
# The same where blocks are sampled, for which returns are probed, too.
SAMPLED_CALL_NS = 1300
# What a pool may spend before its budget has to have grown, and from what on it is counted again.
_ADVANCE_NS = 200_000_000
_RESUME_NS = 20_000_000
_BLANK = (0,) * (len(NATIVE_BOOK_FIELDS) - 1)


@dataclasses.dataclass(frozen=True, slots=True)
class _Sites:
    """Where a C library is probed: the file, and file offsets by cookie."""

    image: Image
    by_cookie: dict[int, int]
    returning: dict[int, int]  # of these, where the return of a function that allocates can be probed, too


@dataclasses.dataclass(slots=True)
class _Link:
    descriptors: list[int]
    pool: _Pool
    calls: int = 0  # counted so far, at the last look
    call_ns: int = CALL_NS


@dataclasses.dataclass(slots=True)
class _Pool:
    """What the counting of a pool's workers may cost, in ns of their CPU time."""

    left_ns: float = _ADVANCE_NS
    paused: bool = False
    linked: int = 0


class NativeProbes:
    """Links workers as they come, as far as the budget allows. close() takes all links off."""

    def __init__(
        self,
        books: Map,
        *,
        workers_max: int,
        budget: float,
        workers: int | None = None,
        blocks: BlockSampling | None = None,
        compiled: Callable[..., Programs] = Programs,
    ) -> None:
        """`books` is the map `native_books`, which is shared; `budget` the share of the workers' CPU time to spend.

        `blocks` samples blocks where they are counted, with the descriptor of the map `workers`; None samples none.
        UnsupportedError if the program does not load: before Linux 6.6 the kernel has no such links.
        """
        self._books = books
        self._budget = budget
        self._blocks = blocks
        self._programs = compiled("native.bpf.c", WORKERS_MAX=workers_max)
        try:
            self._programs.share("native_books", books.fd)
            if blocks is not None and workers is not None:
                for name, descriptor in {"workers": workers, **blocks.maps}.items():
                    self._programs.share(name, descriptor)
            self._program = self._programs.fd("on_native", attach_type=uprobe_multi.TRACE_UPROBE_MULTI)
        except UnsupportedError:
            self._programs.close()
            raise
        self.lacking: list[str] = []
        self._links: dict[int, _Link] = {}
        self._left_out: set[int] = set()  # workers that cannot be counted
        self._pools: dict[tuple[int | None, str | None], _Pool] = {}
        self._sites: dict[tuple[int, int], _Sites | None] = {}
        self._closing: queue.SimpleQueue[int | None] = queue.SimpleQueue()
        self._closer = threading.Thread(target=self._close_links, daemon=True)
        self._closer.start()

    def look(self, workers: Mapping[int, TrackedWorker], facts: Iterable[Fact] = ()) -> None:
        """Link workers that are new, within the budget; `facts` are those since the last call, which earn it."""
        for fact in facts:
            if isinstance(fact, Request) and fact.cpu_ns and (worker := workers.get(fact.pid)) is not None:
                pool = self._pool(worker)
                pool.left_ns = min(pool.left_ns + self._budget * fact.cpu_ns, _ADVANCE_NS)
        self._spend()
        for pid, worker in workers.items():
            if worker.wanted and pid not in self._links and pid not in self._left_out:
                self._link(pid, worker)

    def gone(self, pid: int) -> None:
        """Forget that worker, which has ended. What is sampled of it stays."""
        self._unlink(pid)
        self._left_out.discard(pid)

    def stop(self) -> None:
        """Take all links off and wait for that. Idempotent."""
        for pid in list(self._links):
            self._unlink(pid)
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

    def _pool(self, worker: TrackedWorker) -> _Pool:
        master = worker.target.master
        return self._pools.setdefault((master.pid if master else None, worker.fact.pool), _Pool())

    def _spend(self) -> None:
        """Take what the counting has cost from the budgets; leave alone who has spent too much."""
        for pid, link in self._links.items():
            book = self._books.get(pid)
            if book is None:
                continue
            _, allocated, _, freed, *_ = NATIVE_BOOK.unpack(book)
            link.pool.left_ns -= (allocated + freed - link.calls) * link.call_ns
            link.calls = allocated + freed
        for pool in self._pools.values():
            if pool.left_ns < 0 and not pool.paused:
                pool.paused = True
            elif pool.paused and pool.left_ns > _RESUME_NS:
                pool.paused = False
        for pid in [pid for pid, link in self._links.items() if link.pool.paused]:
            self._unlink(pid)
            if self._blocks is not None:
                self._blocks.links_gone(pid)

    def _link(self, pid: int, worker: TrackedWorker) -> None:
        pool = self._pool(worker)
        if pool.paused or pool.linked >= MOST_OF_A_POOL:
            return
        sites = self._sites_of(pid, worker)
        if sites is None:
            self._left_out.add(pid)
            return
        try:
            descriptor = uprobe_multi.link(self._program, sites.image.path, sites.by_cookie, pid)
        except TargetGoneError:
            return
        except UnsupportedError as exc:
            self._left_out.add(pid)
            self._lack(f"native memory not counted: {exc}")
            return
        link = self._links[pid] = _Link([descriptor], pool)
        pool.linked += 1
        gap = self._link_returns(pid, sites, link) if self._blocks is not None else 0
        try:
            self._books[pid] = NATIVE_BOOK.pack(*_BLANK, gap)
        except MapFullError:
            self._unlink(pid)
            self._left_out.add(pid)

    def _link_returns(self, pid: int, sites: _Sites, link: _Link) -> int:
        """Probe the returns of what allocates, too; return the bytes until the first sample, 0 if none is taken."""
        assert self._blocks is not None
        try:
            if not sites.returning:
                raise UnsupportedError("the functions that allocate have an unknown form")
            if kernel.filters_refuse_returns() and processes.has_seccomp_filter(pid):
                raise UnsupportedError("with this kernel, a seccomp filter of the workers forbids probes on returns")
            program, path = self._blocks.program, sites.image.path
            link.descriptors.append(uprobe_multi.link(program, path, sites.returning, pid, at_return=True))
        except TargetGoneError:
            return 0
        except UnsupportedError as exc:
            self._lack(f"not measured: call stacks of retained memory ({exc})")
            return 0
        link.call_ns = SAMPLED_CALL_NS
        return 1 + round(random.expovariate(1 / self._blocks.mean_gap))

    def _unlink(self, pid: int) -> None:
        """Stop counting that worker. Returns at once: the kernel takes some 30 ms for it."""
        link = self._links.pop(pid, None)
        if link is not None:
            link.pool.linked -= 1
            self._books.remove(pid)
            for descriptor in link.descriptors:
                self._closing.put(descriptor)

    def _sites_of(self, pid: int, worker: TrackedWorker) -> _Sites | None:
        """The sites in the C library of that worker's PHP; None if they are not known."""
        key = worker.target.php.image.identity
        if key not in self._sites:
            self._sites[key] = self._found_sites(pid)
        return self._sites[key]

    def _found_sites(self, pid: int) -> _Sites | None:
        try:
            image = processes.open_libc(pid)
        except OSError:
            image = None
        if image is None:
            self._lack("native memory not counted: the workers' C library was not found")
            return None
        try:
            found, calls = allocator.inspect(image), libc.inspect(image)
        except UnsupportedError as exc:
            image.close()
            self._lack(f"native memory not counted: {exc}")
            return None
        if not found.usable:
            image.close()
            self._lack(f"native memory not counted: {', '.join(found.missing)} of the C library have an unknown form")
            return None
        by_cookie = {int(NativeSite[name.upper()]): offset for name, offset in found.sites.items()}
        if "mmap" in calls.sites:
            by_cookie[int(NativeSite.MMAP)] = calls.sites["mmap"]
        returning = {int(NativeSite[name.upper()]): found.sites[name] for name in found.returning}
        return _Sites(image, by_cookie, returning)

    def _lack(self, text: str) -> None:
        if text not in self.lacking:
            self.lacking.append(text)
            log.warning("%s", text)

    def _close_links(self) -> None:
        while (descriptor := self._closing.get()) is not None:
            os.close(descriptor)
