"""From a pid to what follows that worker: where its PHP is loaded, and what can be read of it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

from tracer.backends import PtraceMode, StackOptions
from tracer.backends.ptrace.breakpoint_tracer import BreakpointTracer
from tracer.backends.ptrace.php_memory import PhpMemory
from tracer.backends.ptrace.php_stack import Walker
from tracer.backends.ptrace.proc_files import WorkerFiles
from tracer.backends.ptrace.stack_records import StackSender
from tracer.backends.ptrace.syscall_tracer import SyscallTracer
from tracer.backends.ptrace.tracee import Tracee
from tracer.errors import UnsupportedError
from tracer.targets import arch, processes
from tracer.targets.php import Php
from tracer.targets.resolve import Target

# As /proc/PID/syscall has them.
_ACCEPTING = (str(arch.SYS_ACCEPT), str(arch.SYS_ACCEPT4))
_READ = str(arch.SYS_READ)
_HEADER_BYTES = "0x8"  # of a FastCGI record, for which php asks alone


class WorkerFactory:
    """Makes them for the workers of one attach."""

    def __init__(
        self,
        emit: Callable[[Callable[[], bytes]], None],
        send_stack: Callable[[bytes], None],
        stacks: StackOptions | None,
        mode: PtraceMode,
    ) -> None:
        """`emit` takes what makes a request's record, `send_stack` records of stacks, where those are wanted."""
        self._emit = emit
        self._send_stack = send_stack
        self._stacks = stacks
        self._mode = mode
        self._biases: dict[int, int | None] = {}

    def bias(self, pid: int, target: Target, *, born: bool) -> int | None:
        """Running address minus link address of the target's PHP in that process; None if it runs something else.

        Of one `born` under watch, what its master has: it is a fork. Reads /proc for some ms: not of a stopped one.
        """
        owner = target.master.pid if born and target.master is not None else pid
        if owner not in self._biases:
            try:
                self._biases[owner] = processes.load_bias(pid, target.php.image)
            except (OSError, UnsupportedError):
                self._biases[owner] = None
        return self._biases[owner]

    def forget(self, master: int) -> None:
        """It became another program: what it forks now has other addresses."""
        self._biases.pop(master, None)

    def worker(self, pid: int, target: Target, *, born: bool) -> Tracee:
        """OSError if it is gone; UnsupportedError if breakpoints are wanted and there is no place for them."""
        php, bias = target.php, self.bias(pid, target, born=born)
        if bias is None:
            php, bias = _without_offsets(php), 0
        memory = PhpMemory(pid, php, bias)
        if self._mode is PtraceMode.BREAKPOINTS:
            if php.hooks is None:
                raise UnsupportedError("they run another PHP than their master did when tracing began")
            return BreakpointTracer(pid, WorkerFiles(pid), memory, php.hooks, bias, self._emit)
        sender = self._sender(pid, php, bias)
        on_call = None if sender is None else sender.memory_call
        busy = not born and _is_busy(pid, memory)
        return SyscallTracer(pid, WorkerFiles(pid), memory, self._emit, on_call, busy=busy)

    def _sender(self, pid: int, php: Php, bias: int) -> StackSender | None:
        """The sender of the stacks of its memory calls; None if not asked for, or not available."""
        if self._stacks is None or php.stack is None or php.executor_globals is None:
            return None
        current = bias + php.executor_globals + php.stack.eg_current_execute_data
        return StackSender(pid, Walker(pid, php.stack, current, self._stacks.max_depth), self._send_stack)


def _without_offsets(php: Php) -> Php:
    """The same, with nothing known of what is in it."""
    return dataclasses.replace(
        php, hooks=None, heap=None, layout=None, sapi_globals=None, core_globals=None, executor_globals=None,
        sapi_module=None, stack=None,
    )  # fmt: skip


def _is_busy(pid: int, memory: PhpMemory) -> bool:
    """True if it is in a request. Where Zend's heap is not known, whether it does anything but wait for a connection,
    or for a request on one; False if that may not be seen.
    """
    in_request = memory.in_request()
    if in_request is not None:
        return in_request
    try:
        number, *arguments = Path(f"/proc/{pid}/syscall").read_text().split()
    except (OSError, ValueError):
        return False
    return number not in _ACCEPTING and not (number == _READ and arguments[2] == _HEADER_BYTES)
