"""Watches workers with BPF programs.

Data flow: uprobes and raw tracepoints fill one record a request in the kernel (bpf/request.bpf.c);
poll() takes the records from the ring, on a timer, and turns them into facts.
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import os
import threading
import time
from collections.abc import Callable, Sequence

from tracer.backends import StackOptions
from tracer.backends.bpf import self_check
from tracer.backends.bpf.compiler_memory import release_compiler_memory
from tracer.backends.bpf.growth_probes import GrowthProbes
from tracer.backends.bpf.maps import MapFullError
from tracer.backends.bpf.php_binary import php_binary_entry
from tracer.backends.bpf.programs import RING_BYTES, Programs
from tracer.backends.bpf.ring_buffer import RingBuffer
from tracer.backends.bpf.thread_sampling import wait_until_idle
from tracer.backends.records.event_decoder import EventDecoder
from tracer.backends.records.request_decoder import RequestDecoder, unfinished_request
from tracer.backends.records.request_structs import PHP_BINARIES_MAX, Calls, Lost, Role, worker_entry
from tracer.backends.records.worker_table import WorkerTable
from tracer.errors import PhptraceError, TargetGoneError, UnsupportedError
from tracer.facts import Fact, Loss
from tracer.targets import kernel, libc, processes
from tracer.targets import php as php_binary
from tracer.targets.elf import Image
from tracer.targets.libc import Libc
from tracer.targets.processes import Process
from tracer.targets.resolve import Target

log = logging.getLogger(__name__)

_POLL_S = 0.05
_BATCH = 8192
_NICE = -10
_HOUSEKEEPING_S = 1.0
_ATTEMPTS = 20
_UPROBES_ON_PHP = ("on_teardown", "on_script_end", "on_exit_call", "on_end", "on_startup")
_RAW_TRACEPOINTS = (
    ("sched_process_fork", "on_fork"),
    ("sched_process_exec", "on_exec"),
    ("sched_process_exit", "on_exit"),
)
_WHY_LOST = {
    Lost.REQUESTS: "requests: the ring buffer was full",
    Lost.PROCESS_EVENTS: "births or deaths of workers: the ring buffer was full",
    Lost.WORKERS: "workers: more than the table holds were born",
}


class BpfBackend:
    """See the Backend protocol. One instance, one attach."""

    name = "bpf"
    needs_symbols = True

    def __init__(
        self,
        *,
        keep_query: bool = False,
        stacks: StackOptions | None = None,
        calls_by_tracepoint: bool = False,
        simulated_cpus: int | None = None,
        compiled: Callable[..., Programs] = Programs,
    ) -> None:
        """`calls_by_tracepoint` counts mmap and brk as if libc were unknown; `simulated_cpus` is for benchmarks.

        `compiled` makes Programs of a source file and its defines; tests pass one that compiles a file once.
        """
        self._compiled = compiled
        self._keep_query = keep_query
        self._stack_options = stacks
        self._stacks: GrowthProbes | None = None
        self._force_tracepoint = calls_by_tracepoint
        self._simulated_cpus = simulated_cpus
        self._undo = contextlib.ExitStack()
        self._attached = False
        self._lacking: list[str] = []
        self._binaries: dict[tuple[int, int], int] = {}
        self._hooked: set[tuple[int, int]] = set()
        self._lost_before = dict.fromkeys(Lost, 0)
        self._housekeeping_at = 0.0
        self._next_look = 0.0
        self._taken = 0  # records, at the last look
        self._uprobes: list[int] = []
        self._libraries: dict[tuple[int, int], Libc | None] = {}
        self._pending: list[Fact] = []
        self._calls_by_tracepoint = False

    @property
    def watched(self) -> int:
        return sum(w.wanted for w in self._table.workers.values()) if self._attached else 0

    @property
    def masters(self) -> int:
        return len(self._table.masters) if self._attached else 0

    @property
    def lacking(self) -> Sequence[str]:
        return tuple(dict.fromkeys([*self._lacking, *(self._stacks.lacking if self._stacks else ())]))

    def attach(self, targets: Sequence[Target]) -> None:
        with contextlib.ExitStack() as undo:
            undo.callback(self._undo.close)
            self._load(max(1024, 2 * sum(len(t.workers) for t in targets)))
            offset = time.time_ns() - time.clock_gettime_ns(time.CLOCK_MONOTONIC)
            self._table = WorkerTable(offset)
            self._decoder = RequestDecoder(os.uname().nodename, offset, keep_query=self._keep_query, calls=True)
            self._event_decoder = EventDecoder(
                self._table,
                self._decoder,
                replaced=self._follow,
                unwanted=self._map("workers").remove,  # it then pays nothing more than a look-up
                died=self._died,
            )
            for target in targets:
                if target.master is not None:
                    self._watch(target.master.pid, Role.MASTER, target)
            for tracepoint, function in _RAW_TRACEPOINTS:
                self._programs.on_raw_tracepoint(tracepoint, function, self._tracepoints)
            for target in targets:
                self._find_workers(target)
            if not self._table.masters and not self._table.workers:
                raise TargetGoneError(
                    f"{', '.join(target.named for target in targets)} ended before it could be traced"
                )
            for target in targets:
                if any(p.pid in self._table.masters or p.pid in self._table.workers for p in target.processes):
                    self._hook(target)
            release_compiler_memory()
            # On a saturated host the reader must not starve: it needs little, but the ring does not wait.
            with contextlib.suppress(OSError):
                self._undo.callback(os.setpriority, os.PRIO_PROCESS, 0, os.getpriority(os.PRIO_PROCESS, 0))
                os.setpriority(os.PRIO_PROCESS, 0, _NICE)
            self._attached = True
            undo.pop_all()

    def poll(self, timeout_s: float) -> list[Fact]:
        deadline = time.monotonic() + timeout_s
        while True:
            # On a timer even when there is much to take: a hundred records at a time cost less than one.
            time.sleep(max(0.0, min(self._next_look, deadline) - time.monotonic()))
            facts = self._take()
            if self._stacks is not None:
                facts = self._stacks.with_growth(facts)
            now = time.monotonic()
            self._next_look = now + _POLL_S
            if now >= self._housekeeping_at:
                self._housekeeping_at = now + _HOUSEKEEPING_S
                facts += self._housekeep()
            if facts or now >= deadline:
                return facts

    def close(self) -> list[Fact]:
        if not self._attached:
            self._undo.close()
            return []
        facts = self._detach()
        while True:
            facts += self._take()
            if self._taken == 0:
                break
        now = time.clock_gettime_ns(time.CLOCK_MONOTONIC)
        for pid in list(self._table.workers):
            entry = self._map("workers").get(pid)
            record = None if entry is None else unfinished_request(entry, now)
            if record is not None and self._table.workers[pid].wanted:
                facts.append(self._decoder.request(record, self._table.pool(pid)))
        if self._stacks is not None:
            facts = self._stacks.remaining(facts, list(self._table.workers))
        facts += self._losses()
        self._attached = False
        self._undo.close()
        return facts

    def _detach(self) -> list[Fact]:
        """Takes the probes off and goes on reading meanwhile.

        Those of the stacks first: a request whose end is no longer seen would be put down what comes after it.
        """
        facts: list[Fact] = []
        if self._stacks is not None:
            facts += self._closed(self._stacks.stop())
        facts += self._closed(self._uprobes)
        self._tracepoints.close()
        return facts

    def _closed(self, descriptors: list[int]) -> list[Fact]:
        """Closes all at once, since the kernel takes 0.1 s for each; what was read meanwhile."""
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

    def program_fd(self, function: str) -> int:
        """A loaded program's descriptor, whose /proc/self/fdinfo has the kernel's statistics of it."""
        return self._programs.fd(function)

    # Attaching

    def _load(self, workers_max: int) -> None:
        """Compiles the programs, fills in the kernel's offsets, and proves them on this process."""
        cpus = self._simulated_cpus or kernel.possible_cpus()
        self._programs = self._compiled("request.bpf.c", WORKERS_MAX=workers_max, POSSIBLE_CPUS=cpus)
        self._undo.callback(self._programs.close)
        self._tracepoints = self._undo.enter_context(contextlib.ExitStack())
        self._undo.callback(self._close_uprobes)
        self._map = self._programs.map
        self._ring = RingBuffer(self._map("events").fd, RING_BYTES)
        self._undo.callback(self._ring.close)
        with contextlib.ExitStack() as meanwhile:
            self._programs.on_raw_tracepoint(self_check.TRACEPOINT, "on_rename", meanwhile)
            simulated = self._simulated_cpus is not None
            self_check.fill_layout(self._map, kernel.kernel_layout(), cpus, simulated=simulated)
        if self._stack_options is not None:
            shared = self._map("workers").fd
            self._stacks = GrowthProbes(
                self._stack_options, shared, workers_max=workers_max, cpus=cpus, compiled=self._compiled
            )
            self._undo.callback(self._stacks.close)

    def _binary_index(self, target: Target) -> int:
        """The index of the target's binary in the map `builds`, entering it if it is new."""
        php = target.php
        if php.image.identity in self._binaries:
            return self._binaries[php.image.identity]
        index = len(self._binaries)
        if index >= PHP_BINARIES_MAX:
            raise UnsupportedError(f"more than {PHP_BINARIES_MAX} different PHP binaries")
        self._map("php_binaries")[index] = php_binary_entry(php, fastcgi=target.speaks_fastcgi)
        self._binaries[php.image.identity] = index
        self._lacking += php.lacking
        if self._stacks is not None:
            self._stacks.enter_php_binary(index, php)
        return index

    def _watch(self, pid: int, role: Role, target: Target, *, titled: bool = True, replace: bool = False) -> None:
        """Enters a process; one that the kernel has entered meanwhile stays as it is, unless to be replaced."""
        calls = self._calls_of(target)
        entry = worker_entry(role=role, binary=self._binary_index(target), titled=int(titled), calls=calls)
        try:
            if replace:
                self._map("workers")[pid] = entry
            else:
                self._map("workers").add(pid, entry)
        except MapFullError:
            self._pending.append(Loss(time.time_ns(), 1, _WHY_LOST[Lost.WORKERS]))

    def _find_workers(self, target: Target) -> None:
        """Enters the workers that are there now; those forked meanwhile the kernel has entered itself.

        Compiling took a while: what was resolved before may be gone, and its pid another's.
        """
        unsampled: set[int] = set()  # of the births that were seen
        if target.master is None:
            present = [worker for worker in target.workers if _is_there(worker)]
        elif _is_there(target.master):
            self._table.masters[target.master.pid] = target
            if self._stacks is not None:
                unsampled = self._sample_births(target.master.pid, self._stacks)
            present = [worker for worker in processes.children(target.master) if target.wants(worker.pool)]
            self._take_births(target.master.pid)
        else:
            self._map("workers").remove(target.master.pid)
            return
        for worker in present:
            self._watch(worker.pid, Role.WORKER, target)
            inherited = worker.pid in self._table.workers and worker.pid not in unsampled
            if self._stacks is not None and not inherited:
                self._stacks.watch(worker.pid)
            self._pending.append(self._table.add(worker, target))

    def _sample_births(self, master: int, stacks: GrowthProbes) -> set[int]:
        """Samples a master and all that it forks from now on; returns the workers whose birth was seen before.

        Of one whose birth is seen just then, nobody can say on which side of it that was: then once more.
        """
        for _ in range(_ATTEMPTS):
            self._take_births(master)
            before = set(self._table.workers)
            stacks.watch(master)
            self._take_births(master)
            if before.issuperset(self._table.workers):
                return before
            stacks.unwatch(master)
        stacks.watch(master)
        self._lacking.append(f"stacks: master {master} forks all the time: some workers may not be sampled")
        return set(self._table.workers)

    def _take_births(self, master: int) -> None:
        """Takes the births up to now, that of a worker included which is only half forked when this is called."""
        wait_until_idle(master)
        self._pending = self._take()

    def _hook(self, target: Target) -> None:
        """Sets the probes on the target's C library and PHP, unless they are there."""
        php = target.php
        self._hook_calls(target)
        if php.image.identity in self._hooked:
            return
        if php.hooks is None:
            raise UnsupportedError(f"{php.image.shown}: its functions cannot be found")
        self._hooked.add(php.image.identity)
        hooks = dataclasses.asdict(php.hooks)
        # The start comes last: a request whose start is seen is seen whole.
        for function in _UPROBES_ON_PHP:
            hook = hooks[function.removeprefix("on_")]
            if hook is None:
                continue
            if not hook["emulated"]:
                self._lacking.append(f"speed: {function} sits on an instruction the kernel single-steps (12 us a hit)")
            at_return = function == "on_end" and php.hooks.end_is_return
            self._uprobe(function, php.image, hook["file_offset"], at_return=at_return)
        if self._stacks is not None:
            self._uprobes.append(self._stacks.hook_end(php))

    def _calls_of(self, target: Target) -> Calls:
        """Whether the target's memory calls can be counted in its C library, or have to be in the kernel."""
        library = self._library_of(target)
        return Calls.IN_KERNEL if library is None or library.missing else Calls.IN_LIBC

    def _library_of(self, target: Target) -> Libc | None:
        """The C library of the target's workers; None if there is none whose code is known."""
        key = target.php.image.identity
        if key not in self._libraries:
            self._libraries[key] = None
            witness = target.master or target.workers[0]
            try:
                image = None if self._force_tracepoint else processes.open_libc(witness.pid)
                self._libraries[key] = None if image is None else libc.inspect(image)
            except (OSError, UnsupportedError) as exc:
                log.info("no C library found in process %d: %s", witness.pid, exc)
        return self._libraries[key]

    def _hook_calls(self, target: Target) -> None:
        library = self._library_of(target)
        if library is None or library.missing:
            self._count_calls_in_kernel()
        elif library.image.identity not in self._hooked:
            self._hooked.add(library.image.identity)
            for name, offset in library.sites.items():
                self._uprobe(f"on_{name}", library.image, offset)
            if self._stacks is not None:
                self._stacks.hook_calls(library)

    def _count_calls_in_kernel(self) -> None:
        if self._calls_by_tracepoint:
            return
        self._calls_by_tracepoint = True
        try:
            self._programs.on_raw_tracepoint("sys_exit", "on_syscall_exit", self._tracepoints)
        except UnsupportedError as exc:
            self._decoder.calls = False
            self._lacking.append(f"mmap and brk calls: neither this C library nor this kernel shows them ({exc})")
            return
        if self._stacks is not None:
            try:
                self._stacks.hook_calls_in_kernel()
            except UnsupportedError as exc:
                self._lacking.append(f"not measured: call stacks of mmap and brk: {exc}")
        self._lacking.append(
            "speed: mmap and brk are counted by a system-call tracepoint, for which every process on this host pays"
            " some 0.03 us a system call, since this C library's wrappers have an unknown form"
        )

    def _uprobe(self, function: str, image: Image, offset: int, *, at_return: bool = False) -> None:
        self._uprobes.append(self._programs.on_uprobe(function, image, offset, at_return=at_return))

    def _close_uprobes(self) -> None:
        while self._uprobes:
            os.close(self._uprobes.pop())

    # Reading

    def _take(self) -> list[Fact]:
        facts, self._pending = self._pending, []
        records = self._ring.records(_BATCH)
        self._taken = len(records)
        return facts + self._event_decoder.facts(records)

    def _died(self, pid: int) -> None:
        if self._stacks is not None:
            self._stacks.gone(pid)

    def _follow(self, pid: int) -> None:
        """A master replaced itself: a graceful reload runs the same file, an upgrade another."""
        master, target = processes.process(pid), self._table.masters.get(pid)
        if master is None or target is None or target.master is None:
            return
        if master.executable == target.master.executable:
            return
        try:
            php = php_binary.inspect(processes.open_executable(pid))
            changed = dataclasses.replace(target, php=php, master=master, workers=())
            # The master first: from then on its forks are entered with the new binary; then those before.
            self._watch(pid, Role.MASTER, changed, replace=True)
            self._table.masters[pid] = changed
            known: set[int] = set()
            while fresh := [child for child in processes.children(master) if child.pid not in known]:
                known |= {child.pid for child in fresh}
                for child in fresh:
                    self._watch(child.pid, Role.WORKER, changed, titled=False, replace=True)
                    self._pending.append(self._table.add(child, changed))
            self._hook(changed)
        except (OSError, PhptraceError) as exc:
            self._pending.append(
                Loss(time.time_ns(), 1, f"workers: the new PHP of master {pid} cannot be traced: {exc}")
            )

    def _housekeep(self) -> list[Fact]:
        losses = self._losses()
        if self._stacks is not None:
            losses += self._stacks.losses()
        missing = self._table.missing()
        gone = [self._table.mark_gone(pid, time.time_ns()) for pid in missing]
        if self._stacks is not None:
            for pid in missing:
                self._stacks.gone(pid)
        return [*losses, *(fact for fact in gone if fact is not None)]

    def _losses(self) -> list[Fact]:
        """What the kernel has counted as lost since the last look."""
        found: list[Fact] = []
        for what in Lost:
            total = int.from_bytes(self._map("lost")[what], "little")
            if total > self._lost_before[what]:
                found.append(Loss(time.time_ns(), total - self._lost_before[what], _WHY_LOST[what]))
                self._lost_before[what] = total
        return found


def _is_there(process: Process) -> bool:
    """Whether it is still that process, and not another of its pid."""
    now = processes.process(process.pid)
    return now is not None and now.start_ticks == process.start_ticks
