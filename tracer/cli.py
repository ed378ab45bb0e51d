"""The command line: the only error boundary, and the only place with exit codes."""

from __future__ import annotations

import errno
import importlib
import io
import logging
import os
import sys
from typing import Any, TextIO

import click

from tracer import __version__
from tracer.errors import IncompleteError, PhptraceError, UsageError
from tracer.stderr import say
from tracer.units import printable_message

_INTERRUPTED = 130
# A verb is imported when it is called: `report` needs neither bcc nor pyelftools, and --help takes a third of the time.
# Hence each text here is also the first sentence of the verb's docstring (tests/unit/test_cli.py compares them).
_VERBS = {
    "attach": "Show live which routes make the workers grow.",
    "record": "Record every request to a file, to read later.",
    "report": "Rank routes or scripts by how much memory their requests kept.",
    "diff": "Compare two recordings, such as those before and after a deploy.",
    "flame": "Draw a flame graph of the PHP functions that made the workers grow.",
    "export": "Convert recordings to NDJSON, CSV or TSV, one row per request.",
    "sizing": "Recommend pm.max_children, pm.max_requests and memory_limit.",
    "info": "Show how a recording was made, and what it holds and lacks.",
    "heap": "Show the memory that a PHP process holds, by kind and chunk size.",
    "host": "Show which memory of this host is eaten, and which is only borrowed.",
    "doctor": "Check this host; show how to fix what is missing.",
}


class _ReaderGoneError(Exception):
    """The process that read our output has closed it. Not an OSError, of which click would make exit code 1."""


class _Printable(logging.Formatter):
    """Escapes what a terminal would act on: a message may have the name of a file, or of a pool."""

    def format(self, record: logging.LogRecord) -> str:
        return "\n".join(printable_message(line) for line in super().format(record).split("\n"))


class _Verbs(click.Group):
    """The verbs, each imported when it is needed."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except BrokenPipeError as exc:
            raise _ReaderGoneError from exc
        except click.NoSuchOption as exc:
            if any(exc.option_name in option.opts for option in self.params):
                exc.message += " of this verb. Write it before the verb."
            raise

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


@click.command(
    cls=_Verbs,
    options_metavar="[-v|-q]",
    subcommand_metavar="VERB [ARGS]...",
    context_settings={"help_option_names": ["-h", "--help"]},
)
@click.version_option(__version__, "-V", "--version", prog_name="phptrace")
@click.option(
    "-v", "--verbose", count=True, help="Also print what phptrace chose, and why; -vv prints debug output, too."
)
@click.option("-q", "--quiet", is_flag=True, help="Print only results, warnings and errors.")
def phptrace(verbose: int, quiet: bool) -> None:  # noqa: ARG001 - commands.messages.notice() asks click for it
    """Find which PHP script makes php-fpm workers grow, on a live server, without changing PHP.

    \b
      sudo phptrace attach php-fpm                        # rank scripts, live
      sudo phptrace record -o a.phptrace php-fpm          # record until Ctrl-C
      phptrace report a.phptrace                          # rank from the file
      sudo phptrace record --stacks -o b.phptrace php-fpm # with call stacks
      phptrace flame b.phptrace -o growth.svg             # draw the PHP functions

    Native memory is memory outside PHP's own heap, which is Zend's. Extensions and libraries leak native memory;
    memory_get_usage() does not show it.

    Write -v and -q before the verb: phptrace -v attach php-fpm. `phptrace VERB --help` lists the options of a verb.

    \b
    Exit codes:
      0  success, also if Ctrl-C ended attach or record
      1  any other error, or diff found more than --fail-over
      2  usage error
      3  no such target
      4  not permitted
      5  kernel or PHP not supported
      6  target ended
      7  not a recording, or a damaged one
      8  output incomplete
    130  stopped by Ctrl-C, attach and record by a second one
    """
    level = [logging.WARNING, logging.INFO, logging.DEBUG][min(verbose, 2)]
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Printable("phptrace: %(message)s"))
    logging.basicConfig(level=level, handlers=[handler])
    try:
        os.getcwd()
    except OSError as exc:
        raise UsageError(f"cannot use the current directory: {exc.strerror}. Change to another one.") from exc


def main(arguments: list[str] | None = None) -> Any:
    """Run the command line and end the process with its exit code. `arguments` None: those of the process."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    try:
        code = phptrace.main(arguments, prog_name="phptrace", standalone_mode=False)
        sys.stdout.flush()
    except click.exceptions.Exit as exc:
        code = exc.exit_code
    except click.ClickException as exc:
        exc.message = printable_message(exc.message)
        exc.show()
        code = exc.exit_code
    except PhptraceError as exc:
        say(printable_message(str(exc)))
        code = exc.exit_code
    except (KeyboardInterrupt, click.Abort):
        say("stopped by Ctrl-C or a signal. What it was writing is incomplete.")
        code = _INTERRUPTED
    except (_ReaderGoneError, BrokenPipeError):
        code = 0  # as when `head` has seen enough
        _drop_stdout()
    except OSError as exc:
        full = exc.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO)
        incomplete = f"cannot write all of the output: {exc.strerror}. It is incomplete. Write it to another disk."
        if full and _was_closed(sys.stdout):
            incomplete = "cannot write the output: stdout is closed. Open it, or write to a file with -o."
        say(printable_message(incomplete if full else str(exc)))
        code = IncompleteError.exit_code if full else 1
        _drop_stdout()
    try:
        sys.stdout.flush()
    except OSError as exc:  # after an error, or --help: Python's exit code would be another one
        _drop_stdout()
        if not code and not isinstance(exc, BrokenPipeError):
            code = IncompleteError.exit_code
    sys.exit(code if isinstance(code, int) else 0)


def _was_closed(stream: TextIO) -> bool:
    """True if the caller has closed the stream, and __main__.py opened one by its number in its place."""
    return isinstance(stream.name, int)


def _drop_stdout() -> None:
    """Keep Python from writing to stdout once more, and failing, at exit."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
