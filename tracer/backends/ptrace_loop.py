"""The process that traces by ptrace: nothing else runs in it, since workers stand still while it is busy.

It holds the workers of one attach from SEIZE to DETACH and sends records of what they did. Killed with
SIGKILL it leaves nothing behind: the kernel lets its tracees go on, and the only trace of it they could have
is a stop at a system call, which by O_SYSGOOD is no signal.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from types import FrameType

from tracer.backends import StackOptions
from tracer.backends import ptrace_calls as ptrace
from tracer.backends.boundary_worker import BoundaryWorker
from tracer.backends.php_memory import PhpMemory
from tracer.backends.pipe import Channel, PipeWriter
from tracer.backends.procfs import WorkerFiles
from tracer.backends.stack_sender import StackSender
from tracer.backends.stack_walk import Walker
from tracer.backends.syscall_worker import SyscallWorker
from tracer.backends.trap_handler import TrapHandler, drain_traps, may_call
from tracer.backends.wire import PROCESS_EVENT, REPLACED, EventKind
from tracer.errors import UnsupportedError
from tracer.targets import processes
from tracer.targets.resolve import Target

_FOLLOWED = ptrace.O_SYSGOOD | ptrace.O_FORK | ptrace.O_EXEC
_WORKER = ptrace.O_SYSGOOD | ptrace.O_EXEC
_SYSCALL_STOP = signal.SIGTRAP | 0x80
_PR_SET_PDEATHSIG = 1
_TICK_NS = 1_000_000_000 // os.sysconf("SC_CLK_TCK")
_FLUSH_S = 5.0
_ACCEPTING = ("43", "288")  # accept, accept4: arch/x86/entry/syscalls/syscall_64.tbl


class TracingLoop:
    """Traces the workers of the targets until it is told to stop by SIGTERM, or its parent dies."""

    def __init__(
        self, found: list[Target], out: PipeWriter, parent: int, stacks: StackOptions | None, *, boundaries: bool
    ) -> None:
        """With `boundaries`, breakpoints at a request's boundaries instead of stops at system calls."""
        self._targets = found
        self._stacks = stacks
        self._boundaries = boundaries
        self._handlers: dict[int, TrapHandler] = {}
        self._out = out
        self._parent = parent
        self._masters: dict[int, Target] = {}
        self._workers: dict[int, SyscallWorker | BoundaryWorker] = {}
        self._of: dict[int, Target] = {}  # which target a worker belongs to
        self._new: set[int] = set()  # children of masters that have not yet waited for a connection
        self._biases: dict[int, int] = {}
        self._deferred: list[Callable[[], bytes]] = []
        self._stopping = False

    def run(self) -> None:
        """Returns when nothing is traced any more."""
        os.setsid()  # out of reach of the terminal: Ctrl-C and Ctrl-Z are its parent's affair
        signal.signal(signal.SIGTERM, self._stop)
        for number in (signal.SIGINT, signal.SIGHUP, signal.SIGPIPE, signal.SIGTSTP):
            signal.signal(number, signal.SIG_IGN)
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)
        if os.getppid() != self._parent:
            return
        with contextlib.suppress(OSError):
            os.setpriority(os.PRIO_PROCESS, 0, -10)
        failed = self._attach()
        self._say(failed)
        if self._stopping:  # told so while attaching: there may be more by now
            self._stop(signal.SIGTERM, None)
        while self._masters or self._workers:
            if not self._wait():
                break
        self._out.flush(_FLUSH_S)

    # Attaching

    def _attach(self) -> list[tuple[int, int]]:
        """(pid, errno) of those that may not be traced. One that has ended is not among them."""
        failed: list[tuple[int, int]] = []
        for target in self._targets:
            if target.master is not None:
                failed += self._seize_master(target.master.pid, target)
            for worker in target.workers:
                failed += self._seize_worker(worker.pid, target)
            # Forked after the list was made, and before the master was held; those later come by themselves.
            if target.master is not None and target.master.pid in self._masters:
                known = {worker.pid for worker in target.workers}
                for pid in _children(target.master.pid):
                    if pid not in known and pid not in self._workers:
                        failed += self._seize_worker(pid, target, born=True)
        return failed

    def _seize_master(self, pid: int, target: Target) -> list[tuple[int, int]]:
        try:
            ptrace.seize(pid, _FOLLOWED)
        except ProcessLookupError:
            return []
        except OSError as exc:
            return [(pid, exc.errno or 0)]
        self._masters[pid] = target
        return []

    def _seize_worker(self, pid: int, target: Target, *, born: bool = False) -> list[tuple[int, int]]:
        process = processes.process(pid)
        if process is None or not (born or target.wants(process.pool)):
            return []
        busy = _is_busy(pid)
        try:
            ptrace.seize(pid, _FOLLOWED if born else _WORKER)
            ptrace.interrupt(pid)
        except ProcessLookupError:
            return []
        except PermissionError as exc:
            # A child born while its master was being held is held already.
            return [] if born else [(pid, exc.errno or 0)]
        except OSError as exc:
            return [(pid, exc.errno or 0)]
        self._add(pid, target, busy=busy and not born)
        if born:
            self._announce(pid, target)
        return []

    def _add(self, pid: int, target: Target, *, busy: bool) -> None:
        try:
            files = WorkerFiles(pid)
        except OSError:
            return
        bias = self._bias(pid, target)
        memory = PhpMemory(pid, target.php, bias)
        if self._boundaries and target.php.hooks is not None:
            emit = self._deferred.append
            self._of[pid] = target
            self._workers[pid] = BoundaryWorker(pid, files, memory, target.php.hooks, bias, emit)
            return
        sender = self._sender(pid, target, bias)
        on_call = None if sender is None else sender.memory_call
        self._of[pid] = target
        self._workers[pid] = SyscallWorker(pid, files, memory, self._deferred.append, on_call, busy=busy)

    def _sender(self, pid: int, target: Target, bias: int) -> StackSender | None:
        """Who sends the stacks of its memory calls, where they are asked for and can be had."""
        php = target.php
        if self._stacks is None or php.stack is None or php.executor_globals is None:
            return None
        current = bias + php.executor_globals + php.stack.eg_current_execute_data
        walker = Walker(pid, php.stack, current, self._stacks.max_depth)
        return StackSender(pid, walker, lambda record: self._out.put(Channel.STACKS, record))

    def _bias(self, pid: int, target: Target) -> int:
        """Where its PHP is loaded: as its master's, which it was forked from."""
        owner = target.master.pid if target.master is not None else pid
        if owner not in self._biases:
            try:
                self._biases[owner] = processes.load_bias(pid, target.php.image)
            except (OSError, UnsupportedError):
                self._biases[owner] = 0
        return self._biases[owner]

    def _announce(self, pid: int, target: Target) -> None:
        """A worker that was born under watch."""
        self._new.add(pid)
        process = processes.process(pid)
        ticks = process.start_ticks if process is not None else 0
        parent = target.master.pid if target.master is not None else 0
        self._event(EventKind.BORN, pid, parent=parent, boot_ns=ticks * _TICK_NS)

    def _say(self, failed: list[tuple[int, int]]) -> None:
        said = {"failed": failed, "workers": sorted(self._workers), "masters": sorted(self._masters)}
        self._out.put(Channel.SAID, json.dumps(said).encode())
        self._out.flush(_FLUSH_S)

    # Stops

    def _wait(self) -> bool:
        """Handles one stop; False when there is nobody left to wait for."""
        try:
            pid, status = os.waitpid(-1, ptrace.WALL)
        except ChildProcessError:
            return False
        try:
            if os.WIFSTOPPED(status):
                stopping = self._stopping
                self._stopped(pid, status >> 8 & 0xFF, status >> 16)
                if self._stopping and not stopping and (pid in self._workers or pid in self._masters):
                    ptrace.interrupt(pid)  # told to stop meanwhile, which may have gone under
            else:
                self._ended(pid, status)
        except ProcessLookupError:
            pass  # killed while it stood still: its end is still to come
        for make in self._deferred:
            self._out.put(Channel.REQUESTS, make())
        self._deferred.clear()
        with contextlib.suppress(BrokenPipeError):
            self._out.flush()
        return True

    def _stopped(self, pid: int, number: int, event: int) -> None:
        if pid not in self._masters and pid not in self._workers:
            self._adopt(pid)
        if self._stopping:
            self._let_go(pid, number, event)
        elif number == _SYSCALL_STOP:
            self._at_syscall(pid)
        elif number == signal.SIGTRAP and not event:
            self._trapped(pid)
        elif event == ptrace.EVENT_STOP and number != signal.SIGTRAP:
            ptrace.listen(pid)
        elif event == ptrace.EVENT_FORK:
            self._forked(pid)
        elif event == ptrace.EVENT_EXEC:
            self._replaced(pid)
        elif event:
            self._resume(pid)
        else:
            self._resume(pid, number)

    def _trapped(self, pid: int) -> None:
        """A breakpoint, or somebody else's SIGTRAP, which is passed on."""
        worker = self._workers.get(pid)
        ours = isinstance(worker, BoundaryWorker) and worker.at_breakpoint(ptrace.registers(pid).rip)
        if ours and pid in self._new and not self._settle(pid):
            return
        self._resume(pid, 0 if ours else signal.SIGTRAP)

    def _arm(self, pid: int, worker: BoundaryWorker) -> None:
        """Sets the breakpoints of a worker at its first stop; without a handler it would be at risk, and is let be."""
        worker.armed = True
        owner = self._of[pid].master
        key = owner.pid if owner is not None else pid
        if key not in self._handlers:
            self._handlers[key] = TrapHandler(pid)
        worker.has_handler = self._handlers[key].install(pid)
        if worker.has_handler:
            ptrace.set_breakpoints(pid, worker.breakpoints)
        else:
            self._out.put(Channel.UNARMED, (1).to_bytes(8, "little"))

    def _disarm(self, pid: int, worker: BoundaryWorker) -> None:
        """Takes the handler out of a worker whose breakpoints are cleared, and that stands where it can be."""
        worker.has_handler = False
        owner = self._of[pid].master
        others = drain_traps(pid)
        self._handlers[owner.pid if owner is not None else pid].remove(pid)
        for number in others:
            os.kill(pid, number)

    def _at_syscall(self, pid: int) -> None:
        worker = self._workers.get(pid)
        made = ptrace.syscall_stop(pid) if isinstance(worker, SyscallWorker) else None
        if not isinstance(worker, SyscallWorker) or made is None:
            self._resume(pid)
            return
        if isinstance(made, ptrace.Entry):
            worker.at_entry(made)
            if worker.accepts and pid in self._new and not self._settle(pid):
                return
        else:
            worker.at_exit(made)
        self._resume(pid)
        if worker.given_up:
            self._out.put(Channel.GIVEN_UP, worker.given_up.to_bytes(8, "little"))
            worker.given_up = 0

    def _settle(self, pid: int) -> bool:
        """A new child waits for its first connection, so it is a worker; False if of a pool nobody asked for."""
        self._new.discard(pid)
        ptrace.set_options(pid, _WORKER)
        process = processes.process(pid)
        title = process.title if process is not None else ""
        self._event(EventKind.TITLED, pid, title=title.encode("utf-8", "surrogateescape")[:64])
        if self._of[pid].wants(processes.pool_of(title)):
            return True
        worker = self._workers[pid]
        if isinstance(worker, BoundaryWorker):
            ptrace.set_breakpoints(pid, ())  # the handler stays, and does nothing: it is not in a system call
        ptrace.detach(pid)
        self._forget(pid)
        return False

    def _adopt(self, pid: int) -> None:
        """A child that came with its parent's fork; or whose parent turns out to be a master by having it."""
        process = processes.process(pid)
        parent = process.parent_pid if process is not None else 0
        if parent in self._new:
            self._promote(parent)
        target = self._masters.get(parent)
        if target is None:
            return
        self._add(pid, target, busy=False)
        if pid in self._workers:
            self._announce(pid, target)

    def _forked(self, pid: int) -> None:
        if pid in self._new:
            self._promote(pid)
        self._resume(pid)

    def _promote(self, pid: int) -> None:
        """A daemon's graceful reload: the master forked, and what it forked forks the workers."""
        self._masters[pid] = self._of[pid]
        self._forget(pid)

    def _replaced(self, pid: int) -> None:
        if pid in self._masters:
            self._biases.pop(pid, None)
            self._handlers.pop(pid, None)
            self._event(EventKind.EXECED, pid)
            self._resume(pid)
            return
        worker = self._workers.get(pid)
        if worker is not None:
            worker.left(REPLACED)
            self._event(EventKind.DIED, pid, exit_code=REPLACED)
            self._forget(pid)
        ptrace.detach(pid)

    def _ended(self, pid: int, status: int) -> None:
        worker = self._workers.get(pid)
        if worker is not None:
            worker.left(status)
            self._forget(pid)
        elif self._masters.pop(pid, None) is None:
            return
        # Behind the request's record, which is made later.
        event = _event(EventKind.DIED, pid, exit_code=status)
        self._deferred.append(lambda: event)

    def _resume(self, pid: int, number: int = 0) -> None:
        worker = self._workers.get(pid)
        if isinstance(worker, BoundaryWorker):
            if not worker.armed and not number and _between(pid):
                self._arm(pid, worker)
            # Until it is armed, to the next system call: only there it can be.
            (ptrace.resume if worker.armed else ptrace.resume_to_syscall)(pid, number)
        elif worker is not None:
            ptrace.resume_to_syscall(pid, number)
        elif pid in self._masters:
            ptrace.resume(pid, number)
        else:
            ptrace.detach(pid, number)

    def _forget(self, pid: int) -> None:
        worker = self._workers.pop(pid, None)
        if worker is not None:
            worker.close()
        self._new.discard(pid)
        self._of.pop(pid, None)

    # The end

    def _stop(self, number: int, frame: FrameType | None) -> None:
        """Only makes everybody stop; the loop then lets them go."""
        self._stopping = True
        for pid in (*self._masters, *self._workers):
            with contextlib.suppress(OSError):
                ptrace.interrupt(pid)

    def _let_go(self, pid: int, number: int, event: int) -> None:
        worker = self._workers.get(pid)
        is_signal = not event and number != _SYSCALL_STOP
        if isinstance(worker, BoundaryWorker):
            if is_signal and number == signal.SIGTRAP and worker.at_breakpoint(ptrace.registers(pid).rip):
                is_signal = False
            ptrace.set_breakpoints(pid, ())
            group_stop = event == ptrace.EVENT_STOP and number != signal.SIGTRAP
            if worker.has_handler and not group_stop:
                if is_signal or not _between(pid):
                    # In its next system call its handler can be taken away; should that block, it is interrupted.
                    ptrace.resume_to_syscall(pid, number if is_signal else 0)
                    if number == _SYSCALL_STOP:
                        ptrace.interrupt(pid)
                    return
                self._disarm(pid, worker)
        elif self._boundaries:
            ptrace.set_breakpoints(pid, ())  # a daemon's new master was taken for a worker at first
        if worker is not None:
            worker.cut_off()
        ptrace.detach(pid, number if is_signal else 0)
        self._forget(pid)
        self._masters.pop(pid, None)

    def _event(
        self,
        kind: EventKind,
        pid: int,
        *,
        parent: int = 0,
        exit_code: int = 0,
        boot_ns: int = 0,
        title: bytes = b"",
    ) -> None:
        event = _event(kind, pid, parent=parent, exit_code=exit_code, boot_ns=boot_ns, title=title)
        self._deferred.append(lambda: event)


def _between(pid: int) -> bool:
    """Whether a stopped worker has made a system call, or waits in one that will be made again: there it can be
    given another to make.
    """
    made = ptrace.syscall_stop(pid)
    return not isinstance(made, ptrace.Entry) and may_call(ptrace.registers(pid))


def _event(
    kind: EventKind, pid: int, *, parent: int = 0, exit_code: int = 0, boot_ns: int = 0, title: bytes = b""
) -> bytes:
    """A `struct process_event`."""
    now = time.clock_gettime_ns(time.CLOCK_MONOTONIC)
    return PROCESS_EVENT.pack(kind, pid, parent, exit_code, now, boot_ns, title)


def _children(pid: int) -> list[int]:
    try:
        return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except OSError:
        return []


def _is_busy(pid: int) -> bool:
    """Whether it does anything but wait for a connection; False if that may not be seen."""
    try:
        doing = Path(f"/proc/{pid}/syscall").read_text().split()[0]
    except (OSError, IndexError):
        return False
    return doing not in _ACCEPTING
