"""Watches workers with BPF programs.

Data flow: uprobes and raw tracepoints fill one record a request in the kernel (bpf/request.bpf.c);
poll() takes the records from the ring, on a timer, and turns them into facts.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Callable, Sequence

from tracer.backends import NativeOptions, StackOptions, longest
from tracer.backends.bpf import self_check
from tracer.backends.bpf.attachment import WHY_LOST, Attachment
from tracer.backends.bpf.growth_probes import GrowthProbes
from tracer.backends.bpf.native_probes import NativeProbes
from tracer.backends.bpf.programs import RING_BYTES, Programs, release_compiler_memory
from tracer.backends.bpf.ring_buffer import RingBuffer
from tracer.backends.records.event_decoder import EventDecoder
from tracer.backends.records.in_flight import InFlight
from tracer.backends.records.request_decoder import RequestDecoder, unfinished_fork, unfinished_request
from tracer.backends.records.request_structs import Lost
from tracer.backends.records.worker_table import WorkerTable
from tracer.errors import UnsupportedError
from tracer.facts import Fact, Loss, Request, Worker
from tracer.targets import kernel, processes
from tracer.targets.resolve import Target

_POLL_S = 0.05
_BATCH = 8192
_NICE = -10
_HOUSEKEEPING_S = 1.0
# So often for a while after a worker was born: it must be counted from its first requests on.
_POLL_AFTER_BIRTH_S = 0.005
_BIRTHS_S = 0.2


class BpfBackend:
    """See the Backend protocol."""

    name = "bpf"

    def __init__(
        self,
        *,
        keep_query: bool = False,
        stacks: StackOptions | None = None,
        calls_by_tracepoint: bool = False,
        simulated_cpus: int | None = None,
        native: NativeOptions | None = None,
        compiled: Callable[..., Programs] = Programs,
    ) -> None:
        """Prepare; nothing is loaded before attach().

        `keep_query` keeps the query string of the URI. `stacks` is None for no call stacks, `native` None where native
        memory is not to be counted. `calls_by_tracepoint` counts mmap and brk as if libc were unknown.
        `simulated_cpus` is for benchmarks: it costs what so many CPUs cost, and measures nonsense. `compiled` makes
        Programs of a source file and its defines; tests pass one that compiles a file once.
        """
        self._compiled = compiled
        self._native = native
        self._native_probes: NativeProbes | None = None
        self._keep_query = keep_query
        self._stack_options = stacks
        self._growth_probes: GrowthProbes | None = None
        self._calls_by_tracepoint = calls_by_tracepoint
        self._simulated_cpus = simulated_cpus
        self._undo = contextlib.ExitStack()
        self._attached = False
        self._lacking: list[str] = []
        self._lost_before = dict.fromkeys(Lost, 0)
        self._housekeeping_at = 0.0
        self._next_look = 0.0
        self._births_until = 0.0
        self._children: dict[int, set[int]] = {}  # by master, its children that turned out to be masters
        self._unsent: list[Fact] = []  # of a poll() that failed
        self._taken = 0  # records, at the last look

    @property
    def watched(self) -> int:
        """See the Backend protocol."""
        return sum(w.wanted for w in self._table.workers.values()) if self._attached else 0

    @property
    def masters(self) -> frozenset[int]:
        """See the Backend protocol."""
        return frozenset(self._table.masters if self._attached else ())

    @property
    def lacking(self) -> Sequence[str]:
        """See the Backend protocol."""
        parts = [part.lacking for part in (self._native_probes, self._growth_probes) if part is not None]
        return tuple(dict.fromkeys([*self._lacking, *(text for part in parts for text in part)]))

    def attach(self, targets: Sequence[Target]) -> None:
        """See the Backend protocol. Compiles the programs, which takes most of the time."""
        with contextlib.ExitStack() as undo:
            undo.callback(self._undo.close)
            self._load(max(1024, 2 * sum(len(t.workers) for t in targets)))
            self._attachment.attach(targets)
            self._in_flight.begin(self._table.workers)
            if self._native_probes is not None:
                self._native_probes.look(self._table.workers)
            release_compiler_memory()
            # On a saturated host the reader must not starve: it needs little, but the ring does not wait.
            with contextlib.suppress(OSError):
                self._undo.callback(os.setpriority, os.PRIO_PROCESS, 0, os.getpriority(os.PRIO_PROCESS, 0))
                os.setpriority(os.PRIO_PROCESS, 0, _NICE)
            self._attached = True
            undo.pop_all()

    def add(self, targets: Sequence[Target]) -> bool:
        """See the Backend protocol."""
        known = set(self._table.workers)
        self._attachment.add(targets)
        new = {pid: worker for pid, worker in self._table.workers.items() if pid not in known}
        self._in_flight.begin(new)
        if self._native_probes is not None:
            try:
                self._native_probes.look(self._table.workers)
            except BaseException:
                for pid in self._attachment.withdraw(targets):
                    self._native_probes.gone(pid)
                raise
        return True

    def poll(self, timeout_s: float) -> list[Fact]:
        """See the Backend protocol."""
        deadline = time.monotonic() + timeout_s
        while True:
            # On a timer even when there is much to take: a hundred records at a time cost less than one.
            time.sleep(max(0.0, min(self._next_look, deadline) - time.monotonic()))
            facts, self._unsent = self._unsent + self._take(), []
            try:
                if self._native_probes is not None:
                    self._native_probes.look(self._table.workers, facts)
            except BaseException:
                self._unsent = facts
                raise
            if self._growth_probes is not None:
                facts = self._growth_probes.with_growth(facts)
            now = time.monotonic()
            if self._native_probes is not None and any(isinstance(fact, Worker) for fact in facts):
                self._births_until = now + _BIRTHS_S
            self._next_look = now + (_POLL_AFTER_BIRTH_S if now < self._births_until else _POLL_S)
            if self._native_probes is not None:
                # The sooner, the less is spent beyond the budget.
                lasts_until = now + max(_POLL_AFTER_BIRTH_S, self._native_probes.lasts_s)
                self._next_look = min(self._next_look, lasts_until)
            if now >= self._housekeeping_at:
                self._housekeeping_at = now + _HOUSEKEEPING_S
                facts += self._housekeep()
            if facts or now >= deadline:
                return facts

    def close(self) -> list[Fact]:
        """See the Backend protocol."""
        if not self._attached:
            self._undo.close()
            return []
        facts = self._detach()
        while True:
            facts += self._take()
            if self._taken == 0:
                break
        facts += self._event_decoder.facts(self._unfinished_forks())
        facts += self._event_decoder.remaining()
        facts += self._unfinished_requests()
        if self._growth_probes is not None:
            facts = self._growth_probes.remaining(facts, list(self._table.workers))
        facts += self._losses()
        self._attached = False
        self._undo.close()
        return facts

    def program_fd(self, function: str) -> int:
        """Return a loaded program's descriptor, whose /proc/self/fdinfo has the kernel's statistics of it.

        It stays this backend's to close.
        """
        return self._programs.fd(function)

    def _load(self, workers_max: int) -> None:
        """Compile the programs, fill in the kernel's offsets, and prove them on this process."""
        cpus = self._simulated_cpus or kernel.possible_cpus()
        self._programs = self._compiled("request.bpf.c", WORKERS_MAX=workers_max, POSSIBLE_CPUS=cpus)
        self._undo.callback(self._programs.close)
        self._tracepoints = self._undo.enter_context(contextlib.ExitStack())
        workers = self._programs.map("workers")
        self._ring = RingBuffer(self._programs.map("events").fd, RING_BYTES)
        self._undo.callback(self._ring.close)
        with contextlib.ExitStack() as meanwhile:
            self._programs.on_raw_tracepoint(self_check.TRACEPOINT, "on_rename", meanwhile)
            simulated = self._simulated_cpus is not None
            self_check.fill_layout(self._programs.map, kernel.running_layout(), cpus, simulated=simulated)
        if self._stack_options is not None:
            self._growth_probes = GrowthProbes(
                self._stack_options,
                workers.fd,
                workers_max=workers_max,
                cpus=cpus,
                sample_blocks=self._native is not None,
                compiled=self._compiled,
            )
            self._undo.callback(self._growth_probes.close)
        if self._native is not None:
            self._load_native(self._native, workers_max)
        offset = time.time_ns() - time.clock_gettime_ns(time.CLOCK_MONOTONIC)
        self._table = WorkerTable(offset)
        self._decoder = RequestDecoder(os.uname().nodename, offset, keep_query=self._keep_query, calls=True)
        self._attachment = Attachment(
            self._programs,
            self._tracepoints,
            self._table,
            self._decoder,
            self._growth_probes,
            read=self._read,
            lacking=self._lacking,
            calls_by_tracepoint=self._calls_by_tracepoint,
        )
        self._undo.callback(self._attachment.close)
        self._in_flight = InFlight(self._decoder)
        self._event_decoder = EventDecoder(
            self._table,
            self._decoder,
            replaced=self._master_replaced,
            unwanted=workers.remove,  # it then pays nothing more than a look-up
            died=self._died,
            became_master=self._became_master,
            in_flight=self._in_flight,
        )

    def _load_native(self, options: NativeOptions, workers_max: int) -> None:
        try:
            self._native_probes = NativeProbes(
                self._programs.map,
                options,
                workers_max=workers_max,
                blocks=self._growth_probes.blocks if self._growth_probes is not None else None,
                compiled=self._compiled,
            )
        except UnsupportedError as exc:
            if options.required:
                raise
            self._lacking.append(f"native memory not counted: {exc}")
        else:
            self._undo.callback(self._native_probes.close)

    def _read(self) -> list[Fact]:
        """The facts of the records in the ring. If a master's reload is among them, follow() may find more."""
        records = self._ring.records(_BATCH)
        self._taken = len(records)
        return self._event_decoder.facts(records)

    def _take(self) -> list[Fact]:
        """All facts that are there: a worker that was found while a reload was followed, before its requests."""
        facts = self._read()
        return self._attachment.take_pending() + facts

    def _detach(self) -> list[Fact]:
        """Take the probes off and go on reading meanwhile.

        The stack probes first: otherwise growth after an unseen request end would be charged to that request.
        """
        facts, self._unsent = self._unsent, []
        if self._growth_probes is not None:
            self._growth_probes.stop_blocks(facts + self._take())
            facts = []
        if self._native_probes is not None:
            self._native_probes.stop()
        if self._growth_probes is not None:
            facts += self._closed(self._growth_probes.stop())
        facts += self._closed(self._attachment.uprobes)
        self._tracepoints.close()
        return facts

    def _closed(self, descriptors: list[int]) -> list[Fact]:
        """Close and remove all at once; return the facts read meanwhile.

        The kernel takes some 60 ms for all links together, and 80 ms for each perf event.
        """
        closing = [threading.Thread(target=os.close, args=(fd,)) for fd in descriptors]
        descriptors.clear()
        for thread in closing:
            thread.start()
        facts: list[Fact] = []
        for thread in closing:
            while thread.is_alive():
                facts += self._take()
                thread.join(_POLL_S)
        return facts

    def _unfinished_forks(self) -> list[bytes]:
        """The records of the processes that workers forked, and that served nothing and run on."""
        found: list[bytes] = []
        for process in processes.processes():
            entry = None if process.pid in self._table.workers else self._programs.map("workers").get(process.pid)
            record = None if entry is None else unfinished_fork(process.pid, entry)
            if record is not None:
                found.append(record)
        return found

    def in_flight(self, seconds: float) -> list[Request]:
        """See the Backend protocol."""
        if not self._attached:
            return []
        begun, workers = self._begun(), self._table.workers
        found = self._in_flight.with_ends(longest(begun, seconds), workers)
        return longest([*found, *self._in_flight.running(workers, {one.pid for one in begun})], seconds)

    def _begun(self) -> list[Request]:
        """The requests that workers have begun and not ended, without their memory now."""
        found: list[Request] = []
        now = time.clock_gettime_ns(time.CLOCK_MONOTONIC)
        for pid, worker in self._table.workers.items():
            entry = self._programs.map("workers").get(pid)
            record = None if entry is None else unfinished_request(entry, now)
            if record is not None and worker.wanted:
                found.append(self._decoder.request(record, self._table.pool(pid), worker.origin))
        return found

    def _unfinished_requests(self) -> list[Fact]:
        """The requests that workers are in the middle of, cut off now."""
        found = self._begun()
        workers, known = self._table.workers, {request.pid for request in found}
        return [*self._in_flight.with_ends(found, workers), *self._in_flight.still_running(workers, known)]

    def _master_replaced(self, pid: int) -> None:
        if self._native_probes is not None:
            self._native_probes.master_replaced(pid)
        self._attachment.follow(pid)

    def _became_master(self, pid: int, parent: int) -> None:
        self._children.setdefault(parent, set()).add(pid)
        if self._native_probes is not None:
            self._native_probes.gone(pid)

    def _died(self, pid: int) -> None:
        self._attachment.gone(pid)
        if self._native_probes is not None:
            self._native_probes.gone(pid)
        heirs = self._children.pop(pid, set())
        for parent, masters in list(self._children.items()):
            masters.discard(pid)
            if not masters:
                del self._children[parent]
        if self._growth_probes is not None:
            if pid in self._table.masters:
                workers = self._table.workers.items()
                heirs |= {
                    child for child, of in workers if of.target.master is not None and of.target.master.pid == pid
                }
            self._growth_probes.process_died(pid, heirs - {pid})

    def _housekeep(self) -> list[Fact]:
        losses = self._losses()
        if self._growth_probes is not None:
            losses += self._growth_probes.losses()
        missing = self._table.missing_pids()
        for pid in missing:
            self._in_flight.gone(pid)
            self._died(pid)
        gone = [self._table.mark_gone(pid, time.time_ns()) for pid in missing]
        return [*losses, *(fact for fact in gone if fact is not None)]

    def _losses(self) -> list[Fact]:
        """A Loss for each kind that the kernel has counted since the last call."""
        found: list[Fact] = []
        for what in Lost:
            total = int.from_bytes(self._programs.map("lost")[what], "little")
            if total > self._lost_before[what]:
                found.append(Loss(time.time_ns(), total - self._lost_before[what], WHY_LOST[what]))
                self._lost_before[what] = total
        return found
