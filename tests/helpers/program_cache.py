"""BPF programs that are compiled and loaded once in a test run, and used by one backend after the other."""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Iterator
from typing import Any, NamedTuple, cast

from tracer.backends.bpf.programs import RING_BYTES, Programs
from tracer.backends.bpf.ring_buffer import RingBuffer

# enum bpf_map_type, include/uapi/linux/bpf.h, Linux 6.18
_HASH, _ARRAY, _LRU_HASH, _RINGBUF = 1, 2, 9, 27
_BATCH = 1 << 16


class _Key(NamedTuple):
    """Compiled programs. Programs that share a map of others belong to those: `shared` has that map's descriptor."""

    source: str
    defines: tuple[tuple[str, int], ...]
    shared: tuple[tuple[str, int], ...]


class ProgramCache:
    """A factory of Programs, to be passed as `compiled`: programs that were closed are handed out again, emptied.

    Two that are open at the same time are two. Nothing is unloaded before the process ends.
    """

    def __init__(self) -> None:
        self._free: dict[_Key, list[Programs]] = {}

    def __call__(self, source: str, **defines: int) -> Programs:
        return cast(Programs, _Lent(self, source, defines))

    def take(self, key: _Key) -> Programs:
        free = self._free.get(key)
        if not free:
            programs = Programs(key.source, **dict(key.defines))
            for name, fd in key.shared:
                programs.share(name, fd)
            return programs
        programs = free.pop()
        shared = dict(key.shared)  # what is in those is their owner's
        dirty = [table.name for table in _tables(programs) if table.name not in shared and not table.is_empty()]
        assert dirty == [], f"{key.source}: not empty after close(): {dirty}"
        return programs

    def give_back(self, key: _Key, programs: Programs) -> None:
        bpf = programs._bpf
        for tracepoint in list(bpf.raw_tracepoint_fds):
            bpf.detach_raw_tracepoint(tracepoint)
        _empty(programs)
        self._free.setdefault(key, []).append(programs)

    def empty(self) -> None:
        """Empty the maps of all programs that are free: a fork of this process may have used them, and been killed."""
        for free in self._free.values():
            for programs in free:
                _empty(programs)


class _Lent:
    """Behave as Programs do. The maps given to share(), before any other call, decide which programs these are."""

    def __init__(self, cache: ProgramCache, source: str, defines: dict[str, int]) -> None:
        self._cache = cache
        self._source = source
        self._defines = defines
        self._shared: dict[str, int] = {}
        self._closed = False

    def share(self, name: str, fd: int) -> None:
        assert "_programs" not in self.__dict__, "share() comes before the programs are used"
        self._shared[name] = fd

    def close(self) -> None:
        if not self._closed and "_programs" in self.__dict__:
            self._cache.give_back(self._key, self._programs)
        self._closed = True

    def __getattr__(self, name: str) -> Any:
        assert not self._closed, f"{name} of programs that are closed"
        return getattr(self._programs, name)

    @property
    def _key(self) -> _Key:
        return _Key(self._source, tuple(sorted(self._defines.items())), tuple(sorted(self._shared.items())))

    @functools.cached_property
    def _programs(self) -> Programs:
        return self._cache.take(self._key)


class _Table:
    """One BPF map, whatever its key."""

    def __init__(self, lib: Any, module: Any, number: int) -> None:
        self._lib = lib
        self.name: str = lib.bpf_table_name(module, number).decode()
        self._fd: int = lib.bpf_table_fd_id(module, number)
        self._kind: int = lib.bpf_table_type_id(module, number)
        self._entries: int = lib.bpf_table_max_entries_id(module, number)
        self._key_size: int = lib.bpf_table_key_size_id(module, number)
        self._leaf_size: int = lib.bpf_table_leaf_size_id(module, number)
        if self._kind not in (_HASH, _ARRAY, _LRU_HASH, _RINGBUF):
            raise AssertionError(f"the BPF map {self.name} is of type {self._kind}: teach this cache to empty it")

    def clear(self) -> None:
        """Empty a hash, zero an array, read a ring to its end."""
        if self._kind == _RINGBUF:
            while self._records():
                pass
        elif self._kind == _ARRAY:
            blank = ctypes.create_string_buffer(self._leaf_size)
            for index in self._written():
                self._lib.bpf_update_elem(self._fd, ctypes.byref(ctypes.c_uint32(index)), blank, 0)
        else:
            for key in list(self._keys()):
                self._lib.bpf_delete_elem(self._fd, ctypes.create_string_buffer(key, self._key_size))

    def is_empty(self) -> bool:
        if self._kind == _RINGBUF:
            return not self._records()
        return next(self._written() if self._kind == _ARRAY else self._keys(), None) is None

    def _records(self) -> list[bytes]:
        ring = RingBuffer(self._fd, RING_BYTES)
        try:
            return ring.records(_BATCH)
        finally:
            ring.close()

    def _written(self) -> Iterator[int]:
        """The indices of an array whose entries are not all zeros."""
        leaf = ctypes.create_string_buffer(self._leaf_size)
        for index in range(self._entries):
            if self._lib.bpf_lookup_elem(self._fd, ctypes.byref(ctypes.c_uint32(index)), leaf) < 0:
                raise OSError(ctypes.get_errno(), f"cannot read the BPF map {self.name}")
            if leaf.raw.strip(b"\0"):
                yield index

    def _keys(self) -> Iterator[bytes]:
        key = ctypes.create_string_buffer(self._key_size)
        found = self._lib.bpf_get_first_key(self._fd, key, self._key_size)
        while found == 0:
            yield key.raw
            following = ctypes.create_string_buffer(self._key_size)
            found = self._lib.bpf_get_next_key(self._fd, key, following)
            key = following


def _empty(programs: Programs) -> None:
    for table in _tables(programs):
        table.clear()


def _tables(programs: Programs) -> list[_Table]:
    from bcc.libbcc import lib

    module = programs._bpf.module
    # bcc 0.26 declares some of these only: without that, ctypes cuts the module's address to 32 bits.
    lib.bpf_num_tables.argtypes = [ctypes.c_void_p]
    lib.bpf_table_name.argtypes = [ctypes.c_void_p, ctypes.c_ulonglong]
    lib.bpf_table_name.restype = ctypes.c_char_p
    for name in ("fd", "key_size", "leaf_size"):
        getattr(lib, f"bpf_table_{name}_id").argtypes = [ctypes.c_void_p, ctypes.c_ulonglong]
    return [_Table(lib, module, number) for number in range(lib.bpf_num_tables(module))]
