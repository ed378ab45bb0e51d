"""Options that several verbs share, and their value types."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

import click
from click.core import ParameterSource

from tracer.backends import PtraceMode, StackOptions
from tracer.backends.choose import BACKENDS
from tracer.errors import UsageError
from tracer.facts import Metric
from tracer.units import parse_duration, parse_share, parse_size

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


class _Parsed(click.ParamType):
    """A value that a function makes of the text; a usage error says what the function refused."""

    def __init__(self, name: str, parse: Callable[[str], float | int]) -> None:
        """`parse` raises ValueError for a text that it refuses."""
        self.name = name
        self._parse = parse

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float | int:
        """The value of the text; a default that is no text is the value itself."""
        if not isinstance(value, str):
            return value  # type: ignore[no-any-return]
        try:
            return self._parse(value)
        except ValueError as exc:
            self.fail(str(exc), param, ctx)


class WholeNumber(click.ParamType):
    """A whole number from `least` to `most`; `most` None: any. Unlike click.IntRange, it adds nothing to --help."""

    name = "integer"

    def __init__(self, least: int, most: int | None = None) -> None:
        """Both ends are allowed values."""
        self.least = least
        self.most = most

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """The number of the text; a usage error if it is not a number in the range."""
        try:
            number = int(value)
        except ValueError:
            self.fail(f"{value!r} is not a whole number. Write digits only.", param, ctx)
        if number < self.least or (self.most is not None and number > self.most):
            allowed = f"{self.least} or more" if self.most is None else f"{self.least} to {self.most}"
            self.fail(f"{number} is out of range. Write {allowed}.", param, ctx)
        return number


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


DURATION = _Parsed("duration", parse_duration)
SIZE = _Parsed("size", parse_size)
SHARE = _Parsed("percent", parse_share)
PTRACE_MODE = _PtraceMode()


def all_of(*options: Callable[[Command], Command]) -> Callable[[Command], Command]:
    """Return a decorator that adds these options, in this order."""

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
            raise UsageError(f"cannot use --{name.replace('_', '-')}: it requires --{required}. Add --{required}.")


def attach_options(command: Command) -> Command:
    """Add the target and the options of every verb that attaches."""
    return all_of(
        click.argument("targets", nargs=-1, metavar="[TARGET]..."),
        click.option(
            "-p",
            "--pid",
            "pids",
            type=WholeNumber(1),
            metavar="PID",
            multiple=True,
            help="Trace this process, too. May be given several times, and instead of TARGET.",
        ),
        click.option(
            "-d", "--duration", type=DURATION, help="Stop after this long: 30s, 5m, 1h. Default: until Ctrl-C."
        ),
        click.option(
            "-c",
            "--count",
            type=WholeNumber(1),
            metavar="N",
            help="Stop after this many requests of all workers together. Requests that a filter drops do not count.",
        ),
        click.option(
            "--backend",
            type=click.Choice(("auto", *BACKENDS)),
            default="auto",
            show_default=True,
            help="How to watch the workers: from the kernel (bpf), or by stopping them (ptrace, slower). auto uses"
            f" {', and only where that is not possible, '.join(BACKENDS)}.",
        ),
        click.option(
            "--ptrace-mode",
            type=PTRACE_MODE,
            default=PtraceMode.SYSCALLS.value,
            show_default=True,
            help="Where backend ptrace stops a worker: at every system call (slow), or at hardware breakpoints"
            " (faster, but mmap and brk are not counted).",
        ),
        click.option(
            "--native",
            type=click.Choice(("auto", "on", "off")),
            default="auto",
            show_default=True,
            help="Count the native memory that requests allocate and free: auto, as long as --native-budget allows;"
            " on, at any cost; off, never. Only backend bpf can count.",
        ),
        click.option(
            "--native-budget",
            type=SHARE,
            metavar="PERCENT",
            help="Largest share of the workers' CPU time that --native auto may use, such as 0.5%. Default: 2%.",
        ),
        click.option(
            "--uri",
            metavar="GLOB",
            help="Show and record only requests whose URI matches this shell pattern, such as '/shop/*'.",
        ),
        click.option(
            "--script",
            metavar="GLOB",
            help="Show and record only requests whose script (full path) matches this shell pattern.",
        ),
        click.option(
            "--slow",
            type=DURATION,
            help="Show and record only requests that took at least this long, such as 3s or 500ms.",
        ),
        click.option(
            "--min-growth",
            type=SIZE,
            help="Show and record only requests that kept at least this much native memory (memory outside PHP's own"
            " heap), such as 64K or 1M. Where that was not counted, the growth of the worker is compared.",
        ),
        click.option(
            "--query",
            type=click.Choice(("strip", "keep")),
            default="strip",
            show_default=True,
            help="Remove (strip) or keep the query string of URIs. Query strings may contain secrets.",
        ),
        click.option("-f", "--force", is_flag=True, help="Overwrite the output file if it exists."),
    )(command)


def stack_recording_options(command: Command) -> Command:
    """Add the options for recording call stacks."""
    default = StackOptions()
    return all_of(
        click.option("--stacks", is_flag=True, help="Also record the PHP call stacks that make the workers grow."),
        click.option(
            "--max-depth",
            type=WholeNumber(4, 1024),
            metavar="N",
            default=default.max_depth,
            show_default=True,
            help="Record at most this many frames of a stack (4 to 1024), counted from the innermost. Requires"
            " --stacks.",
        ),
        click.option(
            "--every",
            type=WholeNumber(1, 65536),
            metavar="N",
            default=default.every,
            show_default=True,
            help="Record the call stack of every Nth page fault (1 to 65536). Requires --stacks.",
        ),
        click.option(
            "--hz",
            type=WholeNumber(1, 20_000),
            metavar="N",
            default=default.hz,
            show_default=True,
            help="Sample Zend's heap this many times per second of CPU time (1 to 20000). Requires --stacks.",
        ),
        click.option(
            "--retained-after",
            type=WholeNumber(1, 1000),
            metavar="N",
            default=default.retained_after,
            show_default=True,
            help="Report a native block as retained if it is still allocated when N more requests of its worker have"
            " ended (1 to 1000). Requires --stacks.",
        ),
    )(command)


def stack_metric_options(note: str = "") -> Callable[[Command], Command]:
    """Return a decorator that adds the options of every verb that shows growth by call stack.

    `note` is appended to the help of each.
    """
    return all_of(
        click.option(
            "--metric",
            "--weight",
            cls=RenamedOption,
            type=click.Choice([metric.value for metric in Metric]),
            help="How to measure growth: rss (page faults), native (page faults outside PHP's own heap), mapped"
            " (address space added by mmap and brk), zend (growth of PHP's own heap) or retained (native blocks"
            f" still held some requests later). Default: the first of retained, native and rss that the"
            f" recording has.{note}",
        ),
        click.option(
            "--retained",
            "--kept",
            cls=RenamedOption,
            is_flag=True,
            help="Show only native memory (memory outside PHP's own heap) that is still held after the request, such as"
            f" leaks. This is the default for recordings in which allocations were counted.{note}",
        ),
    )


def route_options(command: Command) -> Command:
    """Add the options of every verb that shows routes."""
    return all_of(
        click.option(
            "--routes",
            metavar="FILE",
            help="Take routes from this file, where they match: one pattern per line, such as /shop/{category}/*, where"
            " {category} is one part of a path and * is all further parts.",
        ),
        click.option(
            "--route-query",
            metavar="NAMES",
            help="Make these query parameters part of the route, such as action,page. Requires URIs that were recorded"
            " with --query keep.",
        ),
    )(command)
