"""The options by which `report` leaves requests out, and the moments of --since and --until."""

from __future__ import annotations

import dataclasses
import datetime
import shlex
from typing import Any

import click

from tracer.analysis.contents import times
from tracer.capture import Filter
from tracer.commands.options import DURATION, Command, all_of
from tracer.errors import UsageError
from tracer.recording.reader import Reader
from tracer.units import parse_duration

_DAY_NS = 86_400_000_000_000
_FORMS = "Write 5m (after the start of the recording), 14:02, 14:02:11 or 2026-11-28T14:02:11 (in UTC)."


@dataclasses.dataclass(frozen=True, slots=True)
class Moment:
    """A point in time of a recording, as a user writes it. One of the three is known."""

    text: str
    offset_ns: int | None = None  # after the recording's start
    of_day_ns: int | None = None  # after midnight UTC
    unix_ns: int | None = None

    @classmethod
    def parse(cls, text: str) -> Moment:
        """The moment of `5m`, `14:02`, `2026-11-28T14:02:11` or `2026-11-28 14:02+01:00`. ValueError for others."""
        text = text.strip()
        try:
            return cls(text, offset_ns=round(parse_duration(text.removeprefix("+")) * 1e9))
        except ValueError:
            pass
        try:
            if len(text) <= len("14:02:11.123456"):
                at = datetime.time.fromisoformat(text)
                if at.tzinfo is None and ":" in text:
                    seconds = at.hour * 3600 + at.minute * 60 + at.second
                    return cls(text, of_day_ns=seconds * 1_000_000_000 + at.microsecond * 1000)
        except ValueError:
            pass
        try:
            day = datetime.datetime.fromisoformat(text)
            day = day.replace(tzinfo=datetime.UTC) if day.tzinfo is None else day
            whole = day - datetime.datetime.fromtimestamp(0, datetime.UTC)
            return cls(text, unix_ns=(whole // datetime.timedelta(microseconds=1)) * 1000)
        except (ValueError, OverflowError):
            raise ValueError(f"{text!r} is not a time. {_FORMS}") from None

    def of(self, began_ns: int, ended_ns: int) -> int:
        """Its Unix time in a recording. A time of day is of its first day, or of a later one if only that has it."""
        if self.unix_ns is not None:
            return self.unix_ns
        if self.offset_ns is not None:
            return began_ns + self.offset_ns
        first = began_ns - began_ns % _DAY_NS + (self.of_day_ns or 0)
        next_ns = first + _DAY_NS
        return next_ns if first < began_ns and next_ns <= ended_ns else first


class _MomentType(click.ParamType):
    name = "time"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Moment:
        if isinstance(value, Moment):
            return value
        try:
            return Moment.parse(str(value))
        except ValueError as exc:
            self.fail(str(exc), param, ctx)


@dataclasses.dataclass(frozen=True, slots=True)
class Selection:
    """The requests that a report is about."""

    keep: Filter
    since: Moment | None = None
    until: Moment | None = None

    @classmethod
    def of(
        cls, uri: str | None, script: str | None, slow: float | None, since: Moment | None, until: Moment | None
    ) -> Selection:
        """The selection of these options."""
        return cls(Filter(uri, script, None if slow is None else round(slow * 1e9)), since, until)

    def __bool__(self) -> bool:
        """True if requests may be left out."""
        return bool(self.keep) or self.since is not None or self.until is not None

    def within(self, recording: Reader) -> Filter:
        """The filter for the requests of that recording. UsageError if no time is left."""
        if self.since is None and self.until is None:
            return self.keep
        began_ns, ended_ns = span_of(recording) or (0, 0)
        since_ns = None if self.since is None else self.since.of(began_ns, ended_ns)
        until_ns = None if self.until is None else self.until.of(began_ns, ended_ns)
        # A recording that goes on past midnight may end before that time of the second day.
        if self.until is not None and self.until.of_day_ns is not None and until_ns is not None:
            passes_midnight = began_ns // _DAY_NS < ended_ns // _DAY_NS
            until_ns += _DAY_NS if until_ns < began_ns and passes_midnight else 0
        if since_ns is not None and until_ns is not None and since_ns >= until_ns:
            raise UsageError(
                f"cannot use --since {self.since.text if self.since else ''} with --until"
                f" {self.until.text if self.until else ''}: no time is left. Write an earlier --since."
            )
        return dataclasses.replace(self.keep, since_ns=since_ns, until_ns=until_ns)

    def shown(self) -> list[str]:
        """The options, as they were given."""
        keep = self.keep
        slow = None if keep.slow_ns is None else f"{keep.slow_ns / 1e9:g}s"
        named = {"uri": keep.uri, "script": keep.script, "slow": slow}
        named["since"] = None if self.since is None else self.since.text
        named["until"] = None if self.until is None else self.until.text
        return [f"--{name} {shlex.quote(value)}" for name, value in named.items() if value is not None]


def span_of(recording: Reader) -> tuple[int, int] | None:
    """When a recording began, and when it ended, in Unix time; None if that is not known."""
    began_ns, seconds = times(recording.meta)
    if began_ns is None or seconds is None:
        began_ns, seconds = times(recording.meta, *(recording.span() or (None, None)))
    return None if began_ns is None else (began_ns, began_ns + round(1e9 * (seconds or 0.0)))


def selection_options(command: Command) -> Command:
    """Add the options of a verb that shows some requests of a recording."""
    when = "A duration counts from the start of the recording; a time, such as 14:02 or 2026-11-28T14:02:11, is UTC."
    return all_of(
        click.option(
            "--uri", metavar="GLOB", help="Show only requests whose URI matches this shell pattern, such as '/shop/*'."
        ),
        click.option(
            "--script", metavar="GLOB", help="Show only requests whose script (full path) matches this shell pattern."
        ),
        click.option("--slow", type=DURATION, help="Show only requests that took at least this long, such as 3s."),
        click.option("--since", type=_MomentType(), help=f"Show only requests that began then or later. {when}"),
        click.option("--until", type=_MomentType(), help="Show only requests that began before. As --since."),
    )(command)
