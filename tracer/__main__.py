"""Where `phptrace` and `python -m tracer` begin."""

import signal


def main() -> None:
    """Runs the command line."""
    # Until a verb says what Ctrl-C means to it, it ends the process, as it does any other program's:
    # without this, one that comes while modules are being imported ends in a traceback.
    if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.SIG_DFL)

    from tracer import cli

    cli.main()


if __name__ == "__main__":
    main()
