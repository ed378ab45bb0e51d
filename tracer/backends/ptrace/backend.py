"""Trace workers with ptrace, where BPF is not allowed: each system call stops the worker twice.

Data flow: a separate tracing process is attached to the workers (tracing_process.py) and follows their system calls
(syscall_tracer.py). It sends the records that BPF's programs send through their ring, through a pipe.
poll() turns them into facts.
"""

from __future__ import annotations

import contextlib
import errno
import gc
import json
import logging
import os
import signal
import time
from collections.abc import Sequence
from typing import Any

from tracer.backends import PtraceMode, StackOptions, longest
from tracer.backends.ptrace.permissions import obstacle, refusal, refusal_of
from tracer.backends.ptrace.pipe import Channel, PipeReader, PipeWriter
from tracer.backends.ptrace.tracing_process import TracingProcess
from tracer.backends.records.event_decoder import EventDecoder
from tracer.backends.records.growth_decoder import GrowthDecoder
from tracer.backends.records.in_flight import InFlight
from tracer.backends.records.request_decoder import RequestDecoder
from tracer.backends.records.worker_table import WorkerTable
from tracer.errors import IncompleteError, NotPermittedError, TargetGoneError, UnsupportedError
from tracer.facts import Ending, Fact, Loss, Request
from tracer.targets.fpm_config import has_slowlog
from tracer.targets.php import EXIT_NOT_SEEN
from tracer.targets.processes import GRANTS
from tracer.targets.resolve import Target

log = logging.getLogger(__name__)

_ATTACH_S = 20.0
_CLOSE_S = 20.0
_POLL_S = 0.05
_LOSS_REASONS = {
    Channel.LOST: "records: the recorder did not keep up with the tracer",
    Channel.MALFORMED: "possibly requests: malformed FastCGI data skipped on a connection",
}
# Measured: docs/cost.md.
COST = "each system call of a worker stops it twice, so a 10 ms request takes some 13 ms with 30 calls, 30 ms with 140"
_SLOWLOG = (
    "php-fpm's slowlog (request_slowlog_timeout) stays empty while workers are traced with ptrace: its master would"
    " have to trace them itself, and logs that it cannot"
)
_COST_OF_BREAKPOINTS = "each request stops four times, 0.3 to 0.9 ms in all; workers have a SIGTRAP handler meanwhile"
_NO_CALLS = "not measured: mmap and brk calls, since breakpoints see no system calls"
_MAPPED_ONLY = "stacks: mmap, mremap and brk only (--metric mapped); ptrace cannot sample page faults or Zend's heap"
_UNARMED = "workers skipped: they install their own SIGTRAP handler"
_ABANDONED = "workers no longer traced: "
_PID_BYTES = 8  # at the start of a record on one process
_MOST_NAMED = 10  # pids in one text
_REFUSED = "workers not traced: another tracer (php-fpm's slowlog, strace, gdb) was attached to them"
_NO_SCRIPT_END = "not measured: zend_used_end, memory_limit (system calls do not show the end of the script)"
_NO_EXIT = f"{EXIT_NOT_SEEN}, which looks like a plain end (ptrace sees no calls inside PHP)"


