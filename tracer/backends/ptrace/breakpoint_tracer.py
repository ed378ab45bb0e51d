"""One worker, traced by hardware breakpoints at a request's start, its script's end, Zend's teardown and its end.

Four stops per request, whatever the request does; its memory calls are not seen. x86-64 only.
"""

from __future__ import annotations

from collections.abc import Callable

from tracer.backends.ptrace.open_request import OpenRequest, end_alone, now_ns
from tracer.backends.ptrace.proc_files import WorkerFiles
from tracer.backends.records.request_structs import SCRIPT_MAX, URI_MAX
from tracer.targets.php import Hooks
from tracer.targets.php_memory import FATAL_STATUS, PhpMemory

_METHOD_MAX_BYTES = 16


class BreakpointTracer:
    """Follows one worker from breakpoint to breakpoint; the worker is stopped while a method runs."""

    accepts = True  # breakpoints cannot show otherwise: a worker from its first stop on
    malformed_count = 0

    def __init__(
        self,
        pid: int,
        files: WorkerFiles,
        memory: PhpMemory,
        hooks: Hooks,
        bias: int,
        emit: Callable[[Callable[[], bytes]], None],
        *,
        born: bool,
    ) -> None:
        """`bias`: running address minus link address of the binary. `emit` as in SyscallTracer.

        `born`: forked during tracing. A request that ends and did not begin is then a copy of its parent's.
        """
        self.pid = pid
        self.armed = False
        self.has_handler = False
        self._files = files
        self._memory = memory
        self._emit = emit
        self._born = born
        self._request: OpenRequest | None = None
        self.requests = 0
        self._fatal_before = True  # the last error before the open request was fatal: that it is so says nothing
        self._stale_error = False  # a fatal error of an earlier request showed when the script ended
        sites = {
            bias + hooks.startup.address: self._at_start,
            bias + hooks.script_end.address: self._at_script_end,
            bias + hooks.end.address: self._at_end,
        }
        if hooks.teardown is not None:
            sites[bias + hooks.teardown.address] = self._at_teardown
        self._sites = sites

    @property
    def breakpoints(self) -> tuple[int, ...]:
        """At most four addresses in the worker."""
        return tuple(self._sites)

    def at_breakpoint(self, address: int) -> bool:
        """Handle the breakpoint at `address`; False if it is not one of this tracer's."""
        step = self._sites.get(address)
        if step is None:
            return False
        step()
        return True

    @property
    def request_started_ns(self) -> int:
        """When the open request started (CLOCK_MONOTONIC); 0 if there is none."""
        return self._request.started_ns if self._request is not None else 0

    def exited(self, exit_code: int) -> None:
        """Cut off the open request: the worker died, or became another program (`exit_code` is REPLACED)."""
        self._cut_off_request(exit_code, detached=False)

    def cut_off(self) -> None:
        """Cut off the open request: tracing ends, and the worker runs on."""
        self._cut_off_request(0, detached=True)

    def close(self) -> None:
        """Close the worker's /proc files."""
        self._files.close()

    def _at_start(self) -> None:
        uri = self._memory.parameter(b"REQUEST_URI", URI_MAX)
        script = self._memory.parameter(b"SCRIPT_FILENAME", SCRIPT_MAX)
        method = self._memory.parameter(b"REQUEST_METHOD", _METHOD_MAX_BYTES)
        self.requests += 1
        heap = self._memory.heap()
        error = self._memory.last_error()
        self._fatal_before = error is None or error.fatal
        before = self._files.memory()
        self._request = OpenRequest(
            pid=self.pid,
            nth=self.requests,
            started_ns=now_ns(),
            uri=uri[0] if uri else None,
            uri_bytes=uri[1] if uri else 0,
            script=script[0] if script else None,
            script_bytes=script[1] if script else 0,
            method=method[0] if method else None,
            before=before,
            faults_before=self._files.faults(),
            cpu_before_ns=self._files.cpu_ns(),
            zend_real_before=heap.real_size if heap else None,
            calls=None,
            anon_peak=before.anon,
            layout_known=self._memory.knows_globals,
        )

    def _at_script_end(self) -> None:
        request = self._request
        if request is not None:
            error = self._memory.last_error()
            ended_by_error = error is not None and error.status == FATAL_STATUS and error.fatal
            request.fatal = None if error is None else ended_by_error and error.message
            self._stale_error = ended_by_error
            request.at_script_end(self._memory.heap(), self._memory.memory_limit())

    def _at_teardown(self) -> None:
        request = self._request
        if request is not None:
            request.status = self._memory.status()
            error = self._memory.last_error()
            # A shutdown function or destructor may have failed since the script's end, or called exit(255).
            if error is not None and not self._stale_error and error.status == FATAL_STATUS and error.fatal:
                request.fatal = None if self._fatal_before and not request.fatal else True
            request.at_teardown(self._memory.heap(), self._files.anon())

    def _at_end(self) -> None:
        request, self._request = self._request, None
        if request is not None:
            request.end(now_ns(), self._files, self._memory.heap())
            self._emit(request.record)
        elif not self.requests and not self._born:
            self.requests = 1
            pid, now, after = self.pid, now_ns(), self._files.memory()
            self._emit(lambda: end_alone(pid, 1, now, after))

    def _cut_off_request(self, exit_code: int, *, detached: bool) -> None:
        request, self._request = self._request, None
        if request is not None:
            request.cut_off(now_ns(), exit_code, detached=detached)
            self._emit(request.record)
