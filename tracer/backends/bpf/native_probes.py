"""The part of the BPF backend that counts what workers allocate and free natively: bpf/native.bpf.c.

One uprobe_multi link a worker, so that nobody else pays. A worker's link comes first and its entry in the map
`native_books` after it: what is counted is counted from the next request on, and requests before that are marked as
not counted by the kernel's side.
"""

from __future__ import annotations

import dataclasses
import logging
import os
import queue
import threading
from collections.abc import Callable

from tracer.backends.bpf import uprobe_multi
from tracer.backends.bpf.maps import Map
from tracer.backends.bpf.programs import Programs
from tracer.backends.records.request_structs import NATIVE_BOOK, NativeSite
from tracer.errors import PhptraceError, TargetGoneError, UnsupportedError
from tracer.targets.allocator import Allocator

log = logging.getLogger(__name__)

# Each link makes every hit of every linked worker 55 ns dearer: that many of a pool at a time.
MOST_OF_A_POOL = 8
_EMPTY = NATIVE_BOOK.pack(*[0] * 6)


@dataclasses.dataclass(slots=True)
class _Link:
    descriptor: int
    pool: str | None


class NativeProbes:
    """Links workers. close() takes all links off and waits until that is done."""

    def __init__(self, books: Map, *, workers_max: int, compiled: Callable[..., Programs] = Programs) -> None:
        """`books` is the map `native_books`, which is shared. UnsupportedError if the program does not load."""
        self._books = books
        self._programs = compiled("native.bpf.c", WORKERS_MAX=workers_max)
        self._programs.share("native_books", books.fd)
        self._program = self._programs.fd("on_native", attach_type=uprobe_multi.TRACE_UPROBE_MULTI)
        self._links: dict[int, _Link] = {}
        self._closing: queue.SimpleQueue[int | None] = queue.SimpleQueue()
        self._closer = threading.Thread(target=self._close_links, daemon=True)
        self._closer.start()
        self._refused: str | None = None

    @property
    def counted(self) -> int:
        """Workers that are linked."""
        return len(self._links)

    def add(self, pid: int, pool: str | None, allocator: Allocator, mmap_site: int | None) -> bool:
        """Count that worker's allocations from its next request on; False if it is not counted."""
        if pid in self._links:
            return True
        if self._refused or sum(link.pool == pool for link in self._links.values()) >= MOST_OF_A_POOL:
            return False
        sites = {int(NativeSite[name.upper()]): offset for name, offset in allocator.sites.items()}
        if mmap_site is not None:
            sites[NativeSite.MMAP] = mmap_site
        try:
            descriptor = uprobe_multi.link(self._program, allocator.image.path, sites, pid)
        except TargetGoneError:
            return False
        except UnsupportedError as exc:
            self._refused = str(exc)
            log.warning("native memory is not counted: %s", exc)
            return False
        self._links[pid] = _Link(descriptor, pool)
        try:
            self._books[pid] = _EMPTY
        except PhptraceError:
            self.remove(pid)
            return False
        return True

    def remove(self, pid: int) -> None:
        """Stop counting that worker, which may have ended. Returns at once: the kernel takes some 30 ms for it."""
        link = self._links.pop(pid, None)
        if link is not None:
            self._books.remove(pid)
            self._closing.put(link.descriptor)

    def close(self) -> None:
        """Take all links off. Idempotent."""
        for pid in list(self._links):
            self.remove(pid)
        if self._closer.is_alive():
            self._closing.put(None)
            self._closer.join()
            self._programs.close()

    def _close_links(self) -> None:
        while (descriptor := self._closing.get()) is not None:
            os.close(descriptor)
