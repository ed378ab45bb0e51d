"""The tracing process's own care: one worker's nonsense is counted, and costs the others nothing."""

from __future__ import annotations

import os
import struct

from tracer.backends import PtraceMode
from tracer.backends.ptrace.pipe import Channel, PipeReader, PipeWriter
from tracer.backends.ptrace.tracer import TracingLoop


def test_a_record_that_cannot_be_made_is_lost_and_counted_and_the_next_is_sent():
    reading, writing = os.pipe2(os.O_CLOEXEC)
    loop = TracingLoop([], PipeWriter(writing), os.getpid(), None, PtraceMode.SYSCALLS)
    loop._deferred += [
        lambda: struct.pack("<q", 1 << 64),  # bytes that no address space has
        lambda: (1 << 200).to_bytes(8, "little"),
        lambda: b"good",
    ]
    loop._send_deferred()
    os.close(writing)
    found = PipeReader(reading).records(1.0)
    os.close(reading)

    one = (1).to_bytes(8, "little")
    assert found == [(Channel.LOST, one), (Channel.LOST, one), (Channel.REQUESTS, b"good")]
