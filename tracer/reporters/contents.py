"""A recording as a whole, as text for people and as JSON."""

from __future__ import annotations

import dataclasses
import datetime
import json
from collections.abc import Iterator, Sequence
from typing import Any, TextIO

from tracer.analysis.contents import Contents, Lost
from tracer.reporters.json_report import json_text
from tracer.units import counted, counted_loss, printable, show_bytes

SCHEMA = 1
_LABEL = 11
_LONG_S = 120  # a recording that took longer is shown in minutes and hours, too
# Options by their names in a recording, with what they are called on the command line.
_OPTIONS = {
    "duration_s": "--duration",
    "count": "--count",
    "query": "--query",
    "uri": "--uri",
    "script": "--script",
    "slow_ns": "--slow",
    "min_growth": "--min-growth",
    "stacks": "--stacks",
    "stacks_max_depth": "--max-depth",
    "stacks_every": "--every",
    "stacks_hz": "--hz",
    "stacks_retained_after": "--retained-after",
    "native_budget": "--native-budget",
}


def render(found: Contents, out: TextIO) -> None:
    """Write a line for each property; those that the recording does not have are `-`."""
    out.write(f"{printable(found.path)}\n")
    for label, lines in _properties(found):
        for number, line in enumerate(lines or ["-"]):
            out.write(f"  {label if number == 0 else '':<{_LABEL}} {printable(line)}\n")


def render_json(found: Contents, out: TextIO) -> None:
    """Write one JSON object. Texts are not escaped; bytes that are not UTF-8 become U+FFFD."""
    document = {**dataclasses.asdict(found), "schema": SCHEMA, "recording_schema": found.schema}
    document["gaps"] = [{"at_ns": gap.at_ns, "why": gap.why} for gap in found.gaps]
    json.dump(_valid(document), out, indent=2, allow_nan=False)
    out.write("\n")


def _properties(found: Contents) -> Iterator[tuple[str, Sequence[str]]]:
    yield "recorded", [_recorded(found)]
    yield "host", _joined(", ", found.host, _joined_text("kernel", found.kernel, found.machine))
    yield "targets", _joined(", ", *found.targets)
    yield "PHP", _joined(", ", *found.php)
    yield "backend", _joined(" ", found.backend, found.backend_why and f"({found.backend_why})")
    yield "options", _joined(" ", *options_of(found))
    share = f", native memory counted in {100 * found.counted // found.requests} %" if found.requests else ""
    yield "requests", [f"{found.requests:,}, {found.incomplete:,} incomplete{share}"]
    killed = f" ({found.workers_killed:,} killed by a signal)" if found.workers_killed else ""
    pools = f"; pools: {', '.join(found.pools)}" if found.pools else ""
    born_and_died = f"{found.workers_born:,} born, {found.workers_died:,} died"
    yield "workers", [f"{found.workers:,}: {born_and_died}{killed}{pools}"]
    yield "lost", [f"{counted_loss(one.lost, one.why)} ({_when(one)})" for one in found.losses] or ["0"]
    yield "gaps", [gap.why for gap in found.gaps] or ["0"]
    yield "not traced", list(found.not_traced) or ["0"]
    yield "lacking", [] if found.lacking is None else list(found.lacking) or ["nothing"]
    written = "" if found.phptrace is None else f", written by phptrace {found.phptrace}"
    yield "file", [f"{show_bytes(found.bytes)}, schema {found.schema}{written}"]
    yield "closed", [_closed(found)]


def _recorded(found: Contents) -> str:
    if found.started_ns is None:
        return "-" if found.elapsed_s is None else f"for {found.elapsed_s:.1f} s"
    began = f"since {_time(found.started_ns)}"
    if found.elapsed_s is None:
        return began
    whole = datetime.timedelta(seconds=round(found.elapsed_s))
    return f"{began}, for {found.elapsed_s:.1f} s" + (f" ({whole})" if found.elapsed_s >= _LONG_S else "")


def _when(lost: Lost) -> str:
    """The times at which losses were noticed."""
    first, last = _time(lost.first_ns), _time(lost.last_ns)
    return f"at {first}" if first == last else f"from {first} to {last}"


def _closed(found: Contents) -> str:
    if found.closed:
        return "yes" if found.ended_why is None else f"yes: {found.ended_why}"
    return (
        "no (phptrace is still recording, was killed, or the disk was full); the last second of"
        f" {counted(found.requests, 'request')} may be missing"
    )


def options_of(found: Contents, but: Sequence[str] = ()) -> Iterator[str]:
    """The options of a recording as on the command line, without those that `but` names as the recording does."""
    for name, value in found.options.items():
        if name in but:
            continue
        option = _OPTIONS.get(name)
        if name == "native" and value is False:
            yield "--native off"
        elif name == "native_budget" and value == 1:
            yield "--native on"
        elif option is None or value is False:
            continue
        elif value is True:
            yield option
        else:
            yield f"{option} {_value(name, value)}"


def _value(name: str, value: object) -> str:
    if isinstance(value, str):
        return f"'{value}'" if name in ("uri", "script") else value
    if isinstance(value, int | float):
        if name == "slow_ns":
            return f"{value / 1e9:g}s"
        if name == "duration_s":
            return f"{value:g}s"
        if name == "native_budget":
            return f"{100 * value:g}%"
    return str(value)


def _joined_text(before: str, *texts: str | None) -> str | None:
    known = [text for text in texts if text]
    return " ".join([before, *known]) if known else None


def _joined(separator: str, *texts: str | None) -> list[str]:
    known = [text for text in texts if text]
    return [separator.join(known)] if known else []


def _time(unix_ns: int) -> str:
    moment = datetime.datetime.fromtimestamp(unix_ns // 1_000_000_000, datetime.UTC)
    return f"{moment:%Y-%m-%d %H:%M:%S} UTC"


def _valid(value: Any) -> Any:
    """The value with texts that JSON can hold."""
    if isinstance(value, str):
        return json_text(value)
    if isinstance(value, dict):
        return {json_text(name): _valid(one) for name, one in value.items()}
    return [_valid(one) for one in value] if isinstance(value, list | tuple) else value
