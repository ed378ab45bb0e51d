"""The input of `flame` and `report --stacks`: growth by call stack, and notes on what it does not show."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from tracer.analysis.flame.builder import COLUMNS, FlameBuilder
from tracer.analysis.routes import Routes
from tracer.analysis.tally import Tally
from tracer.commands.messages import is_internal, not_traced
from tracer.errors import UsageError
from tracer.facts import Metric, Request
from tracer.recording.reader import Reader
from tracer.units import counted, show_bytes

# The first words of every Loss of growth by call stack (backends/bpf/growth_probes.py).
_GROWTH_LOST = "growth events"
_LONGEST_S = 1e9  # a recording of more seconds is corrupt


@dataclasses.dataclass(frozen=True, slots=True)
class View:
    """The growth that a flame shows. `retained`: only what was kept natively, as far as it is known."""

    metric: Metric
    retained: bool


@dataclasses.dataclass(slots=True)
class RecordingNotes:
    """The entries of the recordings' `meta` tables that a reader of a flame should know. They are untrusted."""

    every: set[int] = dataclasses.field(default_factory=set)  # page faults a sample
    hz: set[int] = dataclasses.field(default_factory=set)  # samples of Zend's heap a second of CPU time
    retained_after: set[int] = dataclasses.field(default_factory=set)  # requests that a retained block outlives
    targets: list[str] = dataclasses.field(default_factory=list)
    elapsed_s: float | None = 0.0  # of all recordings together; None: of one it is unknown
    lacking: list[str] = dataclasses.field(default_factory=list)  # what could not be measured

    def add(self, meta: dict[str, Any]) -> None:
        """Take what this recording says; entries of an unexpected type are ignored."""
        stacks = meta.get("stacks")
        numbers = (("every", self.every), ("hz", self.hz), ("retained_after", self.retained_after))
        for name, values in numbers:
            value = stacks.get(name) if isinstance(stacks, dict) else None
            if isinstance(value, int):
                values.add(value)
        _extend(self.targets, meta.get("targets"))
        _extend(self.lacking, meta.get("lacking"))
        _extend(self.lacking, not_traced(meta))
        ended = meta.get("ended")
        elapsed = ended.get("elapsed_s") if isinstance(ended, dict) else None
        if not isinstance(elapsed, int | float) or not 0 <= elapsed < _LONGEST_S or self.elapsed_s is None:
            self.elapsed_s = None
        else:
            self.elapsed_s += elapsed


def _extend(known: list[str], found: Any) -> None:
    """Append the texts that are not known yet, without remarks on phptrace's internals."""
    for text in found if isinstance(found, list) else ():
        if isinstance(text, str) and text not in known and not is_internal(text):
            known.append(text)


def chosen_view(recordings: Sequence[Reader], metric: Metric | None, *, retained: bool) -> View:
    """The view that was asked for; with None, the one that tells most about leaks of those that all recordings have.

    The first of: blocks that outlived their request, page faults outside Zend's heap, all page faults. UsageError if
    `retained` and the metric contradict each other.
    """
    if retained and metric is Metric.ZEND:
        raise UsageError(
            "cannot use --retained with --metric zend: Zend's heap frees everything at the end of a request."
            " Use --metric rss or mapped."
        )
    if metric is not None:
        return View(metric, retained or metric is Metric.RETAINED)
    found = [_Contents.of(recording) for recording in recordings]
    if any(one.retained for one in found) and all(one.retained or one.counted for one in found):
        return View(Metric.RETAINED, True)
    if all(one.native for one in found):
        return View(Metric.NATIVE, retained or all(one.counted for one in found))
    return View(Metric.RSS, retained)


@dataclasses.dataclass(frozen=True, slots=True)
class _Contents:
    """The kinds of native memory that a recording has; in one that counted, what is missing is 0."""

    retained: bool
    native: bool
    counted: bool

    @classmethod
    def of(cls, recording: Reader) -> _Contents:
        return cls(recording.has_growth(Metric.RETAINED), recording.has_growth(Metric.NATIVE), recording.counts_native)


def flame_builder(
    view: View, routes: Routes, *, difference: bool = False
) -> tuple[FlameBuilder, Tally, RecordingNotes]:
    """Return the objects that add_recording() fills."""
    builder = FlameBuilder(view.metric, routes=routes, retained=view.retained, difference=difference)
    return builder, Tally(), RecordingNotes()


def add_recording(
    recording: Reader,
    builder: FlameBuilder,
    tally: Tally,
    about: RecordingNotes,
    *,
    before: bool = False,
    keeps: Callable[[Request], bool] | None = None,
) -> None:
    """Add a recording, with `before` as the one to compare with. UsageError if it has no call stacks.

    `keeps` leaves requests out, by their uri, script, duration and start; None: it keeps all.
    """
    if not recording.has_stacks:
        raise UsageError(
            f"cannot show call stacks of {recording.path}: it has none. Record again with `phptrace record --stacks`."
        )
    tally.unended += not recording.ended
    tally.add_all(recording.workers(), host=str(recording.meta.get("host")))
    tally.add_all(recording.losses())
    about.add(recording.meta)
    for request, grown in recording.grown(builder.metric, (*COLUMNS, "duration_ns", "started_ns")):
        if keeps is not None and not keeps(request):
            continue
        tally.add(request)
        if before:
            builder.add_before(request, grown)
        else:
            builder.add(request, grown)


