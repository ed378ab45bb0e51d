"""The tracing process: waits for the stops of all workers, and handles each. Nothing else runs in it, since a worker
is stopped while it is busy.

It is attached to the workers from SEIZE to DETACH, and sends records of their requests to its parent. SIGKILL of it
harms no worker: the kernel resumes them, and the only stop they could be in is that of a system call, which with
O_SYSGOOD is not a signal.
"""

from __future__ import annotations

import contextlib
import json
import os
import resource
import signal
import struct
from collections.abc import Callable
from types import FrameType

from tracer.backends import PtraceMode, StackOptions
from tracer.backends.ptrace import syscalls
from tracer.backends.ptrace.attached_processes import WORKER_ERRORS, AttachedProcesses
from tracer.backends.ptrace.breakpoint_tracer import BreakpointTracer
from tracer.backends.ptrace.breakpoints import Breakpoints, can_call, is_signal
from tracer.backends.ptrace.pipe import Channel, PipeWriter
from tracer.backends.ptrace.sigtrap_handler import Died
from tracer.backends.ptrace.syscall_tracer import SyscallTracer
from tracer.backends.ptrace.tracer_factory import TracerFactory
from tracer.backends.records.request_structs import REPLACED, EventKind
from tracer.errors import PhptraceError
from tracer.targets.resolve import Target

_SYSCALL_STOP = signal.SIGTRAP | 0x80
_FLUSH_S = 20.0
# If a signal comes just before waitpid(), its effect starts when that returns, at the latest with the next tick. A
# worker that computes, and makes no system call, is detached with its handler a tick after tracing has ended.
_TICK_S = 0.5


