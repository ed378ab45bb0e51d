"""Attaches loaded BPF programs to uprobes, page faults and the CPU clock through perf_event_open(2).

Uprobes only where the kernel has no links: uprobe_multi.py.
Not through bcc: where perf_event_open fails, bcc 0.26 falls back to writing tracefs' uprobe_events,
which outlives a SIGKILL, and it passes six arguments to a function of seven, so that the uprobe's
reference counter is whatever the stack held. A perf event is gone when its descriptor is.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import os
import platform

from tracer.errors import PhptraceError, TargetGoneError, UnsupportedError
from tracer.targets import arch

# include/uapi/linux/perf_event.h, Linux 6.18
_IOC_ENABLE = 0x2400
_IOC_SET_BPF = 0x4004_2408
_FLAG_FD_CLOEXEC = 1 << 3
_TYPE_SOFTWARE = 1
_DISABLED, _INHERIT = 1 << 0, 1 << 1  # of perf_event_attr.flags
_ENOTSUPP = 524  # include/linux/errno.h, Linux 6.18: the kernel's own; uprobes return it for an instruction
# This kernel does not know, or does not allow, what was asked: BPF cannot be used.
_UNSUPPORTED = {
    errno.ENOSYS,
    errno.EOPNOTSUPP,
    errno.EPERM,
    errno.EACCES,
    errno.EINVAL,
    errno.ENOENT,
    errno.ENOEXEC,
    _ENOTSUPP,
}
_ADVICE = {
    errno.EMFILE: "Raise the limit on open files (ulimit -n), or trace fewer workers.",
    errno.ENFILE: "Raise the host's limit on open files (sysctl fs.file-max), or trace fewer workers.",
    errno.ENOMEM: "Free memory on this host, or trace without --stacks.",
}
PERF_COUNT_SW_CPU_CLOCK = 0
PERF_COUNT_SW_PAGE_FAULTS = 2


class _Attr(ctypes.Structure):
    """struct perf_event_attr, up to config2: PERF_ATTR_SIZE_VER1."""

    _fields_ = (
        ("type", ctypes.c_uint32),
        ("size", ctypes.c_uint32),
        ("config", ctypes.c_uint64),
        ("sample_period", ctypes.c_uint64),
        ("sample_type", ctypes.c_uint64),
        ("read_format", ctypes.c_uint64),
        ("flags", ctypes.c_uint64),
        ("wakeup_events", ctypes.c_uint32),
        ("bp_type", ctypes.c_uint32),
        ("config1", ctypes.c_uint64),
        ("config2", ctypes.c_uint64),
    )


def attach_uprobe(program_fd: int, pmu: int, path: str, file_offset: int, *, at_return: bool = False) -> int:
    """Run the program in every process that executes that place of that file; return the perf event's descriptor.

    `pmu` is the type of the uprobe PMU. The caller closes the descriptor, which detaches. Raises as perf_error() says.
    """
    buffer = ctypes.create_string_buffer(os.fsencode(path))
    attr = _Attr(type=pmu, config=int(at_return), config1=ctypes.addressof(buffer), config2=file_offset)
    attr.sample_period = 1
    attr.wakeup_events = 1
    # pid -1 on CPU 0: a uprobe with a BPF program fires on every CPU all the same.
    return _open(attr, program_fd, -1, 0, f"{path}+{file_offset:#x}")


def attach_software(program_fd: int, event: int, period: int, tid: int) -> int:
    """Run the program in that thread at every `period`-th event; return the perf event's descriptor.

    `event` is PERF_COUNT_SW_PAGE_FAULTS, or PERF_COUNT_SW_CPU_CLOCK, whose period is in nanoseconds of CPU time. The
    threads and processes that it starts from now on inherit the event. The caller closes the descriptor, which
    detaches. Raises TargetGoneError if the thread has ended; otherwise as perf_error() says.
    """
    attr = _Attr(type=_TYPE_SOFTWARE, config=event, sample_period=period, flags=_DISABLED | _INHERIT)
    return _open(attr, program_fd, tid, -1, f"thread {tid}")


def perf_error(code: int, what: str) -> PhptraceError:
    """The error that stands for an errno of a perf event on `what`.

    UnsupportedError if this kernel cannot do it or forbids it, so that `auto` falls back to ptrace; TargetGoneError
    if the thread has ended. Otherwise the host is short of something: then a plain PhptraceError says what to do,
    since ptrace costs the workers more, on the very host that has least.
    """
    if code == errno.ESRCH:
        return TargetGoneError(f"cannot set a probe on {what}: it has ended. Check the PID.")
    why = f"cannot set a probe on {what}: {os.strerror(code)}"
    if code in _UNSUPPORTED:
        return UnsupportedError(f"{why}. Use --backend ptrace.")
    return PhptraceError(f"{why}. {_ADVICE.get(code, 'Try again; if it fails again, use --backend ptrace.')}")


def _open(attr: _Attr, program_fd: int, pid: int, cpu: int, what: str) -> int:
    attr.size = ctypes.sizeof(_Attr)
    if platform.machine() != arch.MACHINE:
        raise UnsupportedError(
            f"cannot set a probe on {platform.machine()}: phptrace supports x86-64 only. Use --backend ptrace."
        )
    libc = ctypes.CDLL(None, use_errno=True)
    fd = libc.syscall(arch.SYS_PERF_EVENT_OPEN, ctypes.byref(attr), pid, cpu, -1, ctypes.c_ulong(_FLAG_FD_CLOEXEC))
    if fd < 0:
        raise perf_error(ctypes.get_errno(), what)
    with contextlib.ExitStack() as undo:
        undo.callback(os.close, fd)
        try:
            fcntl.ioctl(fd, _IOC_SET_BPF, program_fd)
            fcntl.ioctl(fd, _IOC_ENABLE, 0)
        except OSError as exc:
            raise perf_error(exc.errno or 0, what) from exc
        undo.pop_all()
    return int(fd)
