"""phptrace heap: look at what PHP processes hold, without tracing them."""

from __future__ import annotations

import contextlib
import dataclasses
import sys
import time
from collections.abc import Callable, Sequence
from typing import TypeVar

import click

from tracer.analysis.heap import HeapLook, MallocLook, ZendLook, figures, size_classes
from tracer.capture import Stop
from tracer.commands.messages import notice
from tracer.commands.options import DURATION, SIZE, WholeNumber
from tracer.errors import (
    IncompleteError,
    NoTargetError,
    NotPermittedError,
    PhptraceError,
    TargetGoneError,
    UnsupportedError,
)
from tracer.reporters import heap as report
from tracer.targets import malloc_heap, zend_heap
from tracer.targets.process_memory import HeapUnknownError, ProcessMemory, Reason
from tracer.targets.processes import MASTER_TITLE, Process
from tracer.targets.resolve import Target, targets
from tracer.units import printable

Part = TypeVar("Part", MallocLook, ZendLook)
_TICK_S = 0.1
_ERRORS: dict[Reason, type[PhptraceError]] = {
    Reason.GONE: TargetGoneError,
    Reason.NOT_PERMITTED: NotPermittedError,
}


@dataclasses.dataclass(frozen=True, slots=True)
class _Options:
    limit: int
    swap_in: bool


@click.command()
@click.argument("pid", type=WholeNumber(1), metavar="PID")
@click.option(
    "--again",
    type=DURATION,
    help="Look a second time after this long, such as 10s, and show which sizes of chunks grew.",
)
@click.option(
    "-n",
    "--top",
    type=WholeNumber(0),
    metavar="N",
    default=10,
    show_default=True,
    help="Show at most this many rows, one per size of chunk; 0 shows all.",
)
@click.option(
    "--limit",
    type=SIZE,
    default=malloc_heap.DEFAULT_LIMIT,
    help="Skip a malloc heap that is larger than this; reading takes 1 to 2 ms per MB. Default: 1G.",
)
@click.option(
    "--swap-in", is_flag=True, help="Also read a heap that is partly in swap. Reading brings it back into memory."
)
@click.option(
    "--format",
    "form",
    type=click.Choice(("table", "json")),
    default="table",
    show_default=True,
    help="Print a table for people or JSON for programs.",
)
def heap(pid: int, again: float | None, top: int, limit: int, swap_in: bool, form: str) -> None:
    """Show the memory that a PHP process holds, by kind and chunk size.

    The kinds are malloc's heap, Zend's heap (PHP's own), and the memory that is in neither.

    PID is a php-fpm worker or any other PHP process. The PID of a php-fpm master selects all its workers. phptrace
    neither stops nor traces the process.

    A leak shows with --again: phptrace looks twice, and the sizes of chunks that grew are those of the leak.
    """
    options = _Options(limit, swap_in)
    with contextlib.ExitStack() as closing:
        (target,) = targets([str(pid)], symbols=False)
        closing.callback(target.close)
        failures: list[tuple[int, HeapUnknownError]] = []
        first = _looks(target, _processes(target), options, failures)
        before: dict[int, HeapLook] = {}
        elapsed_s = None
        if again is not None and first:
            began = time.monotonic()
            _wait(again)
            before = {look.pid: look for look in first}
            first = _looks(target, [p for p in _processes(target) if p.pid in before], options, failures)
            elapsed_s = time.monotonic() - began
    _RENDER[form](first, before, elapsed_s, top, failures)
    _end(first, failures)


def _wait(seconds: float) -> None:
    """Wait that long, or until the user presses Ctrl-C, who then gets the second look at once."""
    until = time.monotonic() + seconds
    with Stop().on_signals() as stop:
        notice(f"looking again in {seconds:g} s; press Ctrl-C to look now")
        while not stop.asked and (left := until - time.monotonic()) > 0:
            time.sleep(min(left, _TICK_S))


def _processes(target: Target) -> Sequence[Process]:
    """The workers of a php-fpm master; of any other process, itself and what it has forked."""
    if target.master is None:
        return target.workers
    if not target.master.title.startswith(MASTER_TITLE):
        return target.processes
    if not target.workers:
        raise NoTargetError(
            f"cannot look at process {target.master.pid}: it is a php-fpm master without workers."
            " Send it a request, then try again."
        )
    return target.workers


def _looks(
    target: Target, wanted: Sequence[Process], options: _Options, failures: list[tuple[int, HeapUnknownError]]
) -> list[HeapLook]:
    found = []
    for process in wanted:
        try:
            found.append(_look(target, process, options))
        except HeapUnknownError as exc:
            failures.append((process.pid, exc))
    return found


