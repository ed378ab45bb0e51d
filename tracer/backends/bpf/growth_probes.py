"""The part of the BPF backend that says which PHP call stack grew a worker; there only if asked for.

Data flow: page faults, looks at Zend's heap and memory calls are put down to a stack in the kernel
(bpf/growth.bpf.c), and come through a ring of their own; the book makes Growth facts of them.
"""

from __future__ import annotations

import contextlib
import logging
import mmap
import os
import resource
import sys
import time
from collections.abc import Callable, Iterable, Iterator

from tracer.backends import StackOptions
from tracer.backends.bpf import rss_caveats
from tracer.backends.bpf.programs import RING_BYTES, ProgramKind, Programs
from tracer.backends.bpf.ring_buffer import RingBuffer
from tracer.backends.bpf.thread_sampling import ThreadSampling
from tracer.backends.records.growth_decoder import GrowthDecoder
from tracer.backends.records.stack_structs import SAMPLING_CONFIG, STACK_LAYOUT, LostStacks
from tracer.errors import UnsupportedError
from tracer.facts import Fact, Loss, Request
from tracer.targets.libc import Libc
from tracer.targets.php import Php

log = logging.getLogger(__name__)

_BATCH = 65536
_LEAST_DEPTH = 4
_WHY_LOST = {
    LostStacks.GROWTH: "growth events: their ring buffer or the table of workers was full",
    LostStacks.STACKS: "call stacks: their ring buffer was full; what they grew by is under [stack lost]",
}
# So many stacks, and none that could be read: the layout is not this PHP's.
_ENOUGH_UNREADABLE = 20