class TracingProcess:
    """Traces the workers of the targets until SIGTERM, or until its parent dies."""

    def __init__(
        self, found: list[Target], out: PipeWriter, parent: int, stacks: StackOptions | None, mode: PtraceMode
    ) -> None:
        """`out`: pipe to the process `parent`, which polls; `stacks`: None for no stacks."""
        self._targets = found
        self._mode = mode
        self._out = out
        self._parent = parent
        self._deferred: list[Callable[[], bytes]] = []
        self._factory = TracerFactory(self._deferred.append, self._send_stack, stacks, mode)
        self._attached = AttachedProcesses(self._factory, self._deferred.append, self._report_abandoned)
        self._breakpoints = Breakpoints()
        self._stopping = False
        self._force = False

    def run(self) -> None:
        """Trace until no process is left. The caller must have blocked SIGTERM."""
        os.setsid()  # out of reach of the terminal: its parent handles Ctrl-C and Ctrl-Z
        signal.signal(signal.SIGTERM, self._stop)
        signal.signal(signal.SIGALRM, self._tick)
        for number in (signal.SIGINT, signal.SIGHUP, signal.SIGPIPE, signal.SIGTSTP):
            signal.signal(number, signal.SIG_IGN)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, (signal.SIGTERM,))
        signal.setitimer(signal.ITIMER_REAL, _TICK_S, _TICK_S)
        syscalls.die_with_parent(signal.SIGTERM)
        if os.getppid() != self._parent:
            return
        with contextlib.suppress(OSError):
            os.setpriority(os.PRIO_PROCESS, 0, -10)
        _, limit = resource.getrlimit(resource.RLIMIT_NOFILE)  # four per worker
        resource.setrlimit(resource.RLIMIT_NOFILE, (limit, limit))
        try:
            self._report_attached(self._attached.seize(self._targets))
            if self._stopping:  # SIGTERM came while attaching: there may be more processes by now
                self._stop(signal.SIGTERM, None)
            self._wait_for_all()
        except BaseException as exc:
            self._out.put(Channel.FAILED, f"{type(exc).__name__}: {exc}".encode())
            self._stop(signal.SIGTERM, None)
            self._wait_for_all()
            raise
        finally:
            self._out.flush(_FLUSH_S)

    def _report_attached(self, failed: list[tuple[int, int]]) -> None:
        workers, masters = sorted(self._attached.workers), sorted(self._attached.masters)
        outcome = {"failed": failed, "workers": workers, "masters": masters}
        self._out.put(Channel.ATTACHED, json.dumps(outcome).encode())
        self._out.flush(_FLUSH_S)

    # Stops

    def _wait_for_all(self) -> None:
        while self._attached.pids():
            try:
                pid, status = os.waitpid(-1, syscalls.WALL)
            except ChildProcessError:
                return
            self._handle(pid, status)
            self._send_deferred()

    def _handle(self, pid: int, status: int) -> None:
        number, event = status >> 8 & 0xFF, status >> 16
        try:
            if not os.WIFSTOPPED(status):
                self._at_process_exit(pid, status)
                return
            stopping = self._stopping
            self._at_stop(pid, number, event)
            if self._stopping and not stopping and pid in self._attached:
                syscalls.interrupt(pid)  # SIGTERM came meanwhile, and its interrupt may have been lost
        except ProcessLookupError:
            pass  # killed while it was stopped: waitpid() will report its end
        except Died as exc:
            self._at_process_exit(pid, exc.status)
        except WORKER_ERRORS as exc:
            self._abandon(pid, exc, number if is_signal(number, event) else 0)

    def _send_deferred(self) -> None:
        """Make and send the records of the last stop, now that the worker is running again."""
        for make in self._deferred:
            try:
                record = make()
            except (struct.error, OverflowError, ValueError):  # sizes that no kernel has, or a forgotten field
                self._out.put(Channel.LOST, (1).to_bytes(8, "little"))
                continue
            self._out.put(Channel.REQUESTS, record)
        self._deferred.clear()
        with contextlib.suppress(BrokenPipeError):
            self._out.flush()

    def _send_stack(self, record: bytes) -> None:
        self._out.put(Channel.STACKS, record)

    def _at_stop(self, pid: int, number: int, event: int) -> None:
        if pid not in self._attached:
            self._attached.adopt(pid)
        if self._stopping:
            self._detach(pid, number, event)
        elif number == _SYSCALL_STOP:
            self._at_syscall(pid)
        elif number == signal.SIGTRAP and not event:
            self._at_trap(pid)
        elif event == syscalls.EVENT_STOP and number != signal.SIGTRAP:
            syscalls.listen(pid)
        elif event == syscalls.EVENT_FORK:
            self._at_fork(pid)
        elif event == syscalls.EVENT_EXEC:
            self._at_exec(pid)
        elif event:
            self._resume(pid)
        else:
            self._resume(pid, number)

    def _at_trap(self, pid: int) -> None:
        """Handle a breakpoint; pass on a SIGTRAP that is not from one of phptrace's."""
        worker = self._attached.workers.get(pid)
        ours = isinstance(worker, BreakpointTracer) and worker.at_breakpoint(syscalls.registers(pid).rip)
        if worker is not None and worker.requests:
            self._attached.announce_fork(pid)
        if ours and self._attached.is_new(pid) and not self._confirm_worker(pid):
            return
        self._resume(pid, 0 if ours else signal.SIGTRAP)

    def _at_syscall(self, pid: int) -> None:
        worker = self._attached.workers.get(pid)
        made = syscalls.syscall_stop(pid) if isinstance(worker, SyscallTracer) else None
        if not isinstance(worker, SyscallTracer) or made is None:
            self._resume(pid)
            return
        if isinstance(made, syscalls.Entry):
            worker.at_entry(made)
            if worker.accepts and self._attached.is_new(pid) and not self._confirm_worker(pid):
                return
        else:
            worker.at_exit(made)
            if worker.requests:
                self._attached.announce_fork(pid)
        self._resume(pid)
        if worker.malformed_count:
            self._out.put(Channel.MALFORMED, worker.malformed_count.to_bytes(8, "little"))
            worker.malformed_count = 0

    def _confirm_worker(self, pid: int) -> bool:
        """Take a new child that waits for its first connection as a worker; False, and detach it, if its pool is not
        wanted.
        """
        if self._attached.confirm_worker(pid):
            return True
        if self._mode is PtraceMode.BREAKPOINTS:
            syscalls.set_breakpoints(pid, ())
        syscalls.detach(pid)
        self._forget(pid)
        return False

    def _at_fork(self, pid: int) -> None:
        if self._attached.is_new(pid):
            self._attached.promote(pid)
        elif pid in self._attached.workers:
            self._attached.note_fork(pid, syscalls.event_message(pid))
        self._resume(pid)

    def _at_exec(self, pid: int) -> None:
        if pid in self._attached.masters:
            self._factory.forget(pid)
            self._breakpoints.forget_family(pid)
            self._attached.event(EventKind.EXECED, pid)
            self._resume(pid)
            return
        worker = self._attached.workers.get(pid)
        if worker is not None:
            worker.exited(REPLACED)
            if self._attached.is_announced(pid):
                self._attached.event(EventKind.DIED, pid, exit_code=REPLACED)
            self._forget(pid)
        syscalls.detach(pid)

    def _at_process_exit(self, pid: int, status: int) -> None:
        worker = self._attached.workers.get(pid)
        announced = self._attached.is_announced(pid)
        if worker is not None:
            worker.exited(status)
            self._attached.report_fork(pid, ended=True)
            self._forget(pid)
            if not announced:
                return
        elif self._attached.masters.pop(pid, None) is None:
            self._forget(pid)
            return
        # Behind the request's record, which is also deferred.
        self._attached.event(EventKind.DIED, pid, exit_code=status)

    def _resume(self, pid: int, number: int = 0) -> None:
        worker = self._attached.workers.get(pid)
        if isinstance(worker, BreakpointTracer):
            if not worker.armed and not number and can_call(pid) and self._may_arm(pid):
                number = self._arm(pid, worker)
                if pid not in self._attached.workers:
                    return
            # Until it is armed, resume it to the next system call: only there it can be armed.
            (syscalls.resume if worker.armed else syscalls.resume_to_syscall)(pid, number)
        elif worker is not None:
            syscalls.resume_to_syscall(pid, number)
        elif pid in self._attached.masters:
            syscalls.resume(pid, number)
        else:
            syscalls.detach(pid, number)
            self._forget(pid)

    def _may_arm(self, pid: int) -> bool:
        return not self._attached.needs_pool_check(pid) or self._attached.has_title(pid)

    def _arm(self, pid: int, worker: BreakpointTracer) -> int:
        """Set a worker's breakpoints; return the signal to resume it with. Detach it if it has its own handler."""
        if self._attached.needs_pool_check(pid) and not self._confirm_worker(pid):
            return 0
        has_handler, held = self._breakpoints.arm(worker, self._attached.family(pid))
        if not has_handler:
            syscalls.detach(pid, held)
            self._forget(pid)
            self._send_deferred()  # its title
            self._out.put(Channel.UNARMED, pid.to_bytes(8, "little"))
        return held

    def _abandon(self, pid: int, exc: Exception, number: int) -> None:
        """Stop tracing one worker after an error; report it, and trace the others on."""
        worker = self._attached.workers.get(pid)
        if worker is not None:
            with contextlib.suppress(*WORKER_ERRORS):
                worker.cut_off()
        with contextlib.suppress(OSError):
            if self._mode is PtraceMode.BREAKPOINTS:
                syscalls.set_breakpoints(pid, ())
        with contextlib.suppress(OSError):
            syscalls.detach(pid, number if number != signal.SIGTRAP else 0)
        self._forget(pid)
        self._attached.masters.pop(pid, None)
        self._send_deferred()  # its last request
        self._report_abandoned(pid, exc)

    def _report_abandoned(self, pid: int, exc: Exception) -> None:
        """Report it behind all else that is sent about that process."""
        text = str(exc) if isinstance(exc, PhptraceError) else f"{type(exc).__name__}: {exc}"
        self._out.put(Channel.ABANDONED, pid.to_bytes(8, "little") + text.encode("utf-8", "replace")[:200])

    def _forget(self, pid: int) -> None:
        self._breakpoints.forget(pid)
        self._attached.forget(pid)

    # The end

    def _stop(self, number: int, frame: FrameType | None) -> None:
        """Handle SIGTERM: only interrupt all processes. The loop then detaches from each at its stop."""
        self._stopping = True
        self._interrupt_all()
        signal.setitimer(signal.ITIMER_REAL, _TICK_S, _TICK_S)

    def _tick(self, number: int, frame: FrameType | None) -> None:
        if self._stopping:
            self._force = True
            self._interrupt_all()
        elif os.getppid() != self._parent:
            self._stop(number, frame)

    def _interrupt_all(self) -> None:
        for pid in self._attached.pids():
            with contextlib.suppress(OSError):
                syscalls.interrupt(pid)

    def _detach(self, pid: int, number: int, event: int) -> None:
        worker = self._attached.workers.get(pid)
        delivered: int | None = number if is_signal(number, event) else 0
        if isinstance(worker, BreakpointTracer):
            trapped = delivered == signal.SIGTRAP and worker.at_breakpoint(syscalls.registers(pid).rip)
            stopped = event == syscalls.EVENT_STOP and number != signal.SIGTRAP
            delivered = self._breakpoints.disarm(
                worker,
                at_syscall=number == _SYSCALL_STOP,
                number=0 if trapped else delivered or 0,
                force=self._force or stopped,
            )
            if delivered is None:
                return
        elif self._mode is PtraceMode.BREAKPOINTS:
            syscalls.set_breakpoints(pid, ())  # a daemon's new master, which at first was taken for a worker
        if worker is not None:
            worker.cut_off()
            self._attached.report_fork(pid, ended=False)
        syscalls.detach(pid, delivered or 0)
        self._forget(pid)
        self._attached.masters.pop(pid, None)
