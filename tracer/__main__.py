"""The entry point of `phptrace` and `python -m tracer`."""

import signal


def main() -> None:
    """Run the command line."""
    # Ctrl-C ends the process, as with other programs, until a verb handles it. Otherwise a Ctrl-C during
    # the imports would end in a traceback.
    if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.SIG_DFL)

    from tracer import cli

    cli.main()


if __name__ == "__main__":
    main()
