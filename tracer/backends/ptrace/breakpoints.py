"""Breakpoints in workers and, before them, the handler that makes them harmless; both are taken away again."""

from __future__ import annotations

import signal

from tracer.backends.ptrace import syscalls
from tracer.backends.ptrace.breakpoint_tracer import BreakpointTracer
from tracer.backends.ptrace.sigtrap_handler import SigtrapHandler, drain_traps, is_asleep, may_call


class Breakpoints:
    """Sets and clears them. A family are the workers of one master, which have the same libraries at the same places.

    What arm() and let_go() raise: UnsupportedError or OSError where a worker cannot be had; Died if it ended.
    """

    def __init__(self) -> None:
        """Start with no worker."""
        self._families: dict[int, SigtrapHandler] = {}
        self._handlers: dict[int, SigtrapHandler] = {}  # by worker

    def arm(self, worker: BreakpointTracer, family: int) -> tuple[bool, int]:
        """Of a worker that stands where can_call(); False if it has a handler of its own, and is let be.

        Also a signal that came meanwhile, to be delivered when it is resumed, or 0.
        """
        pid = worker.pid
        syscalls.set_breakpoints(pid, ())  # those of a tracer that was killed
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

    def let_go(self, worker: BreakpointTracer, *, at_syscall: bool, number: int, hurry: bool) -> int | None:
        """Clears a stopped worker's breakpoints, then takes its handler away; the signal to detach it with.

        None where the handler can be taken away only a little further on: it was resumed, with the signal `number`.
        A worker that sleeps, or that is in a `hurry`, keeps its handler, which does nothing; so does one that is
        stopped by a signal.
        """
        pid = worker.pid
        syscalls.set_breakpoints(pid, ())
        if not worker.has_handler or hurry or is_asleep(syscalls.registers(pid)):
            return number
        if number or not can_call(pid):
            # In its next system call; should that block, it is interrupted.
            syscalls.resume_to_syscall(pid, number)
            if at_syscall:
                syscalls.interrupt(pid)
            return None
        worker.has_handler = False
        other = drain_traps(pid)
        return self._handlers.pop(pid).remove(pid) or other

    def forget_family(self, family: int) -> None:
        """A master became another program: what it forks now has other libraries."""
        self._families.pop(family, None)

    def forget(self, pid: int) -> None:
        """Drop what is kept of a worker that ended or was let go."""
        self._handlers.pop(pid, None)


def can_call(pid: int) -> bool:
    """True if a stopped worker has made a system call, or waits in one that will be made again: there it can be
    given another to make.
    """
    made = syscalls.syscall_stop(pid)
    return not isinstance(made, syscalls.Entry) and may_call(syscalls.registers(pid))


def is_signal(number: int, event: int) -> bool:
    """True if a stop is that of a signal about to be delivered."""
    return not event and number != signal.SIGTRAP | 0x80
