"""The reader of a BPF ring buffer, on pages in memory laid out as the kernel does (kernel/bpf/ringbuf.c, 6.18)."""

from __future__ import annotations

import mmap
import os
import struct
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st
from samples import PROPERTY

from tracer.backends.bpf.ring_buffer import RingBuffer

PAGE = mmap.PAGESIZE
SIZE = PAGE
BUSY, DISCARDED = 1 << 31, 1 << 30


class Producer:
    """The kernel's end: a page with the consumer's position, one with the producer's, then the data twice."""

    def __init__(self) -> None:
        self.fd = os.memfd_create("ring", os.MFD_CLOEXEC)
        os.ftruncate(self.fd, 2 * PAGE + 2 * SIZE)
        self.position = 0

    @property
    def consumed(self) -> int:
        return int(struct.unpack("<Q", os.pread(self.fd, 8, 0))[0])

    def start_at(self, position: int) -> None:
        """Pretend that so many bytes were produced and consumed."""
        os.pwrite(self.fd, struct.pack("<Q", position), 0)
        self.position = position
        os.pwrite(self.fd, struct.pack("<Q", position), PAGE)

    def produce(self, content: bytes, flags: int = 0) -> int:
        """Reserve and fill a record; return where it is, for commit()."""
        at = self.position
        self._write(at, struct.pack("<II", len(content) | flags, 0) + content)
        self.position += (8 + len(content) + 7) & ~7
        os.pwrite(self.fd, struct.pack("<Q", self.position), PAGE)
        return at

    def commit(self, at: int, length: int) -> None:
        self._write(at, struct.pack("<I", length))

    def _write(self, at: int, content: bytes) -> None:
        """Write into both copies, which are the same pages in the kernel."""
        for number, byte in enumerate(content):
            place = 2 * PAGE + (at + number) % SIZE
            os.pwrite(self.fd, bytes([byte]), place)
            os.pwrite(self.fd, bytes([byte]), place + SIZE)


@pytest.fixture
def producer() -> Iterator[Producer]:
    made = Producer()
    yield made
    os.close(made.fd)


@pytest.fixture
def ring(producer: Producer) -> Iterator[RingBuffer]:
    opened = RingBuffer(producer.fd, SIZE)
    yield opened
    opened.close()


def test_an_empty_ring_has_no_records(ring, producer):
    assert list(ring.records(7)) == []
    assert producer.consumed == 0


def test_records_come_in_order_without_their_headers(ring, producer):
    for content in (b"first", b"second, longer", b"", b"12345678"):
        producer.produce(content)

    assert list(ring.records(100)) == [b"first", b"second, longer", b"", b"12345678"]


def test_records_that_were_read_are_released(ring, producer):
    producer.produce(b"x" * 13)
    producer.produce(b"y" * 16)

    list(ring.records(100))

    assert producer.consumed == producer.position == 24 + 24


def test_records_that_were_read_are_not_read_again(ring, producer):
    producer.produce(b"first")
    list(ring.records(100))
    producer.produce(b"second")

    assert list(ring.records(100)) == [b"second"]


def test_a_record_still_being_written_holds_up_those_behind_it(ring, producer):
    producer.produce(b"first")
    at = producer.produce(b"unfinished", BUSY)
    producer.produce(b"third")

    assert list(ring.records(100)) == [b"first"]
    assert producer.consumed == at


def test_a_record_is_read_once_it_is_written(ring, producer):
    at = producer.produce(b"unfinished", BUSY)
    producer.produce(b"second")
    list(ring.records(100))

    producer.commit(at, len(b"unfinished"))

    assert list(ring.records(100)) == [b"unfinished", b"second"]


def test_a_discarded_record_is_stepped_over(ring, producer):
    producer.produce(b"first")
    producer.produce(b"never mind", DISCARDED)
    producer.produce(b"third")

    assert list(ring.records(100)) == [b"first", b"third"]
    assert producer.consumed == producer.position


def test_discarded_records_do_not_count_for_the_limit(ring, producer):
    producer.produce(b"never mind", DISCARDED)
    producer.produce(b"second")

    assert list(ring.records(1)) == [b"second"]


def test_no_more_than_the_limit_are_read_and_the_rest_stays(ring, producer):
    for content in (b"first", b"second", b"third"):
        producer.produce(content)

    assert list(ring.records(2)) == [b"first", b"second"]
    assert list(ring.records(2)) == [b"third"]


def test_a_record_at_the_end_of_the_ring_goes_on_at_its_beginning(ring, producer):
    producer.start_at(SIZE - 16)
    content = bytes(range(41))
    producer.produce(content)

    assert list(ring.records(100)) == [content]
    assert producer.consumed == SIZE - 16 + 56


def test_positions_beyond_the_size_are_taken_round(ring, producer):
    producer.start_at(5 * (SIZE << 20) + 64)
    producer.produce(b"after hours")

    assert list(ring.records(100)) == [b"after hours"]


def test_a_full_ring_is_read_to_its_end(ring, producer):
    producer.produce(b"z" * (SIZE - 8))

    assert [len(record) for record in ring.records(100)] == [SIZE - 8]


@PROPERTY
@given(
    start=st.integers(0, 1 << 20),
    contents=st.lists(st.tuples(st.binary(max_size=40), st.sampled_from((0, DISCARDED, BUSY))), max_size=12),
    limit=st.integers(1, 15),
)
def test_the_reader_gives_what_was_completed_in_order_up_to_the_limit(ring, producer, start, contents, limit):
    producer.start_at(start * 8)
    for content, flags in contents:
        producer.produce(content, flags)

    ready = contents[: next((n for n, (_, flags) in enumerate(contents) if flags == BUSY), len(contents))]
    assert list(ring.records(limit)) == [content for content, flags in ready if not flags][:limit]
