"""Why a process may not be traced by ptrace, and what grants it: __ptrace_may_access(), kernel/ptrace.c, Linux 6.18."""

from __future__ import annotations

import os
import signal
from pathlib import Path

from tracer.backends.ptrace import syscalls
from tracer.errors import NotPermittedError, PhptraceError, UnsupportedError
from tracer.targets.processes import GRANTS

_CAP_SYS_PTRACE = 19
_YAMA = Path("/proc/sys/kernel/yama/ptrace_scope")


def refusal(pid: int) -> PhptraceError | None:
    """Why that process cannot be traced; None if it can, as far as can be told, or if it is gone."""
    try:
        status = _status(pid)
    except OSError:
        return None
    tracer = int(status.get("TracerPid", "0"))
    if tracer:
        return UnsupportedError(
            f"process {pid} is already traced, by process {tracer}{_named(tracer)}: there can be one tracer only."
            " Stop that one first."
        )
    missing = _missing(pid, status)
    return None if missing is None else NotPermittedError(f"may not trace process {pid}: {missing}. {GRANTS}")


def obstacle() -> str | None:
    """Why this process may not trace even a child of its own (a seccomp filter, a policy); None if it may."""
    parent = os.getpid()
    try:
        child = os.fork()
    except OSError as exc:
        return f"cannot start a process to try ptrace on: {exc.strerror}. Raise the limit on processes"
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
        return f"ptrace is refused even for a child of its own ({exc.strerror}): a seccomp filter, or a security module"
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, syscalls.WALL)
    return None


def has_capability() -> bool:
    """True if this process has CAP_SYS_PTRACE."""
    return bool(int(_status(os.getpid())["CapEff"], 16) >> _CAP_SYS_PTRACE & 1)


def yama_scope() -> int | None:
    """kernel.yama.ptrace_scope; None where the kernel has no Yama."""
    try:
        return int(_YAMA.read_text())
    except (OSError, ValueError):
        return None


def _missing(pid: int, status: dict[str, str]) -> str | None:
    scope = yama_scope()
    if scope == 3:
        return "kernel.yama.ptrace_scope is 3, which forbids it to everybody until the next boot"
    if has_capability():
        return None
    if scope == 2:
        return "kernel.yama.ptrace_scope is 2, which asks for CAP_SYS_PTRACE"
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
        return "kernel.yama.ptrace_scope is 1, which allows it to ancestors only, and this process lacks CAP_SYS_PTRACE"
    return None


def _status(pid: int) -> dict[str, str]:
    lines = Path(f"/proc/{pid}/status").read_text(errors="replace").splitlines()
    return {name: value.strip() for name, _, value in (line.partition(":") for line in lines)}


def _named(pid: int) -> str:
    try:
        return f" ({ascii(Path(f'/proc/{pid}/comm').read_text(errors='replace').strip())[1:-1]})"
    except OSError:
        return ""