def title_and_notes(
    builder: FlameBuilder, about: RecordingNotes, tally: Tally, view: View, *, diff: bool
) -> tuple[str, list[str]]:
    """The title, and what the flame does not show, a line each. Call after builder.finish(); texts are not escaped."""
    lost = sum(count for why, count in tally.losses.items() if why.startswith(_GROWTH_LOST))
    if view.metric is Metric.RETAINED:
        notes = _blocks_notes(builder, about, lost)
    else:
        notes = _retained_notes(builder, lost) if view.retained else [_metric_note(builder, about, lost)]
    if diff:
        notes += _difference_notes(builder)
    if builder.unreadable:
        size = show_bytes(builder.unreadable)
        notes.append(f"{size} belong to stacks that were lost or could not be read to the end.")
    return _title(builder, about, retained=view.retained, diff=diff), notes + about.lacking


def folded_routes_note(builder: FlameBuilder) -> list[str]:
    """A line on routes that are shown as one, if there are any. Call after builder.finish()."""
    if not builder.others:
        return []
    size = show_bytes(builder.others_bytes)
    return [
        f"({builder.others:,} other routes): each has less than 2 % of the total, all of them {size}."
        " `phptrace report --group-by route` lists them."
    ]


def _title(builder: FlameBuilder, about: RecordingNotes, *, retained: bool, diff: bool) -> str:
    """`Memory kept by php-fpm:shop, 75 s, 956 requests (sampled page faults)`."""
    subject = {
        Metric.RSS: "memory taken by",
        Metric.MAPPED: "address space mapped by",
        Metric.ZEND: "growth of Zend's heap in",
        Metric.NATIVE: "native memory taken by",
        Metric.RETAINED: "memory kept by",
    }[builder.metric]
    source = {
        Metric.RSS: "sampled page faults",
        Metric.MAPPED: "mmap, mremap and brk",
        Metric.ZEND: "samples until the script ended",
        Metric.NATIVE: "sampled page faults outside Zend's heap",
        Metric.RETAINED: "sampled native blocks",
    }[builder.metric]
    subject = "memory kept by" if retained else subject
    what = f"{subject} {', '.join(about.targets) or 'unnamed workers'}"
    if diff:
        return f"Before and after: {what} ({source})"
    duration = "" if about.elapsed_s is None else f", {about.elapsed_s:.0f} s"
    return f"{what[0].upper()}{what[1:]}{duration}, {counted(builder.requests, 'request')} ({source})"


def _metric_note(builder: FlameBuilder, about: RecordingNotes, lost: int) -> str:
    freed = show_bytes(builder.given_back)
    also = f", and {counted(lost, 'lost growth event')}" if lost else ""
    return {
        Metric.RSS: f"One in {_shown(about.every)} page faults was sampled. Freed memory is not subtracted: a page that"
        " is freed and touched again counts twice.",
        Metric.NATIVE: f"One in {_shown(about.every)} page faults was sampled; those in Zend's heap are left out."
        " Freed memory is not subtracted: a page that is freed and touched again counts twice.",
        Metric.MAPPED: "Address space that a request unmaps is subtracted where it was mapped. Also freed, at the end"
        f" of requests or left by earlier ones: {freed}. Address space need not be in use: Zend maps 2 MiB at a time.",
        Metric.ZEND: f"Sampled {_shown(about.hz)} times per second of CPU time; growth since the last sample is"
        f" attributed to the function that is running. [not sampled]: growth after a request's last sample{also}."
        f" Freed by other functions than allocated it: {freed}.",
    }[builder.metric]


def _retained_notes(builder: FlameBuilder, lost: int) -> list[str]:
    also = f", or whose samples were lost ({counted(lost, 'growth event')})" if lost else ""
    return [
        f"{builder.requests_kept:,} of {counted(builder.requests, 'request')} kept memory; stack widths are scaled to"
        f" it. [not sampled]: {show_bytes(builder.unsampled)} kept by requests without a sample{also}.",
        "A stack shows where memory was first touched: if A frees memory that B reuses and keeps, A may be shown"
        " instead of B.",
    ]


def _blocks_notes(builder: FlameBuilder, about: RecordingNotes, lost: int) -> list[str]:
    also = f" {counted(lost, 'growth event')} lost." if lost else ""
    return [
        f"{builder.requests_kept:,} of {counted(builder.requests, 'request')} kept native memory; the allocations of"
        f" {builder.requests_counted:,} were counted, and only those are shown.",
        f"Stacks are those of sampled blocks that were held when {_shown(about.retained_after)} more requests of their"
        " worker had ended, scaled to what the requests of their route and script kept together. [not sampled]:"
        f" {show_bytes(builder.unsampled)} kept where no block was seen to live that long.{also}",
    ]


def _difference_notes(builder: FlameBuilder) -> list[str]:
    moved = ""
    if builder.moved is not None:
        old, new = (folder + "/" for folder in builder.moved)
        moved = f" Files in {old} before are matched with those in {new} after."
    return [
        f"Before has {counted(builder.requests_before, 'request')}, scaled to as many as after: {builder.requests:,}.",
        "Functions are matched by name and file, not by line. The line shown is from after, or from before if the"
        f" function is gone.{moved}",
    ]


def _shown(values: Iterable[int]) -> str:
    return " or ".join(map(str, sorted(values))) or "an unknown number of"
