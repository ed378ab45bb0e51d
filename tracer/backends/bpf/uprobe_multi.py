"""Attaches a loaded BPF program to places in one process alone, or in all: BPF uprobe_multi links, Linux >= 6.6.

A link is gone when its descriptor is closed, and is removed sooner than a perf event. One without a pid is paid for by
every process that runs that file, as a perf event's uprobe is. One with a pid costs nobody else anything; a perf event
that is opened for one process with inherit makes its fork() fail. Never link a single process that forks: the child has
the breakpoints in its copied memory, and pays for them until it runs another program.
"""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import struct
from collections.abc import Mapping

from tracer.errors import TargetGoneError, UnsupportedError

_BPF = {"x86_64": 321, "aarch64": 280}
# include/uapi/linux/bpf.h, Linux 6.18
_LINK_CREATE = 28
TRACE_UPROBE_MULTI = 48  # enum bpf_attach_type
_RETURN = 1  # BPF_F_UPROBE_MULTI_RETURN
# union bpf_attr, link_create with uprobe_multi: prog_fd, target_fd, attach_type, flags; path, offsets,
# ref_ctr_offsets, cookies, cnt, flags, pid.
_ATTR = struct.Struct("<IIIIQQQQIII")
_ATTR_BYTES = 128
_EVERY_PROCESS = 0


def link(
    program_fd: int, path: str, sites: Mapping[int, int], pid: int | None = None, *, at_return: bool = False
) -> int:
    """Run the program wherever that process executes one of the sites; closing the descriptor detaches.

    `sites` are file offsets by the cookie that the program is given. `pid` is None for every process, also one that
    starts later. With `at_return`, run it when the functions they are in return: then %rsp has to point to the return
    address at each site, since the kernel replaces that word. The program has to be loaded with the attach type
    TRACE_UPROBE_MULTI. TargetGoneError if the process has ended; UnsupportedError if the kernel refuses.
    """
    number = _BPF.get(platform.machine())
    if number is None:
        raise UnsupportedError(
            f"cannot set probes on {platform.machine()}: phptrace supports x86-64 only. Use --native off."
        )
    name = ctypes.create_string_buffer(os.fsencode(path))
    offsets = (ctypes.c_uint64 * len(sites))(*sites.values())
    cookies = (ctypes.c_uint64 * len(sites))(*sites)
    attr = _ATTR.pack(
        program_fd, 0, TRACE_UPROBE_MULTI, 0,
        ctypes.addressof(name), ctypes.addressof(offsets), 0, ctypes.addressof(cookies), len(sites),
        _RETURN if at_return else 0, _EVERY_PROCESS if pid is None else pid,
    )  # fmt: skip
    libc = ctypes.CDLL(None, use_errno=True)
    buffer = ctypes.create_string_buffer(attr.ljust(_ATTR_BYTES, b"\0"), _ATTR_BYTES)
    descriptor = libc.syscall(number, _LINK_CREATE, buffer, _ATTR_BYTES)
    if descriptor >= 0:
        return int(descriptor)
    code = ctypes.get_errno()
    if code == errno.ESRCH:
        raise TargetGoneError(f"cannot set probes in process {pid}: it has ended. Check the PID.")
    where = f"{path} by a link" if pid is None else f"process {pid} alone"
    raise UnsupportedError(f"cannot set probes in {where}: {os.strerror(code)}. Run `phptrace doctor`.")
