"""The figures that two recordings cannot be compared by, since they were made in ways that change these figures."""

from __future__ import annotations

from tracer.analysis.contents import Contents
from tracer.analysis.diff_change import Figure

# Options that choose requests by how they turned out: what they leave out changes every figure of a route.
_CHOOSING = ("slow_ns", "min_growth")
_COUNTING = ("native", "native_budget")  # counted calls of malloc and free take time


def not_alike(before: Contents, after: Contents) -> frozenset[Figure]:
    """The figures that differ by how the recordings were made. What is not recorded is taken for equal."""
    found: set[Figure] = set()
    if before.options and after.options:
        if _differ(before, after, _CHOOSING):
            return frozenset(Figure)
        if _differ(before, after, _COUNTING):
            found.add(Figure.DURATION)
    if None not in (before.backend, after.backend) and before.backend != after.backend:
        # ptrace stops the workers; and either samples the peak at other moments.
        found |= {Figure.DURATION, Figure.RISE}
    return frozenset(found)


def _differ(before: Contents, after: Contents, names: tuple[str, ...]) -> bool:
    return any(before.options.get(name) != after.options.get(name) for name in names)
