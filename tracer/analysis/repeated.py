"""Tells what requests keep again and again from what they keep once in the life of a worker.

A leak comes again in each worker. A cache that is emptied now and then fills once, in whichever request comes next: of
such a group, one request of each worker kept much, and the others kept nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

# Requests besides one of each worker. With fewer, a cache of each worker looks as a leak does.
_LEAST_BESIDES = 2


class Repeated(NamedTuple):
    """How much of what requests kept came again."""

    share: float | None  # of the bytes, from 0 to 1; None: too few requests to tell
    once: int = 0  # bytes that one request of each worker kept beyond the median


def repeated(kept: Sequence[tuple[int, int]]) -> Repeated:
    """Take the bytes that each request kept, and a number for its worker."""
    most: dict[int, int] = {}
    for size, worker in kept:
        if size > most.get(worker, size - 1):
            most[worker] = size
    if len(kept) - len(most) < _LEAST_BESIDES:
        return Repeated(None)
    sizes = sorted(size for size, _ in kept)
    total, median = sum(sizes), sizes[(len(sizes) - 1) // 2]
    if total <= 0:
        return Repeated(1.0)
    once = min(total, sum(max(0, size - median) for size in most.values()))
    return Repeated((total - once) / total, once)
