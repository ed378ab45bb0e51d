"""The parent's side of tracing: starting the tracing process, and undoing all of it if that fails."""

from __future__ import annotations

import contextlib
import errno
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from phps import executable, php_elf
from waiting_process import waiting_process

from tracer.backends.ptrace.backend import PtraceBackend
from tracer.backends.ptrace.permissions import obstacle
from tracer.backends.ptrace.pipe import Channel
from tracer.errors import UnsupportedError
from tracer.targets import php as php_binary
from tracer.targets.elf import open_image
from tracer.targets.processes import process
from tracer.targets.resolve import Target


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


@contextlib.contextmanager
def tracing(folder: Path) -> Iterator[tuple[PtraceBackend, Target]]:
    """A backend that traces one process, which waits for a connection."""
    image = open_image(str(executable(folder / "php-fpm", php_elf())))
    backend = PtraceBackend()
    try:
        with waiting_process(folder) as pid:
            worker = process(pid)
            assert worker is not None
            target = Target(str(pid), php_binary.inspect(image), "fpm-fcgi", None, (worker,), None)
            backend.attach([target])
            assert backend.watched == 1
            yield backend, target
            backend.close()
    finally:
        backend.close()
        image.close()


@pytest.mark.parametrize(
    ("channel", "text", "why"),
    [
        (Channel.ABANDONED, b"it \xff", "workers no longer traced: it \\ufffd"),
        (Channel.UNARMED, b"", "workers skipped: they install their own SIGTRAP handler"),
    ],
)
def test_a_worker_from_which_the_tracing_process_has_detached_is_no_longer_watched(tmp_path, channel, text, why):
    if obstacle() is not None:
        pytest.skip("ptrace is refused here")
    with tracing(tmp_path) as (backend, target):
        [loss] = backend._facts([(channel, target.pid.to_bytes(8, "little") + text)])

        assert (loss.lost, loss.why) == (1, why)
        assert backend.watched == 0


def test_the_tracing_process_keeps_no_descriptor_of_another_backend(tmp_path):
    """A link or probe of BPF ends when its last descriptor is closed; the tracing process may be forked after it."""
    if obstacle() is not None:
        pytest.skip("ptrace is refused here")
    of_others = [os.open(tmp_path, os.O_RDONLY) for _ in range(3)]
    of_others.append(os.dup2(of_others[0], 500))
    try:
        with tracing(tmp_path) as (_, target):
            of_tracer = f"/proc/{_tracer_of(target.pid)}/fd"
            files = {int(fd): os.readlink(f"{of_tracer}/{fd}") for fd in os.listdir(of_tracer)}
    finally:
        for fd in of_others:
            os.close(fd)

    assert str(tmp_path) not in files.values()
    assert files[target.php.image.fd] == str(tmp_path / "php-fpm")
    inherited = {fd: file for fd, file in files.items() if fd > 2 and not file.startswith("/proc/")}
    assert sorted(file.partition(":")[0] for file in inherited.values()) == sorted(["pipe", str(tmp_path / "php-fpm")])


def _tracer_of(pid: int) -> int:
    status = Path(f"/proc/{pid}/status").read_text()
    return int(next(line for line in status.splitlines() if line.startswith("TracerPid:")).split()[1])
