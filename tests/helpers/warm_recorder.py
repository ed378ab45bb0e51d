"""`phptrace record` in a fork of this process, which has the BPF programs loaded: it attaches in a moment.

For tests that run it again and again, to end it at any point from its start to its exit. What the compiler and the
verifier take of its time is missing; command.py has the command as a user runs it.
"""

from __future__ import annotations

import dataclasses
import os
import signal
import sys
import threading
import time
import traceback
from typing import IO, NoReturn

from backend_kinds import BPF, PROGRAMS, make_backend
from command import CHECKOUT
from fpm import Fpm
from tracing import Tracer
from waiting import PATIENCE_S

from tracer import cli
from tracer.backends import Backend, NativeOptions, StackOptions
from tracer.backends.bpf.backend import BpfBackend
from tracer.backends.choose import BACKENDS, BackendOptions


class WarmRecorder:
    """The process; has what command.py's functions use of a Popen. Its stdout is empty."""

    def __init__(self, *arguments: str, block_bytes: int | None = None) -> None:
        """Start `phptrace record` with these arguments, after load_programs(): it would compile them, slowly.

        `block_bytes`: StackOptions.block_bytes, for which there is no option; None for the default.
        """
        assert threading.active_count() == 1, "a lock that another thread holds would stay locked in the fork"
        reading, writing = os.pipe()
        self.stderr: IO[str] = os.fdopen(reading)
        self.returncode: int | None = None
        self.pid = os.fork()
        if self.pid == 0:
            _run(writing, ["record", *arguments], block_bytes)
        os.close(writing)

    def send_signal(self, number: int) -> None:
        """Send a signal, unless the process has ended."""
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        """Send SIGKILL, unless the process has ended."""
        self.send_signal(signal.SIGKILL)

    def poll(self) -> int | None:
        """The exit code, below 0 for a signal; None while the process runs. Empties the programs' maps at its end."""
        if self.returncode is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid != 0:
                self.returncode = os.waitstatus_to_exitcode(status)
                PROGRAMS.empty()
        return self.returncode

    def communicate(self, timeout: float | None = PATIENCE_S) -> tuple[str, str]:
        """Wait for the end; return stdout, which is empty, and the rest of stderr."""
        with self.stderr:
            said = self.stderr.read()
        deadline = time.monotonic() + (timeout or PATIENCE_S)
        while self.poll() is None:
            assert time.monotonic() < deadline, f"process {self.pid} has closed stderr, and does not end"
            time.sleep(0.001)
        return "", said


def load_programs(fpm: Fpm) -> None:
    """Load what `record` needs, without and with --stacks, unless it is loaded."""
    for stacks in (None, StackOptions()):
        Tracer(make_backend(BPF, stacks=stacks, native=NativeOptions()), str(fpm.master)).close()


def _run(stderr: int, arguments: list[str], block_bytes: int | None) -> NoReturn:
    """Be the command, in the fork, and end with its exit code; 1, and a traceback, if it raises."""
    code = None
    try:
        null = os.open(os.devnull, os.O_RDWR)
        for to, fd in enumerate((null, null, stderr)):
            os.dup2(fd, to)
        os.chdir(CHECKOUT)
        sys.stdout, sys.stderr = os.fdopen(1, "w"), os.fdopen(2, "w", buffering=1)
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # as __main__.py does

        def create(options: BackendOptions) -> Backend:
            stacks = options.stacks
            if stacks is not None and block_bytes is not None:
                stacks = dataclasses.replace(stacks, block_bytes=block_bytes)
            return BpfBackend(keep_query=options.keep_query, stacks=stacks, native=options.native, compiled=PROGRAMS)

        BACKENDS[BPF] = dataclasses.replace(BACKENDS[BPF], create=create)
        cli.main(arguments)
    except SystemExit as exc:
        code = exc.code if isinstance(exc.code, int) else 1
    finally:
        if code is None:
            traceback.print_exc()
        sys.stderr.flush()
        os._exit(1 if code is None else code)
