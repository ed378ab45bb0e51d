"""Records through a real pipe: none is torn, the writer does not block, and losses are counted."""

from __future__ import annotations

import os
import struct
import threading
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st
from samples import PROPERTY, within

from tracer.backends.ptrace.pipe import Channel, PipeReader, PipeWriter

MOST_WAITING = 16 << 20  # bytes
MEGABYTE = bytes(1 << 20)


class Ends:
    """Both ends of a pipe, each closed once."""

    def __init__(self) -> None:
        self.read_fd, self.write_fd = os.pipe2(os.O_CLOEXEC)
        self._open = {self.read_fd, self.write_fd}

    def close(self, fd: int) -> None:
        if fd in self._open:
            self._open.remove(fd)
            os.close(fd)


@pytest.fixture
def ends() -> Iterator[Ends]:
    made = Ends()
    yield made
    made.close(made.read_fd)
    made.close(made.write_fd)


@pytest.fixture
def writer(ends: Ends) -> PipeWriter:
    return PipeWriter(ends.write_fd)


@pytest.fixture
def reader(ends: Ends) -> PipeReader:
    return PipeReader(ends.read_fd)


def read_all(reader: PipeReader, found: list[tuple[Channel, bytes]]) -> None:
    while not reader.ended:
        found += reader.records(1.0)


def drained(writer: PipeWriter, reader: PipeReader) -> list[tuple[Channel, bytes]]:
    """Return every record that waits in the writer, through the pipe."""
    found: list[tuple[Channel, bytes]] = []
    with within(20):
        while True:
            writer.flush()
            found += reader.records(0)
            if not writer.waiting:
                return found


def test_records_come_in_order_with_their_channel(writer, reader):
    sent = [(Channel.REQUESTS, b"first"), (Channel.ATTACHED, b""), (Channel.STACKS, b"third\0")]
    for channel, record in sent:
        writer.put(channel, record)
    writer.flush()

    assert reader.records(0) == sent


def test_nothing_is_written_before_it_is_flushed(writer, reader):
    writer.put(Channel.REQUESTS, b"first")

    assert reader.records(0) == []
    assert writer.waiting


def test_a_flushed_record_does_not_wait_any_more(writer):
    writer.put(Channel.REQUESTS, b"first")
    writer.flush()

    assert not writer.waiting


def test_a_record_is_read_once(writer, reader):
    writer.put(Channel.REQUESTS, b"first")
    writer.flush()
    reader.records(0)

    assert reader.records(0) == []


def test_a_frame_is_its_length_its_channel_and_the_record(ends, writer):
    writer.put(Channel.MALFORMED, b"seven b")
    writer.flush()

    assert os.read(ends.read_fd, 100) == struct.pack("<IB", 7, 4) + b"seven b"


def test_a_record_is_returned_with_its_last_byte(ends, reader):
    framed = struct.pack("<IB", 5, Channel.STACKS) + b"whole"
    found = []
    for byte in framed:
        os.write(ends.write_fd, bytes([byte]))
        found.append(reader.records(0))

    assert found == [[]] * 9 + [[(Channel.STACKS, b"whole")]]


@PROPERTY
@given(
    records=st.lists(st.tuples(st.sampled_from(Channel), st.binary(max_size=40)), max_size=7),
    piece=st.integers(1, 61),
)
def test_records_are_the_same_however_the_pipe_divides_them(ends, reader, records, piece):
    content = b"".join(struct.pack("<IB", len(record), channel) + record for channel, record in records)
    found = []
    for at in range(0, len(content), piece):
        os.write(ends.write_fd, content[at : at + piece])
        found += reader.records(0)

    assert found == records


def test_a_full_pipe_does_not_block_the_writer(writer):
    writer.put(Channel.REQUESTS, MEGABYTE)
    writer.put(Channel.REQUESTS, MEGABYTE)

    with within(0.5):
        writer.flush()
    assert writer.waiting


