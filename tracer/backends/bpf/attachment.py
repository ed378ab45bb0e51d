"""Brings processes under watch: their entries in the kernel's table of workers, the probes on their PHP and C library.

Also follows a master that replaces itself, by a graceful reload or an upgrade of PHP.
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import os
import time
from collections.abc import Callable, Iterator, Sequence

from tracer.backends.bpf.growth_probes import GrowthProbes
from tracer.backends.bpf.maps import MapFullError
from tracer.backends.bpf.php_binary import php_binary_entry
from tracer.backends.bpf.programs import Programs
from tracer.backends.bpf.same_inode import ProbedFiles
from tracer.backends.bpf.thread_sampling import wait_until_idle
from tracer.backends.records.request_decoder import RequestDecoder
from tracer.backends.records.request_structs import PHP_BINARIES_MAX, Calls, Lost, Role, worker_entry
from tracer.backends.records.worker_table import WorkerTable
from tracer.errors import PhptraceError, TargetGoneError, UnsupportedError
from tracer.facts import Fact, Loss, Worker
from tracer.targets import libc, processes
from tracer.targets import php as php_binary
from tracer.targets.elf import Image
from tracer.targets.layouts import StackLayout
from tracer.targets.libc import Libc
from tracer.targets.php import Php
from tracer.targets.processes import Process
from tracer.targets.resolve import Target

log = logging.getLogger(__name__)

WHY_LOST = {
    Lost.REQUESTS: "requests: the ring buffer was full",
    Lost.PROCESS_EVENTS: "births or deaths of workers: the ring buffer was full",
    Lost.RELEASES: "records of freed native memory: the ring buffer was full",
    Lost.WORKERS: "workers not traced: worker table is full",
}
# In the order in which they are set. The start comes last: a request whose start is seen is seen whole.
UPROBES_ON_PHP = ("on_teardown", "on_output_end", "on_script_end", "on_exit_call", "on_end", "on_startup")
_RAW_TRACEPOINTS = (
    ("sched_process_fork", "on_fork"),
    ("sched_process_exec", "on_exec"),
    ("sched_process_exit", "on_exit"),
)
_ATTEMPTS = 20


class Attachment:
    """The map entries and probes of the processes under watch. The owner calls close(), which takes the probes off."""

    def __init__(
        self,
        programs: Programs,
        tracepoints: contextlib.ExitStack,
        table: WorkerTable,
        decoder: RequestDecoder,
        growth_probes: GrowthProbes | None,
        *,
        read: Callable[[], list[Fact]],
        lacking: list[str],
        calls_by_tracepoint: bool,
    ) -> None:
        """Prepare to attach; nothing is set up yet.

        `tracepoints` gets the raw tracepoints, which the caller detaches by closing it. `growth_probes` is None where
        no stacks were asked for. `read` returns the facts in the ring. `lacking` gets a sentence for each figure that
        cannot be measured. `calls_by_tracepoint` counts mmap and brk as if libc were unknown.
        """
        self._programs = programs
        self._tracepoints = tracepoints
        self._table = table
        self._decoder = decoder
        self._growth_probes = growth_probes
        self._read = read
        self._lacking = lacking
        self._force_tracepoint = calls_by_tracepoint
        self._binaries: dict[tuple[bytes, StackLayout | None], int] = {}  # indices, by what the entries are made of
        self._probed = ProbedFiles()
        self._libraries: dict[tuple[int, ...], Libc | None] = {}  # by PHP and process
        self._libraries_by_file: dict[tuple[int, int], Libc | None] = {}
        self._calls_in_kernel = False
        self._images: list[Image] = []  # opened here, so closed here
        self.uprobes: list[int] = []  # descriptors; the code that closes one removes it here
        self._pending: list[Fact] = []  # found here, and not yet given out

    def attach(self, targets: Sequence[Target]) -> None:
        """Watch the targets' workers and those their masters fork from now on.

        Raises TargetGoneError if all have ended, UnsupportedError if this PHP or kernel cannot be traced.
        """
        self._enter_masters(targets)
        for tracepoint, function in _RAW_TRACEPOINTS:
            self._programs.on_raw_tracepoint(tracepoint, function, self._tracepoints)
        self._watch_oom_killer()
        self._watch(targets)

    def _watch_oom_killer(self) -> None:
        try:
            self._programs.on_raw_tracepoint("mark_victim", "on_oom_victim", self._tracepoints)
        except UnsupportedError as exc:
            self._lacking.append(f"not known: which workers the kernel's OOM killer ends ({exc})")
        else:
            self._table.sees_oom = True

    def add(self, targets: Sequence[Target]) -> None:
        """Watch further targets, too. Raises as attach() does; then none of them is watched."""
        try:
            self._enter_masters(targets)
            self._watch(targets)
        except BaseException:
            self.withdraw(targets)
            raise

    def _enter_masters(self, targets: Sequence[Target]) -> None:
        for target in targets:
            if target.master is not None:
                self._enter(target.master.pid, _role_of_master(target), target)

    def _watch(self, targets: Sequence[Target]) -> None:
        for target in targets:
            self._find_workers(target)
        tracked = {*self._table.masters, *self._table.workers}
        here = [target for target in targets if any(process.pid in tracked for process in target.processes)]
        if not here:
            raise TargetGoneError(
                f"cannot trace {', '.join(target.named for target in targets)}: no process was left when phptrace"
                " attached. Start PHP again."
            )
        for target in here:
            try:
                self._hook(target)
            except TargetGoneError:
                if len(here) == 1:
                    raise
                self._lacking.append(f"not traced: process {target.pid}, which ended before phptrace was attached")

    def withdraw(self, targets: Sequence[Target]) -> set[int]:
        """Forget these targets, which were entered, and their workers; return the pids of all."""
        workers = self._programs.map("workers")
        masters = {target.master.pid for target in targets if target.master is not None}
        for pid in masters:
            workers.remove(pid)
            self._take_births(pid)
            self._table.masters.pop(pid, None)
        alone = {worker.pid for target in targets if target.master is None for worker in target.workers}
        dropped = masters | alone
        for pid, tracked in list(self._table.workers.items()):
            master = tracked.target.master
            if pid in alone or (master is not None and master.pid in masters):
                del self._table.workers[pid]
                workers.remove(pid)
                dropped.add(pid)
        self._pending = [fact for fact in self._pending if not (isinstance(fact, Worker) and fact.pid in dropped)]
        if self._growth_probes is not None:
            for pid in dropped:
                self._growth_probes.stop_sampling(pid)
        return dropped

    def follow(self, pid: int) -> None:
        """Keep watching a master that replaced itself: a graceful reload runs the same file, an upgrade another.

        If the new PHP cannot be traced, a Loss says so. What is found is returned by take_pending().
        """
        master, target = processes.process(pid), self._table.masters.get(pid)
        if master is None or target is None or target.master is None:
            return
        try:
            if master.executable == target.master.executable and not self._forget_library(target):
                return
            php = self._inspected(processes.open_executable(pid))
            changed = dataclasses.replace(target, php=php, master=master, workers=())
            # The master first: from then on its forks are entered with the new binary; then those before.
            self._enter(pid, _role_of_master(changed), changed, replace=True)
            self._table.masters[pid] = changed
            known: set[int] = set()
            while fresh := [child for child in processes.children(master) if child.pid not in known]:
                known |= {child.pid for child in fresh}
                for child in fresh:
                    self._enter(child.pid, Role.WORKER, changed, titled=False, replace=True)
                    self._pending.append(self._table.add(child, changed))
            self._hook(changed)
        except (OSError, PhptraceError) as exc:
            self._pending.append(
                Loss(time.time_ns(), 1, f"workers not traced: cannot trace the new PHP of master {pid}: {exc}")
            )

    def take_pending(self) -> list[Fact]:
        """Return and forget the facts that were found here, by attach() or follow(), and not by reading the ring."""
        facts, self._pending = self._pending, []
        return facts

    def close(self) -> None:
        """Take the probes off that are still in `uprobes`, and close the files that were opened here. Idempotent."""
        while self.uprobes:
            os.close(self.uprobes.pop())
        while self._images:
            self._images.pop().close()

    # Processes

    def _inspected(self, image: Image) -> Php:
        """The description of a PHP, whose file close() closes later; at once if it cannot be traced."""
        with contextlib.ExitStack() as undo:
            undo.callback(image.close)
            php = php_binary.inspect(image)
            undo.pop_all()
        self._images.append(image)
        return php

    def _enter(self, pid: int, role: Role, target: Target, *, titled: bool = True, replace: bool = False) -> None:
        """Enter a process; one that the kernel has entered meanwhile stays as it is, unless `replace`."""
        calls = self._calls_of(target)
        entry = worker_entry(role=role, binary=self._binary_index(target), titled=int(titled), calls=calls)
        workers = self._programs.map("workers")
        try:
            if replace:
                workers[pid] = entry
            else:
                workers.add(pid, entry)
        except MapFullError:
            self._pending.append(Loss(time.time_ns(), 1, WHY_LOST[Lost.WORKERS]))

    def _binary_index(self, target: Target) -> int:
        """The index of the target's binary in the map `php_binaries`, which gets an entry if it is new."""
        php = target.php
        entry = php_binary_entry(php, fastcgi=target.speaks_fastcgi)
        # Files that differ in no offset share an entry: each start of a container may bring another copy.
        key = entry, php.stack
        if key in self._binaries:
            return self._binaries[key]
        index = len(self._binaries)
        if index >= PHP_BINARIES_MAX:
            raise UnsupportedError(
                f"cannot trace these targets: they run more than {PHP_BINARIES_MAX} different PHP binaries."
                " Name fewer targets.",
                fixable=True,
            )
        self._programs.map("php_binaries")[index] = entry
        self._binaries[key] = index
        self._lacking += php.lacking
        if self._growth_probes is not None:
            self._growth_probes.enter_php_binary(index, php)
        return index

    def _find_workers(self, target: Target) -> None:
        """Enter the workers that are there now; those forked meanwhile the kernel has entered itself.

        Compiling took a while: what was resolved before may be gone, and its pid another's.
        """
        unsampled: set[int] = set()  # workers that were born before their master was sampled
        if target.master is None:
            present = [worker for worker in target.workers if _is_there(worker)]
        elif _is_there(target.master):
            self._table.masters[target.master.pid] = target
            if self._growth_probes is not None:
                unsampled = self._sample_births(target.master.pid, self._growth_probes)
            present = [worker for worker in processes.children(target.master) if target.wants(worker.pool)]
            self._take_births(target.master.pid)
            if target.master_serves:
                self._pending.append(self._table.add(target.master, target))
        else:
            self._programs.map("workers").remove(target.master.pid)
            self._lacking.append(f"not traced: master {target.master.pid}, which ended before phptrace was attached")
            return
        for worker in present:
            self._enter(worker.pid, Role.WORKER, target)
            inherited = worker.pid in self._table.workers and worker.pid not in unsampled
            if self._growth_probes is not None and not inherited:
                self._growth_probes.start_sampling(worker.pid)
            self._pending.append(self._table.add(worker, target))

    def _sample_births(self, master: int, growth_probes: GrowthProbes) -> set[int]:
        """Sample a master and all that it forks from now on; return the workers whose birth was seen before.

        A birth that is seen while sampling starts may be on either side of it: then sampling starts once more.
        """
        for _ in range(_ATTEMPTS):
            self._take_births(master)
            before = set(self._table.workers)
            growth_probes.start_sampling(master)
            self._take_births(master)
            if before.issuperset(self._table.workers):
                return before
            growth_probes.stop_sampling(master)
        growth_probes.start_sampling(master)
        self._lacking.append(f"stacks: master {master} keeps forking; some workers may not be sampled")
        return set(self._table.workers)

    def _take_births(self, master: int) -> None:
        """Take the births up to now, including that of a worker which is only half forked when this is called."""
        wait_until_idle(master)
        facts = self._read()  # which may call follow(), which adds to what is pending
        self._pending += facts

    # Probes

    def _hook(self, target: Target) -> None:
        """Set the probes on the target's C library and PHP, unless they are there."""
        php = target.php
        self._hook_calls(target)
        if self._has_probes(php.image, target):
            return
        if php.hooks is None:
            raise UnsupportedError(
                f"cannot trace {php.image.shown}: its functions cannot be found. Use --backend ptrace."
            )
        hooks = dataclasses.asdict(php.hooks)
        with self._all_or_none() as made:
            for function in UPROBES_ON_PHP:
                hook = hooks[function.removeprefix("on_")]
                if hook is None or (function == "on_output_end" and target.resets_errors):
                    continue
                if not hook["emulated"]:
                    log.info(
                        "%s of %s is on an instruction that is single-stepped: 12 µs a hit", function, php.image.shown
                    )
                at_return = function == "on_end" and php.hooks.end_is_return
                made.append(self._programs.on_uprobe(function, php.image, hook["file_offset"], at_return=at_return))
            if self._growth_probes is not None:
                made.append(self._growth_probes.hook_end(php))
        self._probed.add(php.image, [php.hooks.startup.file_offset])

    @contextlib.contextmanager
    def _all_or_none(self) -> Iterator[list[int]]:
        """A list for the descriptors of probes: added to `uprobes`, or closed if one of them cannot be set."""
        made: list[int] = []
        try:
            yield made
        except BaseException:
            for fd in made:
                os.close(fd)
            raise
        self.uprobes += made

    def _has_probes(self, image: Image, target: Target) -> bool:
        """True if this file, which the target's processes run, has our probes."""
        pid = _witness(target)
        try:
            return self._probed.has(image, pid)
        except OSError as exc:
            if processes.process(pid) is None:
                raise TargetGoneError(f"cannot set probes in process {pid}: it has ended. Start PHP again.") from exc
            raise UnsupportedError(
                f"cannot set probes in process {pid}: {exc.strerror}. Use --backend ptrace."
            ) from exc

    def _calls_of(self, target: Target) -> Calls:
        """Where the target's memory calls are counted: in its C library if possible, or in the kernel."""
        library = self._library_of(target)
        return Calls.IN_KERNEL if library is None or library.missing else Calls.IN_LIBC

    def _library_of(self, target: Target) -> Libc | None:
        """The C library of the target's workers; None if there is none whose code is known."""
        key = (*target.php.image.identity, _witness(target))
        if key not in self._libraries:
            self._libraries[key] = self._open_library(key[-1])
        return self._libraries[key]

    def _open_library(self, pid: int) -> Libc | None:
        """The C library of that process; each file is opened once, and closed by close()."""
        try:
            image = None if self._force_tracepoint else processes.open_libc(pid)
            if image is None:
                return None
            if image.identity in self._libraries_by_file:
                image.close()
            else:
                self._images.append(image)
                self._libraries_by_file[image.identity] = None
                self._libraries_by_file[image.identity] = libc.inspect(image)
            return self._libraries_by_file[image.identity]
        except (OSError, UnsupportedError) as exc:
            log.info("no C library found in process %d: %s", pid, exc)
            return None

    def gone(self, pid: int) -> None:
        """Forget what is known of the C library of a process that has ended."""
        for key in [key for key in self._libraries if key[-1] == pid]:
            del self._libraries[key]

    def _forget_library(self, target: Target) -> bool:
        """Forget the C library of the target's workers, and return True, if its master now has another one."""
        known = self._libraries.pop((*target.php.image.identity, _witness(target)), None)
        return self._library_of(target) is not known

    def _hook_calls(self, target: Target) -> None:
        library = self._library_of(target)
        if library is None or library.missing:
            self._count_calls_in_kernel()
        elif not self._has_probes(library.image, target):
            with self._all_or_none() as made:
                for name, offset in library.sites.items():
                    made.append(self._programs.on_uprobe(f"on_{name}", library.image, offset))
                if self._growth_probes is not None:
                    self._growth_probes.hook_calls(library)
            self._probed.add(library.image, library.sites.values())

    def _count_calls_in_kernel(self) -> None:
        if self._calls_in_kernel:
            return
        self._calls_in_kernel = True
        try:
            self._programs.on_raw_tracepoint("sys_exit", "on_syscall_exit", self._tracepoints)
        except UnsupportedError as exc:
            self._decoder.calls = False
            self._lacking.append(
                f"not measured: mmap and brk calls, which neither this C library nor this kernel shows ({exc})"
            )
            return
        if self._growth_probes is not None:
            try:
                self._growth_probes.hook_calls_in_kernel()
            except UnsupportedError as exc:
                self._lacking.append(f"not measured: call stacks of mmap and brk ({exc})")
        self._lacking.append(
            "speed: every process on this host pays about 0.03 µs per system call, since mmap and brk are counted by a"
            " tracepoint: this C library's wrappers have an unknown form"
        )


def _witness(target: Target) -> int:
    """The pid of a process that runs the target's PHP, with the C library of all its workers."""
    return (target.master or target.workers[0]).pid


def _role_of_master(target: Target) -> Role:
    return Role.MASTER | Role.WORKER if target.master_serves else Role.MASTER


def _is_there(process: Process) -> bool:
    """True if it is still that process, and not another one with its pid."""
    now = processes.process(process.pid)
    return now is not None and now.start_ticks == process.start_ticks
