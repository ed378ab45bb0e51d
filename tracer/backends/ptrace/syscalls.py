"""Typed wrappers of the ptrace(2) calls that phptrace uses.

python-ptrace is not used: it has no SEIZE, no GET_SYSCALL_INFO and no process_vm_readv, kills the children it followed
when it quits, and is GPL-2.0-only.

The thread that attached must make every call. ProcessLookupError: the process is gone, or is not stopped.
PermissionError: it may not be traced.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Sequence
from typing import NamedTuple

from tracer.targets import arch
from tracer.targets.remote_memory import Iovec

# include/uapi/linux/ptrace.h, Linux 6.18
_POKEUSER = 6
_CONT, _DETACH, _SYSCALL = 7, 17, 24
_GETEVENTMSG = 0x4201
_GETREGSET, _SETREGSET = 0x4204, 0x4205
_NT_PRSTATUS, _NT_PRFPREG = 1, 2
_SEIZE, _INTERRUPT, _LISTEN, _GET_SYSCALL_INFO = 0x4206, 0x4207, 0x4208, 0x420E

# Without it, a stop at a system call is an ordinary SIGTRAP, which the kernel delivers if the tracer is killed: 113 of
# 300 workers died of it.
O_SYSGOOD = 1 << 0
O_FORK = 1 << 1
O_EXEC = 1 << 4

EVENT_FORK, EVENT_EXEC, EVENT_STOP = 1, 4, 128
WALL = 0x4000_0000  # waitpid(2): __WALL
_ENTRY, _EXIT = 1, 2
_PR_SET_PDEATHSIG = 1  # include/uapi/linux/prctl.h, Linux 6.18


class _SyscallInfo(ctypes.Structure):
    """struct ptrace_syscall_info; of its union, the first words: nr and args, or rval."""

    _fields_ = (
        ("op", ctypes.c_uint8),
        ("pad", ctypes.c_uint8 * 3),
        ("arch", ctypes.c_uint32),
        ("ip", ctypes.c_uint64),
        ("sp", ctypes.c_uint64),
        ("words", ctypes.c_int64 * 8),
    )


class Entry(NamedTuple):
    """The entry of a system call."""

    number: int
    arguments: tuple[int, ...]  # six, unsigned


class Exit(NamedTuple):
    """The exit of a system call; `result` is negative if it failed."""

    result: int


_libc = ctypes.CDLL(None, use_errno=True)
_libc.ptrace.argtypes = (ctypes.c_long, ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p)
_libc.ptrace.restype = ctypes.c_long
_info = _SyscallInfo()
_info_at, _info_size = ctypes.addressof(_info), ctypes.sizeof(_info)
_U64 = (1 << 64) - 1


def die_with_parent(signal: int) -> None:
    """Make the kernel send this process that signal when its parent dies.

    The kernel sends nothing if the parent died before the call: compare os.getppid() after it.
    """
    _libc.prctl(_PR_SET_PDEATHSIG, signal, 0, 0, 0)


def _call(request: int, pid: int, address: int = 0, value: int = 0) -> int:
    ctypes.set_errno(0)
    result = int(_libc.ptrace(request, pid, address, value))
    if result == -1:
        code = ctypes.get_errno()
        if code:
            raise OSError(code, os.strerror(code))  # Python makes it the subclass of that code
    return result


def seize(pid: int, options: int) -> None:
    """Attach to a process without stopping it."""
    _call(_SEIZE, pid, 0, options)


def interrupt(pid: int) -> None:
    """Stop a tracee, with EVENT_STOP. A system call in which it waits is restarted when it is resumed."""
    _call(_INTERRUPT, pid)


def listen(pid: int) -> None:
    """Leave a tracee stopped by its signal, as if untraced; SIGCONT shows as EVENT_STOP."""
    _call(_LISTEN, pid)


def resume(pid: int, signal: int = 0) -> None:
    """Resume a tracee, and deliver the signal unless it is 0."""
    _call(_CONT, pid, 0, signal)


def resume_to_syscall(pid: int, signal: int = 0) -> None:
    """Resume a tracee to the next entry or exit of a system call, and deliver the signal unless it is 0."""
    _call(_SYSCALL, pid, 0, signal)


class Registers(ctypes.Structure):
    """struct user_regs_struct, x86-64."""

    _fields_ = tuple((name, ctypes.c_uint64) for name in arch.USER_REGISTERS)


def registers(pid: int) -> Registers:
    """General registers of a stopped tracee."""
    found = Registers()
    iovec = Iovec(ctypes.addressof(found), ctypes.sizeof(found))
    _call(_GETREGSET, pid, _NT_PRSTATUS, ctypes.addressof(iovec))
    return found


def set_registers(pid: int, wanted: Registers) -> None:
    """Overwrite the general registers of a stopped tracee."""
    iovec = Iovec(ctypes.addressof(wanted), ctypes.sizeof(wanted))
    _call(_SETREGSET, pid, _NT_PRSTATUS, ctypes.addressof(iovec))


def float_registers(pid: int) -> bytes:
    """struct user_fpregs_struct, x86-64: an FXSAVE image, with the control words that a script may have set."""
    found = ctypes.create_string_buffer(arch.FLOAT_BYTES)
    iovec = Iovec(ctypes.addressof(found), arch.FLOAT_BYTES)
    _call(_GETREGSET, pid, _NT_PRFPREG, ctypes.addressof(iovec))
    return found.raw


def set_breakpoints(pid: int, addresses: Sequence[int]) -> None:
    """Make a tracee stop with SIGTRAP before it executes any of up to four addresses; () clears them.

    They are in its debug registers, which stay set when the tracer dies: clear them before detaching.
    """
    control = arch.debug_register_offset(arch.DEBUG_CONTROL)
    _call(_POKEUSER, pid, control, 0)
    for number, address in enumerate(addresses):
        _call(_POKEUSER, pid, arch.debug_register_offset(number), address)
    if addresses:
        _call(_POKEUSER, pid, control, arch.debug_control(len(addresses)))


def event_message(pid: int) -> int:
    """The message of the event at which the process stopped: at a fork, the pid of the child."""
    message = ctypes.c_ulong()
    _call(_GETEVENTMSG, pid, 0, ctypes.addressof(message))
    return message.value


def detach(pid: int, signal: int = 0) -> None:
    """Detach from a stopped tracee, which runs on, and deliver the signal unless it is 0."""
    _call(_DETACH, pid, 0, signal)


def syscall_stop(pid: int) -> Entry | Exit | None:
    """Return the system call at whose entry or exit a tracee is stopped; None if at neither. Linux >= 5.3."""
    _call(_GET_SYSCALL_INFO, pid, _info_size, _info_at)
    if _info.op == _ENTRY:
        words = _info.words
        return Entry(words[0], tuple([words[at] & _U64 for at in range(1, 7)]))
    if _info.op == _EXIT:
        return Exit(_info.words[0])
    return None
