"""The processes that are traced: masters, and their workers from birth, or from attaching, to their end."""

from __future__ import annotations

import contextlib
import errno
import os
import struct
import time
from collections.abc import Callable
from pathlib import Path

from tracer.backends.ptrace import syscalls
from tracer.backends.ptrace.tracee import Tracee
from tracer.backends.ptrace.worker_factory import WorkerFactory
from tracer.backends.records.request_structs import PROCESS_EVENT, EventKind
from tracer.errors import PhptraceError
from tracer.targets import processes
from tracer.targets.processes import Process
from tracer.targets.resolve import Target

# What may go wrong with one worker, whose memory and /proc files may hold anything.
WORKER_ERRORS = (OSError, ValueError, ArithmeticError, LookupError, struct.error, PhptraceError)
_FORK_OPTIONS = syscalls.O_SYSGOOD | syscalls.O_FORK | syscalls.O_EXEC
_WORKER_OPTIONS = syscalls.O_SYSGOOD | syscalls.O_EXEC
_TICK_NS = 1_000_000_000 // os.sysconf("SC_CLK_TCK")
# php-fpm's slowlog holds a worker for as long as it takes to write its stack.
_RETRIES, _RETRY_S = 10, 0.02


class Tracees:
    """Masters and workers by pid."""

    def __init__(
        self,
        factory: WorkerFactory,
        emit: Callable[[Callable[[], bytes]], None],
        report_abandoned: Callable[[Exception], None],
    ) -> None:
        """`emit` takes what makes a record of whoever comes and goes; `report_abandoned` why one cannot be watched."""
        self.masters: dict[int, Target] = {}
        self.workers: dict[int, Tracee] = {}
        self._factory = factory
        self._emit = emit
        self._report_abandoned = report_abandoned
        self._targets: dict[int, Target] = {}  # which target a worker belongs to
        self._new: set[int] = set()  # children of masters of which it is not yet known what they are

    def __contains__(self, pid: int) -> bool:
        """True if it is a master or a worker that is traced."""
        return pid in self.masters or pid in self.workers

    def pids(self) -> tuple[int, ...]:
        """Pids of all masters and workers that are traced."""
        return (*self.masters, *self.workers)

    def is_new(self, pid: int) -> bool:
        """True if it is a child of a master that has not shown yet that it is a worker."""
        return pid in self._new

    def family(self, pid: int) -> int:
        """The pid of a worker's master, or its own."""
        owner = self._targets[pid].master
        return pid if owner is None else owner.pid

    def seize(self, targets: list[Target]) -> list[tuple[int, int]]:
        """(pid, errno) of those that may not be traced. One that has ended is not among them."""
        failed: list[tuple[int, int]] = []
        for target in targets:
            if target.master is not None:
                failed += self._seize_master(target.master.pid, target)
            for worker in target.workers:
                failed += self._seize_worker(worker.pid, target)
            # Forked after the list was made, and before the master was held; those later come by themselves.
            if target.master is not None and target.master.pid in self.masters:
                known = {worker.pid for worker in target.workers}
                for pid in _children(target.master.pid):
                    if pid not in known and pid not in self.workers:
                        failed += self._seize_worker(pid, target, born=True)
        return failed

    def adopt(self, pid: int) -> None:
        """A child that came with its parent's fork; or whose parent turns out to be a master by having it."""
        process = processes.process(pid)
        parent = process.parent_pid if process is not None else 0
        if parent in self._new:
            self.promote(parent)
        target = self.masters.get(parent)
        if target is not None and process is not None and self._add(pid, target, born=True):
            self._announce(process, target)

    def promote(self, pid: int) -> None:
        """A daemon's graceful reload: the master forked, and what it forked forks the workers."""
        self.masters[pid] = self._targets[pid]
        self.forget(pid)

    def needs_pool_check(self, pid: int) -> bool:
        """True if it is new, and may be of a pool that nobody asked for."""
        return pid in self._new and self._targets[pid].pools is not None

    def has_title(self, pid: int) -> bool:
        """True if its title names its pool, so that confirm_worker() can tell."""
        process = processes.process(pid)
        return process is None or process.pool is not None

    def confirm_worker(self, pid: int) -> bool:
        """A stopped new child is a worker; False if it is of a pool nobody asked for."""
        self._new.discard(pid)
        syscalls.set_options(pid, _WORKER_OPTIONS)
        process = processes.process(pid)
        self.event(EventKind.TITLED, pid, title=b"" if process is None else _title(process))
        return self._targets[pid].wants(process.pool if process is not None else None)

    def forget(self, pid: int) -> None:
        """A worker that ended, or was let go."""
        worker = self.workers.pop(pid, None)
        if worker is not None:
            worker.close()
        self._new.discard(pid)
        self._targets.pop(pid, None)

    def event(
        self,
        kind: EventKind,
        pid: int,
        *,
        parent: int = 0,
        exit_code: int = 0,
        boot_ns: int = 0,
        title: bytes = b"",
    ) -> None:
        """A `struct process_event`."""
        now = time.clock_gettime_ns(time.CLOCK_MONOTONIC)
        event = PROCESS_EVENT.pack(kind, pid, parent, exit_code, now, boot_ns, title)
        self._emit(lambda: event)

    def _seize_master(self, pid: int, target: Target) -> list[tuple[int, int]]:
        code = _seize(pid, _FORK_OPTIONS)
        if code:
            return [] if code == errno.ESRCH else [(pid, code)]
        self.masters[pid] = target
        return []

    def _seize_worker(self, pid: int, target: Target, *, born: bool = False) -> list[tuple[int, int]]:
        """`born`: since the target was looked at. Its title then says whether it is wanted, or will."""
        process = processes.process(pid)
        if process is None:
            return []
        untitled = born and process.pool is None
        if not (untitled or target.wants(process.pool)):
            return []
        if born and process.executable not in (None, target.php.image.identity):
            return []  # not the master's fork, but what it started
        self._factory.bias(pid, target, born=born)  # takes a while: before it stands still
        code = _seize(pid, _FORK_OPTIONS if untitled else _WORKER_OPTIONS, retries=0 if born else _RETRIES)
        if code:
            # A child born while its master was being held is held already.
            return [] if code == errno.ESRCH or (born and code == errno.EPERM) else [(pid, code)]
        with contextlib.suppress(ProcessLookupError):
            syscalls.interrupt(pid)
        if self._add(pid, target, born=born) and born:
            self._announce(process, target)
        return []

    def _add(self, pid: int, target: Target, *, born: bool) -> bool:
        """True if it can be traced; if not, it is let go at its stop, and that is reported."""
        try:
            worker = self._factory.worker(pid, target, born=born)
        except (ProcessLookupError, FileNotFoundError):
            return False
        except WORKER_ERRORS as exc:
            self._report_abandoned(exc)
            return False
        self._targets[pid] = target
        self.workers[pid] = worker
        return True

    def _announce(self, process: Process, target: Target) -> None:
        """A worker that was born under watch, or while attaching."""
        pid, parent = process.pid, target.master.pid if target.master is not None else 0
        self.event(EventKind.BORN, pid, parent=parent, boot_ns=process.start_ticks * _TICK_NS)
        if process.pool is None:
            self._new.add(pid)
        else:
            self.event(EventKind.TITLED, pid, title=_title(process))


def _seize(pid: int, options: int, *, retries: int = _RETRIES) -> int:
    """Holds it; 0, or the error. Who is refused for being traced is asked for again: a slowlog is soon written."""
    for attempt in range(retries + 1):
        try:
            syscalls.seize(pid, options)
        except OSError as exc:
            if exc.errno == errno.EPERM and attempt < retries:
                time.sleep(_RETRY_S)
                continue
            return exc.errno or errno.EPERM
        return 0
    return errno.EPERM


def _title(process: Process) -> bytes:
    return process.title.encode("utf-8", "surrogateescape")[:64]


def _children(pid: int) -> list[int]:
    try:
        return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except OSError:
        return []
