"""A request seen from outside. It is packed into C's struct request (bpf/request_events.h), sent through the pipe,
and decoded by the same decoder as BPF's.

A record names each field it fills. A field it does not fill must be absent by its flags, as ABSENT has them: otherwise
a field that ptrace cannot measure would pass for a measured 0.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Mapping
from typing import Any

from tracer.backends.ptrace.proc_files import Memory, WorkerFiles
from tracer.backends.records.request_structs import (
    REPLACED,
    REQUEST,
    REQUEST_FIELDS,
    SCRIPT_MAX,
    URI_MAX,
    EventKind,
    Flag,
)
from tracer.facts import Request
from tracer.targets.php_memory import HeapFigures

_METHOD_BYTES = 15
_LEAST, _MOST = -(1 << 63), (1 << 63) - 1
_KNOWN_WITHOUT_A_START = ("pid", "nth", "anon_after", "file_after", "shmem_after", "vm_after")
# Flags of every request whose start was seen: what ptrace never measures.
_ALWAYS = Flag.NATIVE_NOT_COUNTED | Flag.MAPPINGS_NOT_READ
# Fields that a record with this flag may leave out: the decoder makes them None (_RULES in request_decoder.py).
ABSENT: Mapping[Flag, tuple[str, ...]] = {
    Flag.START_NOT_SEEN: tuple(
        name for name, _ in REQUEST_FIELDS if name in Request._fields and name not in _KNOWN_WITHOUT_A_START
    ),
    Flag.SCRIPT_END_NOT_SEEN: ("zend_used_end", "memory_limit"),
    Flag.TEARDOWN_NOT_SEEN: ("anon_end", "zend_peak", "zend_real_peak", "zend_real_end"),
    Flag.END_NOT_SEEN: ("anon_after", "file_after", "shmem_after", "zend_real_after", "vm_after"),
    Flag.USAGE_NOT_READ: ("cpu_ns", "minor_faults", "major_faults"),
    Flag.ZEND_HEAP_UNKNOWN: (
        "zend_used_end", "zend_peak", "zend_real_before", "zend_real_peak", "zend_real_end", "zend_real_after",
    ),
    Flag.PHP_LAYOUT_UNKNOWN: ("memory_limit",),
    Flag.CALLS_NOT_SEEN: ("map_bytes", "map_calls", "unmap_bytes", "unmap_calls", "brk_bytes", "brk_calls"),
    Flag.METHOD_UNKNOWN: ("method",),
    Flag.NATIVE_NOT_COUNTED: (
        "native_alloc_bytes", "native_alloc_calls", "native_free_bytes", "native_free_calls", "native_freed_earlier",
        "native_between_bytes",
    ),
    Flag.MAPPINGS_NOT_READ: ("native_mapped_bytes",),
}  # fmt: skip


def now_ns() -> int:
    """CLOCK_MONOTONIC."""
    return time.clock_gettime_ns(time.CLOCK_MONOTONIC)


@dataclasses.dataclass(slots=True)
class CallCounts:
    """Memory calls of a request, in bytes and in calls; mremap() counts as one of map and one of unmap."""

    map_bytes: int = 0
    map_calls: int = 0
    unmap_bytes: int = 0
    unmap_calls: int = 0
    brk_bytes: int = 0  # signed
    brk_calls: int = 0


@dataclasses.dataclass(slots=True)
class OpenRequest:
    """Facts of the request known so far; None is not known. Times are CLOCK_MONOTONIC nanoseconds."""

    pid: int
    nth: int
    started_ns: int
    uri: bytes | None
    uri_bytes: int
    script: bytes | None
    script_bytes: int
    method: bytes | None
    before: Memory
    faults_before: tuple[int, int]
    cpu_before_ns: int
    zend_real_before: int | None
    calls: CallCounts | None  # None if the tracer does not see them
    anon_peak: int = 0
    anon_end: int | None = None
    heap_end: HeapFigures | None = None
    zend_peak: int | None = None
    zend_real_peak: int | None = None
    status: int | None = None
    fatal: bool | None = None  # a fatal error ended it
    script_end_seen: bool = False
    zend_used_end: int | None = None
    memory_limit: int | None = None
    script_found: bool = False  # PHP has found the file it will run
    layout_known: bool = True
    ended_ns: int = 0
    after: Memory | None = None
    faults: tuple[int, int] | None = None  # minor, major
    cpu_ns: int | None = None
    zend_real_after: int | None = None
    exit_code: int = 0
    detached: bool = False

    def sample(self, anon: int) -> None:
        """Raise the peak of anonymous memory to `anon` bytes, if that is more."""
        self.anon_peak = max(self.anon_peak, anon)

    def at_script_end(self, heap: HeapFigures | None, memory_limit: int | None) -> None:
        """Note what holds at the end of the script, before anything is freed."""
        self.script_end_seen = True
        self.zend_used_end = heap.size if heap is not None else None
        self.memory_limit = memory_limit

    def at_teardown(self, heap: HeapFigures | None, anon: int) -> None:
        """Note memory after the script's end, before Zend frees its heap. May be called again until then."""
        self.sample(anon)
        self.anon_end = max(self.anon_end or 0, anon)
        if heap is not None:
            self.heap_end = heap
            self.zend_peak = heap.peak if self.zend_peak is None else max(self.zend_peak, heap.peak)
            self.zend_real_peak = (
                heap.real_peak if self.zend_real_peak is None else max(self.zend_real_peak, heap.real_peak)
            )

    def end(self, ended_ns: int, files: WorkerFiles, heap: HeapFigures | None) -> None:
        """Note the end of the request; all reads of the stopped worker happen here."""
        self.ended_ns = ended_ns
        self.after = files.memory()
        self.sample(self.after.anon)
        minor, major = files.faults()
        self.faults = minor - self.faults_before[0], major - self.faults_before[1]
        self.cpu_ns = files.cpu_ns() - self.cpu_before_ns
        self.zend_real_after = heap.real_size if heap is not None else None

    def cut_off(self, ended_ns: int, exit_code: int, *, detached: bool = False) -> None:
        """Note that the worker ended, or tracing did, before the request: its end has no measurements.

        `exit_code` is a wait status, REPLACED, or 0 if `detached`.
        """
        self.ended_ns = ended_ns
        self.exit_code = 0 if exit_code == REPLACED else exit_code  # as BPF: the bits of REPLACED name no signal
        self.detached = detached

    def record(self) -> bytes:
        """Return the `struct request` of an ended request; reads nothing of the worker, which may be running again."""
        script, uri = (self.script or b"")[:SCRIPT_MAX], (self.uri or b"")[:URI_MAX]
        known: dict[str, Any] = {
            "started_ns": self.started_ns,
            "ended_ns": self.ended_ns,
            "cpu_ns": self.cpu_ns,
            "anon_before": self.before.anon,
            "file_before": self.before.file,
            "shmem_before": self.before.shmem,
            "vm_before": self.before.vm,
            "anon_end": self.anon_end,
            "anon_peak": self.anon_peak,
            "zend_used_end": self.zend_used_end,
            "memory_limit": self.memory_limit,
            "zend_peak": self.zend_peak,
            "zend_real_before": self.zend_real_before,
            "zend_real_peak": self.zend_real_peak,
            "zend_real_after": self.zend_real_after,
            "status": self.status or 0,  # 0 in the struct, too, is a status that was never set
            "exit_code": self.exit_code,
            "script_bytes": self.script_bytes,
            "uri_bytes": self.uri_bytes,
            "script_stored": len(script),
            "uri_stored": len(uri),
        }
        if self.heap_end is not None:
            known["zend_real_end"] = self.heap_end.real_size
        if self.after is not None:
            known.update(
                anon_after=self.after.anon,
                file_after=self.after.file,
                shmem_after=self.after.shmem,
                vm_after=self.after.vm,
            )
        if self.faults is not None:
            known["minor_faults"], known["major_faults"] = self.faults
        if self.calls is not None:
            known.update(dataclasses.asdict(self.calls))
        if self.method is not None:
            known["method"] = self.method[:_METHOD_BYTES]
        return _packed(self.pid, self.nth, self._flags(), known) + script + uri

    def _flags(self) -> Flag:
        flags = _ALWAYS
        for flag, holds in (
            (Flag.DETACHED, self.detached),
            (Flag.FATAL, self.fatal is True),
            (Flag.ENDING_UNKNOWN, self.fatal is None and self.after is not None and self.layout_known),
            (Flag.SCRIPT_END_NOT_SEEN, not self.script_end_seen),
            (Flag.END_NOT_SEEN, self.after is None),
            (Flag.USAGE_NOT_READ, self.faults is None or self.cpu_ns is None),
            (Flag.TEARDOWN_NOT_SEEN, self.anon_end is None),
            (Flag.ZEND_HEAP_UNKNOWN, self._lacks_heap()),
            (Flag.CALLS_NOT_SEEN, self.calls is None),
            (Flag.PHP_LAYOUT_UNKNOWN, not self.layout_known),
            (Flag.URI_UNKNOWN, self.uri is None),
            (Flag.NO_SCRIPT, self.script is None),
            (Flag.METHOD_UNKNOWN, self.method is None),
        ):
            if holds:
                flags |= flag
        return flags

    def _lacks_heap(self) -> bool:
        """True if Zend's heap could not be read at one of the moments of the request that were seen."""
        return (
            self.zend_real_before is None
            or (self.script_end_seen and self.zend_used_end is None)
            or (self.anon_end is not None and self.heap_end is None)
            or (self.after is not None and self.zend_real_after is None)
        )


