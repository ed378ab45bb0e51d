"""One worker, traced by its system calls alone: the start and end of a request show without symbols.

A request begins when the worker has read its last FastCGI parameter, before php_request_startup(). Its answer
ends with an END_REQUEST record, written in sapi_deactivate() (main/main.c, PHP 8.2): there Zend's heap is still
live. It ends at the first system call after zend_mm_shutdown(), the last of php_request_shutdown(). If Zend's heap
is unknown, it ends when the worker accepts or reads the next request.
"""

from __future__ import annotations

import enum
import os
import re
from collections.abc import Callable
from typing import NamedTuple

from tracer.backends.ptrace.fastcgi_parser import Begun, FastCgiReader, Params, Value, begins_request
from tracer.backends.ptrace.open_request import CallCounts, OpenRequest, end_alone, now_ns
from tracer.backends.ptrace.proc_files import WorkerFiles
from tracer.backends.ptrace.syscalls import Entry, Exit
from tracer.backends.records.address_space import whole_pages
from tracer.backends.records.request_structs import SCRIPT_MAX, URI_MAX
from tracer.backends.records.stack_structs import Call
from tracer.targets import arch
from tracer.targets.php_memory import FATAL_STATUS, PhpMemory
from tracer.targets.remote_memory import read_memory

_WRITING = (arch.SYS_WRITE, arch.SYS_SENDTO)
_SHOWING_ERRORS = (*_WRITING, arch.SYS_SETITIMER)
_MEMORY_CALLS = {
    arch.SYS_MMAP: Call.MMAP,
    arch.SYS_MUNMAP: Call.MUNMAP,
    arch.SYS_MREMAP: Call.MREMAP,
    arch.SYS_BRK: Call.BRK,
}
_WANTED = (b"REQUEST_URI", b"SCRIPT_FILENAME", b"REQUEST_METHOD")
_READ_MAX_BYTES = 64 << 10  # of one call: php reads larger pieces only from request bodies, which are skipped
_NO_TIMER = bytes(32)  # struct itimerval
_END_REQUEST_BYTES = 16
_HEADER_BYTES = 8
# Prefix that Apache's mod_proxy_fcgi sends in SCRIPT_FILENAME.
_PROXY = re.compile(rb"proxy:(?:fcgi|balancer)://[^/]*", re.IGNORECASE)


class MemoryCallMade(NamedTuple):
    """A memory call of a request, with its result."""

    nth: int
    call: Call
    address: int
    bytes: int
    to: int
    to_bytes: int
    script_ended: bool


class Phase(enum.Enum):
    """Where a worker is in its request.

                              Params                       END_REQUEST written, and
    IDLE ------------------------------------------> RUNNING -------------------------+
    START_NOT_SEEN --------------------------------> RUNNING     a script runs |      | none runs
      |    Params; its end is sent first                                       v      v
      |                                                               ANSWERED ---> TEARDOWN
      |                                        a memory call, and no script runs any more
      | accept, Begun, Params
      v
    IDLE <--- RUNNING, ANSWERED, TEARDOWN: accept on the listening socket, Begun, Params (of the next request)
         <--- ANSWERED, TEARDOWN: a read on a kept connection; or Zend's heap, if readable, has been reset
         <--- RUNNING, ANSWERED, TEARDOWN: the worker or tracing ends; the request is cut off
    """

    IDLE = "idle"
    START_NOT_SEEN = "start not seen"  # it was in a request when tracing began
    RUNNING = "running"
    ANSWERED = "answered"  # fastcgi_finish_request(): the script runs on
    TEARDOWN = "teardown"  # the script has ended, the request has not


_AFTER_ANSWER = (Phase.ANSWERED, Phase.TEARDOWN)


class _Connection:
    __slots__ = ("keep", "reader")

    def __init__(self) -> None:
        self.reader = FastCgiReader(_WANTED, value_limit=URI_MAX)
        self.keep = False


