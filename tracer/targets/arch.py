"""Facts particular to x86-64: the place to start from for another architecture.

Also to be ported: the instruction forms in targets/machine_code.py, the registers that bpf/*.c reads, and the machine
code and signal frame of backends/ptrace/sigtrap_handler.py.
"""

from __future__ import annotations

import signal

MACHINE = "x86_64"  # the result of platform.machine()
ELF_MACHINE = "x64"  # the machine of an ELF file, by pyelftools' short names

# System call numbers: arch/x86/entry/syscalls/syscall_64.tbl, Linux 6.18.
SYS_READ = 0
SYS_WRITE = 1
SYS_CLOSE = 3
SYS_MMAP = 9
SYS_MUNMAP = 11
SYS_BRK = 12
SYS_RT_SIGACTION = 13
SYS_RT_SIGRETURN = 15
SYS_MREMAP = 25
SYS_SETITIMER = 38
SYS_ACCEPT = 43
SYS_SENDTO = 44
SYS_ACCEPT4 = 288
ACCEPTING = (SYS_ACCEPT, SYS_ACCEPT4)
SYS_PERF_EVENT_OPEN = 298  # 241 on aarch64

# Machine code: Intel SDM volume 2.
SYSCALL = b"\x0f\x05"
RET = b"\xc3"
SYSCALL_RET = SYSCALL + RET
# mov $15,%rax; syscall: glibc's __restore_rt, sysdeps/unix/sysv/linux/x86_64/libc_sigaction.c.
RESTORER = b"\x48\xc7\xc0" + SYS_RT_SIGRETURN.to_bytes(4, "little") + SYSCALL

# struct user_regs_struct, arch/x86/include/asm/user_64.h, Linux 6.18: its members in order, eight bytes each.
USER_REGISTERS = (
    "r15", "r14", "r13", "r12", "rbp", "rbx", "r11", "r10", "r9", "r8", "rax", "rcx", "rdx", "rsi", "rdi",
    "orig_rax", "rip", "cs", "eflags", "rsp", "ss", "fs_base", "gs_base", "ds", "es", "fs", "gs",
)  # fmt: skip
FLOAT_BYTES = 512  # struct user_i387_struct, same file: an FXSAVE image
NO_SYSCALL = (1 << 64) - 1  # orig_rax outside of system calls

# What rax holds when a stop interrupted a system call: include/linux/errno.h, Linux 6.18. The kernel makes a call of
# the first kind once more (ERESTARTSYS, ERESTARTNOINTR, ERESTARTNOHAND). Only the kernel knows how much of a sleep is
# left (ERESTART_RESTARTBLOCK), and rt_sigreturn() has it forget that (restore_sigcontext(),
# arch/x86/kernel/signal_64.c).
RESTARTS = (-512, -513, -514)
RESTART_BLOCK = -516

# Debug registers: four addresses, and a control register whose bits 0, 2, 4 and 6 enable them (Intel SDM volume 3B,
# 18.2). The kernel has them at u_debugreg of struct user, arch/x86/include/asm/user_64.h, Linux 6.18.
DEBUG_REGISTERS_OFFSET = 848
DEBUG_CONTROL = 7

# What a worker would die of if code it was sent through is not what it seemed.
FAULTS = (signal.SIGSEGV, signal.SIGBUS, signal.SIGILL, signal.SIGFPE, signal.SIGSYS)


def debug_register_offset(number: int) -> int:
    """Offset in struct user of a debug register, for PTRACE_POKEUSER."""
    return DEBUG_REGISTERS_OFFSET + 8 * number


def debug_control(count: int) -> int:
    """The control register's value that enables the first `count` breakpoints, to stop before execution."""
    return sum(1 << 2 * number for number in range(count))


def syscall_result(rax: int) -> int:
    """The result of a system call, signed, from the unsigned value of rax."""
    return rax - (1 << 64) if rax >> 63 else rax
