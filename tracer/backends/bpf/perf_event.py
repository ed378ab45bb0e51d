"""Attaches loaded BPF programs to uprobes, page faults and the CPU clock through perf_event_open(2).

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

from tracer.errors import TargetGoneError, UnsupportedError

_PERF_EVENT_OPEN = {"x86_64": 298, "aarch64": 241}
# include/uapi/linux/perf_event.h, Linux 6.18
_IOC_ENABLE = 0x2400
_IOC_SET_BPF = 0x4004_2408
_FLAG_FD_CLOEXEC = 1 << 3
_TYPE_SOFTWARE = 1
_DISABLED, _INHERIT = 1 << 0, 1 << 1  # of perf_event_attr.flags
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
    """A perf event that runs the program in every process that executes that place of that file.

    `pmu` is the type of the uprobe PMU. Closing the descriptor detaches.
    """
    buffer = ctypes.create_string_buffer(os.fsencode(path))
    attr = _Attr(type=pmu, config=int(at_return), config1=ctypes.addressof(buffer), config2=file_offset)
    attr.sample_period = 1
    attr.wakeup_events = 1
    # pid -1 on CPU 0: a uprobe with a BPF program fires on every CPU all the same.
    return _open(attr, program_fd, -1, 0, f"{path}+{file_offset:#x}")


def attach_software(program_fd: int, event: int, period: int, tid: int) -> int:
    """A perf event that runs the program in that thread once in `period` events: faults, or nanoseconds of CPU.

    Also in the threads and processes it starts from now on, until the descriptor is closed.
    """
    attr = _Attr(type=_TYPE_SOFTWARE, config=event, sample_period=period, flags=_DISABLED | _INHERIT)
    return _open(attr, program_fd, tid, -1, f"thread {tid}")


def _open(attr: _Attr, program_fd: int, pid: int, cpu: int, what: str) -> int:
    attr.size = ctypes.sizeof(_Attr)
    number = _PERF_EVENT_OPEN.get(platform.machine())
    if number is None:
        raise UnsupportedError(f"perf_event_open is not known on {platform.machine()}")
    libc = ctypes.CDLL(None, use_errno=True)
    fd = libc.syscall(number, ctypes.byref(attr), pid, cpu, -1, ctypes.c_ulong(_FLAG_FD_CLOEXEC))
    if fd < 0:
        code = ctypes.get_errno()
        if code == errno.ESRCH:
            raise TargetGoneError(f"{what} has ended")
        raise UnsupportedError(f"cannot set a probe on {what}: {os.strerror(code)}")
    with contextlib.ExitStack() as undo:
        undo.callback(os.close, fd)
        try:
            fcntl.ioctl(fd, _IOC_SET_BPF, program_fd)
            fcntl.ioctl(fd, _IOC_ENABLE, 0)
        except OSError as exc:
            raise UnsupportedError(f"cannot attach a BPF program to {what}: {exc.strerror}") from exc
        undo.pop_all()
    return int(fd)
