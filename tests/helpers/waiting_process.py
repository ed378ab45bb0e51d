"""A process that waits for a connection, as an idle worker does."""

from __future__ import annotations

import contextlib
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from proc_status import waits_for_a_request
from waiting import wait_for

_PROGRAM = "import os, signal, socket, sys; s = socket.socket(socket.AF_UNIX); s.bind(sys.argv[1]); s.listen()\n"
# What it does with a connection.
READS = "c = s.accept()[0]; os.read(c.fileno(), 1)"
ACCEPTS = "s.accept()"
PAUSES = "s.accept(); signal.pause()"


@contextlib.contextmanager
def waiting_process(folder: Path, does: str = ACCEPTS, *, connect: bool = False) -> Iterator[int]:
    """Start the process and return its pid; with `connect`, once a client has connected to it."""
    path = folder / "socket"
    process = subprocess.Popen([sys.executable, "-c", _PROGRAM + does, str(path)])
    with socket.socket(socket.AF_UNIX) as client:
        try:
            wait_for(lambda: waits_for_a_request(process.pid), "the process to wait in accept()")
            if connect:
                client.connect(str(path))
                wait_for(lambda: not waits_for_a_request(process.pid), "the process to go on")
            yield process.pid
        finally:
            process.kill()
            process.wait()
