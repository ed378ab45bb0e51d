"""Options that several verbs share, and their value types."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

import click
from click.core import ParameterSource

from tracer.analysis.ranking import GroupBy, Sort
from tracer.backends import PtraceMode, StackOptions
from tracer.backends.choose import BACKENDS
from tracer.errors import UsageError
from tracer.facts import Metric
from tracer.units import parse_duration, parse_size

Command = TypeVar("Command", bound=Callable[..., Any])


class RenamedOption(click.Option):
    """An option whose first name is its current one. Its former names still work, but no text shows them."""

    def __init__(self, declarations: Sequence[str], **attributes: Any) -> None:
        """`declarations` are the names, the current one first; it also names the parameter."""
        name = declarations[0].removeprefix("--").replace("-", "_")
        super().__init__([*declarations, name], **attributes)

    def get_help_record(self, ctx: click.Context) -> tuple[str, str] | None:
        """The option's line in --help, with its current name only."""
        with self._only_its_name():
            return super().get_help_record(ctx)

    def get_error_hint(self, ctx: click.Context | None) -> str:
        """The option's name in a usage error: the current one only."""
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
        """Seconds of the text; a usage error if it is not a duration."""
        if isinstance(value, float):
            return value
        try:
            return parse_duration(value)
        except ValueError as exc:
            self.fail(str(exc), param, ctx)


class _Size(click.ParamType):
    name = "size"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """Bytes of the text; a usage error if it is not a size."""
        if isinstance(value, int):
            return value
        try:
            return parse_size(value)
        except ValueError as exc:
            self.fail(str(exc), param, ctx)


class _PtraceMode(click.Choice):
    """A PtraceMode by its value. `boundaries`, the former name of breakpoints, still works and is shown nowhere."""

    def __init__(self) -> None:
        super().__init__([mode.value for mode in PtraceMode])

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> PtraceMode:
        if isinstance(value, PtraceMode):
            return value
        if value == "boundaries":
            return PtraceMode.BREAKPOINTS
        return PtraceMode(super().convert(value, param, ctx))


DURATION = _Duration()
SIZE = _Size()
PTRACE_MODE = _PtraceMode()


def _all_of(*options: Callable[[Command], Command]) -> Callable[[Command], Command]:
    def apply(command: Command) -> Command:
        for option in reversed(options):
            command = option(command)
        return command

    return apply


def require_option(required: str, *names: str) -> None:
    """UsageError if one of the options `names` was given, since `required` was not; the caller has checked that."""
    context = click.get_current_context()
    for name in names:
        if context.get_parameter_source(name) is ParameterSource.COMMANDLINE:
            raise UsageError(f"--{name.replace('_', '-')} requires --{required}")


def attach_options(command: Command) -> Command:
    """Add the target and the options of every verb that attaches."""
    return _all_of(
        click.argument("targets", nargs=-1, metavar="TARGET..."),
        click.option(
            "-p",
            "--pid",
            "pids",
            type=click.IntRange(1),
            metavar="PID",
            multiple=True,
            help="Also trace this process; repeatable.",
        ),
        click.option(
            "-d", "--duration", type=DURATION, help="Stop after this long: 30s, 5m, 1h. Default: until Ctrl-C."
        ),
        click.option(
            "-c",
            "--count",
            type=click.IntRange(1),
            metavar="N",
            help="Stop after this many requests, counted over all workers.",
        ),
        click.option(
            "--backend",
            type=click.Choice(("auto", *BACKENDS)),
            default="auto",
            show_default=True,
            help="How to trace; auto takes bpf if it works here, else ptrace.",
        ),
        click.option(
            "--ptrace-mode",
            type=PTRACE_MODE,
            default=PtraceMode.SYSCALLS.value,
            show_default=True,
            help="How ptrace observes workers: system calls (complete, slow) or hardware breakpoints (fast, no mmap/brk"
            " counts).",
        ),
        click.option("--uri", metavar="GLOB", help="Keep only requests whose URI matches this shell pattern."),
        click.option("--script", metavar="GLOB", help="Keep only requests whose script matches this shell pattern."),
        click.option(
            "--slow", type=DURATION, help="Keep only requests that took at least this long, such as 3s or 500ms."
        ),
        click.option(
            "--min-growth",
            type=SIZE,
            help="Keep only requests that grew the worker by at least this much, such as 64K or 1M.",
        ),
        click.option(
            "--query",
            type=click.Choice(("strip", "keep")),
            default="strip",
            show_default=True,
            help="Remove or keep the query string of URIs, which may hold secrets.",
        ),
        click.option("-f", "--force", is_flag=True, help="Overwrite the output file if it exists."),
    )(command)


def stack_recording_options(command: Command) -> Command:
    """Add the options for recording call stacks."""
    default = StackOptions()
    return _all_of(
        click.option("--stacks", is_flag=True, help="Also record the PHP call stacks that make the workers grow."),
        click.option(
            "--max-depth",
            type=click.IntRange(4, 1024),
            metavar="N",
            default=default.max_depth,
            show_default=True,
            help="Record at most this many frames of a stack, from the innermost.",
        ),
        click.option(
            "--every",
            type=click.IntRange(1, 65536),
            metavar="N",
            default=default.every,
            show_default=True,
            help="Record the stack of every Nth page fault.",
        ),
        click.option(
            "--hz",
            type=click.IntRange(1, 20_000),
            metavar="N",
            default=default.hz,
            show_default=True,
            help="Zend heap samples per second of CPU time.",
        ),
        click.option(
            "--retained-after",
            type=click.IntRange(1, 1000),
            metavar="N",
            default=default.retained_after,
            show_default=True,
            help="Call a native block retained if it outlives its request by N more of the worker's requests.",
        ),
    )(command)


def stack_metric_options(command: Command) -> Command:
    """Add the options of every verb that shows growth by call stack."""
    return _all_of(
        click.option(
            "--metric",
            "--weight",
            cls=RenamedOption,
            type=click.Choice([metric.value for metric in Metric]),
            help="Measure growth by page faults (rss), page faults outside Zend's heap (native), mapped address space,"
            " Zend's heap, or native blocks still held some requests later (retained). Default: the first that was"
            " recorded of retained, native and rss.",
        ),
        click.option(
            "--retained",
            "--kept",
            cls=RenamedOption,
            is_flag=True,
            help="Show only native memory still held after the request; isolates leaks. This is the default if"
            " allocations were counted.",
        ),
    )(command)


def ranking_options(command: Command) -> Command:
    """Add the options of every verb that shows a ranking."""
    return _all_of(
        click.option(
            "--group-by",
            type=click.Choice([by.value for by in GroupBy]),
            default=GroupBy.SCRIPT.value,
            show_default=True,
            help="Show one row for each of these.",
        ),
        click.option(
            "--sort",
            type=click.Choice([sort.value for sort in Sort]),
            default=Sort.NATIVE.value,
            show_default=True,
            help="Sort rows by this, largest first; key sorts by name.",
        ),
        click.option(
            "-n",
            "--top",
            type=click.IntRange(0),
            metavar="N",
            default=20,
            show_default=True,
            help="Show at most this many rows; 0 shows all.",
        ),
    )(command)
