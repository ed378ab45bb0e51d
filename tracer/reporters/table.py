"""A ranking as a table for people: at most 100 characters wide with the default columns."""

from __future__ import annotations

import datetime
from collections.abc import Callable, Sequence
from typing import Literal, TextIO

from rich.cells import cell_len
from rich.console import Console, RenderableType
from rich.table import Table
from rich.text import Text

from tracer.analysis.group import Group
from tracer.analysis.kept import How
from tracer.analysis.places import place_name
from tracer.analysis.ranking import GroupBy, Ranking, Sort
from tracer.analysis.tally import Forked, Tally
from tracer.facts import Request
from tracer.reporters.verdict_text import label
from tracer.units import counted, counted_loss, printable, show_bytes, show_duration

_MIN_KEY = 19
_MOST_TOGETHER = 3
_MOST_KEYS = 4
_MOST_FORKERS = 3
_FORKER_WIDTH = 40
_IN_FLIGHT_WIDTH = 40
_LEAST_FOR_A_RATE_S = 10
_CONTAINER = "container"  # a column that is shown where requests ran in several
_MOST_CONTAINER = 28  # cells
# Columns that are left out if there is no room, in this order.
_SPARE = ("zend peak", "anon peak", "p95", "requests")


def _columns(sort: Sort) -> list[tuple[str, int, Sort | None, Callable[[Group], str]]]:
    """(name, width, the sort order that it shows, cell) of each column after the key."""
    columns: list[tuple[str, int, Sort | None, Callable[[Group], str]]] = [
        ("requests", 9, Sort.REQUESTS, lambda g: f"{g.requests:,}"),
        ("native kept", 12, Sort.NATIVE, lambda g: _kept(g, g.kept_bytes, g.requests)),
        ("per request", 11, None, lambda g: _kept(g, g.kept_per_request, 1)),
        ("keep", 4, None, lambda g: "-" if g.kept_share is None else f"{g.kept_share:.0%}"),
        ("anon peak", 9, Sort.PEAK, lambda g: show_bytes(g.anon_peak_max)),
        ("zend peak", 9, Sort.ZEND, lambda g: show_bytes(g.zend_peak_max)),
        ("p95", 8, Sort.DURATION, lambda g: show_duration(g.duration_p95_ns)),
    ]
    if sort is Sort.GROWTH:
        columns.insert(1, ("growth", 10, Sort.GROWTH, lambda g: show_bytes(g.growth_bytes, signed=True)))
    return columns


def _kept(group: Group, value: float | None, requests: int) -> str:
    """A figure of native memory of that many requests. An estimate has a tilde; if it may be nothing, ≤ says so."""
    if value is None and group.kept_high is not None:
        return "≤ " + show_bytes(group.kept_high * requests)
    if value is not None and group.kept_low is not None and group.kept_low <= 0.0 < value:
        return "≤ " + show_bytes(value)
    about = "~" if group.kept_how == How.ESTIMATED.value else ""
    return about + show_bytes(value, signed=True)


def remarks(ranking: Ranking) -> list[str]:
    """Sentences on what the ranking does not tell apart, or could not estimate; [] if nothing."""
    found = []
    for entry in ranking.together()[:_MOST_TOGETHER]:
        names = [shorten(show_key(key), 40) for key in entry.keys[:_MOST_KEYS]]
        more = len(entry.keys) - len(names)
        names += [f"{more:,} more"] if more else []
        found.append(
            f"{' or '.join(names)}: ~{show_bytes(entry.bytes_per_round, signed=True)} a request of each (95 %:"
            f" {show_bytes(entry.low)} to {show_bytes(entry.high)}). They always came together: more varied traffic, or"
            " --native on with backend bpf, tells them apart."
        )
    why = ranking.why_not_estimated()
    if why is not None:
        found.append(f"native memory was not counted, and an estimate is not sure: {why}.")
    mismatch = ranking.mismatch()
    if mismatch is not None:
        found.append(
            f"NOT COUNTED: since {_time(mismatch.since_ns)}, requests that were not counted kept"
            f" {show_bytes(mismatch.grew, signed=True)} by the growth of malloc's heap, where the counted ones or an"
            f" estimate give {show_bytes(mismatch.charged, signed=True)}. ~ and ≤ allow for it. To count all requests,"
            " use --native on with backend bpf."
        )
    return found


