"""The parent's side of tracing: starting the tracing process, and undoing all of it if that fails."""

from __future__ import annotations

import errno
import os
import signal

import pytest

from tracer.backends.ptrace.backend import PtraceBackend
from tracer.backends.ptrace.permissions import obstacle
from tracer.errors import UnsupportedError


def test_attach_leaves_no_signal_blocked_and_no_file_open_if_fork_fails(monkeypatch):
    if obstacle() is not None:
        pytest.skip("ptrace is refused here")
    fork, forks = os.fork, []

    def refused_from_the_second_on() -> int:
        forks.append(None)
        if len(forks) > 1:
            raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))
        return fork()  # obstacle() forks the child on which it tests ptrace

    monkeypatch.setattr(os, "fork", refused_from_the_second_on)
    blocked, files = signal.pthread_sigmask(signal.SIG_BLOCK, ()), os.listdir("/proc/self/fd")
    backend = PtraceBackend()
    try:
        with pytest.raises(UnsupportedError, match="Resource temporarily unavailable"):
            backend.attach([])
        assert signal.pthread_sigmask(signal.SIG_BLOCK, ()) == blocked
        assert len(os.listdir("/proc/self/fd")) == len(files)
        assert backend.close() == []
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