class PtraceBackend:
    """See the Backend protocol. One attach() per instance; call every method from the same thread."""

    name = "ptrace"

    def __init__(
        self,
        *,
        keep_query: bool = False,
        stacks: StackOptions | None = None,
        mode: PtraceMode = PtraceMode.SYSCALLS,
    ) -> None:
        """`stacks`: also record the stacks of memory calls (requires PtraceMode.SYSCALLS); None for no stacks."""
        self._mode = mode
        self._keep_query = keep_query
        self._stack_options = stacks
        self._tracer: int | None = None  # pid of the tracing process
        self._status: int | None = None  # its exit status, from waitpid()
        self._failure_reported = ""  # the error it sent before it ended
        self._undo = contextlib.ExitStack()
        self._lacking: list[str] = []
        self._pending: list[Fact] = []
        self._growth_decoder = GrowthDecoder()

    @property
    def watched(self) -> int:
        """Number of workers traced now; 0 before attach() and after close()."""
        return sum(w.wanted for w in self._table.workers.values()) if self._tracer is not None else 0

    @property
    def masters(self) -> frozenset[int]:
        """Pids of the masters traced now."""
        return frozenset(self._table.masters if self._tracer is not None else ())

    @property
    def lacking(self) -> Sequence[str]:
        """Sentences on what this mode cannot measure on these targets, and what tracing costs."""
        breakpoints = self._mode is PtraceMode.BREAKPOINTS
        of_mode = [_NO_CALLS, f"cost: {_COST_OF_BREAKPOINTS}"] if breakpoints else [_NO_SCRIPT_END, f"cost: {COST}"]
        return tuple(dict.fromkeys([*self._lacking, _NO_EXIT, *of_mode]))

    def attach(self, targets: Sequence[Target]) -> None:
        """Start the tracing process and wait until it is attached. Raises a PhptraceError after undoing everything."""
        blocked = obstacle()
        if blocked is not None:
            raise NotPermittedError(f"{blocked}. {GRANTS}")
        for target in targets:
            self._check(target)
        with contextlib.ExitStack() as undo:
            undo.callback(self._undo.close)
            offset = time.time_ns() - time.clock_gettime_ns(time.CLOCK_MONOTONIC)
            self._table = WorkerTable(offset)
            decoder = RequestDecoder(
                os.uname().nodename, offset, keep_query=self._keep_query, calls=self._mode is PtraceMode.SYSCALLS
            )
            self._in_flight = InFlight(decoder)
            self._event_decoder = EventDecoder(
                self._table,
                decoder,
                unwanted=self._not_traced,
                died=self._growth_decoder.forget,
                in_flight=self._in_flight,
            )
            self._fork_tracer(list(targets))
            undo.callback(self._stop_tracer)
            outcome = self._wait_until_attached()
            self._in_flight.begin(self._table.workers)
            for pid, code in outcome["failed"]:
                refused = refusal(pid)
                if refused is not None:
                    raise refused
                if code != errno.EPERM:
                    raise UnsupportedError(f"cannot trace process {pid}: {os.strerror(code)}. Run `phptrace doctor`.")
            if outcome["failed"]:
                pids = [str(pid) for pid, _ in outcome["failed"]]
                shown = ", ".join(pids[:_MOST_NAMED]) + (", …" if len(pids) > _MOST_NAMED else "")
                self._pending.append(Loss(time.time_ns(), len(pids), f"{_REFUSED} (process {shown})"))
            if not outcome["workers"] and not outcome["masters"]:
                raise TargetGoneError(
                    f"cannot trace {', '.join(target.named for target in targets)}: no process was left when phptrace"
                    " attached. Start PHP again."
                )
            undo.pop_all()

    def add(self, targets: Sequence[Target]) -> bool:
        """See the Backend protocol: the tracing process knows its targets from its start."""
        return False

    def poll(self, timeout_s: float) -> list[Fact]:
        """Return new facts, [] after the timeout.

        Raises IncompleteError if the tracing process has ended; the facts it sent before stay for close().
        """
        deadline = time.monotonic() + timeout_s
        while True:
            # Read in steps: a batch of records costs less than the same records one by one.
            time.sleep(max(0.0, min(_POLL_S, deadline - time.monotonic())))
            facts, self._pending = self._pending + self._read_facts(0.0), []
            if self._reader.ended and self._tracer is not None and (self._table.workers or self._table.masters):
                self._pending = facts
                raise IncompleteError(
                    f"cannot go on: the tracing process has ended{self._failure()}. The workers run on untraced."
                    " Start phptrace again."
                )
            if facts or time.monotonic() >= deadline:
                return facts

    def in_flight(self, seconds: float) -> list[Request]:
        """See the Backend protocol."""
        if self._tracer is None:
            return []
        self._in_flight.notice(self._table.workers)
        return longest(self._in_flight.running(self._table.workers), seconds)

    def close(self) -> list[Fact]:
        """End the tracing process, which detaches from the workers; return the last facts. Idempotent."""
        if self._tracer is None:
            self._undo.close()
            return []
        self._signal_tracer(signal.SIGTERM)
        facts, self._pending = self._pending, []
        deadline = time.monotonic() + _CLOSE_S
        while not self._reader.ended and time.monotonic() < deadline:
            facts += self._with_ends(self._read_facts(_POLL_S))
        facts += self._in_flight.still_running(self._table.workers)
        self._stop_tracer()
        self._undo.close()
        return facts

    def _check(self, target: Target) -> None:
        """Raise the error that keeps a target from being traced; note what cannot be measured on it."""
        refused = refusal_of(target, self._mode, stacks=self._stack_options is not None)
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

    def _fork_tracer(self, targets: list[Target]) -> None:
        """Fork the tracing process. It inherits the data on the targets, and neither a running thread nor a file."""
        reading, writing = os.pipe2(os.O_CLOEXEC)
        parent = os.getpid()
        # Blocked until the child has its own handler: with the inherited one, SIGTERM would not end it.
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
                _close_all_but(writing, *(target.php.image.fd for target in targets))
                out = PipeWriter(writing)
                TracingProcess(targets, out, parent, self._stack_options, self._mode).run()
                code = 0
            finally:
                os._exit(code)
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        os.close(writing)
        self._tracer = pid
        self._undo.callback(os.close, reading)
        self._reader = PipeReader(reading)
        self._targets = targets

    def _wait_until_attached(self) -> dict[str, Any]:
        """Wait until the tracing process reports the result of attaching; enter the traced workers in the table."""
        deadline = time.monotonic() + _ATTACH_S
        records: list[tuple[Channel, bytes]] = []
        while not any(channel is Channel.ATTACHED for channel, _ in records):
            if self._reader.ended or time.monotonic() > deadline:
                raise UnsupportedError(
                    f"cannot attach: the tracing process ended, or did not report in time{self._failure()}. Try again."
                )
            records += self._reader.records(_POLL_S)
        outcome: dict[str, Any] = next(json.loads(record) for channel, record in records if channel is Channel.ATTACHED)
        for target in self._targets:
            if target.master is not None and target.master.pid in outcome["masters"]:
                self._table.masters[target.master.pid] = target
            for worker in target.workers:
                if worker.pid in outcome["workers"]:
                    self._pending.append(self._table.add(worker, target))
        self._pending += self._facts(records)
        return outcome

    def _with_ends(self, facts: list[Fact]) -> list[Fact]:
        """Sample what the requests have grown to that were just cut off since tracing ends."""
        return [
            ended
            for fact in facts
            for ended in (
                self._in_flight.with_ends([fact], self._table.workers)
                if isinstance(fact, Request) and fact.ending == Ending.CUT_OFF.value and fact.anon_after is None
                else [fact]
            )
        ]

    def _read_facts(self, timeout_s: float) -> list[Fact]:
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
                self._not_traced(int.from_bytes(record[:_PID_BYTES], "little"))
                why = ascii(record[_PID_BYTES:].decode("utf-8", "replace"))[1:-1]
                facts.append(Loss(time.time_ns(), 1, f"{_ABANDONED}{why}"))
            elif channel is Channel.UNARMED:
                self._not_traced(int.from_bytes(record, "little"))
                facts.append(Loss(time.time_ns(), 1, _UNARMED))
            elif channel is Channel.FAILED:
                self._failure_reported = ascii(record.decode("utf-8", "replace"))[1:-1]
            elif channel in _LOSS_REASONS:
                facts.append(Loss(time.time_ns(), int.from_bytes(record, "little"), _LOSS_REASONS[channel]))
        return facts

    def _not_traced(self, pid: int) -> None:
        """Drop a process from which the tracing process has detached: its death will not be seen."""
        self._table.workers.pop(pid, None)
        self._table.masters.pop(pid, None)
        self._in_flight.gone(pid)
        self._growth_decoder.forget(pid)

    def _stop_tracer(self) -> None:
        """Stop the tracing process with SIGTERM and wait for it, then use SIGKILL, which harms no worker."""
        if self._tracer is None:
            return
        deadline = time.monotonic() + (0.0 if self._reader.ended else _CLOSE_S)
        self._signal_tracer(signal.SIGTERM)
        while self._status is None and time.monotonic() <= deadline:
            self._reap(os.WNOHANG)
            time.sleep(0.01)
        self._signal_tracer(signal.SIGKILL)
        self._reap(0)
        self._tracer = None

    def _signal_tracer(self, number: int) -> None:
        """Send a signal unless the tracing process was reaped: its pid may belong to another process by now."""
        if self._tracer is not None and self._status is None:
            os.kill(self._tracer, number)

    def _reap(self, options: int) -> None:
        """Store the exit status of the tracing process, if it has ended."""
        if self._tracer is not None and self._status is None:
            pid, status = os.waitpid(self._tracer, options)
            self._status = status if pid else None

    def _failure(self) -> str:
        """Return how the tracing process ended, in brackets; "" if it still runs."""
        self._reap(os.WNOHANG)
        if self._failure_reported:
            return f" ({self._failure_reported})"
        if self._status is None:
            return ""
        if os.WIFSIGNALED(self._status):
            return f" (killed by {signal.Signals(os.WTERMSIG(self._status)).name})"
        return f" (exit code {os.waitstatus_to_exitcode(self._status)})"


def _close_all_but(*kept: int) -> None:
    """Close every descriptor of this process, which was forked to run on, but 0 to 2 and those that are kept.

    The kernel takes a BPF probe off only once nobody has its descriptor any more.
    """
    gc.freeze()  # an object that nobody needs must not close a descriptor later that is another file's by then
    for fd in map(int, os.listdir("/proc/self/fd")):
        if fd > 2 and fd not in kept:
            with contextlib.suppress(OSError):  # the one by which they were listed
                os.close(fd)
