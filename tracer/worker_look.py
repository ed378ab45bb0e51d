"""One look at the memory of a worker, from outside: the worker is neither stopped nor slowed.

Its figures are of one moment, since the worker waits for a request and nothing changes meanwhile.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import time

from tracer.facts import Look
from tracer.targets import arch, malloc_heap, processes, zend_heap
from tracer.targets.php import Php
from tracer.targets.process_memory import HeapUnknownError, ProcessMemory, Reason

LIMIT_BYTES = 256 << 20  # of one heap
_BYTES_PER_S = 500 << 20  # of a heap that is walked: no heap is begun that the rest of the time would not do for
GONE = "it has ended"
_REASONS = {
    Reason.GONE: GONE,
    Reason.NOT_PERMITTED: "its memory may not be read: CAP_SYS_PTRACE is required",
}


@dataclasses.dataclass(frozen=True, slots=True)
class Subject:
    """A worker to look at."""

    pid: int
    start_ticks: int
    php: Php
    bias: int | None  # running address of its PHP minus the link address; None: not known


class BusyError(Exception):
    """The worker is in a request, or was in one during the look."""


def look(worker: Subject, until: float) -> Look:
    """A look at a worker, without its time. BusyError if the worker does not wait for a request.

    Heaps that are not read by `until` (time.monotonic()) are unknown: their owner decides how long that takes.
    """
    limit = min(LIMIT_BYTES, max(0, int((until - time.monotonic()) * _BYTES_PER_S)))
    try:
        with ProcessMemory(worker.pid, worker.start_ticks) as memory:
            in_accept = waits_for_request(worker.pid)
            found = _figures(memory, worker, limit, until)
            if waits_for_request(worker.pid) is not in_accept:
                raise BusyError
    except HeapUnknownError as exc:
        return absent(worker, _REASONS.get(exc.reason) or str(exc))
    return found._replace(in_accept=in_accept)


def absent(worker: Subject, why: str | None) -> Look:
    """A look of which nothing is known but the reason."""
    return Look(
        pid=worker.pid,
        start_ticks=worker.start_ticks,
        at_ns=0,
        took_ns=0,
        anon=None,
        malloc_in_use=None,
        malloc_uncertain=None,
        malloc_resident=None,
        zend_resident=None,
        settled=False,
        in_accept=False,
        requests=None,
        why=why,
    )


def waits_for_request(pid: int) -> bool:
    """True if the process waits in accept(); False if it reads from a socket, as on a connection that it keeps.

    BusyError if it does something else.
    """
    number, argument = processes.call_waited_in(pid) or (None, 0)
    if number in arch.ACCEPTING:
        return True
    if number == arch.SYS_READ:
        with contextlib.suppress(OSError):
            if os.readlink(f"/proc/{pid}/fd/{argument}").startswith("socket:"):
                return False
    raise BusyError


def _figures(memory: ProcessMemory, worker: Subject, limit: int, until: float) -> Look:
    """The figures of a worker that waits. HeapUnknownError if it has ended, or may not be read."""
    reasons: list[str] = []
    anon = memory.exact_anon_bytes()
    zend = _zend_resident(worker, until, reasons)
    malloc = _malloc(worker, limit, until, reasons)
    if memory.exact_anon_bytes() != anon:
        raise BusyError
    memory.check()
    found = absent(worker, None)._replace(anon=anon, zend_resident=zend, settled=True)
    if malloc is not None:
        mapped = malloc.mapped_bytes
        if mapped is None:
            reasons.append("malloc: the blocks that it maps apart were not found")
        elif malloc.other_arenas:
            reasons.append("malloc: threads have heaps of their own")
        else:
            found = found._replace(
                malloc_in_use=malloc.in_use_bytes + mapped,
                malloc_uncertain=malloc.uncertain_bytes,
                malloc_resident=None if malloc.resident_bytes is None else malloc.resident_bytes + mapped,
            )
    return found._replace(why="; ".join(reasons) or None)


def _zend_resident(worker: Subject, until: float, reasons: list[str]) -> int | None:
    """Resident bytes of Zend's heap; None, with a reason, if they cannot be known."""
    if worker.bias is None:
        reasons.append("Zend: its PHP was not found in its memory")
        return None
    try:
        address = zend_heap.heap_address(
            worker.pid, worker.php, start_ticks=worker.start_ticks, bias=worker.bias, until=until
        )
        found = zend_heap.resident(worker.pid, address, start_ticks=worker.start_ticks, attempts=1, until=until)
    except HeapUnknownError as exc:
        if exc.reason is Reason.NOT_USED:
            return 0
        _unless_all_is_lost(exc, "Zend", reasons)
        return None
    if not found.settled:
        raise BusyError
    return found.resident_bytes


def _malloc(worker: Subject, limit: int, until: float, reasons: list[str]) -> malloc_heap.MallocHeap | None:
    """malloc's heap; None, with a reason, if it cannot be known."""
    try:
        found = malloc_heap.walk(worker.pid, start_ticks=worker.start_ticks, limit_bytes=limit, attempts=1, until=until)
    except HeapUnknownError as exc:
        _unless_all_is_lost(exc, "malloc", reasons)
        return None
    if not found.settled:
        raise BusyError
    reasons += [f"malloc: {text}" for text in found.lacking]
    return found


def _unless_all_is_lost(exc: HeapUnknownError, part: str, reasons: list[str]) -> None:
    """Note why a part is unknown; raise the error again if nothing else can be known either."""
    if exc.reason in _REASONS:
        raise exc
    reasons.append(f"{part}: {exc}")
