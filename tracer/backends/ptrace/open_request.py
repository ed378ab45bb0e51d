"""A request seen from outside. It is packed into C's struct request (bpf/request_events.h), sent through the pipe,
and decoded by the same decoder as BPF's.
"""

from __future__ import annotations

import dataclasses

from tracer.backends.ptrace.php_memory import HeapFigures
from tracer.backends.ptrace.proc_files import Memory, WorkerFiles
from tracer.backends.records.request_structs import REQUEST, REQUEST_FIELDS, SCRIPT_MAX, URI_MAX, EventKind, Flag

_METHOD_BYTES = 15


@dataclasses.dataclass(slots=True)
class OpenRequest:
    """Facts of the request known so far. Times are CLOCK_MONOTONIC nanoseconds."""

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
    anon_peak: int = 0
    anon_end: int | None = None
    heap_end: HeapFigures | None = None
    peaks: tuple[int, int] = (0, 0)  # zend_peak, zend_real_peak
    status: int | None = None
    fatal: bool = False
    script_found: bool = False  # PHP has found the file it will run
    layout_known: bool = True
    map_bytes: int = 0
    map_calls: int = 0
    unmap_bytes: int = 0
    unmap_calls: int = 0
    brk_bytes: int = 0
    brk_calls: int = 0
    ended_ns: int = 0
    after: Memory | None = None
    faults: tuple[int, int] = (0, 0)
    cpu_ns: int = 0
    zend_real_after: int = 0
    exit_code: int = 0
    detached: bool = False

    def sample(self, anon: int) -> None:
        """Raise the peak of anonymous memory to `anon` bytes, if that is more."""
        self.anon_peak = max(self.anon_peak, anon)

    def at_teardown(self, heap: HeapFigures | None, anon: int) -> None:
        """Note memory after the script's end, before Zend frees its heap. May be called again until then."""
        self.sample(anon)
        self.anon_end = max(self.anon_end or 0, anon)
        if heap is not None:
            self.heap_end = heap
            self.peaks = max(self.peaks[0], heap.peak), max(self.peaks[1], heap.real_peak)

    def end(self, ended_ns: int, files: WorkerFiles, heap: HeapFigures | None) -> None:
        """Note the end of the request; all reads of the stopped worker happen here."""
        self.ended_ns = ended_ns
        self.after = files.memory()
        self.sample(self.after.anon)
        minor, major = files.faults()
        self.faults = minor - self.faults_before[0], major - self.faults_before[1]
        self.cpu_ns = files.cpu_ns() - self.cpu_before_ns
        self.zend_real_after = heap.real_size if heap else 0

    def cut_off(self, ended_ns: int, exit_code: int, *, detached: bool = False) -> None:
        """Note that the worker ended, or tracing did, before the request: its end has no measurements."""
        self.ended_ns = ended_ns
        self.exit_code = exit_code
        self.detached = detached

    def record(self) -> bytes:
        """Return the `struct request` of an ended request; reads nothing of the worker, which may be running again."""
        flags = Flag.SCRIPT_END_NOT_SEEN
        flags |= Flag.DETACHED if self.detached else Flag(0)
        flags |= Flag.ZEND_HEAP_UNKNOWN if self.zend_real_before is None else Flag(0)
        flags |= Flag.TEARDOWN_NOT_SEEN if self.anon_end is None else Flag(0)
        flags |= Flag(0) if self.layout_known else Flag.PHP_LAYOUT_UNKNOWN
        flags |= Flag.FATAL if self.fatal else Flag(0)
        flags |= Flag.URI_UNKNOWN if self.uri is None else Flag(0)
        flags |= Flag.NO_SCRIPT if self.script is None else Flag(0)
        flags |= Flag.METHOD_UNKNOWN if self.method is None else Flag(0)
        values = dict.fromkeys((name for name, _ in REQUEST_FIELDS), 0)
        if self.after is None:
            flags |= Flag.END_NOT_SEEN
        else:
            values.update(
                anon_after=self.after.anon, file_after=self.after.file, shmem_after=self.after.shmem,
                vm_after=self.after.vm, cpu_ns=self.cpu_ns, minor_faults=self.faults[0], major_faults=self.faults[1],
            )  # fmt: skip
        script, uri = (self.script or b"")[:SCRIPT_MAX], (self.uri or b"")[:URI_MAX]
        end = self.heap_end
        values.update(
            kind=EventKind.REQUEST, pid=self.pid, nth=self.nth, flags=flags,
            started_ns=self.started_ns, ended_ns=self.ended_ns,
            anon_before=self.before.anon, file_before=self.before.file, shmem_before=self.before.shmem,
            vm_before=self.before.vm, anon_end=self.anon_end or 0, anon_peak=self.anon_peak,
            zend_peak=self.peaks[0], zend_real_peak=self.peaks[1], zend_real_before=self.zend_real_before or 0,
            zend_real_end=end.real_size if end else 0, zend_real_after=self.zend_real_after,
            map_bytes=self.map_bytes, map_calls=self.map_calls, unmap_bytes=self.unmap_bytes,
            unmap_calls=self.unmap_calls, brk_bytes=self.brk_bytes, brk_calls=self.brk_calls,
            status=self.status or 0, exit_code=self.exit_code,
            script_bytes=self.script_bytes, uri_bytes=self.uri_bytes,
            script_stored=len(script), uri_stored=len(uri),
        )  # fmt: skip
        method = (self.method or b"")[:_METHOD_BYTES]
        return REQUEST.pack(*{**values, "method": method}.values()) + script + uri


def end_alone(pid: int, nth: int, ended_ns: int) -> bytes:
    """The record of a request that was running when tracing began: only its end was seen."""
    values = dict.fromkeys((name for name, _ in REQUEST_FIELDS), 0)
    values.update(kind=EventKind.REQUEST, pid=pid, nth=nth, flags=Flag.START_NOT_SEEN, ended_ns=ended_ns)
    return REQUEST.pack(*{**values, "method": b""}.values())