def _look(target: Target, process: Process, options: _Options) -> HeapLook:
    """One look. HeapUnknownError if the process has ended, or may not be read; a part that is unknown is None."""
    lacking: dict[str, str] = {}
    with ProcessMemory(process.pid, process.start_ticks) as memory:
        malloc = _part("malloc", lambda: _malloc(process, options), lacking)
        zend = _part("Zend", lambda: _zend(target, process), lacking)
        anon = memory.anon_bytes()
        memory.check()  # it is still the same process
        return HeapLook(
            pid=process.pid,
            start_ticks=process.start_ticks,
            title=process.title,
            pool=process.pool,
            anon=anon,
            malloc=malloc,
            zend=zend,
            lacking=lacking,
        )


def _part(name: str, read: Callable[[], Part], lacking: dict[str, str]) -> Part | None:
    try:
        return read()
    except HeapUnknownError as exc:
        if exc.reason in _ERRORS:
            raise
        lacking[name] = str(exc)
        return None


def _malloc(process: Process, options: _Options) -> MallocLook:
    found = malloc_heap.walk(
        process.pid, start_ticks=process.start_ticks, limit_bytes=options.limit, swap_in=options.swap_in
    )
    notes = list(found.lacking)
    if found.uncertain_bytes:
        notes.append(f"up to {found.uncertain_bytes:,} bytes of what is in use may be free")
    if found.other_arenas:
        notes.append("threads have heaps of their own, which are not counted")
    return MallocLook(
        in_use=found.in_use_bytes,
        uncertain=found.uncertain_bytes,
        free=found.free_bytes,
        cached=found.cached_bytes,
        top=found.top_bytes,
        resident=found.resident_bytes,
        mapped=found.mapped_bytes,
        sizes=found.sizes,
        settled=found.settled,
        notes=notes,
    )


def _zend(target: Target, process: Process) -> ZendLook:
    try:
        address = zend_heap.heap_address(process.pid, target.php, start_ticks=process.start_ticks)
        found = zend_heap.resident(process.pid, address, start_ticks=process.start_ticks)
    except HeapUnknownError as exc:
        if exc.reason is not Reason.NOT_USED:
            raise
        return ZendLook(0, 0, 0, 0, settled=True, notes=[str(exc)])
    notes = []
    if found.hugetlb_bytes:
        notes.append(f"{found.hugetlb_bytes:,} bytes are in huge pages of hugetlbfs, which anonymous memory leaves out")
    return ZendLook(
        resident=found.resident_bytes,
        resident_cached=found.resident_cached_bytes,
        live=found.live_bytes,
        cached=found.cached_bytes,
        settled=found.settled,
        notes=notes,
    )


def _table(
    looks: Sequence[HeapLook],
    before: dict[int, HeapLook],
    elapsed_s: float | None,
    top: int,
    failures: Sequence[tuple[int, HeapUnknownError]],
) -> None:
    for number, look in enumerate(looks):
        then = before.get(look.pid)
        classes = size_classes(look, then)
        shown = classes[: top or None]
        if number:
            sys.stdout.write("\n")
        report.render(
            look, figures(look, then), shown, sys.stdout, hidden=len(classes) - len(shown), elapsed_s=elapsed_s
        )
    if looks:
        for pid, why in failures:
            notice(f"process {pid} is not shown: {printable(str(why))}")


def _json(
    looks: Sequence[HeapLook],
    before: dict[int, HeapLook],
    elapsed_s: float | None,
    top: int,
    failures: Sequence[tuple[int, HeapUnknownError]],
) -> None:
    documents = []
    for look in looks:
        then = before.get(look.pid)
        classes = size_classes(look, then)[: top or None]
        documents.append(report.document(look, figures(look, then), classes, elapsed_s=elapsed_s))
    report.render_json(documents, [(pid, str(why)) for pid, why in failures], sys.stdout)


_RENDER = {"table": _table, "json": _json}


def _end(looks: Sequence[HeapLook], failures: Sequence[tuple[int, HeapUnknownError]]) -> None:
    """Raise the error that sets the exit code, if something is missing."""
    if not looks and failures:
        pid, why = failures[0]
        error = _ERRORS.get(why.reason, UnsupportedError)
        advice = "" if why.reason is Reason.NOT_PERMITTED else ". Check the PID."  # the other has its own
        raise error(f"cannot look at process {pid}: {printable(str(why))}{advice}")
    if failures or any(look.lacking for look in looks):
        raise IncompleteError(
            "cannot show every figure: the reasons are above. Use --limit for a larger heap, --swap-in for one in swap."
        )
