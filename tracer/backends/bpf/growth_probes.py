"""The part of the BPF backend that tells which PHP call stack grew a worker; loaded only if stacks are asked for.

Data flow: page faults, samples of Zend's heap and memory calls are attributed to a stack in the kernel
(bpf/growth.bpf.c), and come through a ring of their own; GrowthDecoder makes Growth facts of them.
"""

from __future__ import annotations

import contextlib
import logging
import mmap
import os
import resource
import sys
import time
from collections.abc import Callable, Collection, Iterable, Iterator

from tracer.backends import StackOptions
from tracer.backends.bpf import rss_caveats
from tracer.backends.bpf.block_sampling import BLOCKS_MAX, BlockSampling
from tracer.backends.bpf.programs import RING_BYTES, ProgramKind, Programs
from tracer.backends.bpf.ring_buffer import RingBuffer
from tracer.backends.bpf.thread_sampling import ThreadSampling
from tracer.backends.records.growth_decoder import GrowthDecoder
from tracer.backends.records.stack_structs import SAMPLING_CONFIG, STACK_LAYOUT, LostStacks
from tracer.errors import UnsupportedError
from tracer.facts import Fact, Loss, Request, Retained
from tracer.targets.libc import Libc
from tracer.targets.php import Php

log = logging.getLogger(__name__)

_BATCH = 65536
_LEAST_DEPTH = 4
_WHY_LOST = {
    LostStacks.GROWTH: "growth events: their ring buffer or the worker table was full",
    LostStacks.STACKS: "call stacks: their ring buffer was full; their growth is under [stack lost]",
    LostStacks.BLOCKS: "growth events of retained memory: the table of sampled blocks was full",
}
# If none of this many stacks can be read, the layout is not this PHP's.
_ENOUGH_UNREADABLE = 20


