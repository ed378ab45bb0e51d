"""Watches workers with ptrace, where BPF is not allowed: every system call of theirs stops twice.

Data flow: a process of its own holds the workers (tracer.py), follows their system calls
(syscall_tracer.py), and sends the same records through a pipe as BPF's programs through their ring;
poll() turns them into facts.
"""

from __future__ import annotations

import contextlib
import errno
import json
import logging
import os
import platform
import signal
import time
from collections.abc import Sequence
from typing import Any

from tracer.backends import PtraceMode, StackOptions
from tracer.backends.ptrace.permissions import obstacle, refusal
from tracer.backends.ptrace.pipe import Channel, PipeReader, PipeWriter
from tracer.backends.ptrace.tracer import TracingLoop
from tracer.backends.records.event_decoder import EventDecoder
from tracer.backends.records.growth_decoder import GrowthDecoder
from tracer.backends.records.request_decoder import RequestDecoder
from tracer.backends.records.worker_table import WorkerTable
from tracer.errors import IncompleteError, NotPermittedError, TargetGoneError, UnsupportedError
from tracer.facts import Fact, Loss, Request
from tracer.targets import arch
from tracer.targets.fpm_config import has_slowlog
from tracer.targets.php import EXIT_NOT_SEEN
from tracer.targets.processes import GRANTS
from tracer.targets.resolve import Target

log = logging.getLogger(__name__)

_ATTACH_S = 20.0
_CLOSE_S = 20.0
_POLL_S = 0.05
_WHY_LOST = {
    Channel.LOST: "records: the recorder did not keep up with the tracer",
    Channel.UNARMED: "workers skipped: they install their own SIGTRAP handler",
    Channel.GIVEN_UP: "possibly requests: malformed FastCGI data skipped on a connection",
}
COST = (
    "each system call of a worker stops it twice, so a request of 10 ms takes about twice as long. If that is too"
    " much, use BPF (see `phptrace doctor`)"
)
_SLOWLOG = (
    "php-fpm's slowlog (request_slowlog_timeout) stays empty while workers are traced with ptrace: its master would"
    " have to trace them itself, and logs that it cannot"
)
_COST_OF_BREAKPOINTS = "each request stops three times, 0.2 to 0.8 ms in all; workers have a SIGTRAP handler meanwhile"
_NO_CALLS = "not measured: mmap and brk calls, since breakpoints see no system calls"
_MAPPED_ONLY = "stacks: mmap, mremap and brk only (--metric mapped); ptrace cannot sample page faults or Zend's heap"
_ABANDONED = "workers no longer traced: "
_UNEXPLAINED = "workers not traced: another tracer (php-fpm's slowlog, strace, gdb) was attached to them"
_LACKING = (
    "not measured: zend_used_end, memory_limit (ptrace does not see the end of the script)",
    f"{EXIT_NOT_SEEN}, which looks like a plain end (ptrace sees no calls inside PHP)",
)


