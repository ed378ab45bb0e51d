"""Requests that ran when tracing began, or run when it ends: streams, long polls, imports.

The programs see neither their start nor their end. So their memory is sampled from outside, then and there.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterable, Mapping
from typing import NamedTuple

from tracer.backends.records.request_decoder import RequestDecoder
from tracer.backends.records.request_structs import SCRIPT_MAX, URI_MAX
from tracer.backends.records.worker_table import TrackedWorker
from tracer.errors import UnsupportedError
from tracer.facts import Ending, Note, Request
from tracer.targets import processes
from tracer.targets.php_memory import PhpMemory
from tracer.targets.process_memory import HeapUnknownError, ProcessMemory

_NOTHING_KNOWN = dict.fromkeys(Request._fields)
_METHOD_BYTES = 15


class _Start(NamedTuple):
    """The request that a worker ran when tracing began."""

    at_ns: int  # Unix time
    anon: int
    zend_real: int | None
    uri: str | None
    script: str | None
    method: str | None
    memory: PhpMemory


class InFlight:
    """The requests that ran when tracing began. All methods belong to one thread."""

    def __init__(self, decoder: RequestDecoder) -> None:
        """`decoder` knows the host, and what is kept of a URI."""
        self._decoder = decoder
        self._starts: dict[int, _Start] = {}
        self._biases: dict[int, int | None] = {}  # by master: forks have PHP in one place

    def begin(self, workers: Mapping[int, TrackedWorker]) -> None:
        """Sample the workers that are in a request now. Call it once the starts and ends of requests are seen."""
        for pid, worker in workers.items():
            memory = self._memory(pid, worker)
            if worker.wanted and memory is not None and memory.in_request():
                self._sample(pid, worker, memory)

    def _memory(self, pid: int, worker: TrackedWorker) -> PhpMemory | None:
        """PHP's memory in that worker; None if it is not known where it is."""
        owner = pid if worker.target.master is None else worker.target.master.pid
        if owner not in self._biases:
            self._biases[owner] = None
            with contextlib.suppress(OSError, UnsupportedError):
                self._biases[owner] = processes.load_bias(pid, worker.target.php.image)
        bias = self._biases[owner]
        return None if bias is None else PhpMemory(pid, worker.target.php, bias)

    def _sample(self, pid: int, worker: TrackedWorker, memory: PhpMemory) -> None:
        anon = _anon(pid, worker)
        if anon is None:
            return
        heap = memory.heap()
        uri = _parameter(memory, b"REQUEST_URI", URI_MAX)
        script = _parameter(memory, b"SCRIPT_FILENAME", SCRIPT_MAX)
        method = _parameter(memory, b"REQUEST_METHOD", _METHOD_BYTES)
        at_ns = self._decoder.unix_ns(time.clock_gettime_ns(time.CLOCK_MONOTONIC))
        real = None if heap is None else heap.real_size
        self._starts[pid] = _Start(at_ns, anon, real, self._decoder.kept_uri(uri), script, method, memory)

    def seen(self, request: Request, ended_ns: int) -> Request:
        """Return a worker's next request; with its start, if it ran when tracing began. `ended_ns`: CLOCK_MONOTONIC."""
        start = self._starts.pop(request.pid, None) if self._starts else None
        if start is None or request.notes != Note.START_NOT_SEEN.value:
            return request
        return request._replace(
            started_ns=start.at_ns,
            duration_ns=max(0, self._decoder.unix_ns(ended_ns) - start.at_ns),
            uri=start.uri,
            script=start.script,
            method=start.method,
            anon_before=start.anon,
            zend_real_before=start.zend_real,
        )

    def gone(self, pid: int) -> None:
        """Forget that worker, which has ended."""
        self._starts.pop(pid, None)

    def still_running(self, workers: Mapping[int, TrackedWorker]) -> list[Request]:
        """Return the requests that ran when tracing began and run yet. Call it once, when tracing ends."""
        found = []
        for pid, start in self._starts.items():
            worker = workers.get(pid)
            anon = None if worker is None or not start.memory.in_request() else _anon(pid, worker)
            if worker is None or anon is None:
                continue
            heap = start.memory.heap()
            at_ns = self._decoder.unix_ns(time.clock_gettime_ns(time.CLOCK_MONOTONIC))
            found.append(
                Request(**{  # type: ignore[arg-type]
                    **_NOTHING_KNOWN,
                    "host": self._decoder.host,
                    "pid": pid,
                    "pool": worker.fact.pool,
                    "nth": 1,
                    "started_ns": start.at_ns,
                    "duration_ns": at_ns - start.at_ns,
                    "uri": start.uri,
                    "script": start.script,
                    "method": start.method,
                    "ending": Ending.CUT_OFF.value,
                    "anon_before": start.anon,
                    "anon_after": anon,
                    "anon_peak": max(start.anon, anon),
                    "zend_real_before": start.zend_real,
                    "zend_real_after": None if heap is None else heap.real_size,
                    "notes": f"{Note.START_NOT_SEEN.value},{Note.END_NOT_SEEN.value}",
                })
            )  # fmt: skip
        self._starts.clear()
        return found

    def with_ends(self, requests: Iterable[Request], workers: Mapping[int, TrackedWorker]) -> list[Request]:
        """Return requests that tracing has just cut off, with their workers' memory now."""
        found = []
        for request in requests:
            worker = workers.get(request.pid)
            memory = None if worker is None else self._memory(request.pid, worker)
            if worker is not None and memory is not None and memory.in_request():
                heap = memory.heap()
                request = request._replace(
                    anon_after=_anon(request.pid, worker), zend_real_after=None if heap is None else heap.real_size
                )
            found.append(request)
        return found


def _anon(pid: int, worker: TrackedWorker) -> int | None:
    """Resident anonymous memory of that worker in bytes; None if it has ended."""
    try:
        with ProcessMemory(pid, worker.fact.start_ticks) as memory:
            return memory.exact_anon_bytes()
    except (HeapUnknownError, OSError):
        return None


def _parameter(memory: PhpMemory, name: bytes, limit: int) -> str | None:
    found = memory.parameter(name, limit)
    return None if found is None else found[0].decode("utf-8", "surrogateescape")
