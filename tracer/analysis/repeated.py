"""Tells what requests keep again and again from what they keep once in the life of a worker.

A leak comes again in each worker. A cache that is emptied now and then fills once, in whichever request comes next: of
such a group, one request of each worker kept much, and the others kept nothing.
"""

from __future__ import annotations

from collections.abc import Sequence

# Requests other than one of each worker. With fewer, a cache of each worker looks as a leak does.
_LEAST_OTHERS = 2


def share_kept_again(kept: Sequence[tuple[int, int]]) -> float | None:
    """How much of the bytes is kept again in the same worker, from 0 to 1; None: too few requests to tell.

    `kept` has the bytes that each request kept, and a number for its worker. The requests other than the one of each
    worker that kept most tell what a request keeps that fills no cache.
    """
    most: dict[int, int] = {}
    for size, worker in kept:
        if size > most.get(worker, size - 1):
            most[worker] = size
    others = len(kept) - len(most)
    if others < _LEAST_OTHERS:
        return None
    total = sum(size for size, _ in kept)
    if total <= 0:
        return 1.0
    again = (total - sum(most.values())) / others
    return max(0.0, min(1.0, again * len(kept) / total))
