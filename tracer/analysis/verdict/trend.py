"""Mann and Kendall's test: do numbers fall or rise in the course of time, whatever their distribution?

Sources: Mann, Nonparametric tests against trend, 1945; Kendall, Rank correlation methods, 1975; several series at once:
Helsel and Frans, Regional Kendall test for trend, 2006. It is to be given increments. Levels are a random walk, and of
many innocent walks it says that they have a trend.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence


def trend(series: Iterable[Sequence[float]]) -> float:
    """Standard deviations by which the numbers of the series rise together; negative: they fall; 0: neither."""
    score, variance = 0, 0.0
    for values in series:
        score += sum((b > a) - (b < a) for at, a in enumerate(values) for b in values[at + 1 :])
        variance += _variance(values)
    # One less, since the score moves in steps of two.
    return (abs(score) - 1) / math.sqrt(variance) * (1 if score > 0 else -1) if abs(score) > 1 and variance else 0.0


def _variance(values: Sequence[float]) -> float:
    tied = sum(t * (t - 1) * (2 * t + 5) for t in Counter(values).values())
    count = len(values)
    return (count * (count - 1) * (2 * count + 5) - tied) / 18
