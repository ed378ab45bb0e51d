"""Make the tracer of a worker from its pid: find where its PHP is loaded, and what can be read from it."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable
from pathlib import Path

from tracer.backends import PtraceMode, StackOptions
from tracer.backends.ptrace.breakpoint_tracer import BreakpointTracer
from tracer.backends.ptrace.php_stack import Walker
from tracer.backends.ptrace.proc_files import WorkerFiles
from tracer.backends.ptrace.stack_records import StackSender
from tracer.backends.ptrace.syscall_tracer import SyscallTracer
from tracer.backends.ptrace.worker_tracer import WorkerTracer
from tracer.errors import UnsupportedError
from tracer.targets import arch, processes
from tracer.targets.php import Php
from tracer.targets.php_memory import PhpMemory
from tracer.targets.resolve import Target

# In the format of /proc/PID/syscall.
_ACCEPTING = tuple(map(str, arch.ACCEPTING))
_READ = str(arch.SYS_READ)
# An interrupted worker stops at once; one that computes may take a tick.
_STOP_LOOKS, _STOP_LOOK_S = 100, 0.0005
_HEADER_BYTES = "0x8"  # of a FastCGI record, which php reads with a separate call


class TracerFactory:
    """Makes the tracers of the workers of one attach."""

    def __init__(
        self,
        emit: Callable[[Callable[[], bytes]], None],
        send_stack: Callable[[bytes], None],
        stacks: StackOptions | None,
        mode: PtraceMode,
    ) -> None:
        """`emit` takes a function that makes a request's record; `send_stack` a record of a stack.

        `stacks`: None for no stacks.
        """
        self._emit = emit
        self._send_stack = send_stack
        self._stacks = stacks
        self._mode = mode
        self._biases: dict[int, int | None] = {}

    def bias(self, pid: int, target: Target, *, born: bool) -> int | None:
        """Return running address minus link address of the target's PHP; None if the process runs another program.

        A worker `born` during tracing is a fork, and has its master's. The first call for a process reads /proc for
        some ms: make it before the process is stopped.
        """
        owner = target.master.pid if born and target.master is not None else pid
        if owner not in self._biases:
            try:
                self._biases[owner] = processes.load_bias(pid, target.php.image)
            except (OSError, UnsupportedError):
                self._biases[owner] = None
        return self._biases[owner]

    def forget(self, master: int) -> None:
        """Drop the addresses of a master that became another program: its new workers have others."""
        self._biases.pop(master, None)

    def tracer(self, pid: int, target: Target, *, born: bool) -> WorkerTracer:
        """Return a new tracer of that worker.

        Raises OSError if the process is gone, UnsupportedError if breakpoints are asked for and cannot be set.
        """
        php, bias = target.php, self.bias(pid, target, born=born)
        if bias is None:
            php, bias = _without_offsets(php), 0
        memory = PhpMemory(pid, php, bias)
        if self._mode is PtraceMode.BREAKPOINTS:
            if php.hooks is None:
                raise UnsupportedError(
                    "cannot set breakpoints: the worker runs another PHP than its master did when tracing began."
                    " Start phptrace again."
                )
            return BreakpointTracer(pid, WorkerFiles(pid), memory, php.hooks, bias, self._emit, born=born)
        sender = self._sender(pid, php, bias)
        on_call = None if sender is None else sender.memory_call
        busy = not born and _is_busy(pid, memory)
        return SyscallTracer(pid, WorkerFiles(pid), memory, self._emit, on_call, busy=busy)

    def _sender(self, pid: int, php: Php, bias: int) -> StackSender | None:
        """Return the sender of its stacks; None if stacks are not asked for, or cannot be read."""
        if self._stacks is None or php.stack is None or php.executor_globals is None:
            return None
        current = bias + php.executor_globals + php.stack.eg_current_execute_data
        return StackSender(pid, Walker(pid, php.stack, current, self._stacks.max_depth), self._send_stack)


def _without_offsets(php: Php) -> Php:
    """Return a copy without addresses and offsets: every read with it is None."""
    return dataclasses.replace(
        php, hooks=None, heap=None, layout=None, sapi_globals=None, core_globals=None, executor_globals=None,
        sapi_module=None, stack=None,
    )  # fmt: skip


def _system_call(pid: int) -> list[str]:
    """The fields of /proc/PID/syscall of a worker that is being interrupted: on the way to its stop it is `running`."""
    fields = Path(f"/proc/{pid}/syscall").read_text().split()
    for _ in range(_STOP_LOOKS):
        if fields != ["running"]:
            break
        time.sleep(_STOP_LOOK_S)
        fields = Path(f"/proc/{pid}/syscall").read_text().split()
    return fields


def _is_busy(pid: int, memory: PhpMemory) -> bool:
    """True if it is in a request. If Zend's heap is unknown, True unless it waits for a connection, or for a request on
    one; False if its system call cannot be read.
    """
    in_request = memory.in_request()
    if in_request is not None:
        return in_request
    try:
        number, *arguments = _system_call(pid)
    except (OSError, ValueError):
        return False
    return number not in _ACCEPTING and not (number == _READ and arguments[2] == _HEADER_BYTES)
