"""The tracing process drops and counts the corrupt record of one worker, and sends those of the others."""

from __future__ import annotations

import os
import struct

import pytest

from tracer.backends import PtraceMode
from tracer.backends.ptrace.pipe import Channel, PipeReader, PipeWriter
from tracer.backends.ptrace.tracing_process import TracingProcess
from tracer.errors import UnsupportedError


def test_a_record_that_cannot_be_packed_is_counted_as_lost_and_the_next_is_sent():
    reading, writing = os.pipe2(os.O_CLOEXEC)
    process = TracingProcess([], PipeWriter(writing), os.getpid(), None, PtraceMode.SYSCALLS)
    process._deferred += [
        lambda: struct.pack("<q", 1 << 64),  # bytes that no address space has
        lambda: (1 << 200).to_bytes(8, "little"),
        lambda: b"good",
    ]
    process._send_deferred()
    os.close(writing)
    found = PipeReader(reading).records(1.0)
    os.close(reading)

    one = (1).to_bytes(8, "little")
    assert found == [(Channel.LOST, one), (Channel.LOST, one), (Channel.REQUESTS, b"good")]


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (UnsupportedError("cannot set breakpoints: why. Do this."), b"cannot set breakpoints: why. Do this."),
        (OSError(24, "Too many open files"), b"OSError: [Errno 24] Too many open files"),
    ],
)
def test_the_error_that_ends_the_tracing_of_one_worker_is_reported(error, text):
    reading, writing = os.pipe2(os.O_CLOEXEC)
    out = PipeWriter(writing)
    TracingProcess([], out, os.getpid(), None, PtraceMode.BREAKPOINTS)._report_abandoned(4003, error)
    out.flush()
    os.close(writing)
    found = PipeReader(reading).records(1.0)
    os.close(reading)

    assert found == [(Channel.ABANDONED, (4003).to_bytes(8, "little") + text)]