def end_alone(pid: int, nth: int, ended_ns: int, after: Memory) -> bytes:
    """Return the record of a request that was running when tracing began: only its end was seen."""
    no_strings = dict.fromkeys(("script_bytes", "uri_bytes", "script_stored", "uri_stored"), 0)
    at_end = {f"{name}_after": value for name, value in after._asdict().items()}
    return _packed(pid, nth, Flag.START_NOT_SEEN, {"ended_ns": ended_ns, "exit_code": 0, **no_strings, **at_end})


def _packed(pid: int, nth: int, flags: Flag, known: Mapping[str, Any]) -> bytes:
    """Return the `struct request` of the fields that are known; None counts as not known.

    Raises ValueError if a field is neither known nor absent by the flags, or if the struct has no such field.
    """
    absent = {name for flag, names in ABSENT.items() if flags & flag for name in names}
    left = {"kind": EventKind.REQUEST, "pid": pid, "nth": nth, "flags": flags, "pad": 0, **known}
    values = []
    for name, form in REQUEST_FIELDS:
        value = left.pop(name, None)
        if value is None and name not in absent:
            raise ValueError(f"field {name} of struct request is neither filled nor declared absent")
        # A worker may map and unmap so often that the sum of the bytes has more than 64 bits.
        value = max(_LEAST, min(value, _MOST)) if form == "q" and value is not None else value
        values.append(value if value is not None else b"" if form.endswith("s") else 0)
    if left:
        raise ValueError(f"struct request has no field {next(iter(left))}")
    return REQUEST.pack(*values)
