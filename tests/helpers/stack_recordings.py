"""Recordings with call stacks, for the tests of the tables, of flame and of report --stacks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from samples import COMPLETE, FIND, MAIN, QUERY, WITH_STACKS, growth, recording, request

from tracer.facts import Frame, Growth, Loss, Metric, Request
from tracer.recording.reader import Reader
from tracer.recording.writer import Writer

Grown = list[tuple[tuple[Frame, ...], int, int]]

TAKEN = "Memory taken by php-fpm:shop, 75 s, 2 requests (sampled page faults)"
ABOUT = {**WITH_STACKS, "targets": ["php-fpm:shop"], "ended": {"why": "duration elapsed", "elapsed_s": 75.2}}
INDEX = "/index.php;/srv/www/index.php;<main> /srv/www/index.php:3"
LEAK = request(uri="/leak/7", nth=5, native_kept=1_009)
FACTS = [
    COMPLETE, growth(101, MAIN, FIND, samples=3), growth(503, MAIN, metric=Metric.MAPPED),
    growth(401_987, MAIN, QUERY, metric=Metric.ZEND, samples=5),
    LEAK, growth(7, MAIN, of=LEAK), growth(401_980, MAIN, of=LEAK, metric=Metric.ZEND),
]  # fmt: skip


def without_stacks(path: Path) -> Path:
    return recording(path, [COMPLETE])


def unended(path: Path, meta: dict[str, Any], *facts: Request | Growth | Loss) -> Path:
    """A recording that came to no end."""
    file = Writer(str(path), {**WITH_STACKS, **meta})
    file.add(facts)
    file.close(ended=False)
    return path


MISSING = [
    "not measured: Zend's heap: it is hidden",
    "1 request · 0 workers · 1 incomplete · 13 lost",
    "LOST 13 growth events: the ring was full",
    "INCOMPLETE: 1 recording was not closed",
    "103 B belong to stacks that were lost or could not be read to the end.",
]


def read(path: Path, metric: Metric = Metric.RSS) -> list[Grown]:
    """The growth of each request."""
    with Reader(str(path)) as file:
        return [grown for _, grown in file.grown(metric, ("uri",))]
