"""The native blocks that are sampled, from the programs' table of them to Retained facts.

native.bpf.c chooses the blocks and forgets them when they are freed; growth.bpf.c notes their stacks.
"""

from __future__ import annotations

import struct
import time
from collections.abc import Collection

from tracer.backends.bpf.programs import Programs
from tracer.backends.records.growth_decoder import GrowthDecoder
from tracer.backends.records.held_blocks import HeldBlock, HeldBlocks, gap_quantiles
from tracer.backends.records.stack_structs import BLOCK, BLOCK_CONFIG, BLOCK_KEY, GAP_STEPS
from tracer.facts import Retained

BLOCKS_MAX = 32768
# Maps of growth.bpf.c that native.bpf.c shares.
_SHARED = ("block_config", "allocating", "held_blocks", "lost_stacks")
_LOOK_S = 0.2
_LOOK_SHARE = 50  # a look may take that part of the time


class BlockSampling:
    """Samples native blocks by the programs of growth.bpf.c, which stay the caller's to close.

    `program` is the descriptor of the one to run at the return of functions that allocate. `maps` are the descriptors
    of the maps that native.bpf.c shares, by name. `mean_gap` is the mean number of bytes between two samples.
    """

    def __init__(self, programs: Programs, *, retained_after: int, mean_gap: int) -> None:
        """Load the program. Raises UnsupportedError if the kernel refuses it, or cannot read a map as a whole."""
        self.program = programs.fd("on_block")
        self.maps = {name: programs.map(name).fd for name in _SHARED}
        self.mean_gap = mean_gap
        gaps = struct.pack(f"<{GAP_STEPS + 1}I", *gap_quantiles(mean_gap, GAP_STEPS))
        programs.map("block_config")[0] = BLOCK_CONFIG.pack(retained_after, gaps)
        self._table = programs.table("held_blocks")
        self._held = HeldBlocks(retained_after=retained_after, mean_gap=mean_gap)
        self._look_at = 0.0
        self._gone: set[int] = set()  # workers that have ended since the last look
        self._entries()

    @property
    def undecided(self) -> int:
        """Blocks that were held at the last look and too young to be called retained."""
        return self._held.undecided

    def ended(self, pid: int, nth: int) -> None:
        """Take note that this request of a worker has ended; its records and those of its stacks have been read."""
        self._held.ended(pid, nth)

    def retained(self, decoder: GrowthDecoder, *, at_once: bool = False) -> list[Retained]:
        """Return what has become retained since the last call. Not every call looks, unless `at_once` is set."""
        started = time.monotonic()
        if started < self._look_at and not at_once:
            return []
        blocks = self._entries()
        found, done = self._held.look(blocks, decoder.stack)
        decoder.forget_ended()
        for block in done:
            self._remove(block)
        if self._gone:
            self._forget_gone(blocks)
        now = time.monotonic()
        self._look_at = now + max(_LOOK_S, _LOOK_SHARE * (now - started))
        return found

    def worker_gone(self, pid: int) -> None:
        """Forget the blocks of a worker that has ended, once the next look has found what it retained."""
        self._gone.add(pid)

    def _forget_gone(self, blocks: list[HeldBlock]) -> None:
        for block in blocks:
            if block.pid in self._gone:
                self._remove(block)
        for pid in self._gone:
            self._held.forget(pid)
        self._gone.clear()

    def links_gone(self, pids: Collection[int]) -> None:
        """Forget the blocks of workers whose calls are no longer seen, but for those that are retained already."""
        for block in self._entries():
            if block.pid in pids and not self._held.is_old(block):
                self._remove(block)

    def _entries(self) -> list[HeldBlock]:
        keys, values = self._table.entries()
        return [
            HeldBlock(pid, address, nth, key, size, outlived)
            for (address, pid, outlived), (key, size, nth, _) in zip(
                BLOCK_KEY.iter_unpack(keys), BLOCK.iter_unpack(values), strict=True
            )
        ]

    def _remove(self, block: HeldBlock) -> None:
        self._table.remove(BLOCK_KEY.pack(block.address, block.pid, block.outlived))
