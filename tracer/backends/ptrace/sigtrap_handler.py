"""Install and remove a SIGTRAP handler in a worker, which does nothing.

If a worker hits a breakpoint just after its tracer was killed, the kernel sends it SIGTRAP. Without a handler the
worker dies of it: 121 of 300 did. With this handler none of 500 did.

The worker makes the system call itself, and returns by itself: it gets a signal frame of its state, and calls
rt_sigreturn() after the call, so that a tracer killed at any moment leaves it intact. (When the tracer had to restore
the registers, 2 of 200 workers died.) This does not work for workers with a shadow stack, nor for one that sleeps:
rt_sigreturn() would end its sleep.
"""

from __future__ import annotations

import contextlib
import os
import signal
import struct

from tracer.backends.ptrace import syscalls
from tracer.errors import UnsupportedError
from tracer.targets import arch, processes, remote_memory

_SA_RESTORER, _SA_RESTART = 0x0400_0000, 0x1000_0000
_ACTION = struct.Struct("<QQQQ")  # struct kernel_sigaction: handler, flags, restorer, mask
_FRAME_DISTANCE = 2048  # bytes below the stack pointer: far beyond the red zone
_FLOATS_AT, _ACTION_AT, _OLD_AT = 512, 1024, 1056  # from the frame; the first at a multiple of 64
_TEXT_MAX_BYTES = 8 << 20
_HELD_SIGNALS = (signal.SIGTRAP, signal.SIGSTOP, signal.SIGTSTP, signal.SIGTTIN, signal.SIGTTOU)

# struct rt_sigframe, from pretcode on: arch/x86/include/asm/sigframe.h and uapi/asm/sigcontext.h. The flags of
# uc_stack are invalid, so that the alternate stack stays unchanged (restore_altstack() ignores EINVAL).
_FRAME = struct.Struct("<QQQQiiQ18Q4H5Q64xQ")
_STRICT_SS = 0x2 | 0x4  # UC_SIGCONTEXT_SS, UC_STRICT_RESTORE_SS
_NO_STACK = 0x7777
# Of an FXSAVE image. Without the magic number here, the kernel restores no more than that image.
_SOFTWARE_BYTES = slice(464, 512)
_GENERAL_REGISTERS = (
    "r8", "r9", "r10", "r11", "r12", "r13", "r14", "r15", "rdi", "rsi", "rbp", "rbx", "rdx", "rax", "rcx",
    "rsp", "rip", "eflags",
)  # fmt: skip


class Died(Exception):  # noqa: N818 - not an error: a worker ended while phptrace worked on it
    """The worker ended; `status` is that of waitpid()."""

    def __init__(self, status: int) -> None:
        """`status`: as waitpid() returned it."""
        super().__init__(status)
        self.status = status


def may_call(regs: syscalls.Registers) -> bool:
    """True if a worker with these registers is at the end of a system call, or in an interrupted one that can be
    restarted. Then its vector registers, of which a signal frame holds only a part, are unused.
    """
    return bool(regs.orig_rax != arch.NO_SYSCALL) and not is_asleep(regs)


def is_asleep(regs: syscalls.Registers) -> bool:
    """True if it was interrupted in a system call with a time limit: sleep(), poll() and the like."""
    return bool(regs.orig_rax != arch.NO_SYSCALL) and arch.syscall_result(regs.rax) == arch.RESTART_BLOCK


