"""The command line: the only error boundary, and the only place with exit codes."""

from __future__ import annotations

import errno
import importlib
import io
import logging
import os
import sys
from typing import Any

import click

from tracer import __version__
from tracer.errors import IncompleteError, PhptraceError

_INTERRUPTED = 130
# Verbs are imported when they are called: `report` needs neither bcc nor pyelftools.
_VERBS = {
    "attach": "Show live which script grows the workers.",
    "record": "Record every request to one file.",
    "report": "Rank what the requests of a recording did to memory.",
    "flame": "Draw which PHP function grew the workers.",
    "export": "Write every request of a recording, for other tools.",
    "doctor": "Say what can be traced here, and what mends what cannot.",
}


class _ReaderGoneError(Exception):
    """Whoever read our output has had enough. Not an OSError, of which click would make exit code 1."""


class _Verbs(click.Group):
    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except BrokenPipeError as exc:
            raise _ReaderGoneError from exc

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(_VERBS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in _VERBS:
            return None
        command: click.Command = getattr(importlib.import_module(f"tracer.commands.{cmd_name}"), cmd_name)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Verbs"):
            formatter.write_dl(list(_VERBS.items()))


@click.command(cls=_Verbs, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, "-V", "--version", prog_name="phptrace")
@click.option("-v", "--verbose", count=True, help="Say more about the choices made; twice for all.")
@click.option("-q", "--quiet", is_flag=True, help="Say nothing but results, warnings and errors.")
def phptrace(verbose: int, quiet: bool) -> None:  # noqa: ARG001 - commands.tracing.talk() asks click for it
    """Find the script that grows your PHP workers: live, without touching PHP.

    \b
      sudo phptrace attach php-fpm                     live ranking
      sudo phptrace record -d 60s -o r.phptrace php-fpm
      phptrace report r.phptrace                       who grew the workers
      sudo phptrace record --stacks -d 60s -o s.phptrace php-fpm
      phptrace flame s.phptrace -o growth.svg          which PHP function did

    \b
    Exit codes: 0 fine, 2 usage, 3 no such target, 4 not permitted, 5 kernel or PHP not supported,
    6 target gone, 7 bad recording, 8 data incomplete, 130 interrupted twice.
    """
    level = [logging.WARNING, logging.INFO, logging.DEBUG][min(verbose, 2)]
    logging.basicConfig(level=level, format="phptrace: %(message)s", stream=sys.stderr)


def main(arguments: list[str] | None = None) -> Any:
    """Runs the command line and ends the process with its exit code."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    try:
        code = phptrace.main(arguments, prog_name="phptrace", standalone_mode=False)
        sys.stdout.flush()
    except click.exceptions.Exit as exc:
        code = exc.exit_code
    except click.ClickException as exc:
        exc.show()
        code = exc.exit_code
    except PhptraceError as exc:
        click.echo(f"phptrace: {exc}", err=True)
        code = exc.exit_code
    except (KeyboardInterrupt, click.Abort):
        code = _INTERRUPTED
    except (_ReaderGoneError, BrokenPipeError):
        code = 0  # that is no error
        _drop_stdout()
    except OSError as exc:
        full = exc.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO)
        click.echo(f"phptrace: {'the output is incomplete: ' if full else ''}{exc}", err=True)
        code = IncompleteError.exit_code if full else 1
        _drop_stdout()
    sys.exit(code if isinstance(code, int) else 0)


def _drop_stdout() -> None:
    """Keeps Python from trying once more, and complaining, at exit."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
