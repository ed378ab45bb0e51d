"""Options that several verbs share, and their kinds."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

import click
from click.core import ParameterSource

from tracer.analysis.ranking import GroupBy, Sort
from tracer.backends import StackOptions
from tracer.backends.choose import BACKENDS, PTRACE_MODES
from tracer.errors import UsageError
from tracer.facts import Metric
from tracer.units import parse_duration, parse_size

Command = TypeVar("Command", bound=Callable[..., Any])


class RenamedOption(click.Option):
    """An option whose first name is the one it has now. Its former names still work and are shown nowhere."""

    def __init__(self, declarations: Sequence[str], **attributes: Any) -> None:
        name = declarations[0].removeprefix("--").replace("-", "_")
        super().__init__([*declarations, name], **attributes)

    def get_help_record(self, ctx: click.Context) -> tuple[str, str] | None:
        with self._only_its_name():
            return super().get_help_record(ctx)

    def get_error_hint(self, ctx: click.Context | None) -> str:
        with self._only_its_name():
            return super().get_error_hint(ctx)  # type: ignore[arg-type]  # click passes None where it has no context

    @contextlib.contextmanager
    def _only_its_name(self) -> Iterator[None]:
        every = self.opts
        self.opts = every[:1]
        try:
            yield
        finally:
            self.opts = every


class _Duration(click.ParamType):
    name = "duration"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        if isinstance(value, float):
            return value
        try:
            return parse_duration(value)
        except ValueError as exc:
            self.fail(str(exc), param, ctx)


class _Size(click.ParamType):
    name = "size"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        if isinstance(value, int):
            return value
        try:
            return parse_size(value)
        except ValueError as exc:
            self.fail(str(exc), param, ctx)


DURATION = _Duration()
SIZE = _Size()


def _stacked(*options: Callable[[Command], Command]) -> Callable[[Command], Command]:
    def apply(command: Command) -> Command:
        for option in reversed(options):
            command = option(command)
        return command

    return apply


def refuse_alone(leader: str, *names: str) -> None:
    """UsageError if one of these options was given without the one they are about."""
    context = click.get_current_context()
    for name in names:
        if context.get_parameter_source(name) is ParameterSource.COMMANDLINE:
            raise UsageError(f"--{name.replace('_', '-')} is about --{leader}: give that, too")


def tracing(command: Command) -> Command:
    """What every verb that attaches takes."""
    return _stacked(
        click.argument("targets", nargs=-1, metavar="TARGET..."),
        click.option(
            "-p", "--pid", "pids", type=click.IntRange(1), multiple=True, help="Also this process; repeatable."
        ),
        click.option("-d", "--duration", type=DURATION, help="Stop after 30s, 5m, 1h. Default, and 0: at Ctrl-C."),
        click.option("-c", "--count", type=click.IntRange(1), help="Stop after that many requests, of all workers."),
        click.option(
            "--backend", type=click.Choice(("auto", *BACKENDS)), default="auto", show_default=True, help="How to trace."
        ),
        click.option(
            "--ptrace-mode",
            type=click.Choice(PTRACE_MODES),
            default="syscalls",
            show_default=True,
            help="Where ptrace stops a worker: at its system calls, or by breakpoints at a request's boundaries.",
        ),
        click.option("--uri", metavar="GLOB", help="Keep only requests whose URI matches."),
        click.option("--script", metavar="GLOB", help="Keep only requests whose script matches."),
        click.option("--slow", type=DURATION, help="Keep only requests that took at least 3s, 500ms."),
        click.option(
            "--min-growth", type=SIZE, help="Keep only requests after which the worker kept at least 64K, 1M."
        ),
        click.option(
            "--query",
            type=click.Choice(("strip", "keep")),
            default="strip",
            show_default=True,
            help="The query string of URIs: it may hold secrets.",
        ),
        click.option("-f", "--force", is_flag=True, help="Overwrite the file of -o."),
    )(command)


def stacks(command: Command) -> Command:
    """How call stacks are recorded."""
    default = StackOptions()
    return _stacked(
        click.option("--stacks", is_flag=True, help="Also record which PHP call stack grew the worker; see flame."),
        click.option(
            "--max-depth",
            type=click.IntRange(4, 1024),
            default=default.max_depth,
            show_default=True,
            help="Frames of a stack, from the innermost.",
        ),
        click.option(
            "--every",
            type=click.IntRange(1, 65536),
            default=default.every,
            show_default=True,
            help="Look at the stack once in so many page faults.",
        ),
        click.option(
            "--hz",
            type=click.IntRange(1, 20_000),
            default=default.hz,
            show_default=True,
            help="Looks at Zend's heap, a second of CPU time.",
        ),
    )(command)


def stack_metric(command: Command) -> Command:
    """What every verb that shows growth by call stack takes."""
    return _stacked(
        click.option(
            "--metric",
            "--weight",
            cls=RenamedOption,
            type=click.Choice([metric.value for metric in Metric]),
            default=Metric.RSS.value,
            show_default=True,
            help="Bytes of page faults, of address space mapped, or of Zend's heap.",
        ),
        click.option(
            "--retained",
            "--kept",
            cls=RenamedOption,
            is_flag=True,
            help="Show only native memory still held after the request; isolates leaks.",
        ),
    )(command)


def ranking(command: Command) -> Command:
    """What every verb that shows a ranking takes."""
    return _stacked(
        click.option(
            "--group-by",
            type=click.Choice([by.value for by in GroupBy]),
            default=GroupBy.SCRIPT.value,
            show_default=True,
            help="One row for each of these.",
        ),
        click.option(
            "--sort",
            type=click.Choice([sort.value for sort in Sort]),
            default=Sort.NATIVE.value,
            show_default=True,
            help="Most of this first.",
        ),
        click.option(
            "-n",
            "--top",
            type=click.IntRange(0),
            default=20,
            show_default=True,
            help="At most that many rows; 0 = all.",
        ),
    )(command)
