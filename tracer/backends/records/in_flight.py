"""Requests that ran when tracing began, or run when it ends: streams, long polls, imports.

The programs see neither their start nor their end. So their memory is sampled from outside, then and there, as far as
it is resident: a worker cannot make the reader wait.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import time
from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import NamedTuple

from tracer.backends.records.request_decoder import ORIGIN, RequestDecoder
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


class InFlight:
    """The requests that ran when tracing began. All methods belong to one thread."""

    def __init__(self, decoder: RequestDecoder) -> None:
        """`decoder` knows the host, and what is kept of a URI."""
        self._decoder = decoder
        self._starts: dict[int, _Start] = {}
        self._noticed: dict[int, _Start] = {}
        self._biases: dict[int, int] = {}  # by master: forks have PHP in one place

    def begin(self, workers: Mapping[int, TrackedWorker]) -> None:
        """Sample the workers that are in a request now. Call it once the starts and ends of requests are seen."""
        for pid, worker in workers.items():
            start = self._sample(pid, worker) if worker.wanted else None
            if start is not None:
                self._starts[pid] = start

    def notice(self, workers: Mapping[int, TrackedWorker]) -> None:
        """Sample the workers that are in a request now which began while tracing, as long as they are in it.

        For a backend that learns of a request when it ends.
        """
        for pid, worker in workers.items():
            if not worker.wanted or pid in self._starts:
                continue
            if pid in self._noticed:
                with self._in_request(pid, worker) as found:
                    if found is None:
                        del self._noticed[pid]
            elif (start := self._sample(pid, worker)) is not None:
                self._noticed[pid] = start

    @contextlib.contextmanager
    def _in_request(self, pid: int, worker: TrackedWorker) -> Iterator[tuple[PhpMemory, ProcessMemory] | None]:
        """The memory of that worker; None if it is in no request, or cannot be read."""
        with contextlib.ExitStack() as undo:
            found = None
            with contextlib.suppress(HeapUnknownError, OSError, UnsupportedError):
                bias = self._bias(pid, worker)
                memory = undo.enter_context(ProcessMemory(pid, worker.fact.start_ticks))
                php = PhpMemory(pid, worker.target.php, bias, read=functools.partial(_resident, memory))
                found = (php, memory) if php.in_request() else None
            yield found

    def _bias(self, pid: int, worker: TrackedWorker) -> int:
        """Where PHP is in that worker. Raises OSError or UnsupportedError as load_bias() does."""
        owner = pid if worker.target.master is None else worker.target.master.pid
        if owner not in self._biases:
            self._biases[owner] = processes.load_bias(pid, worker.target.php.image)
        return self._biases[owner]

    def _sample(self, pid: int, worker: TrackedWorker) -> _Start | None:
        """The request that this worker is in; None if it is in none, or cannot be read."""
        with self._in_request(pid, worker) as found:
            anon = None if found is None else _anon(found[1])
            if found is None or anon is None:
                return None
            memory, _ = found
            heap = memory.heap()
            uri = _parameter(memory, b"REQUEST_URI", URI_MAX)
            script = _parameter(memory, b"SCRIPT_FILENAME", SCRIPT_MAX)
            method = _parameter(memory, b"REQUEST_METHOD", _METHOD_BYTES)
        at_ns = self._decoder.unix_ns(time.clock_gettime_ns(time.CLOCK_MONOTONIC))
        real = None if heap is None else heap.real_size
        return _Start(at_ns, anon, real, self._decoder.kept_uri(uri), script, method)

    def seen(self, request: Request, ended_ns: int) -> Request:
        """Return a worker's next request; with its start, if it ran when tracing began. `ended_ns`: CLOCK_MONOTONIC."""
        if self._noticed:
            self._noticed.pop(request.pid, None)
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
        """Forget that worker or master, which has ended."""
        self._starts.pop(pid, None)
        self._noticed.pop(pid, None)
        self.replaced(pid)

    def replaced(self, master: int) -> None:
        """Forget where PHP is in a master that executed a program, and in its workers."""
        self._biases.pop(master, None)

    def still_running(self, workers: Mapping[int, TrackedWorker], but: Collection[int] = ()) -> list[Request]:
        """Return the requests that ran when tracing began and are still running. Call it once, when tracing ends.

        `but`: workers whose requests are known otherwise, since their start was seen.
        """
        found = self._running(self._starts, workers, but)
        self._starts.clear()
        return found

    def running(self, workers: Mapping[int, TrackedWorker], but: Collection[int] = ()) -> list[Request]:
        """Return those that still_running() returns, and those that were noticed, as they are now."""
        return self._running({**self._noticed, **self._starts}, workers, but)

    def _running(
        self, starts: Mapping[int, _Start], workers: Mapping[int, TrackedWorker], but: Collection[int]
    ) -> list[Request]:
        found = []
        for pid, start in starts.items():
            worker = None if pid in but else workers.get(pid)
            if worker is None:
                continue
            with self._in_request(pid, worker) as memory:
                anon, heap = (None, None) if memory is None else (_anon(memory[1]), memory[0].heap())
            if anon is None:
                continue
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
                    **dict(zip(ORIGIN, worker.origin, strict=True)),
                })
            )  # fmt: skip
        return found

    def with_ends(self, requests: Iterable[Request], workers: Mapping[int, TrackedWorker]) -> list[Request]:
        """Return requests that tracing has just cut off, with their workers' memory now."""
        found = []
        for request in requests:
            worker = workers.get(request.pid)
            if worker is not None:
                with self._in_request(request.pid, worker) as memory:
                    if memory is not None:
                        heap = memory[0].heap()
                        request = request._replace(
                            anon_after=_anon(memory[1]), zend_real_after=None if heap is None else heap.real_size
                        )
            found.append(request)
        return found


def _resident(memory: ProcessMemory, address: int, size: int) -> bytes:
    """Up to `size` bytes from that address; OSError if there are none, or the page is not resident."""
    content = bytearray(size)
    try:
        got = memory.read_into(memoryview(content), address)
    except HeapUnknownError as exc:
        raise OSError(errno.EFAULT, str(exc)) from exc
    if not got:
        raise OSError(errno.EFAULT, "not resident")
    return bytes(content[:got])


def _anon(memory: ProcessMemory) -> int | None:
    """Resident anonymous memory of that worker in bytes; None if it has ended."""
    try:
        return memory.exact_anon_bytes()
    except HeapUnknownError:
        return None


def _parameter(memory: PhpMemory, name: bytes, limit: int) -> str | None:
    found = memory.parameter(name, limit)
    return None if found is None else found[0].decode("utf-8", "surrogateescape")