class SigtrapHandler:
    """Handler for the workers of one master, which have the same C library at the same addresses."""

    def __init__(self, pid: int) -> None:
        """Find the needed code in the C library of that process; UnsupportedError if it is not there."""
        start, text = _libc_text(pid)
        places = {code: text.find(code) for code in (arch.SYSCALL_RET, arch.RET, arch.RESTORER)}
        if min(places.values()) < 0:
            raise _unsupported(pid, "its C library lacks the code of a SIGTRAP handler")
        self._places = {code: start + place for code, place in places.items()}

    def fits(self, pid: int) -> bool:
        """True if that process has the same code at these addresses; it may not be a fork of the first."""
        try:
            return all(remote_memory.read_memory(pid, at, len(code)) == code for code, at in self._places.items())
        except OSError:
            return False

    def install(self, pid: int) -> tuple[bool, int]:
        """Install the handler in a worker stopped where may_call(); False, and no change, if it has its own handler.

        Also return the signal that came meanwhile, to deliver when the worker is resumed, or 0. Raises UnsupportedError
        or OSError if the handler cannot be installed, Died if the worker ended meanwhile.
        """
        if processes.status(pid).get("x86_Thread_features", "").find("shstk") >= 0:
            raise _unsupported(pid, "it has a shadow stack")
        before, held = self._sigaction(pid, None)
        if before == self._own_action():
            return True, held  # left by a tracer that was killed
        if before[0] != 0:
            return False, held
        _, again = self._sigaction(pid, self._own_action())
        return True, _keep_first(pid, held, again)

    def remove(self, pid: int) -> int:
        """Restore SIGTRAP's default action if the handler is phptrace's; return the signal that came meanwhile, or 0.

        Raises as install().
        """
        before, held = self._sigaction(pid, None)
        if before != self._own_action():
            return held
        _, again = self._sigaction(pid, (0, 0, 0, 0))
        return _keep_first(pid, held, again)

    def _own_action(self) -> tuple[int, int, int, int]:
        return self._places[arch.RET], _SA_RESTORER | _SA_RESTART, self._places[arch.RESTORER], 0

    def _sigaction(self, pid: int, wanted: tuple[int, int, int, int] | None) -> tuple[tuple[int, int, int, int], int]:
        """Make the worker call rt_sigaction(SIGTRAP); return the action before, and the signal held meanwhile, or 0.

        `wanted`: None to change nothing.
        """
        before = syscalls.registers(pid)
        frame = (before.rsp - _FRAME_DISTANCE) & ~63
        floats = bytearray(syscalls.float_registers(pid))
        floats[_SOFTWARE_BYTES] = bytes(_SOFTWARE_BYTES.stop - _SOFTWARE_BYTES.start)
        content = self._frame(before, frame + _FLOATS_AT, _blocked(pid)).ljust(_FLOATS_AT, b"\0") + floats
        remote_memory.write_memory(pid, frame, content + _ACTION.pack(*(wanted or (0, 0, 0, 0))) + bytes(_ACTION.size))
        regs = syscalls.Registers.from_buffer_copy(before)
        regs.rip, regs.rsp = self._places[arch.SYSCALL_RET], frame
        regs.rax, regs.orig_rax = arch.SYS_RT_SIGACTION, arch.NO_SYSCALL
        regs.rdi, regs.rsi, regs.rdx = signal.SIGTRAP, frame + _ACTION_AT if wanted else 0, frame + _OLD_AT
        regs.r10 = 8
        syscalls.set_registers(pid, regs)
        result, held = _run_injected_call(pid, before)
        handler, flags, restorer, mask = _ACTION.unpack(remote_memory.read_memory(pid, frame + _OLD_AT, _ACTION.size))
        if result != 0:
            raise _unsupported(pid, "the kernel refuses it a SIGTRAP handler")
        return (handler, flags, restorer, mask), held

    def _frame(self, regs: syscalls.Registers, floats: int, blocked: int) -> bytes:
        """Return the signal frame to which the worker returns: where it is, or before a system call to restart."""
        values = {name: getattr(regs, name) for name in _GENERAL_REGISTERS}
        if arch.syscall_result(regs.rax) in arch.RESTARTS:
            values["rax"] = regs.orig_rax
            values["rip"] = regs.rip - len(arch.SYSCALL)
        return _FRAME.pack(
            self._places[arch.RESTORER], _STRICT_SS, 0, 0, _NO_STACK, 0, 0,
            *values.values(), regs.cs, 0, 0, regs.ss, 0, 0, 0, 0, floats, blocked,
        )  # fmt: skip


def _run_injected_call(pid: int, before: syscalls.Registers) -> tuple[int, int]:
    """Run the worker through the call; return the call's result, and a signal to deliver later, or 0.

    If the code faults, restores the worker's registers and raises UnsupportedError.
    """
    held = deliver = result = 0
    number = None
    while True:
        syscalls.resume_to_syscall(pid, deliver)
        deliver = 0
        _, status = os.waitpid(pid, syscalls.WALL)
        if not os.WIFSTOPPED(status):
            raise Died(status)
        stopped, event = status >> 8 & 0xFF, status >> 16
        if stopped == signal.SIGTRAP | 0x80:
            made = syscalls.syscall_stop(pid)
            if isinstance(made, syscalls.Entry):
                number = made.number
            elif isinstance(made, syscalls.Exit) and number == arch.SYS_RT_SIGACTION:
                result = made.result
            elif isinstance(made, syscalls.Exit) and number == arch.SYS_RT_SIGRETURN:
                return result, held
        elif event:
            continue
        elif stopped in arch.FAULTS:
            syscalls.set_registers(pid, before)
            raise _unsupported(pid, f"it got {signal.Signals(stopped).name} while it installed the SIGTRAP handler")
        elif stopped in _HELD_SIGNALS:
            held = _keep_first(pid, held, stopped)
        else:
            deliver = stopped  # now: the worker may run a handler here, or end


def _keep_first(pid: int, held: int, more: int) -> int:
    """Return the signal to deliver on resume: the first, since one can be. Send the other, if that is permitted."""
    if held and more:
        with contextlib.suppress(OSError):
            os.kill(pid, more)
    return held or more


def _blocked(pid: int) -> int:
    """Mask of the signals it blocks."""
    return int(processes.status(pid)["SigBlk"], 16)


def _libc_text(pid: int) -> tuple[int, bytes]:
    for mapping in processes.file_mappings(pid):
        if mapping.executable and processes.is_libc(mapping.path):
            return mapping.start, remote_memory.read_memory(
                pid, mapping.start, min(mapping.end - mapping.start, _TEXT_MAX_BYTES)
            )
    raise _unsupported(pid, "it has no known C library")


def _unsupported(pid: int, reason: str) -> UnsupportedError:
    return UnsupportedError(f"cannot set breakpoints in process {pid}: {reason}. Use --ptrace-mode syscalls.")


def drain_traps(pid: int) -> int:
    """Discard every pending SIGTRAP of a stopped worker; return another signal that came meanwhile, or 0.

    A worker that is detached with one pending dies of it: 8 of 800 did. Raises Died if the worker ended meanwhile.
    """
    other = 0
    while _is_trap_pending(pid):
        syscalls.resume(pid)
        _, status = os.waitpid(pid, syscalls.WALL)
        if not os.WIFSTOPPED(status):
            raise Died(status)
        number, event = status >> 8 & 0xFF, status >> 16
        if not event and number != signal.SIGTRAP:
            other = _keep_first(pid, other, number)
    return other


def _is_trap_pending(pid: int) -> bool:
    bit = 1 << signal.SIGTRAP - 1
    status = processes.status(pid)
    return any(int(status[name], 16) & bit for name in ("SigPnd", "ShdPnd"))