class PtraceBackend:
    """See the Backend protocol. One instance, one attach; the whole of it from one thread."""

    name = "ptrace"
    needs_symbols = False

    def __init__(
        self,
        *,
        keep_query: bool = False,
        stacks: StackOptions | None = None,
        mode: PtraceMode = PtraceMode.SYSCALLS,
    ) -> None:
        """`stacks`: also record the stacks of memory calls, which needs PtraceMode.SYSCALLS; None for no stacks."""
        self._mode = mode
        self._keep_query = keep_query
        self._stack_options = stacks
        self._tracer: int | None = None  # the pid of the process that traces
        self._status: int | None = None  # what waitpid() said of its end
        self._failed = ""  # why it gave up
        self._undo = contextlib.ExitStack()
        self._lacking: list[str] = []
        self._pending: list[Fact] = []
        self._growth_decoder = GrowthDecoder()

    @property
    def watched(self) -> int:
        """Number of workers traced now; 0 before attach() and after close()."""
        return sum(w.wanted for w in self._table.workers.values()) if self._tracer is not None else 0

    @property
    def masters(self) -> int:
        """Number of masters traced now."""
        return len(self._table.masters) if self._tracer is not None else 0

    @property
    def lacking(self) -> Sequence[str]:
        """Sentences on what this mode cannot measure on these targets, and what tracing costs."""
        breakpoints = self._mode is PtraceMode.BREAKPOINTS
        of_mode = [_NO_CALLS, f"cost: {_COST_OF_BREAKPOINTS}"] if breakpoints else [f"cost: {COST}"]
        return tuple(dict.fromkeys([*self._lacking, *_LACKING, *of_mode]))

    def attach(self, targets: Sequence[Target]) -> None:
        """Start the tracing process and wait until it holds the workers. Raises a PhptraceError, having undone all."""
        stopped = obstacle()
        if stopped is not None:
            raise NotPermittedError(f"{stopped}. {GRANTS}")
        for target in targets:
            self._check(target)
        with contextlib.ExitStack() as undo:
            undo.callback(self._undo.close)
            offset = time.time_ns() - time.clock_gettime_ns(time.CLOCK_MONOTONIC)
            self._table = WorkerTable(offset)
            decoder = RequestDecoder(
                os.uname().nodename, offset, keep_query=self._keep_query, calls=self._mode is PtraceMode.SYSCALLS
            )
            self._event_decoder = EventDecoder(self._table, decoder, died=self._growth_decoder.forget)
            self._start(list(targets))
            undo.callback(self._end_tracer)
            said = self._attached()
            for pid, code in said["failed"]:
                refused = refusal(pid)
                if refused is not None:
                    raise refused
                if code != errno.EPERM:
                    raise UnsupportedError(f"cannot trace process {pid}: {os.strerror(code)}")
            if said["failed"]:
                self._pending.append(Loss(time.time_ns(), len(said["failed"]), _UNEXPLAINED))
            if not said["workers"] and not said["masters"]:
                raise TargetGoneError(
                    f"{', '.join(target.named for target in targets)} ended before it could be traced"
                )
            undo.pop_all()

    def poll(self, timeout_s: float) -> list[Fact]:
        """Facts that came, [] on time-out. Raises IncompleteError if the tracing process has ended; facts are kept."""
        deadline = time.monotonic() + timeout_s
        while True:
            # In steps: records that come one by one cost more than those that come together.
            time.sleep(max(0.0, min(_POLL_S, deadline - time.monotonic())))
            facts, self._pending = self._pending + self._take(0.0), []
            if self._reader.ended and self._tracer is not None and (self._table.workers or self._table.masters):
                self._pending = facts
                raise IncompleteError(f"the process that traces has ended{self._why()}; the workers go on untraced")
            if facts or time.monotonic() >= deadline:
                return facts

    def close(self) -> list[Fact]:
        """End the tracing process, which lets the workers go; return the last facts. Idempotent."""
        if self._tracer is None:
            self._undo.close()
            return []
        self._tell_tracer(signal.SIGTERM)
        facts, self._pending = self._pending, []
        deadline = time.monotonic() + _CLOSE_S
        while not self._reader.ended and time.monotonic() < deadline:
            facts += self._take(_POLL_S)
        self._end_tracer()
        self._undo.close()
        return facts

    def _check(self, target: Target) -> None:
        """Raise what keeps a target from being traced; note what cannot be measured on it."""
        if not target.speaks_fastcgi:
            raise UnsupportedError(
                f"{target.named} is PHP's {ascii(target.sapi)[1:-1]}: with ptrace, requests are found by FastCGI,"
                " which php-fpm and php-cgi speak. Use --backend bpf"
            )
        if self._mode is PtraceMode.BREAKPOINTS:
            self._check_breakpoints(target)
        for process in target.processes:
            refused = refusal(process.pid)
            if refused is not None:
                raise refused
        if target.master is not None and has_slowlog(target.master):
            log.warning("%s", _SLOWLOG)
            self._lacking.append(_SLOWLOG)
        if self._stack_options is not None:
            self._lacking.append(_MAPPED_ONLY)
            if target.php.stack is None:
                self._lacking.append(f"not measured: call stacks ({target.php.stack_lacking})")
        self._lacking += [lack for lack in target.php.lacking if not lack.startswith(EXIT_NOT_SEEN)]

    def _check_breakpoints(self, target: Target) -> None:
        """UnsupportedError if there is no place for the breakpoints."""
        hooks = target.php.hooks
        if platform.machine() != arch.MACHINE:
            raise UnsupportedError(
                f"--ptrace-mode breakpoints works on x86-64 only, not on {platform.machine()}: elsewhere a worker whose"
                " tracer was killed would hit a breakpoint again and again. Use --ptrace-mode syscalls."
            )
        if hooks is None or hooks.end_is_return:
            raise UnsupportedError(
                f"{target.php.image.shown} has no instruction at the end of a request that can have a breakpoint."
                " Use --ptrace-mode syscalls."
            )
        if self._stack_options is not None:
            raise UnsupportedError(
                "--stacks cannot be used with --ptrace-mode breakpoints, which sees no memory calls."
                " Use --ptrace-mode syscalls."
            )

    def _start(self, targets: list[Target]) -> None:
        """Forks the process that traces. It inherits what is known of the targets, and nothing that runs."""
        reading, writing = os.pipe2(os.O_CLOEXEC)
        parent = os.getpid()
        # Until the child has a handler of its own: with the one it inherits, it would not end.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGTERM,))
        try:
            pid = os.fork()
        except OSError as exc:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
            os.close(reading)
            os.close(writing)
            raise UnsupportedError(
                f"cannot start the tracing process: {exc.strerror}. Raise the limit on processes, or stop some."
            ) from exc
        if pid == 0:
            code = 1
            try:
                os.close(reading)
                out = PipeWriter(writing)
                TracingLoop(targets, out, parent, self._stack_options, self._mode).run()
                code = 0
            finally:
                os._exit(code)
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        os.close(writing)
        self._tracer = pid
        self._undo.callback(os.close, reading)
        self._reader = PipeReader(reading)
        self._targets = targets

    def _attached(self) -> dict[str, Any]:
        """Waits until the process that traces says what became of attaching, and enters who is watched."""
        deadline = time.monotonic() + _ATTACH_S
        records: list[tuple[Channel, bytes]] = []
        while not any(channel is Channel.SAID for channel, _ in records):
            if self._reader.ended or time.monotonic() > deadline:
                raise UnsupportedError(f"the process that traces did not attach{self._why()}")
            records += self._reader.records(_POLL_S)
        said: dict[str, Any] = next(json.loads(record) for channel, record in records if channel is Channel.SAID)
        for target in self._targets:
            if target.master is not None and target.master.pid in said["masters"]:
                self._table.masters[target.master.pid] = target
            for worker in target.workers:
                if worker.pid in said["workers"]:
                    self._pending.append(self._table.add(worker, target))
        self._pending += self._facts(records)
        return said

    def _take(self, timeout_s: float) -> list[Fact]:
        return self._facts(self._reader.records(timeout_s))

    def _facts(self, records: list[tuple[Channel, bytes]]) -> list[Fact]:
        facts: list[Fact] = []
        for channel, record in records:
            if channel is Channel.REQUESTS:
                for fact in self._event_decoder.facts((record,)):
                    facts.append(fact)
                    if isinstance(fact, Request):
                        facts += self._growth_decoder.growths(fact.pid, fact.nth)
            elif channel is Channel.STACKS:
                self._growth_decoder.take(record)
            elif channel is Channel.ABANDONED:
                why = ascii(record.decode("utf-8", "replace"))[1:-1]
                facts.append(Loss(time.time_ns(), 1, f"{_ABANDONED}{why}"))
            elif channel is Channel.FAILED:
                self._failed = ascii(record.decode("utf-8", "replace"))[1:-1]
            elif channel in _WHY_LOST:
                facts.append(Loss(time.time_ns(), int.from_bytes(record, "little"), _WHY_LOST[channel]))
        return facts

    def _end_tracer(self) -> None:
        """Waits for it, which has been told to stop, or is made to: SIGKILL harms no worker."""
        if self._tracer is None:
            return
        deadline = time.monotonic() + (0.0 if self._reader.ended else _CLOSE_S)
        self._tell_tracer(signal.SIGTERM)
        while self._status is None and time.monotonic() <= deadline:
            self._reap(os.WNOHANG)
            time.sleep(0.01)
        self._tell_tracer(signal.SIGKILL)
        self._reap(0)
        self._tracer = None

    def _tell_tracer(self, number: int) -> None:
        """Nobody else, if it has ended and was waited for: its pid may be another's by now."""
        if self._tracer is not None and self._status is None:
            os.kill(self._tracer, number)

    def _reap(self, options: int) -> None:
        """Note how it ended, if it has."""
        if self._tracer is not None and self._status is None:
            pid, status = os.waitpid(self._tracer, options)
            self._status = status if pid else None

    def _why(self) -> str:
        """How the process that traces ended, if it did."""
        self._reap(os.WNOHANG)
        if self._failed:
            return f" ({self._failed})"
        if self._status is None:
            return ""
        if os.WIFSIGNALED(self._status):
            return f" (killed by {signal.Signals(os.WTERMSIG(self._status)).name})"
        return f" (exit code {os.waitstatus_to_exitcode(self._status)})"
