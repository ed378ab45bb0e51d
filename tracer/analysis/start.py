"""The parts of the workers' growth: what requests keep, what each worker keeps once, the rest.

The start of a worker is what analysis.kept tells apart as warm-up, and all that groups kept whose verdict is warm-up.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence

from tracer.analysis.between import Between
from tracer.analysis.group import Group
from tracer.analysis.verdict.judge import Kind


@dataclasses.dataclass(frozen=True, slots=True)
class Parts:
    """Bytes. None: not known. grew = kept + start + between_requests + rest, where what is not known is in the rest."""

    workers: int
    start: int | None  # native memory that filled the workers' caches; None: their first requests cannot be told apart
    kept: int | None  # native memory that requests keep, without that; None: it was not counted
    grew: int | None  # anonymous memory, from each worker's first sample to its last
    between_requests: int | None
    rest: int | None


def parts(groups: Sequence[Group], between: Between) -> Parts:
    """The parts, of all groups of a ranking and of all workers."""
    once = [group for group in groups if _is_warm_up(group)]
    start = _sum([*(group.warmup_bytes for group in groups), *(group.kept_bytes for group in once)])
    kept = _sum(group.kept_bytes for group in groups if not _is_warm_up(group))
    rest = None
    if between.grew is not None:
        rest = between.grew - (start or 0) - (kept or 0) - (between.between_requests or 0)
    return Parts(
        workers=between.workers,
        start=start,
        kept=kept,
        grew=between.grew,
        between_requests=between.between_requests,
        rest=rest,
    )


def _is_warm_up(group: Group) -> bool:
    return group.verdict is not None and group.verdict.kind is Kind.WARM_UP


def _sum(values: Iterable[int | None]) -> int | None:
    """The sum of the values that are known; None if none is."""
    known = [value for value in values if value is not None]
    return sum(known) if known else None
