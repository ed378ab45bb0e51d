"""The lines around a ranking: what it does not tell apart, how much was seen, in part, and lost; and names in them."""

from __future__ import annotations

import datetime
from typing import TextIO

from rich.cells import cell_len
from rich.console import Console

from tracer.analysis.places import place_name
from tracer.analysis.ranking import Ranking
from tracer.analysis.tally import Forked, Tally
from tracer.facts import Request
from tracer.units import counted, counted_loss, printable, show_bytes

_MOST_TOGETHER = 3
_MOST_KEYS = 4
_MOST_FORKERS = 3
_FORKER_WIDTH = 40
_IN_FLIGHT_WIDTH = 40
_LEAST_FOR_A_RATE_S = 10
_MOST_CONTAINER = 28  # cells


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
            f"NOT COUNTED: since {_time(mismatch.since_ns)}, the requests that were not counted kept"
            f" {show_bytes(mismatch.grew, signed=True)} (malloc's heap grew by that); if they were like the counted"
            f" ones, it would be {show_bytes(mismatch.charged, signed=True)}. So figures with ~ and ≤ are less sure."
            " To have every request counted, record with --native on (backend bpf)."
        )
    return found


def _time(unix_ns: int) -> str:
    return f"{datetime.datetime.fromtimestamp(unix_ns // 1_000_000_000, datetime.UTC):%Y-%m-%dT%H:%M:%SZ}"


def console_for(out: TextIO, in_pipe: int = 100) -> Console:
    """A console as wide as its terminal, or so many characters in a pipe: other formats have whole keys."""
    return Console(file=out, highlight=False, width=None if out.isatty() else in_pipe)


def summary(tally: Tally) -> str:
    """The footer of every output: how much was seen, seen in part, and lost. Several lines if something is missing."""
    parts = [
        counted(tally.requests, "request"),
        counted(tally.workers, "worker"),
        _incomplete(tally),
        f"{tally.lost:,} lost",
    ]
    if tally.left_out:
        parts.insert(1, f"{tally.left_out:,} left out by a filter")
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


def _incomplete(tally: Tally) -> str:
    """How many requests were seen in part, and what is known of them."""
    about = [f"{tally.killed} killed"] if tally.killed else []
    if tally.incomplete_growth:
        about.append(f"workers grew {show_bytes(tally.incomplete_growth, signed=True)}")
    return f"{tally.incomplete} incomplete" + (f" ({', '.join(about)})" if about else "")


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


def show_key(key: str | None, root: str = "") -> str:
    """A group's key for a terminal, without the folder `root`; None is `(none)`."""
    return "(none)" if key is None else printable(key.removeprefix(root))


def shorten(text: str, width: int) -> str:
    """The end of the text, in at most `width` cells of a terminal: it tells scripts apart better than the beginning.

    A path is cut between its parts, if its last one fits.
    """
    if cell_len(text) <= width:
        return text
    start, room = len(text), width - 1  # a cell for the ellipsis
    while room >= cell_len(text[start - 1]):
        start -= 1
        room -= cell_len(text[start])
    part = text.find("/", start)
    if 0 <= part < len(text) - 1:
        return "…" + text[part:]
    # A combining mark belongs to the character before it, which is cut off.
    while start < len(text) and cell_len(text[start]) == 0:
        start += 1
    return "…" + text[start:]
