"""Set breakpoints in workers, and first the SIGTRAP handler that makes them harmless; remove both on detach."""

from __future__ import annotations

import signal

from tracer.backends.ptrace import syscalls
from tracer.backends.ptrace.breakpoint_tracer import BreakpointTracer
from tracer.backends.ptrace.sigtrap_handler import SigtrapHandler, drain_traps, is_asleep, may_call


class Breakpoints:
    """Breakpoints of all workers. A family is the workers of one master: the same libraries at the same addresses.

    arm() and disarm() raise UnsupportedError or OSError if a worker cannot be changed, Died if it ended.
    """

    def __init__(self) -> None:
        """Start with no worker."""
        self._families: dict[int, SigtrapHandler] = {}
        self._handlers: dict[int, SigtrapHandler] = {}  # by worker

    def arm(self, worker: BreakpointTracer, family: int) -> tuple[bool, int]:
        """Set the breakpoints of a worker stopped where can_call(); False, and no change, if it has its own handler.

        Also return a signal that came meanwhile, to deliver when the worker is resumed, or 0.
        """
        pid = worker.pid
        syscalls.set_breakpoints(pid, ())  # left by a tracer that was killed
        handler = self._families.get(family)
        if handler is None or not handler.fits(pid):
            handler = SigtrapHandler(pid)
            self._families.setdefault(family, handler)
        worker.has_handler, held = handler.install(pid)
        if worker.has_handler:
            self._handlers[pid] = handler
            syscalls.set_breakpoints(pid, worker.breakpoints)
            worker.armed = True
        return worker.has_handler, held

    def disarm(self, worker: BreakpointTracer, *, at_syscall: bool, number: int, force: bool) -> int | None:
        """Clear a stopped worker's breakpoints, then remove its handler; return the signal to detach it with.

        None if the handler cannot be removed at this stop: then the worker was resumed, with the signal `number`,
        and stops again. A worker that sleeps keeps its handler, which does nothing. So does any worker with `force`,
        which the caller also sets for one stopped by a signal.
        """
        pid = worker.pid
        syscalls.set_breakpoints(pid, ())
        if not worker.has_handler or force or is_asleep(syscalls.registers(pid)):
            return number
        if number or not can_call(pid):
            # Removed in its next system call; if that blocks, the worker is interrupted.
            syscalls.resume_to_syscall(pid, number)
            if at_syscall:
                syscalls.interrupt(pid)
            return None
        worker.has_handler = False
        other = drain_traps(pid)
        return self._handlers.pop(pid).remove(pid) or other

    def forget_family(self, family: int) -> None:
        """Drop the handler of a master that became another program: its new workers have other libraries."""
        self._families.pop(family, None)

    def forget(self, pid: int) -> None:
        """Drop the data of a worker that ended or was detached."""
        self._handlers.pop(pid, None)


def can_call(pid: int) -> bool:
    """True if a stopped worker has made a system call, or waits in one that will be restarted: there phptrace can
    make it execute another.
    """
    made = syscalls.syscall_stop(pid)
    return not isinstance(made, syscalls.Entry) and may_call(syscalls.registers(pid))


def is_signal(number: int, event: int) -> bool:
    """True if the worker stopped because a signal is about to be delivered."""
    return not event and number != signal.SIGTRAP | 0x80
