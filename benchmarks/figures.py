"""Medians with their spread, compared with a budget."""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Sequence


@dataclasses.dataclass(frozen=True, slots=True)
class Figure:
    """One measured quantity. `budget` is a goal such as `<= 8`; None if there is none."""

    what: str
    values: tuple[float, ...]
    unit: str
    budget: str | None = None

    @property
    def median(self) -> float:
        return statistics.median(self.values)

    @property
    def verdict(self) -> str:
        if self.budget is None:
            return ""
        relation, limit = self.budget.split()
        met = self.median <= float(limit) if relation == "<=" else self.median >= float(limit)
        return f"{'met' if met else 'MISSED'} ({self.budget})"

    def shown(self) -> str:
        text = f"{self.what:<64} {self.median:>10.3f} {self.unit:<9}"
        if len(self.values) > 1:
            low, high = quartiles(self.values)
            text += f" [{low:.3f} .. {high:.3f}] n={len(self.values)}"
        return f"{text}  {self.verdict}".rstrip()


def quartiles(values: Sequence[float]) -> tuple[float, float]:
    """The bounds of the middle half of the values."""
    cuts = statistics.quantiles(values, n=4, method="inclusive")
    return cuts[0], cuts[2]
