"""The memory of a host and of cgroups: what is eaten, what is only borrowed, and whether dropping caches would help."""

from __future__ import annotations

import dataclasses
import json
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TextIO

from tracer.analysis.memory_split import Limited, Snapshot, Split, recorded
from tracer.reporters.json_report import json_text
from tracer.units import counted, printable, show_bytes

SCHEMA = 1
_LABEL = 26
_WIDTH = 98
_SCARCE = 0.9  # of the memory is eaten: it is the workers, not the cache
_LEAST_GAIN = 64 << 20
_PARTS = (
    ("anonymous", "anon", "heaps and stacks of processes, PHP's foremost"),
    ("shared memory", "shmem", "OPcache, APCu, tmpfs: each counted once"),
    ("kernel", "kernel", "that it cannot give back: page tables, sockets, its own data"),
    ("huge pages", "huge", "reserved, used or not"),
    ("other", "other", "not listed by the kernel"),
)


@dataclasses.dataclass(frozen=True, slots=True)
class Pool:
    """The workers of a pool that could be read. Bytes; texts are untrusted."""

    name: str
    master: int  # pid
    workers: int
    read: int  # of these: those whose memory may be read
    own: int  # what each has to itself, together
    shared: int  # what they have together, once
    cgroup: str | None


def render(found: Snapshot, pools: Sequence[Pool], out: TextIO, *, name: str) -> None:
    """Write the host, each cgroup with a limit of its own, and the pools."""
    if found.host is not None:
        out.write(f"{printable(name)}: {show_bytes(found.host.total)}\n")
        out.writelines(f"{line}\n" for line in _lines(found.host, "MemAvailable"))
        out.write(_paragraph(_dropping(found.host)))
    for one in found.cgroups:
        limit = "no limit" if one.split.total is None else show_bytes(one.split.total)
        out.write(f"\ncgroup {printable(one.path)} (version {one.version}): {limit}\n")
        out.writelines(f"{line}\n" for line in _lines(one.split, "all that is not eaten"))
        out.write(_paragraph(_of_limit(one)))
    for pool in pools:
        out.write(f"\n{_pool(pool)}\n")


def render_json(found: Snapshot, pools: Sequence[Pool], out: TextIO, *, name: str) -> None:
    """Write the same figures, in bytes."""
    figures = {
        "schema": SCHEMA,
        "host": None if found.host is None else {"name": json_text(name), **_figures(found.host)},
        "cpus": found.cpus,
        "cgroups": [
            {"path": json_text(one.path), "version": one.version, **_figures(one.split)} for one in found.cgroups
        ],
        "pools": [
            {
                **dataclasses.asdict(pool),
                "name": json_text(pool.name),
                "cgroup": None if pool.cgroup is None else json_text(pool.cgroup),
            }
            for pool in pools
        ],
    }
    json.dump(figures, out, indent=2)
    out.write("\n")


def recorded_lines(meta: Mapping[str, Any]) -> Iterator[str]:
    """Lines on the memory of the host of a recording, and of the cgroups of its targets, when it began and ended."""
    host = meta.get("host")
    name = printable(host) if isinstance(host, str) else "host"
    for when, found in zip(("when it began", "when it ended"), recorded(meta), strict=True):
        if found.host is not None:
            yield f"memory of {name} {when}: {_line(found.host)}. {_dropping(found.host)}"
        for one in found.cgroups:
            if one.split.total is not None:
                yield f"memory of cgroup {printable(one.path)} {when}: {_line(one.split)}"


def _figures(split: Split) -> dict[str, Any]:
    return {
        **dataclasses.asdict(split),
        "eaten": split.eaten,
        "borrowed": split.borrowed,
        "droppable": split.droppable,
    }


def _line(split: Split) -> str:
    """The split in one line."""
    parts = ", ".join(
        f"{label} {show_bytes(getattr(split, name))}" for label, name, _ in _PARTS if getattr(split, name)
    )
    slab = "" if split.slab is None else f", reclaimable slab {show_bytes(split.slab)}"
    free = show_bytes(split.free)
    return (
        f"{show_bytes(split.total)}, eaten {show_bytes(split.eaten)} ({parts or 'nothing'}), borrowed"
        f" {show_bytes(split.borrowed)} (page cache {show_bytes(split.page_cache)}{slab}), free {free},"
        f" available {show_bytes(split.available)}"
    )


def _lines(split: Split, available: str) -> Iterator[str]:
    yield _row("eaten", split.eaten, split, "only the owner can give it back")
    for label, name, note in _PARTS:
        if getattr(split, name):
            yield _row(f"  {label}", getattr(split, name), split, note)
    yield _row("borrowed", split.borrowed, split, "the kernel takes it back as soon as a process needs it")
    yield _row("  page cache", split.page_cache, split, "copies of files")
    if split.slab is not None:
        yield _row("  reclaimable slab", split.slab, split, "names and properties of files")
    if split.free is not None:
        yield _row("free", split.free, split, "")
    if split.available is not None:
        yield _row("available", split.available, split, f"for new processes, without swap: {available}")


def _paragraph(text: str) -> str:
    return textwrap.fill(text, _WIDTH, initial_indent="  ", subsequent_indent="  ") + "\n"


def _row(label: str, size: int, split: Split, note: str) -> str:
    share = f"{100 * size / split.total:>4.0f} %" if split.total else f"{'':>6}"
    return f"  {label:<{_LABEL}} {show_bytes(size):>10} {share}  {note}".rstrip()


def _dropping(split: Split) -> str:
    """A sentence on whether dropping caches would change anything."""
    gain = show_bytes(split.droppable)
    if split.available is None or split.free is None:
        return f"Dropping caches would free at most {gain}."
    hidden = max(0, split.droppable - max(0, split.available - split.free))
    share = split.eaten_share or 0.0
    if share >= _SCARCE:
        return f"Dropping caches would not help: {100 * share:.0f} % is eaten, and at most {gain} is cache."
    if hidden >= max(_LEAST_GAIN, split.droppable // 2):
        return f"Dropping caches would free at most {gain}, of which {show_bytes(hidden)} is not counted as available."
    return (
        f"Dropping caches would change nothing for PHP: it moves at most {gain} from borrowed to free, and that is"
        " available already."
    )


def _of_limit(one: Limited) -> str:
    """A sentence on how near a cgroup is to its limit."""
    share = one.split.eaten_share
    if share is None:
        return "Nothing limits it but the host."
    slab = " Version 1 does not tell reclaimable slab from the rest of the kernel." if one.version == 1 else ""
    if share >= _SCARCE:
        return f"Near an OOM kill: {100 * share:.0f} % of the limit is eaten.{slab}"
    return f"The kernel takes back the page cache before it kills: {100 * share:.0f} % of the limit counts.{slab}"


def _pool(pool: Pool) -> str:
    head = f"pool {printable(pool.name)} of master {pool.master}: {counted(pool.workers, 'worker')}"
    if not pool.read:
        return f"{head}. Their memory may not be read: run as root, or as their user."
    each = show_bytes(pool.own / pool.read)
    only = "" if pool.read == pool.workers else f" ({counted(pool.read, 'worker')} read)"
    own, shared = show_bytes(pool.own), show_bytes(pool.shared)
    return f"{head}{only}, {own} of their own ({each} each), and {shared} shared, once"
