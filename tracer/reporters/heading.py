"""The first line of a report: which recording it is of, where and when that was made, and how much it has."""

from __future__ import annotations

import datetime
from collections.abc import Sequence

from rich.text import Text

from tracer.analysis.heading import Heading
from tracer.analysis.tally import Tally
from tracer.reporters.table import shorten
from tracer.units import counted, printable

_MOST = 3  # files, hosts, targets or versions that are named
_WIDTH = 40  # cells of each of them
_ROOT_WIDTH = 80
_LONG_S = 120.0
_SEPARATOR = " · "


def lines(heading: Heading, tally: Tally, root: str, width: int) -> Text:
    """The line, or several of at most so many cells if possible. `root`: the folder of all scripts, or empty."""
    php = f"PHP {_named(heading.php)}" if heading.php else ""
    workers = counted(tally.workers, "worker") if tally.workers else ""
    requests = counted(tally.requests, "request")
    if heading.filters:
        requests = f"{tally.requests:,} of {counted(tally.requests + tally.left_out, 'request')}"
    parts = [
        _named(heading.files, "recordings"),
        _named(heading.hosts),
        ", ".join(filter(None, [_named(heading.targets), workers, php])),
        _time(heading),
        requests,
        *(shorten(printable(text), _WIDTH) for text in heading.filters),
        f"{tally.lost:,} lost",
        f"scripts in {shorten(printable(root), _ROOT_WIDTH)}" if root else "",
    ]
    text = Text()
    room = 0
    for part in filter(None, parts):
        size = Text(part).cell_len
        if room >= size + len(_SEPARATOR):
            text.append(_SEPARATOR)
            room -= len(_SEPARATOR)
        else:
            text.append("\n" if text else "")
            room = width
        lost = tally.lost and part.endswith(" lost")
        text.append(part, style="bold red" if lost else "bold" if part is parts[0] else "")
        room -= size
    return text


def _named(texts: Sequence[str], noun: str = "") -> str:
    """The first of these texts; how many more there are."""
    shown = [shorten(printable(text), _WIDTH) for text in texts[:_MOST]]
    more = len(texts) - len(shown)
    return ", ".join(shown) + (f" and {more:,} more{f' {noun}' if noun else ''}" if more > 0 else "")


def _time(heading: Heading) -> str:
    """Such as 2026-11-28 14:02:11 to 14:03:25 UTC, with the seconds in brackets."""
    if heading.began_ns is None or heading.ended_ns is None:
        return ""
    began, ended = _moment(heading.began_ns), _moment(heading.ended_ns)
    took = f"{heading.seconds:.0f} s"
    if heading.seconds >= _LONG_S:
        took = str(datetime.timedelta(seconds=round(heading.seconds)))
    same_day = began.date() == ended.date()
    return f"{began:%Y-%m-%d %H:%M:%S}–{ended:{'%H:%M:%S' if same_day else '%Y-%m-%d %H:%M:%S'}} UTC ({took})"


def _moment(unix_ns: int) -> datetime.datetime:
    return datetime.datetime.fromtimestamp(unix_ns // 1_000_000_000, datetime.UTC)