class SyscallTracer:
    """Follows one worker from stop to stop; the worker is stopped while a method runs."""

    def __init__(
        self,
        pid: int,
        files: WorkerFiles,
        memory: PhpMemory,
        emit: Callable[[Callable[[], bytes]], None],
        on_call: Callable[[MemoryCallMade], None] | None,
        *,
        busy: bool,
    ) -> None:
        """`emit` takes a function that makes the record of a request, to call when the worker is running again.

        `on_call` takes each memory call of a request, None for none. `busy`: the worker may be in a request, of which
        only the end will be seen.
        """
        self.pid = pid
        self.requests = 0
        self.accepts = False  # it has waited for a connection: it is not a master
        self.malformed_count = 0  # how often a connection was malformed; the caller resets it to 0
        self._files = files
        self._memory = memory
        self._emit = emit
        self._on_call = on_call
        self.phase = Phase.START_NOT_SEEN if busy else Phase.IDLE
        self._request: OpenRequest | None = None
        self._counts = CallCounts()  # of the open request
        self._fatal_before = True  # the last error before the open request was fatal: that it is so says nothing
        self._no_error = False  # when all code of the open request was over, no error was one of it
        self._heap_shows_end = False  # Zend's heap shows the end of this request: not with USE_ZEND_ALLOC=0
        self._listening: int | None = None
        self._keep = False
        self._connections: dict[int, _Connection] = {}
        self._not_connections: set[int] = set()  # descriptors from before tracing that are not sockets
        self._entry: Entry | None = None
        self._break: int | None = None
        self._vm_at_brk = 0

    def at_entry(self, entry: Entry) -> None:
        """Handle the entry of a system call."""
        self._entry = entry
        if entry.number == arch.SYS_BRK and self._break is None:
            self._vm_at_brk = self._files.vm()
        number, request = entry.number, self._request
        if request is not None and self.phase is Phase.RUNNING:
            self._read_script(request)
        if request is not None and number in _SHOWING_ERRORS:
            self._look_at_error(request, entry)
        if number in arch.ACCEPTING and self._is_listening(entry.arguments[0]):
            self.accepts = True
            self._end()
        elif request is None:
            return
        elif self.phase in _AFTER_ANSWER:
            kept = self._keep and number == arch.SYS_READ and entry.arguments[0] in self._connections
            if kept or (self._heap_shows_end and not self._memory.in_request()):
                self._end()
            else:
                self._sample_teardown(request)
        elif number in _WRITING and entry.arguments[0] in self._connections and self._is_end_request(entry.arguments):
            self._at_end_request(request)

    def at_exit(self, made: Exit) -> None:
        """Handle the exit of the system call whose entry came last."""
        entry, self._entry = self._entry, None
        if entry is None or made.result < 0:
            return
        number, arguments = entry
        # Not recvfrom(): fcgi_close() uses it to drain data that php ignores (main/fastcgi.c, PHP 8.2).
        if number == arch.SYS_READ:
            self._read(arguments[0], arguments[1], arguments[2], made.result)
        elif number in arch.ACCEPTING and arguments[0] == self._listening:
            self._connections[made.result] = _Connection()
            self._not_connections.discard(made.result)
        elif number == arch.SYS_CLOSE:
            self._connections.pop(arguments[0], None)
            self._not_connections.discard(arguments[0])
        elif number in _MEMORY_CALLS:
            self._memory_call(_MEMORY_CALLS[number], arguments, made.result)

    @property
    def request_started_ns(self) -> int:
        """When the open request started (CLOCK_MONOTONIC); 0 if there is none."""
        return self._request.started_ns if self._request is not None else 0

    def exited(self, exit_code: int) -> None:
        """Cut off the open request: the worker died, or became another program (`exit_code` is REPLACED)."""
        if self._request is not None:
            request, self._request = self._request, None
            self.phase = Phase.IDLE
            request.cut_off(now_ns(), exit_code)
            self._emit(request.record)

    def cut_off(self) -> None:
        """Cut off the open request: tracing ends, and the worker runs on."""
        if self._request is not None:
            request, self._request = self._request, None
            self.phase = Phase.IDLE
            request.cut_off(now_ns(), 0, detached=True)
            self._emit(request.record)

    def close(self) -> None:
        """Close the worker's /proc files."""
        self._files.close()

    # Requests

    def _is_listening(self, descriptor: int) -> bool:
        """True if it is the pool's listening socket: a script may accept connections, too, as ext/ftp does."""
        if self._listening is None and not self._memory.in_request():
            self._listening = descriptor
        return descriptor == self._listening

    def _read(self, descriptor: int, address: int, wanted: int, size: int) -> None:
        may_be_adopted = wanted == _HEADER_BYTES and not (self.accepts or self.requests)
        if not size or not (descriptor in self._connections or may_be_adopted):
            return
        try:
            data = read_memory(self.pid, address, min(size, _READ_MAX_BYTES))
        except OSError:
            return
        connection = self._connections.get(descriptor) or self._adopt_connection(descriptor, data)
        if connection is None:
            return
        known = connection.reader.malformed_count
        for event in connection.reader.feed(data):
            if isinstance(event, Begun):
                self._end()
                connection.keep = event.keep_connection
            elif isinstance(event, Params):
                self._begin(event, keep=connection.keep)
        if descriptor in self._connections:
            self.malformed_count += connection.reader.malformed_count - known

    def _adopt_connection(self, descriptor: int, data: bytes) -> _Connection | None:
        """Return a new connection for one accepted before tracing began; None if the descriptor is not a socket.

        `data`: the first bytes read from it, as many as a header has: php reads a header with a separate call.
        """
        if descriptor in self._not_connections:
            return None
        try:
            is_socket = os.readlink(f"/proc/{self.pid}/fd/{descriptor}").startswith("socket:")
        except PermissionError:
            # Another user's process, and CAP_SYS_PTRACE is the only right (proc_fd_permission(), fs/proc/fd.c, Linux
            # 6.18): judge by the bytes. In mid-request they are another header; the next request is still found.
            if not begins_request(data):
                return None
            is_socket = True
        except OSError:
            is_socket = False
        if not is_socket:
            self._not_connections.add(descriptor)
            return None
        self._connections[descriptor] = _Connection()
        return self._connections[descriptor]

    def _begin(self, params: Params, *, keep: bool) -> None:
        self._end()
        uri, script, method = (_to_first_nul(params.values.get(name)) for name in _WANTED)
        script = _without_proxy(script) if script is not None else None
        self.requests += 1
        self._keep = keep
        heap = self._memory.heap()
        before = self._files.memory()
        self._counts = CallCounts()
        error = self._memory.last_error()
        self._fatal_before = error is None or error.fatal
        self._no_error = False
        self._request = OpenRequest(
            pid=self.pid,
            nth=self.requests,
            started_ns=now_ns(),
            uri=uri.text if uri else None,
            uri_bytes=uri.length if uri else 0,
            script=script.text if script else None,
            script_bytes=script.length if script else 0,
            method=method.text if method else None,
            before=before,
            faults_before=self._files.faults(),
            cpu_before_ns=self._files.cpu_ns(),
            zend_real_before=heap.real_size if heap else None,
            calls=self._counts,
            anon_peak=before.anon,
            layout_known=self._memory.knows_globals,
        )
        self.phase = Phase.RUNNING

    def _is_end_request(self, arguments: tuple[int, ...]) -> bool:
        """True if the written bytes end with an END_REQUEST record: version 1, type 3, 8 bytes."""
        _, address, size, *_ = arguments
        if size < _END_REQUEST_BYTES:
            return False
        try:
            tail = read_memory(self.pid, address + size - _END_REQUEST_BYTES, _END_REQUEST_BYTES)
        except OSError:
            return False
        return tail[:2] == b"\x01\x03" and tail[4:6] == b"\x00\x08"

    def _at_end_request(self, request: OpenRequest) -> None:
        """Handle the end of the answer. After fastcgi_finish_request() the script runs on."""
        self.phase = Phase.ANSWERED if self._memory.runs_script() else Phase.TEARDOWN
        self._heap_shows_end = bool(self._memory.in_request())
        request.status = self._memory.status()
        if not request.script_found and request.layout_known:
            request.script, request.script_bytes = None, 0  # a 404: PHP ran no file
        elif not request.layout_known:
            # PHP has taken PATH_INFO off what the web server sent.
            found = self._memory.parameter(b"SCRIPT_FILENAME", SCRIPT_MAX)
            if found is not None:
                request.script, request.script_bytes = found
        self._sample_teardown(request)

    def _read_script(self, request: OpenRequest) -> None:
        """Read the path PHP found for SCRIPT_FILENAME, which may hold a PATH_INFO. PHP sets it after some calls."""
        if request.script_found or not request.layout_known:
            return
        found = self._memory.script(SCRIPT_MAX)
        if found is not None:
            request.script, request.script_bytes, request.script_found = found, len(found), True

    def _sample_teardown(self, request: OpenRequest) -> None:
        """Sample memory at each call until Zend's heap is reset; a script that runs on may still have a fatal error."""
        heap = self._memory.heap()
        if heap is None or heap.peak > 0:
            request.at_teardown(heap, self._files.anon())
            request.fatal = request.fatal or self._ended_by_error(request)

    def _look_at_error(self, request: OpenRequest, entry: Entry) -> None:
        """Look for an error of this request: PHP frees its message before the answer's end.

        php_request_shutdown() stops the timer of max_execution_time when no PHP code runs any more, but for the
        session's handlers (zend_unset_timeout(), main/main.c, PHP 8.2). A log is written after the error.
        """
        error = self._memory.last_error()
        if error is None:
            return
        if error.fatal and error.message:
            request.fatal = True
        elif entry.number == arch.SYS_SETITIMER and self._memory.runs_script() is False and self._stops_timer(entry):
            self._no_error = not error.message

    def _stops_timer(self, entry: Entry) -> bool:
        try:
            return read_memory(self.pid, entry.arguments[1], len(_NO_TIMER)) == _NO_TIMER
        except OSError:
            return False

    def _ended_by_error(self, request: OpenRequest) -> bool | None:
        """Return True if a fatal error ended the script, and None if that is not known.

        Call it when the message of the error may have been freed already.
        """
        if request.layout_known and not request.script_found:
            return False
        error = self._memory.last_error()
        if error is None:
            return None
        if error.status != FATAL_STATUS:
            return False
        if error.fatal and not self._fatal_before:
            return True
        return False if self._no_error else None

    def _end(self) -> None:
        before, self.phase = self.phase, Phase.IDLE
        if before is Phase.START_NOT_SEEN:
            self._emit_end_alone()
        if self._request is None:
            return
        request, self._request = self._request, None
        request.end(now_ns(), self._files, self._memory.heap())
        self._emit(request.record)

    def _emit_end_alone(self) -> None:
        self.requests += 1
        pid, nth, now, after = self.pid, self.requests, now_ns(), self._files.memory()
        self._emit(lambda: end_alone(pid, nth, now, after))

    # Memory calls

    def _memory_call(self, call: Call, arguments: tuple[int, ...], result: int) -> None:
        address, size, to, to_size = arguments[0], arguments[1], 0, 0
        before = result
        if call is Call.BRK:
            # The break before the first call is unknown; the growth of the address space gives it.
            first = result - (self._files.vm() - self._vm_at_brk) if self._break is None else self._break
            before, self._break = first, result
        request = self._request
        if request is None:
            return
        counts = self._counts
        if call is Call.MMAP:
            address = result
            counts.map_bytes += whole_pages(size)
            counts.map_calls += 1
        elif call is Call.MUNMAP:
            counts.unmap_bytes += whole_pages(size)
            counts.unmap_calls += 1
        elif call is Call.MREMAP:
            to, to_size = result, arguments[2]
            counts.map_bytes += whole_pages(to_size)
            counts.map_calls += 1
            counts.unmap_bytes += whole_pages(size)
            counts.unmap_calls += 1
        else:
            counts.brk_calls += 1
            counts.brk_bytes += result - before
            address, size, to = before, 0, result
        request.sample(self._files.anon())
        if self._on_call is not None:
            if self.phase is Phase.ANSWERED and not self._memory.runs_script():
                self.phase = Phase.TEARDOWN
            script_ended = self.phase is Phase.TEARDOWN
            self._on_call(MemoryCallMade(request.nth, call, address, size, to, to_size, script_ended))


def _to_first_nul(value: Value | None) -> Value | None:
    """Return the value as PHP sees it, which takes all parameters for C strings."""
    if value is None or b"\0" not in value.text:
        return value
    text = value.text.partition(b"\0")[0]
    return Value(text, len(text))


def _without_proxy(script: Value) -> Value:
    """Return SCRIPT_FILENAME without what Apache adds: init_request_info(), sapi/fpm/fpm/fpm_main.c, PHP 8.2."""
    prefix = _PROXY.match(script.text)
    if prefix is None:
        return script
    path, query, _ = script.text[prefix.end() :].partition(b"?")
    return Value(path, len(path) if query else script.length - prefix.end())
