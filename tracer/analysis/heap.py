"""A look at the memory that a worker holds, and the change between two looks."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence


@dataclasses.dataclass(frozen=True, slots=True)
class MallocLook:
    """glibc's heap in bytes; blocks mapped apart are not part of it."""

    in_use: int
    uncertain: int  # in use may be up to this much less
    free: int  # below top, and kept
    cached: int  # of these, in the thread cache and in fastbins
    top: int
    resident: int | None  # None: the kernel does not tell
    mapped: int | None  # in blocks mapped apart; None: unknown
    sizes: Mapping[int, int]  # chunks in use by their size
    settled: bool  # False: the worker changed its heap while it was read
    notes: Sequence[str]  # what is not exact, and why


@dataclasses.dataclass(frozen=True, slots=True)
class ZendLook:
    """Zend's heap in bytes."""

    resident: int
    resident_cached: int  # of these, in cached chunks
    live: int  # address space of live chunks and huge blocks
    cached: int  # address space of cached chunks
    settled: bool
    notes: Sequence[str]


@dataclasses.dataclass(frozen=True, slots=True)
class HeapLook:
    """One look at a process; `lacking` are the reasons why a part of it is None."""

    pid: int
    start_ticks: int
    title: str
    pool: str | None
    anon: int
    malloc: MallocLook | None
    zend: ZendLook | None
    lacking: Mapping[str, str]  # by `malloc` or `Zend`

    @property
    def native(self) -> int | None:
        """Anonymous memory outside Zend's heap; None if Zend's part is unknown."""
        return None if self.zend is None else self.anon - self.zend.resident

    @property
    def unexplained(self) -> int | None:
        """Native memory that is not malloc's; None if a part of it is unknown."""
        if self.native is None or self.malloc is None or self.malloc.resident is None:
            return None
        return self.native - self.malloc.resident - (self.malloc.mapped or 0)

    @property
    def notes(self) -> list[str]:
        """Sentences on what restricts the figures."""
        found = [f"{part}: unknown, since {why}" for part, why in self.lacking.items()]
        for part, look in (("malloc", self.malloc), ("Zend", self.zend)):
            if look is not None:
                found += [f"{part}: {note}" for note in look.notes]
                if not look.settled:
                    found.append(f"{part}: the process changed it during the look, so figures are approximate")
        return found


@dataclasses.dataclass(frozen=True, slots=True)
class Figure:
    """One figure of a look, and its change since the one before."""

    name: str  # as in JSON, without `_bytes`
    bytes: int | None  # None: unknown
    change: int | None  # None: there was no look before, or one of both is unknown


@dataclasses.dataclass(frozen=True, slots=True)
class SizeClass:
    """The chunks of one size that are in use."""

    chunk_bytes: int
    chunks: int
    change: int | None  # of the number of chunks; None: there was no look before

    @property
    def bytes(self) -> int:
        """Bytes of all these chunks."""
        return self.chunk_bytes * self.chunks

    @property
    def change_bytes(self) -> int | None:
        """Bytes of the chunks that came, less those that went."""
        return None if self.change is None else self.chunk_bytes * self.change


def figures(look: HeapLook, before: HeapLook | None = None) -> list[Figure]:
    """Every figure of a look, in the order in which people read them."""
    now, then = _every(look), {} if before is None else _every(before)
    return [Figure(name, value, _difference(value, then.get(name))) for name, value in now.items()]


def size_classes(look: HeapLook, before: HeapLook | None = None) -> list[SizeClass]:
    """The size classes that hold most first; with a look before, only those that changed, what grew most first.

    Empty if malloc's heap is unknown, in either look.
    """
    if look.malloc is None or (before is not None and before.malloc is None):
        return []
    sizes = look.malloc.sizes
    if before is None or before.malloc is None:
        return sorted(
            (SizeClass(size, count, None) for size, count in sizes.items()),
            key=lambda one: (-one.bytes, one.chunk_bytes),
        )
    then = before.malloc.sizes
    found = [
        SizeClass(size, sizes.get(size, 0), sizes.get(size, 0) - then.get(size, 0))
        for size in {*sizes, *then}
        if sizes.get(size, 0) != then.get(size, 0)
    ]
    return sorted(found, key=lambda one: (-(one.change_bytes or 0), -one.bytes, one.chunk_bytes))


def _every(look: HeapLook) -> dict[str, int | None]:
    malloc, zend = look.malloc, look.zend
    return {
        "anon": look.anon,
        "zend_resident": None if zend is None else zend.resident,
        "zend_resident_cached": None if zend is None else zend.resident_cached,
        "zend_live": None if zend is None else zend.live,
        "zend_cached": None if zend is None else zend.cached,
        "native": look.native,
        "malloc_resident": None if malloc is None else malloc.resident,
        "malloc_in_use": None if malloc is None else malloc.in_use,
        "malloc_free": None if malloc is None else malloc.free,
        "malloc_cached": None if malloc is None else malloc.cached,
        "malloc_top": None if malloc is None else malloc.top,
        "malloc_mapped": None if malloc is None else malloc.mapped,
        "unexplained": look.unexplained,
    }


def _difference(now: int | None, then: int | None) -> int | None:
    return None if now is None or then is None else now - then
