"""Messages that are printed beside the result."""

from __future__ import annotations

import os
import sys


def say(text: str) -> None:
    """Print lines to stderr. Where that fails, as on a full disk, the result on stdout is whole all the same."""
    try:
        sys.stderr.write(f"phptrace: {text}\n")
        sys.stderr.flush()
    except OSError:
        nowhere = os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC)
        os.dup2(nowhere, sys.stderr.fileno())
        os.close(nowhere)