class GrowthProbes:
    """The programs of growth.bpf.c, on the workers that the programs of request.bpf.c trace.

    The owner calls close(), which takes them off. `depth` is how many frames of a stack are kept; `lacking` says, for
    the user, what cannot be measured. `blocks` samples native blocks where malloc's calls are counted; None: nowhere.
    """

    def __init__(
        self,
        options: StackOptions,
        workers: int,
        *,
        workers_max: int,
        cpus: int,
        sample_blocks: bool = False,
        compiled: Callable[..., Programs] = Programs,
    ) -> None:
        """Load the programs and attach those that need no process.

        `sample_blocks` also loads what `blocks` needs; if that is refused, `lacking` says so.

        `workers` is the descriptor of request.bpf.c's map `workers`, which is shared and stays the caller's; it has
        `workers_max` entries. `cpus` is the number of possible CPUs. `compiled` makes Programs of a source file and
        its defines. Raises UnsupportedError if the programs do not load at any depth.
        """
        self._options = options
        self._compiled = compiled
        self._undo = contextlib.ExitStack()
        self._growth_decoder = GrowthDecoder(keep_stacks=sample_blocks)
        self.blocks: BlockSampling | None = None
        self._calls: list[int] = []
        self._facts_awaiting_growth: list[Fact] = []
        self._last_retained: list[Retained] = []
        # A dead worker's last facts wait for their growth for one call of with_growth(), so that its stacks may only
        # be forgotten one call after its death.
        self._dying_pids: list[int] = []  # their last facts are waiting
        self._dead_pids: list[int] = []  # their last facts were given out
        self._lost_before = dict.fromkeys(LostStacks, 0)
        self._distrusted = False
        self.lacking = rss_caveats.rss_caveats()
        with contextlib.ExitStack() as undo:
            undo.callback(self.close)
            self._programs, self.depth = self._loaded(workers, workers_max, cpus, BLOCKS_MAX if sample_blocks else 1)
            if sample_blocks:
                self._sample_blocks()
            if self.depth < options.max_depth:
                self.lacking.append(
                    f"stacks: at most {self.depth} frames of a stack, not {options.max_depth}:"
                    " the kernel does not load more"
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

    def _sample_blocks(self) -> None:
        options = self._options
        try:
            self.blocks = BlockSampling(
                self._programs, retained_after=options.retained_after, mean_gap=options.block_bytes
            )
        except UnsupportedError as exc:
            self.lacking.append(f"not measured: call stacks of retained memory ({exc})")

    def _loaded(self, workers: int, workers_max: int, cpus: int, blocks_max: int) -> tuple[Programs, int]:
        """The programs, and their depth: the greatest, up to what was asked for, that the kernel's verifier accepts."""
        depth = self._options.max_depth
        while True:
            programs = self._compiled(
                "growth.bpf.c", WORKERS_MAX=workers_max, POSSIBLE_CPUS=cpus, DEPTH_MAX=depth, BLOCKS_MAX=blocks_max
            )
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
        """Write where that PHP keeps its stack into the map `stack_layouts`; `lacking` says so if that is unknown."""
        layout = php.stack
        if layout is None or php.executor_globals is None or php.heap is None:
            why = php.stack_lacking or "Zend's heap could not be found"
            self.lacking.append(f"not measured: call stacks ({why})")
            return
        self._programs.map("stack_layouts")[index] = STACK_LAYOUT.pack(
            php.executor_globals + layout.eg_current_execute_data,
            php.heap.size,
            php.heap.real_peak,
            layout.filename,
            layout.opcodes,
            layout.last,
            layout.generator_execute_data,
            layout.volatile_calls,
            0,
        )

    def hook_calls(self, library: Libc) -> None:
        """Set probes on the memory calls of a C library. Raises as on_uprobe() does; then it has none."""
        already = len(self._calls)
        try:
            for name, offset in library.sites.items():
                self._calls.append(self._programs.on_uprobe(f"on_{name}", library.image, offset))
        except BaseException:
            while len(self._calls) > already:
                os.close(self._calls.pop())
            raise

    def hook_calls_in_kernel(self) -> None:
        """Trace memory calls at the kernel's side, for libraries of an unknown form.

        Raises UnsupportedError if this kernel does not show system calls.
        """
        self._programs.on_raw_tracepoint("sys_exit", "on_syscall_exit", self._calls_in_kernel)

    def hook_end(self, php: Php) -> int:
        """Set a probe on the end of requests and return its descriptor, which the caller closes.

        Raises UnsupportedError if PHP's functions are not known, or the probe cannot be set.
        """
        hooks = php.hooks
        if hooks is None:
            raise UnsupportedError(
                f"cannot trace {php.image.shown}: its functions cannot be found. Use --backend ptrace."
            )
        return self._programs.on_uprobe("on_end", php.image, hooks.end.file_offset, at_return=hooks.end_is_return)

    def start_sampling(self, pid: int) -> None:
        """Sample that process, and those that it forks from now on. No-op if it has ended."""
        if not self._sampling.start(pid):
            self.lacking.append(f"stacks: process {pid} keeps starting threads; some may not be sampled")

    def stop_sampling(self, pid: int) -> None:
        """Sample neither that process any more, nor those that it has forked since start_sampling()."""
        self._sampling.stop(pid)

    def process_died(self, pid: int, heirs: Collection[int] = ()) -> None:
        """Stop sampling a process that has ended. Its stacks are kept until its last facts are given out.

        `heirs`: processes that it has forked, and that are alive. They are sampled on.
        """
        self._sampling.ended(pid, heirs)
        self._dying_pids.append(pid)

    def with_growth(self, facts: list[Fact]) -> list[Fact]:
        """Return the facts of the previous call, each Request followed by its Growth, and keep `facts` for the next.

        One call late, so that the stacks of a request have arrived when its growth is given out.
        """
        self._read()
        found = list(self._expanded(self._facts_awaiting_growth))
        if self.blocks is not None:
            found += self.blocks.retained(self._growth_decoder)
        self._facts_awaiting_growth = facts
        for pid in self._dead_pids:
            self._growth_decoder.forget(pid)
            if self.blocks is not None:
                self.blocks.worker_gone(pid)
        self._dead_pids, self._dying_pids = self._dying_pids, []
        return found

    def stop_blocks(self, facts: list[Fact]) -> None:
        """Decide what is retained, before the calls of malloc and its like are no longer seen; `facts` are the latest.

        They and what is retained are given out by remaining().
        """
        self._facts_awaiting_growth += facts
        if self.blocks is None:
            return
        self._read()
        for fact in self._facts_awaiting_growth:
            if isinstance(fact, Request):
                self.blocks.ended(fact.pid, fact.nth)
        self._last_retained = self.blocks.retained(self._growth_decoder, at_once=True)
        log.info("sampled blocks that are held, but too young to be called retained: %d", self.blocks.undecided)
        self.blocks = None

    def remaining(self, facts: list[Fact], workers: Iterable[int]) -> list[Fact]:
        """Return all facts that are left, with their growth and the losses, after stop(); `facts` come last.

        `workers` are the pids of those still alive. A request may have ended when only the other probe on its end was
        left: its growth is still in the map `worker_stacks`.
        """
        self._read()
        for pid in workers:
            entry = self._programs.map("worker_stacks").get(pid)
            if entry is not None:
                self._growth_decoder.take_slots(pid, entry)
        awaiting = self._expanded(self._facts_awaiting_growth)
        found = [*awaiting, *self._last_retained, *self._expanded(facts), *self.losses()]
        self._facts_awaiting_growth = []
        self._tracepoints.close()
        return found

    def losses(self) -> list[Loss]:
        """Return a Loss for each kind the kernel counted since the last call; once, one if no stack is readable."""
        found: list[Loss] = []
        for what in LostStacks:
            total = int.from_bytes(self._programs.map("lost_stacks")[what], "little")
            if total > self._lost_before[what]:
                found.append(Loss(time.time_ns(), total - self._lost_before[what], _WHY_LOST[what]))
                self._lost_before[what] = total
        none_readable = _ENOUGH_UNREADABLE <= self._growth_decoder.unreadable == self._growth_decoder.stacks
        if none_readable and not self._distrusted:
            self._distrusted = True
            why = "call stacks: none could be read; this PHP's structures differ from those of its version"
            found.append(Loss(time.time_ns(), self._growth_decoder.unreadable, why))
        return found

    def stop(self) -> list[int]:
        """Stop all events but the ends of requests and workers; return the descriptors that the caller has to close."""
        self._sampling.close()
        self._calls_in_kernel.close()
        calls, self._calls = self._calls, []
        return calls

    def close(self) -> None:
        """Take everything off. Idempotent."""
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
                if self.blocks is not None:
                    self.blocks.ended(fact.pid, fact.nth)

    def _close_calls(self) -> None:
        while self._calls:
            os.close(self._calls.pop())


def _allow_many_files() -> None:
    """Raise the limit on open files to what this process may have: sampling takes two descriptors a thread."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


@contextlib.contextmanager
def _stderr_silenced() -> Iterator[None]:
    """Hide what bcc prints straight to stderr: the verifier's log, also of an attempt that is repeated with less."""
    sys.stderr.flush()
    kept, sink = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(sink, 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(sink)
