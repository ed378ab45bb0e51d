"""The origin of the requests of a report: recordings, hosts, targets, PHP, and the time that they span."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any

from tracer.facts import Worker

_MOST_TEXTS = 1000  # targets of one recording, and of all together: it may be crafted


@dataclasses.dataclass(slots=True)
class Heading:
    """The properties of one recording, or of several together, in the order they were added. Texts are untrusted."""

    files: list[str] = dataclasses.field(default_factory=list)
    hosts: list[str] = dataclasses.field(default_factory=list)
    targets: list[str] = dataclasses.field(default_factory=list)
    php: list[str] = dataclasses.field(default_factory=list)  # versions
    began_ns: int | None = None  # Unix time of the earliest
    ended_ns: int | None = None  # of the latest
    seconds: float = 0.0  # that were recorded, of all together
    filters: list[str] = dataclasses.field(default_factory=list)  # as they were asked for: `--uri /shop/*`

    def add(self, path: str, meta: Mapping[str, Any], workers: Iterable[Worker], span: tuple[int, int] | None) -> None:
        """Take a recording. `span` is when it began, and when it ended, in Unix time; None: not known."""
        self.files.append(path)
        host = meta.get("host")
        _extend(self.hosts, [host])
        targets = meta.get("targets")
        _extend(self.targets, targets if isinstance(targets, list) else [])
        _extend(self.php, sorted({worker.php_version or "" for worker in workers}))
        if span is None:
            return
        began_ns, ended_ns = span
        self.began_ns = began_ns if self.began_ns is None else min(self.began_ns, began_ns)
        self.ended_ns = ended_ns if self.ended_ns is None else max(self.ended_ns, ended_ns)
        self.seconds += (ended_ns - began_ns) / 1e9


def _extend(known: list[str], found: Iterable[object]) -> None:
    """Append the texts that are not known yet."""
    for text in found:
        if isinstance(text, str) and text and text not in known and len(known) < _MOST_TEXTS:
            known.append(text)
