"""The memory of a host or a cgroup, split into what is eaten, what is only borrowed, and what is free.

From snapshots, which targets.host_memory makes and a recording keeps in its `meta` table. In a recording they are
untrusted: a figure that is missing, or is not a number, is None.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

_INT64 = 1 << 63
_MOST_CGROUPS = 64
_MOST_CPUS = 1 << 16


@dataclasses.dataclass(frozen=True, slots=True)
class Split:
    """The memory of a host or a cgroup. Bytes; None: not known.

    Eaten memory comes back when its owner frees it or ends. Borrowed memory is a copy of what is on disk: the kernel
    takes it for whoever needs memory, before it kills a process.
    """

    total: int | None  # of a cgroup: its limit; None: it has none
    anon: int
    shmem: int  # shared memory and tmpfs: only swap would get it back
    kernel: int  # that cannot be reclaimed: its own data, stacks, page tables, socket buffers
    huge: int  # reserved for huge pages
    page_cache: int  # without shared memory
    slab: int | None  # reclaimable: dentries and inodes; None: version 1 does not tell it from `kernel`
    mapped: int  # of page_cache, and of shmem: in use by processes, programs and libraries foremost
    dirty: int  # of page_cache: not written to disk yet
    other: int  # the rest: drivers, memory that the kernel gave to nobody listed
    free: int | None  # below the limit
    available: int | None  # for new use without swap, as the kernel estimates; of a cgroup: all that is not eaten

    @property
    def eaten(self) -> int:
        """Bytes that only their owners can give back."""
        return self.anon + self.shmem + self.kernel + self.huge + self.other

    @property
    def borrowed(self) -> int:
        """Bytes that the kernel gives back when somebody needs them."""
        return self.page_cache + (self.slab or 0)

    @property
    def droppable(self) -> int:
        """The most that `echo 3 > /proc/sys/vm/drop_caches` would free: neither mapped nor dirty pages go."""
        return max(0, self.page_cache - max(0, self.mapped - self.shmem) - self.dirty) + (self.slab or 0)

    @property
    def eaten_share(self) -> float | None:
        """The part of the total that is eaten."""
        return None if not self.total else self.eaten / self.total


@dataclasses.dataclass(frozen=True, slots=True)
class Limited:
    """A cgroup: where it is, and its memory."""

    path: str  # untrusted
    version: int
    split: Split
    pids: tuple[int, ...]  # processes that were asked for


@dataclasses.dataclass(frozen=True, slots=True)
class Snapshot:
    """A host and the cgroups of the processes that were asked for, at one moment."""

    host: Split | None
    cpus: int | None
    cgroups: tuple[Limited, ...]


def snapshot(entry: object) -> Snapshot:
    """Split a snapshot of targets.host_memory.snapshot(). What is malformed is None, or left out."""
    if not isinstance(entry, dict):
        return Snapshot(None, None, ())
    listed = entry.get("cgroups")
    cgroups = [_limited(one) for one in listed[:_MOST_CGROUPS]] if isinstance(listed, list) else []
    cpus = _number(entry, "cpus")
    return Snapshot(
        _host(entry.get("host")),
        cpus if cpus is not None and 0 < cpus <= _MOST_CPUS else None,
        tuple(one for one in cgroups if one is not None),
    )


def recorded(meta: Mapping[str, Any]) -> tuple[Snapshot, Snapshot]:
    """The snapshots of a recording: when it began, and when it ended. Both are empty in old recordings."""
    return snapshot(meta.get("memory")), snapshot(meta.get("memory_ended"))


def _host(figures: object) -> Split | None:
    """Split /proc/meminfo. `Cached` has the shared memory in it; SwapCached is apart."""
    if not isinstance(figures, dict):
        return None
    value = {name: _number(figures, name) or 0 for name in figures}
    total, free = _number(figures, "MemTotal"), _number(figures, "MemFree")
    if total is None or free is None:
        return None
    of = value.get
    shmem, slab = of("Shmem", 0), of("SReclaimable", 0)
    page_cache = max(0, of("Cached", 0) + of("Buffers", 0) - shmem)
    kernel = sum(of(name, 0) for name in ("SUnreclaim", "KernelStack", "PageTables", "SecPageTables", "Percpu"))
    known = of("AnonPages", 0) + shmem + kernel + of("Hugetlb", 0) + page_cache + slab
    return Split(
        total=total,
        anon=of("AnonPages", 0),
        shmem=shmem,
        kernel=kernel,
        huge=of("Hugetlb", 0),
        page_cache=page_cache,
        slab=slab,
        mapped=of("Mapped", 0),
        dirty=of("Dirty", 0) + of("Writeback", 0),
        other=max(0, total - free - known),
        free=free,
        available=_number(figures, "MemAvailable"),
    )


def _limited(entry: object) -> Limited | None:
    if not isinstance(entry, dict) or not isinstance(entry.get("path"), str):
        return None
    stat, usage = entry.get("stat"), _number(entry, "usage")
    if not isinstance(stat, dict) or usage is None:
        return None
    of = {name: _number(stat, name) or 0 for name in stat}.get
    limit, slab, shmem = _number(entry, "limit"), _number(stat, "slab_reclaimable"), of("shmem", 0)
    page_cache = max(0, of("file", 0) - shmem)
    kernel = max(0, of("kernel", 0) - (slab or 0)) + of("sock", 0)
    other = max(0, usage - of("anon", 0) - shmem - page_cache - kernel - (slab or 0))
    free = None if limit is None else max(0, limit - usage)
    split = Split(
        total=limit,
        anon=of("anon", 0),
        shmem=shmem,
        kernel=kernel,
        huge=0,
        page_cache=page_cache,
        slab=slab,
        mapped=of("file_mapped", 0),
        dirty=of("file_dirty", 0),
        other=other,
        free=free,
        available=None if free is None else free + page_cache + (slab or 0),
    )
    pids = entry.get("pids")
    asked = tuple(pid for pid in pids if type(pid) is int) if isinstance(pids, list) else ()
    return Limited(entry["path"], _number(entry, "version") or 0, split, asked)


def _number(entries: Mapping[Any, Any], name: Any) -> int | None:
    value = entries.get(name)
    return value if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < _INT64 else None