def _time(unix_ns: int) -> str:
    return f"{datetime.datetime.fromtimestamp(unix_ns // 1_000_000_000, datetime.UTC):%Y-%m-%dT%H:%M:%SZ}"


def legend(sort: Sort) -> str:
    """A paragraph on what the columns mean."""
    text = (
        "native kept: memory outside PHP's own heap that requests allocated and did not free, without what each worker"
        ' keeps once, in caches. "per request" is the mean, "keep" the share of requests that'
        " kept any; - is not counted, ~ an estimate, ≤ the most it may be. Peaks are maxima. p95: 95 % of the requests"
        " took no longer. (none): no script ran (404), or it was not seen."
    )
    if sort is Sort.GROWTH:
        text += " growth: all memory still held, including PHP's chunk cache, which later requests free."
    return text


def render(
    groups: Sequence[Group],
    tally: Tally,
    out: TextIO,
    *,
    by: GroupBy,
    sort: Sort,
    hidden: int,
    remarks: Sequence[str] = (),
) -> None:
    """Write the ranking, the remarks, the summary and the legend.

    `hidden` is how many groups are not among `groups`; `remarks` are those of remarks().
    """
    console = console_for(out)
    console.print(ranking_table(groups, by=by, sort=sort, width=console.width))
    if hidden:
        console.print(Text(f"… and {hidden} more: -n 0 shows all"))
    for remark in remarks:
        console.print(Text(remark))
    console.print(Text(summary(tally)))
    console.print(Text(legend(sort), style="dim"))


def console_for(out: TextIO) -> Console:
    """A console as wide as its terminal, or 100 characters in a pipe: other formats have whole keys."""
    return Console(file=out, highlight=False, width=None if out.isatty() else 100)


def ranking_table(groups: Sequence[Group], *, by: GroupBy, sort: Sort, width: int) -> RenderableType:
    """The table alone. Long keys lose their beginning, which tends to be alike; a narrow terminal has fewer columns."""
    columns = _columns(sort)
    if any(group.verdict is not None for group in groups):
        columns.insert(0, ("verdict", 10, None, lambda g: "-" if g.verdict is None else label(g.verdict)))
    columns = [(name, max(least, len(name) + (of is sort)), of, cell) for name, least, of, cell in columns]
    containers = [None if group.container is None else shorten(printable(group.container), _MOST_CONTAINER)
                  for group in groups]  # fmt: skip
    wide = max((cell_len(name) + 1 for name in containers if name is not None), default=0)
    wide = max(wide, len(_CONTAINER) + 1) if wide else 0
    for spare in _SPARE:
        if _room(columns, width - wide) < _MIN_KEY:
            columns = [column for column in columns if column[0] != spare or column[2] is sort]
    key_width = max(_MIN_KEY, _room(columns, min(width, 160) - wide))
    keys = [shorten(show_key(group.key), key_width) for group in groups]
    table = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0), header_style="bold")
    name = by.value + ("↓" if sort is Sort.KEY else "")
    table.add_column(name, no_wrap=True, min_width=_MIN_KEY, max_width=key_width)
    if wide:
        table.add_column(_CONTAINER, no_wrap=True, min_width=wide - 1)
    for name, least, of, _ in columns:
        side: Literal["left", "right"] = "left" if name == "verdict" else "right"
        table.add_column(name + ("↓" if of is sort else ""), justify=side, no_wrap=True, min_width=least)
    for key, container, group in zip(keys, containers, groups, strict=True):
        cells = [Text(container or "")] if wide else []
        table.add_row(Text(key), *cells, *(cell(group) for _, _, _, cell in columns))
    return table


def _room(columns: Sequence[tuple[str, int, Sort | None, Callable[[Group], str]]], width: int) -> int:
    """Cells that the columns leave for the key."""
    return width - sum(wide + 1 for _, wide, _, _ in columns) - 1