def test_a_writer_waits_no_longer_than_its_timeout(writer):
    writer.put(Channel.REQUESTS, MEGABYTE)
    writer.put(Channel.REQUESTS, MEGABYTE)

    with within(5):
        writer.flush(0.013)
    assert writer.waiting


def test_a_record_larger_than_the_pipe_arrives_complete(writer, reader):
    record = bytes(range(251)) * 20_011
    writer.put(Channel.STACKS, record)

    assert drained(writer, reader) == [(Channel.STACKS, record)]


def test_a_record_put_after_a_partial_write_arrives_behind_it(writer, reader):
    writer.put(Channel.STACKS, MEGABYTE + b"end")
    writer.flush()
    writer.put(Channel.REQUESTS, b"second")

    assert drained(writer, reader) == [(Channel.STACKS, MEGABYTE + b"end"), (Channel.REQUESTS, b"second")]


def fill(writer: PipeWriter) -> int:
    """Fill the writer up to its limit; return the number of records."""
    for number in range(1, 100):
        writer.put(Channel.STACKS, MEGABYTE)
        if number * (5 + len(MEGABYTE)) > MOST_WAITING:
            return number
    raise AssertionError("not reached")


def test_records_put_while_too_much_waits_are_lost_and_counted(writer, reader):
    kept = fill(writer)
    for _ in range(13):
        writer.put(Channel.REQUESTS, b"too late")

    found = drained(writer, reader)
    found += drained(writer, reader)

    assert [channel for channel, _ in found] == [Channel.STACKS] * kept + [Channel.LOST]
    assert found[-1] == (Channel.LOST, (13).to_bytes(8, "little"))


def test_a_loss_is_reported_once(writer, reader):
    fill(writer)
    writer.put(Channel.REQUESTS, b"too late")
    drained(writer, reader)
    drained(writer, reader)
    writer.put(Channel.REQUESTS, b"in time")

    assert drained(writer, reader) == [(Channel.REQUESTS, b"in time")]


def test_a_record_put_when_there_is_room_again_is_not_lost(writer, reader):
    fill(writer)
    drained(writer, reader)
    writer.put(Channel.REQUESTS, b"in time")

    assert drained(writer, reader) == [(Channel.REQUESTS, b"in time")]


def test_writing_without_a_reader_is_an_error(ends, writer):
    ends.close(ends.read_fd)
    writer.put(Channel.REQUESTS, b"first")

    with pytest.raises(BrokenPipeError, match="its reader has ended"):
        writer.flush()


def test_the_reader_sees_the_end_when_the_writer_is_gone(ends, reader):
    before = reader.ended
    ends.close(ends.write_fd)

    assert reader.records(0) == []
    assert (before, reader.ended) == (False, True)


def test_records_written_before_the_end_are_still_read(ends, writer, reader):
    writer.put(Channel.REQUESTS, b"last")
    writer.flush()
    ends.close(ends.write_fd)

    assert reader.records(0) == [(Channel.REQUESTS, b"last")]
    assert reader.ended


def test_half_a_record_of_a_dead_writer_is_dropped(ends, reader):
    os.write(ends.write_fd, struct.pack("<IB", 5, Channel.REQUESTS) + b"half")
    ends.close(ends.write_fd)

    assert reader.records(0) == []
    assert reader.ended


def test_after_the_end_the_reader_does_not_wait(ends, reader):
    ends.close(ends.write_fd)
    reader.records(0)

    with within(0.5):
        assert reader.records(7) == []


def test_a_reader_waits_no_longer_than_its_timeout(reader):
    with within(5):
        assert reader.records(0.013) == []


def test_the_last_flush_reports_losses(writer, reader, ends):
    fill(writer)
    for _ in range(7):
        writer.put(Channel.REQUESTS, b"one more")
    found: list[tuple[Channel, bytes]] = []
    with within(20):
        thread = threading.Thread(target=read_all, args=(reader, found))
        thread.start()
        writer.flush(20.0)
        ends.close(ends.write_fd)
        thread.join()

    assert found[-1] == (Channel.LOST, (7).to_bytes(8, "little"))
