"""BPF maps, most with a 32-bit key. Entries are bytes, whose layout backends/records/ knows."""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
from typing import Any

from tracer.errors import UnsupportedError

_BPF_NOEXIST = 1


class MapFullError(Exception):
    """The map has no room for another entry."""


class Map:
    """One map of a loaded bcc module. `fd` is its descriptor, which stays the module's to close."""

    def __init__(self, bpf: Any, name: str) -> None:
        """`bpf` is a bcc.BPF."""
        from bcc.libbcc import lib

        self._lib = lib
        self._name = name
        key = name.encode()
        self.fd: int = lib.bpf_table_fd(bpf.module, key)
        self._size: int = lib.bpf_table_leaf_size(bpf.module, key)

    def __setitem__(self, key: int, value: bytes) -> None:
        """Write an entry. Raises ValueError if it has the wrong size, MapFullError, or UnsupportedError."""
        self._update(key, value, 0)

    def __getitem__(self, key: int) -> bytes:
        """Return an entry. Raises KeyError if there is none."""
        value = self.get(key)
        if value is None:
            raise KeyError(key)
        return value

    def get(self, key: int) -> bytes | None:
        """Return an entry; None if there is none."""
        number, value = ctypes.c_uint32(key), ctypes.create_string_buffer(self._size)
        if self._lib.bpf_lookup_elem(self.fd, ctypes.byref(number), value) < 0:
            return None
        return value.raw

    def add(self, key: int, value: bytes) -> None:
        """Write an entry, unless there is one with that key already. Raises as __setitem__ does."""
        self._update(key, value, _BPF_NOEXIST)

    def remove(self, key: int) -> None:
        """Delete an entry, if there is one."""
        self._lib.bpf_delete_elem(self.fd, ctypes.byref(ctypes.c_uint32(key)))

    def _update(self, key: int, value: bytes, flags: int) -> None:
        if len(value) != self._size:
            raise ValueError(f"an entry of the BPF map {self._name} has {self._size} bytes, not {len(value)}")
        buffer = ctypes.create_string_buffer(value, self._size)
        if self._lib.bpf_update_elem(self.fd, ctypes.byref(ctypes.c_uint32(key)), buffer, flags) == 0:
            return
        code = ctypes.get_errno()
        if code == errno.EEXIST:
            return
        if code == errno.E2BIG:
            raise MapFullError(self._name)
        raise UnsupportedError(f"cannot write the BPF map {self._name}: {os.strerror(code)}. Use --backend ptrace.")


class Table:
    """A hash of a loaded bcc module, with keys of any size, which is read as a whole."""

    def __init__(self, bpf: Any, name: str) -> None:
        """`bpf` is a bcc.BPF."""
        from bcc.libbcc import lib

        self._lib = lib
        self._name = name
        key = name.encode()
        self.fd: int = lib.bpf_table_fd(bpf.module, key)
        self._key_size: int = lib.bpf_table_key_size(bpf.module, key)
        self._size: int = lib.bpf_table_leaf_size(bpf.module, key)
        self._most: int = lib.bpf_table_max_entries(bpf.module, key)
        # Pages of these are only used as far as there are entries.
        self._keys = mmap.mmap(-1, self._most * self._key_size)
        self._values = mmap.mmap(-1, self._most * self._size)

    def entries(self) -> tuple[bytes, bytes]:
        """Return all keys, and all values in the same order, each without gaps. Raises UnsupportedError."""
        position, count = ctypes.c_uint32(), ctypes.c_uint32(self._most)
        keys = ctypes.c_char.from_buffer(self._keys)
        values = ctypes.c_char.from_buffer(self._values)
        # BPF_MAP_LOOKUP_BATCH, Linux >= 5.6: ENOENT says that there are no more.
        failed = self._lib.bpf_lookup_batch(
            self.fd, None, ctypes.byref(position), ctypes.byref(keys), ctypes.byref(values), ctypes.byref(count)
        )
        code = ctypes.get_errno()
        if failed and code != errno.ENOENT:
            raise UnsupportedError(f"cannot read the BPF map {self._name}: {os.strerror(code)}. Use --backend ptrace.")
        return self._keys[: count.value * self._key_size], self._values[: count.value * self._size]

    def remove(self, key: bytes) -> None:
        """Delete an entry, if there is one."""
        self._lib.bpf_delete_elem(self.fd, ctypes.create_string_buffer(key, self._key_size))
