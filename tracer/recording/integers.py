"""The integers that a recording can hold: SQLite's, of 64 bits.

The figures of a worker's own memory are untrusted. One that does not fit becomes the nearest one that does.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

_LEAST, _MOST = -(1 << 63), (1 << 63) - 1


def saturated(row: Iterable[Any]) -> tuple[Any, ...]:
    """The row, with every integer in it within 64 bits."""
    return tuple(max(_LEAST, min(value, _MOST)) if isinstance(value, int) else value for value in row)