def summary(tally: Tally) -> str:
    """The footer of every output: how much was seen, seen in part, and lost. Several lines if something is missing."""
    parts = [
        counted(tally.requests, "request"),
        counted(tally.workers, "worker"),
        f"{tally.incomplete} incomplete" + (f" ({tally.killed} killed)" if tally.killed else ""),
        f"{tally.lost:,} lost",
    ]
    if tally.fatal:
        parts.append(counted(tally.fatal, "fatal error"))
    if tally.uri_unknown:
        parts.append(f"{tally.uri_unknown} with unknown URI")
    if tally.died:
        parts.append(f"workers: {tally.born} born, {tally.died} died")
    if tally.counted < tally.requests:
        share = 100 * tally.counted // tally.requests
        parts.append(f"native memory counted in {share} % of the requests")
    text = " · ".join(parts)
    for request in tally.in_flight:
        text += f"\n{in_flight(request, with_place=tally.several_places)}"
    for why, lost in tally.losses.items():
        text += f"\nLOST {counted_loss(lost, printable(why))}"
    for sentence in tally.not_traced:
        text += f"\nLEFT OUT: {printable(sentence)}"
    forked = tally.forked()
    for one in forked[:_MOST_FORKERS]:
        text += f"\n{_forked(one)}"
    if len(forked) > _MOST_FORKERS:
        text += f"\n{counted(sum(one.processes for one in forked[_MOST_FORKERS:]), 'process')} forked by others"
    if tally.unended:
        was, its = ("was", "its") if tally.unended == 1 else ("were", "their")
        text += (
            f"\nINCOMPLETE: {counted(tally.unended, 'recording')} {was} not closed (still running, killed, or disk"
            f" full); {its} last second may be missing"
        )
    return text


def in_flight(request: Request, *, with_place: bool = False) -> str:
    """A line on a request that began before the recording, or goes on after it, or runs now.

    `with_place`: requests ran in several places.
    """
    name = shorten(show_key(request.uri if request.uri is not None else request.script), _IN_FLIGHT_WIDTH)
    seconds = (request.duration_ns or 0) / 1e9
    grew = request.growth
    where = f"worker {request.pid}"
    if with_place:
        where += f" of {shorten(printable(place_name(request.place)), _MOST_CONTAINER)}"
    if grew is None:
        return f"IN FLIGHT: {name} in {where} for {seconds:.1f} s"
    an_hour = growth_per_hour(request)
    rate = "" if an_hour is None else f", {show_bytes(an_hour, signed=True)} an hour"
    return f"IN FLIGHT: {name} in {where}: {show_bytes(grew, signed=True)} in {seconds:.1f} s{rate}"


def growth_per_hour(request: Request) -> int | None:
    """Bytes that its worker grows by in an hour, if it goes on so; None if it has not run for long, or is not known."""
    if request.growth is None or request.duration_ns is None or request.duration_ns < _LEAST_FOR_A_RATE_S * 10**9:
        return None
    return round(request.growth * 3600 * 10**9 / request.duration_ns)


def _forked(forked: Forked) -> str:
    """A line such as: 26 processes forked by /spawn.php, 18 alive, 7.4 MiB each."""
    by = "workers" if forked.by is None else shorten(printable(forked.by), _FORKER_WIDTH)
    text = f"{counted(forked.processes, 'process')} forked by {by}, {forked.alive:,} alive"
    return text + (f", {show_bytes(forked.anon / forked.alive)} each" if forked.alive else "")


def show_key(key: str | None) -> str:
    """A group's key for a terminal; None is `(none)`."""
    return "(none)" if key is None else printable(key)


def shorten(text: str, width: int) -> str:
    """The end of the text, in at most `width` cells of a terminal: it tells scripts apart better than the beginning."""
    if cell_len(text) <= width:
        return text
    start, room = len(text), width - 1  # a cell for the ellipsis
    while room >= cell_len(text[start - 1]):
        start -= 1
        room -= cell_len(text[start])
    # A combining mark belongs to the character before it, which is cut off.
    while start < len(text) and cell_len(text[start]) == 0:
        start += 1
    return "…" + text[start:]
