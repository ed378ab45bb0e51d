"""Reads and writes the memory of another process: process_vm_readv(2), process_vm_writev(2)."""

from __future__ import annotations

import ctypes
import os


class Iovec(ctypes.Structure):
    """struct iovec."""

    _fields_ = (("base", ctypes.c_void_p), ("length", ctypes.c_size_t))


_libc = ctypes.CDLL(None, use_errno=True)
_libc.process_vm_readv.argtypes = (
    ctypes.c_int, ctypes.c_void_p, ctypes.c_ulong, ctypes.c_void_p, ctypes.c_ulong, ctypes.c_ulong
)  # fmt: skip
_libc.process_vm_readv.restype = ctypes.c_ssize_t
_libc.process_vm_writev.argtypes = _libc.process_vm_readv.argtypes
_libc.process_vm_writev.restype = ctypes.c_ssize_t
_local, _remote = Iovec(), Iovec()
_local_at, _remote_at = ctypes.byref(_local), ctypes.byref(_remote)


def read_memory(pid: int, address: int, size: int) -> bytes:
    """Read up to `size` bytes of its memory, fewer at the end of a mapping; OSError if nothing is mapped there.

    Not for several threads at a time.
    """
    buffer = ctypes.create_string_buffer(size)
    _local.base, _local.length = ctypes.addressof(buffer), size
    _remote.base, _remote.length = address, size
    got = _libc.process_vm_readv(pid, _local_at, 1, _remote_at, 1, 0)
    if got < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    return buffer.raw[:got]


def write_memory(pid: int, address: int, content: bytes) -> None:
    """Overwrite its memory; OSError if it cannot be written."""
    buffer = ctypes.create_string_buffer(content, len(content))
    local, remote = Iovec(ctypes.addressof(buffer), len(content)), Iovec(address, len(content))
    done = _libc.process_vm_writev(pid, ctypes.byref(local), 1, ctypes.byref(remote), 1, 0)
    if done != len(content):
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
