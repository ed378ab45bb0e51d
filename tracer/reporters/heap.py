"""Looks at the memory of workers, as text for people and as JSON."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import TextIO

from tracer.analysis.heap import Figure, HeapLook, SizeClass
from tracer.reporters.json_report import json_text
from tracer.units import printable, show_bytes, show_duration

SCHEMA = 1
_TITLE = 60
# (name of the figure, depth, label, what it means)
_ROWS = (
    ("anon", 0, "anonymous memory", "RssAnon"),
    ("zend_resident", 1, "Zend, resident", "PHP's own heap"),
    ("zend_resident_cached", 2, "in cached chunks", "kept by Zend for later requests"),
    ("native", 1, "native", "all that is not Zend's"),
    ("malloc_resident", 2, "malloc's heap, resident", ""),
    ("malloc_mapped", 2, "mapped apart by malloc", "blocks of 128 KiB and more"),
    ("unexplained", 2, "unexplained", "data of libraries and PHP, stack, JIT code, other mappings"),
    ("malloc_in_use", 0, "malloc: in use", ""),
    ("malloc_free", 0, "malloc: free but kept", "between chunks in use"),
    ("malloc_cached", 1, "in its caches", "fastbins and the thread cache"),
    ("malloc_top", 0, "malloc: top", "free, at the end of the heap"),
    ("zend_live", 0, "Zend: live chunks", "address space"),
    ("zend_cached", 0, "Zend: cached chunks", "address space"),
)
_LABEL = max(len(label) + 2 * depth for _, depth, label, _ in _ROWS)


def render(
    look: HeapLook,
    found: Sequence[Figure],
    classes: Sequence[SizeClass],
    out: TextIO,
    *,
    hidden: int,
    elapsed_s: float | None,
) -> None:
    """Write one process. `hidden` is how many size classes are not among `classes`; `elapsed_s` None: one look only."""
    title = printable(look.title)
    title = title if len(title) <= _TITLE else title[: _TITLE - 1] + "…"
    out.write(f"process {look.pid} ({title})\n")
    by_name = {figure.name: figure for figure in found}
    head = "" if elapsed_s is None else f"change in {show_duration(elapsed_s * 1e9)}"
    out.write(f"  {'':<{_LABEL}}  {'':>9}{_change(head)}".rstrip() + "\n" if head else "")
    for name, depth, label, note in _ROWS:
        figure = by_name[name]
        change = "" if elapsed_s is None else _signed(figure.change)
        indented = "  " * depth + label
        out.write(f"  {indented:<{_LABEL}}  {show_bytes(figure.bytes):>9}{_change(change)}  {note}".rstrip() + "\n")
    if classes:
        out.write(f"\n  {'chunk bytes':>11} {'in use':>11} {'memory':>10}")
        out.write("\n" if elapsed_s is None else f" {'change':>11} {'bytes':>14}\n")
        for one in classes:
            out.write(f"  {one.chunk_bytes:>11,} {one.chunks:>11,} {show_bytes(one.bytes):>10}")
            out.write("\n" if elapsed_s is None else f" {_signed(one.change):>11} {_signed(one.change_bytes):>14}\n")
        if hidden:
            out.write(f"  … and {hidden:,} more: -n 0 shows all\n")
    for note in look.notes:
        out.write(f"  note: {printable(note)}\n")


def document(
    look: HeapLook, found: Sequence[Figure], classes: Sequence[SizeClass], *, elapsed_s: float | None
) -> dict[str, object]:
    """One process as a JSON object: figures in bytes, null where unknown; `*_change` only if there were two looks."""
    every: dict[str, object] = {"pid": look.pid, "start_ticks": look.start_ticks, "pool": json_text(look.pool)}
    every["title"] = json_text(look.title)
    for figure in found:
        every[f"{figure.name}_bytes"] = figure.bytes
        if elapsed_s is not None:
            every[f"{figure.name}_bytes_change"] = figure.change
    every["malloc_in_use_uncertain_bytes"] = None if look.malloc is None else look.malloc.uncertain
    every["settled"] = all(part.settled for part in (look.malloc, look.zend) if part is not None)
    every["notes"] = [json_text(note) for note in look.notes]
    every["elapsed_s"] = elapsed_s
    every["size_classes"] = [_size_class(one) for one in classes]
    return every


def _size_class(one: SizeClass) -> dict[str, int]:
    shown = {"chunk_bytes": one.chunk_bytes, "chunks": one.chunks, "bytes": one.bytes}
    if one.change is not None and one.change_bytes is not None:
        shown |= {"chunks_change": one.change, "bytes_change": one.change_bytes}
    return shown


def render_json(processes: Sequence[dict[str, object]], failed: Sequence[tuple[int, str]], out: TextIO) -> None:
    """Write {"schema", "processes": [document()…], "failed": [{"pid", "why"}]}. Fields are only ever added."""
    missing = [{"pid": pid, "why": json_text(why)} for pid, why in failed]
    json.dump({"schema": SCHEMA, "processes": list(processes), "failed": missing}, out, indent=2)
    out.write("\n")


def _change(text: str) -> str:
    return f"  {text:>16}" if text else ""


def _signed(count: int | None) -> str:
    return "-" if count is None else f"{count:+,}" if count else "0"
