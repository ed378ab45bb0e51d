"""The workers that did not end in order, and their last requests, as lines for people."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TextIO

from tracer.analysis.last_words import LastWords
from tracer.reporters.labelled import moment, write
from tracer.reporters.table import console_for, shorten, show_key
from tracer.units import printable, show_bytes, show_duration

_MOST = 5
_NAME_WIDTH = 40
_KILLED, _EXITED = "killed:", "exited:"


def render(deaths: Sequence[LastWords], more: int, out: TextIO) -> None:
    """Write a line for each of the last deaths. `more`: deaths that are not among `deaths`."""
    if not deaths:
        return
    console = console_for(out)
    console.print()
    for death in deaths[-_MOST:]:
        died = f"{_worker(death)} at {moment(death.died_ns)} {_cause(death)}"
        write(console, "DIED", f"{died}, {_request(death)}", "bold red")
    more += max(0, len(deaths) - _MOST)
    if more:
        write(console, "", f"and {more:,} before")


def _worker(death: LastWords) -> str:
    name = f"{death.pool}/{death.pid}" if death.pool else f"worker {death.pid}"
    name = shorten(printable(name), _NAME_WIDTH)
    return name if death.container is None else f"{name} in {shorten(printable(death.container), _NAME_WIDTH)}"


def _cause(death: LastWords) -> str:
    if death.by_oom_killer:
        return "by the kernel's OOM killer"
    if death.exit.startswith(_EXITED):
        return f"with exit status {shorten(printable(death.exit.removeprefix(_EXITED)), _NAME_WIDTH)}"
    if death.by_oom_killer is None:
        return "by SIGKILL, possibly of the kernel's OOM killer"
    if death.exit == f"{_KILLED}KILL":
        return "by SIGKILL, not of the kernel's OOM killer"
    return f"by SIG{shorten(printable(death.exit.removeprefix(_KILLED)), _NAME_WIDTH)}"


def _request(death: LastWords) -> str:
    if death.started_ns is None and death.uri is None and death.script is None:
        return "and none of its requests is recorded"
    name = shorten(show_key(death.uri if death.uri is not None else death.script), _NAME_WIDTH)
    if death.uri is not None and death.script is not None:
        name += f" ({shorten(printable(death.script), _NAME_WIDTH)})"
    size = None if death.size is None else show_bytes(death.size)
    if death.in_flight:
        ran = "" if death.duration_ns is None else f", which had run for {show_duration(death.duration_ns)}"
        return f"in {name}{ran}" + (f"; it had at least {size}" if size else "")
    last = "the last recorded request" if death.in_flight is None else "the last request"
    ended = "" if (at := _ended_ns(death)) is None else f", ended {show_duration(max(0, death.died_ns - at))} before"
    between = "" if death.in_flight is None else "between requests; "
    return f"{between}{last}, {name}{ended}" + (f" and left it with {size}" if size else "")


def _ended_ns(death: LastWords) -> int | None:
    return None if death.started_ns is None or death.duration_ns is None else death.started_ns + death.duration_ns
