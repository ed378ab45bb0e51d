"""A recording as a whole: where and how it was made, what it holds, and what it lacks."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from tracer.facts import Ending, Loss, Worker

_GAP = "gaps in tracing"  # the first words of a Loss of time (backends/restarts.py)
_LONGEST_S = 1e9  # a recording of more seconds is corrupt
_INT64 = 1 << 63


@dataclasses.dataclass(frozen=True, slots=True)
class Lost:
    """Facts that were lost for one reason."""

    why: str
    lost: int
    first_ns: int  # Unix time at which that was noticed first
    last_ns: int


@dataclasses.dataclass(frozen=True, slots=True)
class Contents:
    """The properties of a recording. None: it is not recorded, as in those of old versions. Texts are untrusted."""

    path: str
    bytes: int  # on disk, with the journal of one that was not closed
    schema: int
    phptrace: str | None  # the version that wrote it
    closed: bool
    ended_why: str | None
    host: str | None
    kernel: str | None
    machine: str | None
    targets: tuple[str, ...]
    backend: str | None
    backend_why: str | None
    php: tuple[str, ...]  # versions
    pools: tuple[str, ...]  # of the workers
    options: Mapping[str, str | int | float | bool]  # those that were given, by name; {}: not recorded
    started_ns: int | None  # Unix time
    elapsed_s: float | None  # of one that was not closed: until the last request
    requests: int
    incomplete: int
    counted: int  # requests whose native memory was counted
    workers: int
    workers_born: int
    workers_died: int
    workers_killed: int  # of these: by a signal
    lost: int
    losses: tuple[Lost, ...]  # without gaps, the largest first
    gaps: tuple[Loss, ...]
    not_traced: tuple[str, ...]
    lacking: tuple[str, ...] | None


@dataclasses.dataclass(frozen=True, slots=True)
class Counts:
    """Requests of a recording, and the times of the first and the last; None: there is none."""

    requests: int
    incomplete: int
    counted: int
    first_ns: int | None
    last_ns: int | None  # its end


def contents(
    path: str,
    size: int,
    schema: int,
    meta: Mapping[str, Any],
    counts: Counts,
    workers: Sequence[Worker],
    losses: Sequence[Loss],
    not_traced: Sequence[str],
    lacking: Sequence[str] | None,
) -> Contents:
    """Sum up a recording. Entries of its `meta` table that have an unexpected type are ignored."""
    ended = meta.get("ended")
    started_ns, elapsed_s = times(meta, counts.first_ns, counts.last_ns)
    by_reason, gaps = _losses_and_gaps(losses)
    died = [worker for worker in workers if worker.died_ns is not None]
    versions = {worker.php_version for worker in workers if worker.php_version is not None}
    return Contents(
        path=path,
        bytes=size,
        schema=schema,
        phptrace=_text(meta, "phptrace"),
        closed=ended is not None,
        ended_why=_text(ended, "why") if isinstance(ended, dict) else None,
        host=_text(meta, "host"),
        kernel=_text(meta, "kernel"),
        machine=_text(meta, "machine"),
        targets=_texts(meta, "targets"),
        backend=_text(meta, "backend"),
        backend_why=_text(meta, "backend_why"),
        php=tuple(sorted(versions.union(_texts(meta, "php")))),
        pools=tuple(sorted({worker.pool for worker in workers if worker.pool is not None})),
        options=_options(meta),
        started_ns=started_ns,
        elapsed_s=elapsed_s,
        requests=counts.requests,
        incomplete=counts.incomplete,
        counted=counts.counted,
        workers=len(workers),
        workers_born=sum(worker.born_ns is not None for worker in workers),
        workers_died=len(died),
        workers_killed=sum((worker.exit or "").startswith(Ending.KILLED.value) for worker in died),
        lost=sum(loss.lost for loss in losses),
        losses=by_reason,
        gaps=gaps,
        not_traced=tuple(not_traced),
        lacking=None if lacking is None else tuple(lacking),
    )


def times(
    meta: Mapping[str, Any], first_ns: int | None = None, last_ns: int | None = None
) -> tuple[int | None, float | None]:
    """When a recording began, in Unix time, and its seconds, by its `meta` table, or else by its requests.

    `first_ns` and `last_ns` are when the first of these began, and the last one ended; None: not known.
    """
    clock = meta.get("clock")
    started = clock.get("unix_ns") if isinstance(clock, dict) else None
    if not isinstance(started, int) or not -_INT64 <= started < _INT64:
        started = first_ns
    ended = meta.get("ended")
    elapsed = ended.get("elapsed_s") if isinstance(ended, dict) else None
    if isinstance(elapsed, int | float) and 0 <= elapsed < _LONGEST_S:
        return started, float(elapsed)
    if started is None or last_ns is None or not 0 <= last_ns - started < _LONGEST_S * 1e9:
        return started, None
    return started, (last_ns - started) / 1e9


def _options(meta: Mapping[str, Any]) -> dict[str, str | int | float | bool]:
    found: dict[str, str | int | float | bool] = {}
    given, stacks, native = (meta.get(name) for name in ("options", "stacks", "native"))
    if isinstance(given, dict):
        found = {**_plain(given), "native": isinstance(native, dict)}
    if isinstance(given, dict) or isinstance(stacks, dict):
        found["stacks"] = isinstance(stacks, dict)
    for part, prefix in ((stacks, "stacks_"), (native, "native_")):
        if isinstance(part, dict):
            found.update((prefix + name, value) for name, value in _plain(part).items())
    return found


def _plain(entries: Mapping[str, Any]) -> dict[str, str | int | float | bool]:
    """The options that were given, without values that no option has."""
    return {
        name: value
        for name, value in entries.items()
        if isinstance(value, str) or (isinstance(value, int | float) and -_INT64 <= value < _INT64)
    }


def _text(meta: Mapping[str, Any], name: str) -> str | None:
    value = meta.get(name)
    return value if isinstance(value, str) else None


def _texts(meta: Mapping[str, Any], name: str) -> tuple[str, ...]:
    found = meta.get(name)
    return tuple(value for value in found if isinstance(value, str)) if isinstance(found, list) else ()


def _losses_and_gaps(losses: Sequence[Loss]) -> tuple[tuple[Lost, ...], tuple[Loss, ...]]:
    """The losses by reason, the largest first, and the gaps in tracing, whose reasons name the times."""
    found: dict[str, Lost] = {}
    for at_ns, lost, why in losses:
        known = found.get(why, Lost(why, 0, at_ns, at_ns))
        found[why] = Lost(why, known.lost + lost, min(known.first_ns, at_ns), max(known.last_ns, at_ns))
    by_reason = (one for one in found.values() if not one.why.startswith(_GAP))
    gaps = tuple(loss for loss in losses if loss.why.startswith(_GAP))
    return tuple(sorted(by_reason, key=lambda one: (-one.lost, one.why))), gaps
