"""The entry point of `phptrace` and `python -m tracer`."""

import contextlib
import os
import signal
import sys

# What stands for a standard stream that the caller has closed. Writing to stdout then fails as on a full disk.
_CLOSED = (("stdin", os.devnull, "r"), ("stdout", "/dev/full", "w"), ("stderr", os.devnull, "w"))


def main() -> None:
    """Run the command line."""
    _open_closed_streams()
    # Ctrl-C ends the process, as with other programs, until a verb handles it. Otherwise a Ctrl-C during
    # the imports would end in a traceback.
    if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.SIG_DFL)

    from tracer import cli

    cli.main()


def _open_closed_streams() -> None:
    """Give each standard stream a file, so that no other file gets its number, and Python has something to write to."""
    for number, (name, path, mode) in enumerate(_CLOSED):
        if getattr(sys, name) is not None:
            continue
        with contextlib.suppress(OSError):
            descriptor = os.open(path, os.O_RDONLY if mode == "r" else os.O_WRONLY)
            if descriptor != number:
                os.dup2(descriptor, number)
                os.close(descriptor)
            stream = open(number, mode, encoding="utf-8", closefd=False)  # noqa: SIM115 - for the life of the process
            setattr(sys, name, stream)


if __name__ == "__main__":
    main()
