"""Orders of groups: values by which they are compared, the largest first."""

from __future__ import annotations

from collections.abc import Callable

from tracer.analysis.group import Group

Order = Callable[[Group], tuple[float, ...]]


def by_kept(group: Group) -> tuple[float, ...]:
    """By the bytes that the group kept, or at least kept; those that may have kept nothing after those that did.

    Of equal ones, those that may have kept more come first.
    """
    least, most = group.kept_low, round((group.kept_high or 0.0) * group.requests)
    if group.kept_bytes is None:
        return (0, 0, most) if least is None else (1, round(least * group.requests), most)
    return 1 + (least is not None and least > 0.0), group.kept_bytes, most


def order_of(value: float | None) -> tuple[float, ...]:
    """The order of a figure: what was not measured comes last."""
    return int(value is not None), value or 0
