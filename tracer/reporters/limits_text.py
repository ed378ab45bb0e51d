"""Fatal errors, and requests that came near a limit, as lines for people: none where there is nothing to report."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TextIO

from tracer.analysis.limits import NEAR, RouteLimits, Worst
from tracer.reporters.labelled import moment, write
from tracer.reporters.table import console_for, shorten, show_key
from tracer.units import counted, printable, show_bytes, show_duration

_MOST = 5  # lines of one kind
_NAME_WIDTH = 40
_Lines = list[tuple[float, str]]  # with what sorts them
_NEAR = f"{100 * NEAR:.0f} %"


def render(routes: Sequence[RouteLimits], out: TextIO) -> None:
    """Write the lines, those that came nearest first."""
    fatal: _Lines = sorted((-row.fatal, _fatal(row)) for row in routes if row.fatal)
    memory = _near(routes, "memory_limit", show_bytes, "used")
    time = _near(routes, "request_terminate_timeout", show_duration, "ran for")
    time += _near(routes, "max_execution_time", show_duration, "used CPU time of")
    kinds: list[tuple[str, str, _Lines]] = [
        ("FATAL", "bold red", fatal),
        ("MEMORY", "bold yellow", memory),
        ("TIME", "bold yellow", sorted(time)),
    ]
    if not any(lines for _, _, lines in kinds):
        return
    console = console_for(out)
    console.print()
    for label, style, lines in kinds:
        for _, line in lines[:_MOST]:
            write(console, label, line, style)
        if len(lines) > _MOST:
            write(console, "", f"and {len(lines) - _MOST:,} more")


def _near(routes: Sequence[RouteLimits], setting: str, show: Callable[[float], str], did: str) -> _Lines:
    """The lines of the routes that came near the limit of that name, with what sorts them."""
    found = []
    for row in routes:
        worst: Worst | None = getattr(row, setting)
        if worst is None:
            continue
        parts = [f"{_name(row)} {did} up to {show(worst.used)} of {show(worst.limit)} ({setting}){_at(worst)}"]
        parts.append(f"{counted(worst.near, 'request')} came to {_NEAR} or more")
        if setting == "request_terminate_timeout" and row.terminated:
            parts.append(f"php-fpm ended {row.terminated:,} of them")
        found.append((-worst.share, "; ".join(parts)))
    return sorted(found)


def _at(worst: Worst) -> str:
    return "" if worst.started_ns is None else f" at {moment(worst.started_ns)}"


def _fatal(row: RouteLimits) -> str:
    text = f"{_name(row)}: {counted(row.fatal, 'fatal error')}"
    if row.fatal_near_memory_limit:
        some = "" if row.fatal_near_memory_limit == row.fatal else f"{row.fatal_near_memory_limit:,} of them "
        text += f", {some}with {_NEAR} of memory_limit or more in use"
    if row.fatal_at_ns is not None:
        last = "" if row.fatal_uri is None else f" by {shorten(printable(row.fatal_uri), _NAME_WIDTH)}"
        text += f"; the last at {moment(row.fatal_at_ns)}{last}"
    return text


def _name(row: RouteLimits) -> str:
    """The route; with its script, unless that has the same name; and its container, if there are several."""
    return " ".join(_names(row))


def _names(row: RouteLimits) -> Iterator[str]:
    yield shorten(show_key(row.route), _NAME_WIDTH)
    if row.script is not None and not (row.route and row.script.endswith(row.route)):
        yield f"({shorten(printable(row.script), _NAME_WIDTH)})"
    if row.container is not None:
        yield f"in {shorten(printable(row.container), _NAME_WIDTH)}"