class GrowthProbes:
    """The programs of growth.bpf.c on workers that another module of programs watches. close() takes them off."""

    def __init__(
        self,
        options: StackOptions,
        workers: int,
        *,
        workers_max: int,
        cpus: int,
        compiled: Callable[..., Programs] = Programs,
    ) -> None:
        """`workers` is the descriptor of the map `workers`, which is shared. UnsupportedError if nothing loads."""
        self._options = options
        self._compiled = compiled
        self._undo = contextlib.ExitStack()
        self._growth_decoder = GrowthDecoder()
        self._calls: list[int] = []
        self._held: list[Fact] = []
        self._leaving: list[int] = []  # pids of the dead whose last facts are being held,
        self._left: list[int] = []  # and of those whose are out
        self._lost_before = dict.fromkeys(LostStacks, 0)
        self._distrusted = False
        self.lacking = rss_caveats.caveats()
        with contextlib.ExitStack() as undo:
            undo.callback(self.close)
            self._programs, self.depth = self._loaded(workers, workers_max, cpus)
            if self.depth < options.max_depth:
                self.lacking.append(
                    f"stacks: at most {self.depth} frames of a stack, not {options.max_depth}: more does not load"
                )
            self._programs.map("sampling_config")[0] = SAMPLING_CONFIG.pack(options.every * mmap.PAGESIZE)
            self._ring = RingBuffer(self._programs.map("stack_events").fd, RING_BYTES)
            self._undo.callback(self._ring.close)
            self._tracepoints = self._undo.enter_context(contextlib.ExitStack())
            self._calls_in_kernel = self._undo.enter_context(contextlib.ExitStack())
            self._sampling = ThreadSampling(self._programs, every=options.every, hz=options.hz)
            self._undo.callback(self._sampling.close)
            self._undo.callback(self._close_calls)
            self._programs.on_raw_tracepoint("sched_process_exit", "on_exit", self._tracepoints)
            _allow_many_files()
            undo.pop_all()

    def _loaded(self, workers: int, workers_max: int, cpus: int) -> tuple[Programs, int]:
        """The programs with the greatest depth, up to that asked for, that the kernel's verifier follows."""
        depth = self._options.max_depth
        while True:
            programs = self._compiled("growth.bpf.c", WORKERS_MAX=workers_max, POSSIBLE_CPUS=cpus, DEPTH_MAX=depth)
            programs.share("workers", workers)
            try:
                with _stderr_silenced():
                    for function in ("on_clock", "on_fault"):
                        programs.fd(function, ProgramKind.PERF_EVENT)
                    for function in ("on_mmap", "on_mremap", "on_brk"):
                        programs.fd(function)
            except UnsupportedError:
                programs.close()
                if depth // 2 < _LEAST_DEPTH:
                    raise
                log.info("stacks of %d frames do not load; trying %d", depth, depth // 2)
                depth //= 2
            else:
                self._undo.callback(programs.close)
                return programs, depth

    def enter_php_binary(self, index: int, php: Php) -> None:
        """What is known of a binary, under its index in the map `stack_layouts`."""
        layout = php.stack
        if layout is None or php.executor_globals is None or php.heap is None:
            why = php.stack_lacking or "Zend's heap could not be found"
            self.lacking.append(f"not measured: call stacks: {why}")
            return
        self._programs.map("stack_layouts")[index] = STACK_LAYOUT.pack(
            php.executor_globals + layout.eg_current_execute_data,
            php.heap.size,
            layout.filename,
            layout.opcodes,
            layout.last,
            layout.generator_execute_data,
            layout.volatile_calls,
        )

    def hook_calls(self, library: Libc) -> None:
        """Sets probes on the memory calls of a C library."""
        for name, offset in library.sites.items():
            self._calls.append(self._programs.on_uprobe(f"on_{name}", library.image, offset))

    def hook_calls_in_kernel(self) -> None:
        """UnsupportedError if this kernel does not show system calls."""
        self._programs.on_raw_tracepoint("sys_exit", "on_syscall_exit", self._calls_in_kernel)

    def hook_end(self, php: Php) -> int:
        """A probe on the end of requests; its descriptor."""
        hooks = php.hooks
        if hooks is None:
            raise UnsupportedError(f"{php.image.shown}: its functions cannot be found")
        return self._programs.on_uprobe("on_end", php.image, hooks.end.file_offset, at_return=hooks.end_is_return)

    def watch(self, pid: int) -> None:
        """Samples that process and those it forks from now on. One that has ended is left out."""
        if not self._sampling.start(pid):
            self.lacking.append(f"stacks: process {pid} starts threads all the time: some may not be sampled")

    def unwatch(self, pid: int) -> None:
        """Takes watch() back: nothing of that process is sampled, nor of those it has forked since."""
        self._sampling.stop(pid)

    def gone(self, pid: int) -> None:
        """That process has ended; what it did is still to be given out."""
        self._sampling.stop(pid)
        self._leaving.append(pid)

    def with_growth(self, facts: list[Fact]) -> list[Fact]:
        """The facts of the last call, each Request with its Growth behind it, and what was lost.

        One call late, so that what the kernel sent of a request's stacks is here when its growth is given out.
        """
        self._read()
        found = list(self._expanded(self._held))
        self._held = facts
        for pid in self._left:
            self._growth_decoder.forget(pid)
        self._left, self._leaving = self._leaving, []
        return found

    def remaining(self, facts: list[Fact], workers: Iterable[int]) -> list[Fact]:
        """All that is left, when nothing is traced any more; `workers` are those that are still there.

        A request may have ended when only the other probe on its end was left: what it grew by is in the table.
        """
        self._read()
        for pid in workers:
            entry = self._programs.map("worker_stacks").get(pid)
            if entry is not None:
                self._growth_decoder.take_slots(pid, entry)
        found = [*self._expanded(self._held), *self._expanded(facts), *self.losses()]
        self._held = []
        self._tracepoints.close()
        return found

    def losses(self) -> list[Loss]:
        """What the kernel has counted as lost since the last look."""
        found: list[Loss] = []
        for what in LostStacks:
            total = int.from_bytes(self._programs.map("lost_stacks")[what], "little")
            if total > self._lost_before[what]:
                found.append(Loss(time.time_ns(), total - self._lost_before[what], _WHY_LOST[what]))
                self._lost_before[what] = total
        none_readable = _ENOUGH_UNREADABLE <= self._growth_decoder.unreadable == self._growth_decoder.stacks
        if none_readable and not self._distrusted:
            self._distrusted = True
            why = "call stacks: none could be read; this PHP's structures are not those of its version"
            found.append(Loss(time.time_ns(), self._growth_decoder.unreadable, why))
        return found

    def stop(self) -> list[int]:
        """Ends all events but the ends of requests and workers; returns the descriptors that are still to be closed."""
        self._sampling.close()
        self._calls_in_kernel.close()
        calls, self._calls = self._calls, []
        return calls

    def close(self) -> None:
        self._undo.close()

    def _read(self) -> None:
        while records := self._ring.records(_BATCH):
            for record in records:
                self._growth_decoder.take(record)

    def _expanded(self, facts: list[Fact]) -> Iterator[Fact]:
        for fact in facts:
            yield fact
            if isinstance(fact, Request):
                yield from self._growth_decoder.growths(fact.pid, fact.nth)

    def _close_calls(self) -> None:
        while self._calls:
            os.close(self._calls.pop())


def _allow_many_files() -> None:
    """Two descriptors a thread: up to what this process may have at most."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


@contextlib.contextmanager
def _stderr_silenced() -> Iterator[None]:
    """bcc prints what the verifier says straight to stderr, also of an attempt that is to be made smaller."""
    sys.stderr.flush()
    kept, sink = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(sink, 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(sink)
