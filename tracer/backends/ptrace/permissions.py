"""Reasons why ptrace may not trace a process: __ptrace_may_access(), kernel/ptrace.c, Linux 6.18."""

from __future__ import annotations

import os
import platform
import signal
from pathlib import Path

from tracer.backends import PtraceMode
from tracer.backends.ptrace import syscalls
from tracer.errors import NotPermittedError, PhptraceError, UnsupportedError
from tracer.targets import arch, processes
from tracer.targets.processes import GRANTS
from tracer.targets.resolve import Target

_CAP_SYS_PTRACE = 19
_YAMA = Path("/proc/sys/kernel/yama/ptrace_scope")


def refusal(pid: int) -> PhptraceError | None:
    """Return why that process cannot be traced; None if it is gone, or if nothing visible forbids it."""
    try:
        status = processes.status(pid)
    except OSError:
        return None
    tracer = int(status.get("TracerPid", "0"))
    if tracer:
        return UnsupportedError(
            f"cannot trace process {pid}: it is already traced, by process {tracer}{_comm(tracer)}, and can have only"
            " one tracer. Stop that one first."
        )
    missing = _missing_right(pid, status)
    return None if missing is None else NotPermittedError(f"cannot trace process {pid}: {missing}. {GRANTS}")


def refusal_of(target: Target, mode: PtraceMode, *, stacks: bool) -> PhptraceError | None:
    """Return why these processes cannot be traced in that mode; None if nothing visible forbids it."""
    shown = target.php.image.shown
    if not target.speaks_fastcgi and target.sapi is None:
        return UnsupportedError(
            f"cannot trace process {target.pid}: {shown} has no symbols that BPF could use, and is neither php-fpm nor"
            " php-cgi, whose FastCGI ptrace follows. Use a build of PHP with dynamic symbols."
        )
    if not target.speaks_fastcgi:
        return UnsupportedError(
            f"cannot trace process {target.pid}: it is PHP's {ascii(target.sapi)[1:-1]}, and ptrace finds requests by"
            " FastCGI, which only php-fpm and php-cgi speak. Use --backend bpf."
        )
    if mode is PtraceMode.BREAKPOINTS and (refused := _breakpoints_refused(target, stacks=stacks)) is not None:
        return refused
    return next((why for process in target.processes if (why := refusal(process.pid)) is not None), None)


def _breakpoints_refused(target: Target, *, stacks: bool) -> UnsupportedError | None:
    """Return why breakpoints cannot be set in the target."""
    hooks = target.php.hooks
    if platform.machine() != arch.MACHINE:
        return UnsupportedError(
            f"cannot use --ptrace-mode breakpoints on {platform.machine()}: it works on x86-64 only. Elsewhere a"
            " worker whose tracer was killed would hit a breakpoint again and again. Use --ptrace-mode syscalls."
        )
    if hooks is None or hooks.end_is_return:
        return UnsupportedError(
            f"cannot use --ptrace-mode breakpoints: {target.php.image.shown} has no instruction at the end of a"
            " request that can have a breakpoint. Use --ptrace-mode syscalls."
        )
    if stacks:
        return UnsupportedError(
            "cannot use --stacks with --ptrace-mode breakpoints: breakpoints see no memory calls."
            " Use --ptrace-mode syscalls."
        )
    return None


def obstacle() -> str | None:
    """Return why this process may not trace even its own child (a seccomp filter, a policy); None if it may."""
    parent = os.getpid()
    try:
        child = os.fork()
    except OSError as exc:
        return f"cannot start a process to test ptrace on: {exc.strerror}. Raise the limit on processes (ulimit -u)"
    if child == 0:
        try:
            syscalls.die_with_parent(signal.SIGKILL)
            if os.getppid() == parent:  # otherwise it died before the line above, and no signal will come
                signal.pause()
        finally:
            os._exit(0)
    try:
        syscalls.seize(child, syscalls.O_SYSGOOD)
    except OSError as exc:
        return (
            f"cannot trace even a child process: a seccomp filter or a security module forbids ptrace ({exc.strerror})"
        )
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, syscalls.WALL)
    return None


def has_capability() -> bool:
    """True if this process has CAP_SYS_PTRACE."""
    return bool(int(processes.status("self")["CapEff"], 16) >> _CAP_SYS_PTRACE & 1)


def yama_scope() -> int | None:
    """kernel.yama.ptrace_scope; None where the kernel has no Yama."""
    try:
        return int(_YAMA.read_text())
    except (OSError, ValueError):
        return None


def _missing_right(pid: int, status: dict[str, str]) -> str | None:
    scope = yama_scope()
    if scope == 3:
        return "kernel.yama.ptrace_scope is 3, which forbids ptrace to every process until the next boot"
    if has_capability():
        return None
    if scope == 2:
        return "kernel.yama.ptrace_scope is 2, which requires CAP_SYS_PTRACE"
    if set(status["Uid"].split()) != {str(os.geteuid())} or set(status["Gid"].split()) != {str(os.getegid())}:
        return "it belongs to another user, and this process lacks CAP_SYS_PTRACE"
    # Everything in /proc/PID of a process that is not dumpable belongs to root: fs/proc/base.c
    try:
        owner = os.stat(f"/proc/{pid}").st_uid
    except OSError:
        return None  # it has ended since its status was read
    if owner != os.geteuid():
        return "it is not dumpable (process.dumpable = no), and this process lacks CAP_SYS_PTRACE"
    if scope == 1:
        return "kernel.yama.ptrace_scope is 1, which only lets ancestors trace, and this process lacks CAP_SYS_PTRACE"
    return None


def _comm(pid: int) -> str:
    try:
        return f" ({ascii(Path(f'/proc/{pid}/comm').read_text(errors='replace').strip())[1:-1]})"
    except OSError:
        return ""
