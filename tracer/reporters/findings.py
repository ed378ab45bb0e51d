"""The verdicts that an operator has to know, as lines above the table: at most five, the leaks first."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TextIO

from rich.text import Text

from tracer.analysis.group import Group
from tracer.analysis.ranking import GroupBy
from tracer.analysis.verdict.judge import Kind, Verdict, Why
from tracer.reporters.table import console_for, shorten, show_key
from tracer.reporters.verdict_text import Source, evidence, label, next_step
from tracer.units import counted, printable

_MOST = 5
_LABEL_WIDTH = 12
_KEY_WIDTH = 40
_ORDER = (Kind.LEAK, Kind.UNCLEAR, Kind.HIGH_WATER, Kind.WARM_UP, Kind.CACHE)
_STYLES = {Kind.LEAK: "bold red", Kind.UNCLEAR: "yellow"}
# An unclear group is no finding, unless it kept so much in a way that a leak does.
_SUSPICIOUS = (Why.LOST, Why.RARE, Why.FEW, Why.FALLS, Why.WORKERS_DIFFER)
_LARGE_BYTES = 1 << 20


def render(groups: Sequence[Group], out: TextIO, *, by: GroupBy, source: Source, root: str = "") -> None:
    """Write the findings on these groups, or that there is none; nothing if groups of this kind have no verdict.

    `root` is cut off the keys.
    """
    judged = [(_name(group, root), group.verdict) for group in groups if group.verdict is not None]
    if not judged:
        return
    console = console_for(out)
    found = [pair for kind in _ORDER for pair in _of_kind(judged, kind)]
    if not found:
        console.print(Text(_nothing(groups, [verdict for _, verdict in judged], by)))
        console.print()
        return
    for name, verdict in found[:_MOST]:
        start = Text.assemble((f"{label(verdict).upper():{_LABEL_WIDTH}}", _STYLES.get(verdict.kind, "bold")))
        for sentence in (f"{name} {evidence(verdict)}.", f"Next: {next_step(verdict, source)}"):
            for line in Text(sentence).wrap(console, console.width - _LABEL_WIDTH, overflow="fold"):
                line.rstrip()
                console.print(start + line)
                start = Text(" " * _LABEL_WIDTH)
    if len(found) > _MOST:
        console.print(Text(f"{'':{_LABEL_WIDTH}}and {len(found) - _MOST:,} more"))
    console.print()


def _name(group: Group, root: str) -> str:
    name = shorten(show_key(group.key, root), _KEY_WIDTH)
    return name if group.container is None else f"{name} in {shorten(printable(group.container), _KEY_WIDTH)}"


def _of_kind(judged: Sequence[tuple[str, Verdict]], kind: Kind) -> list[tuple[str, Verdict]]:
    """The findings of that kind, the largest first."""
    return sorted(
        (pair for pair in judged if pair[1].kind is kind and _matters(pair[1])), key=lambda pair: -_size(pair[1])
    )


def _matters(verdict: Verdict) -> bool:
    return verdict.kind is not Kind.UNCLEAR or (verdict.why in _SUSPICIOUS and (verdict.kept or 0) >= _LARGE_BYTES)


def _size(verdict: Verdict) -> float:
    if verdict.kind is Kind.HIGH_WATER and verdict.high_water is not None:
        return verdict.high_water.raised_all
    return (verdict.shared if verdict.kind is Kind.CACHE else verdict.kept) or 0


def _nothing(groups: Sequence[Group], verdicts: Sequence[Verdict], by: GroupBy) -> str:
    unclear = sum(verdict.kind is Kind.UNCLEAR for verdict in verdicts)
    looked_at = f"{counted(sum(group.requests for group in groups), 'request')} of {counted(len(groups), by.value)}"
    if not unclear:
        return f"No leak found in {looked_at}."
    share = (
        f"{unclear:,} of {len(verdicts):,} verdicts {'is' if unclear == 1 else 'are'}"
        if len(verdicts) > 1
        else "the verdict is"
    )
    return f"No leak found in {looked_at}, but {share} unclear."
