"""What `flame` and `report --stacks` do alike: read growth by call stack, and say what it does not show."""

from __future__ import annotations

import dataclasses
from typing import Any

from tracer.analysis.flame.builder import COLUMNS, FlameBuilder
from tracer.analysis.tally import Tally
from tracer.errors import UsageError
from tracer.facts import Metric
from tracer.recording.reader import Reader
from tracer.units import show_bytes

# What a Loss of growth by call stack begins with (backends/stacks.py).
_GROWTH_LOST = "growth events"


@dataclasses.dataclass(slots=True)
class RecordingNotes:
    """What the recordings say of themselves."""

    every: set[int] = dataclasses.field(default_factory=set)
    hz: set[int] = dataclasses.field(default_factory=set)
    lacking: list[str] = dataclasses.field(default_factory=list)

    def add(self, meta: dict[str, Any]) -> None:
        stacks = meta.get("stacks")
        for name, values in (("every", self.every), ("hz", self.hz)):
            value = stacks.get(name) if isinstance(stacks, dict) else None
            if isinstance(value, int):
                values.add(value)
        lacking = meta.get("lacking")
        for lack in lacking if isinstance(lacking, list) else ():
            if isinstance(lack, str) and lack not in self.lacking:
                self.lacking.append(lack)


def flame_builder(
    metric: Metric, *, retained: bool, difference: bool = False
) -> tuple[FlameBuilder, Tally, RecordingNotes]:
    """Something to add recordings to. UsageError if what is asked for makes no sense."""
    if retained and metric is Metric.ZEND:
        raise UsageError(
            "--retained makes no sense with --metric zend: Zend's heap gives everything back at the end of a request."
            " What requests keep shows with rss or mapped."
        )
    return FlameBuilder(metric, retained=retained, difference=difference), Tally(), RecordingNotes()


def add_recording(
    path: str, builder: FlameBuilder, tally: Tally, said: RecordingNotes, *, before: bool = False
) -> None:
    """Adds a recording; UsageError if it has no stacks."""
    with Reader(path) as recording:
        if not recording.has_stacks:
            raise UsageError(f"{path} has no call stacks: they are recorded by `phptrace record --stacks`")
        tally.unended += not recording.ended
        tally.add_all(recording.workers(), host=str(recording.meta.get("host")))
        tally.add_all(recording.losses())
        said.add(recording.meta)
        for request, grown in recording.grown(builder.metric, COLUMNS):
            tally.add(request)
            if before:
                builder.add_before(request, grown)
            else:
                builder.add(request, grown)


def remarks(
    metric: Metric, builder: FlameBuilder, said: RecordingNotes, tally: Tally, *, retained: bool, diff: bool
) -> tuple[str, list[str]]:
    """The title, and what has to be said with it besides the tally; after builder.finish()."""
    every, hz = _shown(said.every), _shown(said.hz)
    lost = sum(count for why, count in tally.losses.items() if why.startswith(_GROWTH_LOST))
    after_last, no_sample = "what came after a request's last one", "requests into which no sample fell"
    if lost:
        after_last += f", and what was lost ({lost:,} growth events)"
        no_sample += f", or whose samples were lost ({lost:,} growth events)"
    title = {
        Metric.RSS: f"rss: page faults of the workers, sampled every {every} pages",
        Metric.MAPPED: "mapped: address space that mmap, mremap and brk added",
        Metric.ZEND: f"zend: growth of Zend's heap until the script ended, looked at {hz} times a second of CPU",
    }[metric]
    lines = [
        {
            Metric.RSS: "Memory given back is not seen by this source: a page that is freed and touched again counts"
            " twice.",
            Metric.MAPPED: "What a script unmaps again is taken off where it was mapped. Given back besides, at the"
            f" end of requests or of what earlier ones had left: {show_bytes(builder.given_back)}. Address space need"
            " not be in use: Zend takes it 2 MiB at a time.",
            Metric.ZEND: "What was allocated since the last look is put down to what runs at the look. [not sampled]:"
            f" {after_last}. Given back by other code than took it: {show_bytes(builder.given_back)}.",
        }[metric]
    ]
    if retained:
        title += ": what was kept"
        lines = [
            f"Scaled, request by request, to what the worker kept of it (native growth): {builder.requests_kept:,} of"
            f" {builder.requests:,} requests kept something. [not sampled]: {show_bytes(builder.unsampled)} were kept"
            f" by {no_sample}.",
            "It shows where the request's memory was first touched: where one function frees what another then keeps,"
            " the one that freed it may stand for the other.",
        ]
    if diff:
        title += ": difference"
        lines.append(f"Before: {builder.requests_before:,} requests, scaled to as many as after: {builder.requests:,}.")
        moved = ""
        if builder.moved is not None:
            old, new = (folder + "/" for folder in builder.moved)
            moved = f" {old} before is taken for {new} after."
        lines.append(
            "A function is the same if its name and file are, whatever the line; shown is that of after, or of before"
            f" where it is gone.{moved}"
        )
    if builder.unreadable:
        lines.append(f"{show_bytes(builder.unreadable)} stand on stacks that were lost or not readable to their end.")
    return title, lines + said.lacking


def together(builder: FlameBuilder) -> list[str]:
    """What has to be said of routes that are one tower; after builder.finish()."""
    if not builder.others:
        return []
    size = show_bytes(builder.others_bytes)
    return [
        f"({builder.others:,} other routes): those with less than 2 % of the whole each, {size} together."
        " `report --group-by uri` tells them apart."
    ]


def _shown(values: set[int]) -> str:
    return " or ".join(map(str, sorted(values))) or "?"
