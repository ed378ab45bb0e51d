"""The processes that phptrace is attached to: masters, and their workers from their fork or from attaching on.

Also what workers fork: such a process is announced as a worker when it serves a request of its own.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import os
import struct
import time
from collections.abc import Callable
from pathlib import Path

from tracer.backends.ptrace import syscalls
from tracer.backends.ptrace.tracer_factory import TracerFactory
from tracer.backends.ptrace.worker_tracer import WorkerTracer
from tracer.backends.records.request_structs import FORK_EVENT, PROCESS_EVENT, EventKind
from tracer.errors import PhptraceError
from tracer.targets import processes
from tracer.targets.processes import Process
from tracer.targets.resolve import Target

# Errors that end the tracing of one worker only. Its memory and /proc files are untrusted.
WORKER_ERRORS = (OSError, ValueError, ArithmeticError, LookupError, struct.error, PhptraceError)
_OPTIONS = syscalls.O_SYSGOOD | syscalls.O_FORK | syscalls.O_EXEC
_TICK_NS = 1_000_000_000 // os.sysconf("SC_CLK_TCK")
# php-fpm's slowlog is attached to a worker while it writes its stack.
_RETRIES, _RETRY_S = 10, 0.02


class AttachedProcesses:
    """Masters and workers by pid."""

    def __init__(
        self,
        factory: TracerFactory,
        emit: Callable[[Callable[[], bytes]], None],
        report_abandoned: Callable[[int, Exception], None],
    ) -> None:
        """`emit` takes a function that makes a process event; `report_abandoned` the pid of a process that is no longer
        traced, and the error that is the reason.
        """
        self.masters: dict[int, Target] = {}
        self.workers: dict[int, WorkerTracer] = {}
        self._factory = factory
        self._emit = emit
        self._report_abandoned = report_abandoned
        self._targets: dict[int, Target] = {}  # of each worker
        # By a worker's child that has served nothing yet: that worker, and the start of its request (ns; 0: none).
        self._forked_by: dict[int, tuple[int, int]] = {}
        self._new: set[int] = set()  # children of masters that may be workers, or masters of their own

    def __contains__(self, pid: int) -> bool:
        """True if `pid` is an attached master or worker."""
        return pid in self.masters or pid in self.workers

    def pids(self) -> tuple[int, ...]:
        """Pids of all attached masters and workers."""
        return (*self.masters, *self.workers)

    def is_new(self, pid: int) -> bool:
        """True if it is a child of a master, and not yet confirmed as a worker."""
        return pid in self._new

    def family(self, pid: int) -> int:
        """The pid of a worker's master, or its own."""
        owner = self._targets[pid].master
        return pid if owner is None else owner.pid

    def seize(self, targets: list[Target]) -> list[tuple[int, int]]:
        """Attach to the processes of the targets; return (pid, errno) of each that refused. Skip one that has ended."""
        failed: list[tuple[int, int]] = []
        for target in targets:
            if target.master is not None:
                failed += self._seize_master(target.master.pid, target)
            for worker in target.workers:
                failed += self._seize_worker(worker.pid, target)
            # Children forked after the target was resolved, and before the master was attached. The kernel attaches
            # later ones.
            if target.master is not None and target.master.pid in self.masters:
                known = {worker.pid for worker in target.workers}
                for pid in _children(target.master.pid):
                    if pid not in known and pid not in self.workers:
                        failed += self._seize_worker(pid, target, born=True)
        return failed

    def adopt(self, pid: int) -> None:
        """Add a child that the kernel attached at its fork. If its parent was new, that is a master, too."""
        process = processes.process(pid)
        parent = process.parent_pid if process is not None else 0
        if parent in self._new:
            self.promote(parent)
        target = self.masters.get(parent)
        if target is not None and process is not None and self._add(pid, target, born=True):
            self._announce(process, parent)
        elif target is None and parent in self._targets and self._add(pid, self._targets[parent], born=True):
            self._set_forker(pid, parent)

    def note_fork(self, parent: int, child: int) -> None:
        """Take note of the request in which a worker forks. It may have ended when the child is first seen."""
        if child not in self:
            self._set_forker(child, parent)

    def _set_forker(self, child: int, parent: int) -> None:
        forker = parent, self.workers[parent].request_started_ns
        self._forked_by.setdefault(child, self._forked_by.get(parent, forker))

    def announce_fork(self, pid: int) -> None:
        """Emit the birth of a process that a worker forked, and that serves requests; do nothing for any other."""
        forker = self._forked_by.pop(pid, None)
        process = processes.process(pid)
        if forker is not None and process is not None:
            self._announce(process, forker[0])
            self._new.discard(pid)

    def is_announced(self, pid: int) -> bool:
        """True but for a process that a worker forked, and that has served nothing."""
        return pid not in self._forked_by

    def report_fork(self, pid: int, *, ended: bool) -> None:
        """Emit the `struct fork_event` of a process that is not announced; do nothing for any other."""
        if pid in self._forked_by:
            parent, started_ns = self._forked_by[pid]
            now = time.clock_gettime_ns(time.CLOCK_MONOTONIC) if ended else 0
            event = FORK_EVENT.pack(EventKind.FORKED, pid, parent, 0, started_ns, now)
            self._emit(lambda: event)

    def promote(self, pid: int) -> None:
        """Make a new child a master, since it forks: so does a daemon's new master after a graceful reload."""
        target = self._targets[pid]
        self.masters[pid] = dataclasses.replace(target, master=processes.process(pid) or target.master)
        self.forget(pid)

    def needs_pool_check(self, pid: int) -> bool:
        """True if it is new, and may be of a pool that is not wanted."""
        return pid in self._new and self._targets[pid].pools is not None

    def has_title(self, pid: int) -> bool:
        """True if its title names its pool, so that confirm_worker() can tell."""
        process = processes.process(pid)
        return process is None or process.pool is not None

    def confirm_worker(self, pid: int) -> bool:
        """Confirm a stopped new child as a worker; False if its pool is not wanted."""
        self._new.discard(pid)
        process = processes.process(pid)
        self.event(EventKind.TITLED, pid, title=b"" if process is None else _title(process))
        return self._targets[pid].wants(process.pool if process is not None else None)

    def forget(self, pid: int) -> None:
        """Drop a worker that ended or was detached; close its files."""
        worker = self.workers.pop(pid, None)
        if worker is not None:
            worker.close()
        self._new.discard(pid)
        self._forked_by.pop(pid, None)
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
        """Emit a `struct process_event` with the current time; `boot_ns` is the start of the process after boot."""
        now = time.clock_gettime_ns(time.CLOCK_MONOTONIC)
        event = PROCESS_EVENT.pack(kind, pid, parent, exit_code, now, boot_ns, title)
        self._emit(lambda: event)

    def _seize_master(self, pid: int, target: Target) -> list[tuple[int, int]]:
        code = _seize(pid, _OPTIONS)
        if code:
            return [] if code == errno.ESRCH else [(pid, code)]
        self.masters[pid] = target
        return []

    def _seize_worker(self, pid: int, target: Target, *, born: bool = False) -> list[tuple[int, int]]:
        """`born`: forked since the target was resolved. Its title shows if it is wanted, now or later."""
        process = processes.process(pid)
        if process is None:
            return []
        untitled = born and process.pool is None
        if not (untitled or target.wants(process.pool)):
            return []
        if born and process.executable not in (None, target.php.image.identity):
            return []  # not a worker, but a program that the master started
        self._factory.bias(pid, target, born=born)  # takes some ms, so it is done before the worker is stopped
        code = _seize(pid, _OPTIONS, retries=0 if born else _RETRIES)
        if code:
            # The kernel has already attached a child that was forked while its master was being attached.
            return [] if code == errno.ESRCH or (born and code == errno.EPERM) else [(pid, code)]
        with contextlib.suppress(ProcessLookupError):
            syscalls.interrupt(pid)
        if self._add(pid, target, born=born) and born and target.master is not None:
            self._announce(process, target.master.pid)
        return []

    def _add(self, pid: int, target: Target, *, born: bool) -> bool:
        """Add a worker; False, and report it, if it cannot be traced: it is detached at its next stop."""
        try:
            worker = self._factory.tracer(pid, target, born=born)
        except (ProcessLookupError, FileNotFoundError):
            return False
        except WORKER_ERRORS as exc:
            self._report_abandoned(pid, exc)
            return False
        self._targets[pid] = target
        self.workers[pid] = worker
        return True

    def _announce(self, process: Process, parent: int) -> None:
        """Emit the birth of a worker that `parent` forked during tracing, or while attaching."""
        pid = process.pid
        self.event(EventKind.BORN, pid, parent=parent, boot_ns=process.start_ticks * _TICK_NS)
        if process.pool is None:
            self._new.add(pid)
        else:
            self.event(EventKind.TITLED, pid, title=_title(process))


def _seize(pid: int, options: int, *, retries: int = _RETRIES) -> int:
    """Attach without stopping it; return 0, or the errno. Retry EPERM: a slowlog is soon written."""
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
