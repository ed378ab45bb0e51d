"""A terminal that goes away, as when SSH drops, ends what is shown on it in order."""

from __future__ import annotations

import contextlib
import errno
import os
import stat
import sys
from collections.abc import Iterator

from tracer.capture import Stop

# Of consoles, and of pseudo-terminals: Documentation/admin-guide/devices.txt, Linux 6.18.
_TERMINALS = (4, 5, *range(136, 144))


@contextlib.contextmanager
def stopping_without_it(stop: Stop, shown_on: int | None = None) -> Iterator[None]:
    """Ask to stop, as SIGHUP does, if the terminal is gone that is written to within the block.

    `shown_on`: the descriptor of one that a live view is on, which writes nothing to it once it is gone.
    """
    try:
        yield
        if shown_on is not None:
            os.get_terminal_size(shown_on)
    except OSError as exc:
        if exc.errno not in (errno.EIO, errno.ENXIO, errno.ENOTTY):
            raise
        stop.asked = True
        for stream in (sys.stdout, sys.stderr):
            _drop(stream.fileno())


def _drop(descriptor: int) -> None:
    """Let what is written to a terminal from now on, at exit at the latest, go nowhere."""
    found = os.fstat(descriptor)
    if stat.S_ISCHR(found.st_mode) and os.major(found.st_rdev) in _TERMINALS:
        nowhere = os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC)
        os.dup2(nowhere, descriptor)
        os.close(nowhere)
