"""Reads a BPF ring buffer straight from its pages: a third of the cost of a callback for each record.

Layout and protocol: kernel/bpf/ringbuf.c and Documentation/bpf/ringbuf.rst, Linux 6.18. The kernel
wakes no reader: ours reads on a timer.

Relies on x86's total store order: loads are not reordered with loads, nor stores with earlier loads or
stores. So what the producer wrote before it moved its position, or cleared a record's busy bit, is
seen after either is; and a record's room is given back after the record was copied. On another
architecture, such as arm64, plain loads and stores from Python do not suffice: load the producer's
position and each record's length with acquire and store the consumer's position with release, as
libbpf's ring_buffer.c does.
"""

from __future__ import annotations

import mmap
import struct

_HEADER = struct.Struct("<II")
_BUSY = 1 << 31
_DISCARDED = 1 << 30


class RingBuffer:
    """The consumer's end of a ring buffer. The owner calls close()."""

    def __init__(self, map_fd: int, size: int) -> None:
        """`size` of the map is in bytes, a power of two and multiple of the page; `map_fd` stays the caller's."""
        page = mmap.PAGESIZE
        self._mask = size - 1
        self._consumer = mmap.mmap(map_fd, page, mmap.MAP_SHARED, mmap.PROT_READ | mmap.PROT_WRITE, offset=0)
        # The producer's page, then the data twice in a row, so that no record wraps.
        self._producer = mmap.mmap(map_fd, page + 2 * size, mmap.MAP_SHARED, mmap.PROT_READ, offset=page)
        # Read and written in one piece. Not by struct.pack_into(), which zeroes its target first: a worker
        # that looked just then found the ring full, and its request was lost (some 5 in 100,000 at full speed).
        self._consumed = memoryview(self._consumer).cast("Q")
        self._produced = memoryview(self._producer).cast("Q")
        self._page = page

    def records(self, limit: int) -> list[bytes]:
        """Return up to `limit` complete records, oldest first, without headers; free their room in the ring."""
        consumed, produced = self._consumed[0], self._produced[0]
        data, page, mask, header = self._producer, self._page, self._mask, _HEADER.unpack_from
        found: list[bytes] = []
        while consumed < produced and len(found) < limit:
            at = page + (consumed & mask)
            length, _ = header(data, at)
            if length & _BUSY:
                break
            size = length & ~_DISCARDED
            consumed += 8 + size + 7 & ~7
            if not length & _DISCARDED:
                found.append(data[at + 8 : at + 8 + size])
        self._consumed[0] = consumed
        return found

    def close(self) -> None:
        """Unmap the pages. Call it once, and read no more after it."""
        self._consumed.release()
        self._produced.release()
        self._consumer.close()
        self._producer.close()
