"""Means of blocks of equally many requests: the median of single requests is 0 where one in three keeps memory."""

from __future__ import annotations

from collections.abc import Sequence


def block_means(values: Sequence[int], blocks: int) -> list[float]:
    """The means of at most so many consecutive blocks of equal length. The first few values may be left out."""
    length = len(values) // blocks if len(values) > blocks else 1
    count = min(blocks, len(values))
    start = len(values) - count * length
    return [sum(values[at : at + length]) / length for at in range(start, len(values), length)]
