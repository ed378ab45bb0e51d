"""Which native blocks outlive their request, of those that are sampled: from the kernel's table to Retained facts.

The kernel keeps a sampled block until it is freed. A block is retained once so many more requests of its worker have
ended; the table is looked at now and then, and what is retained is taken out of it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import NamedTuple

from tracer.facts import STACK_LOST, Retained, Stack

_MOST = (1 << 63) - 1
# Two blocks of such a size are the whole address space of a process (x86-64: 47 bits): larger ones are corrupt.
_LARGEST = 1 << 47


class HeldBlock(NamedTuple):
    """A sampled block that was not freed, or outlived its request before it was."""

    pid: int
    address: int
    nth: int  # the request that allocated it
    hash: int  # of its stack
    bytes: int
    outlived: int = 0  # as in struct block_key


class HeldBlocks:
    """Knows the stacks of the blocks that are held. `undecided` counts those whose time has not come."""

    def __init__(self, *, retained_after: int, mean_gap: int) -> None:
        """A block is retained when `retained_after` requests that came after its own have ended.

        `mean_gap` is the mean number of allocated bytes between two samples.
        """
        self._after = retained_after
        self._mean_gap = mean_gap
        self._ended: dict[int, int] = {}  # the last request that has ended, by pid
        self._stacks: dict[tuple[int, int, int], Stack] = {}  # by pid, nth and hash
        self.undecided = 0

    def ended(self, pid: int, nth: int) -> None:
        """Take note that this request of a worker has ended, and with it all before it."""
        self._ended[pid] = nth

    def look(
        self, blocks: Iterable[HeldBlock], stack_of: Callable[[int, int, int], Stack | None]
    ) -> tuple[list[Retained], list[HeldBlock]]:
        """Return what is retained, added up by request and stack, and its blocks, which the caller forgets.

        `blocks` are all that are held now. `stack_of` returns the stack of a pid, nth and hash; None: not known yet, or
        lost if the request has ended.
        """
        grown: dict[tuple[int, int, Stack], list[float]] = {}
        known: dict[tuple[int, int, int], Stack] = {}
        done: list[HeldBlock] = []
        self.undecided = 0
        for block in blocks:
            last = self._ended.get(block.pid, 0)
            key = block.pid, block.nth, block.hash
            stack = known.get(key) or self._stacks.get(key) or stack_of(*key)
            if stack is None:
                if last < block.nth:
                    continue  # its request is still running: the record of its stack may be on its way
                stack = (STACK_LOST,)
            if not self.is_old(block):
                known[key] = stack
                self.undecided += 1
                continue
            done.append(block)
            both = grown.setdefault((block.pid, block.nth, stack), [0.0, 0])
            both[0] += weight(block.bytes, self._mean_gap)
            both[1] += 1
        self._stacks = known
        return [
            Retained(pid, nth, stack, min(round(size), _MOST), int(samples))
            for (pid, nth, stack), (size, samples) in grown.items()
        ], done

    def is_old(self, block: HeldBlock) -> bool:
        """True if the block has outlived its request by as many as it takes to be retained."""
        return self._ended.get(block.pid, 0) >= block.nth + self._after

    def forget(self, pid: int) -> None:
        """Drop all that is known of a worker that has ended: another may get its pid."""
        self._ended.pop(pid, None)
        self._stacks = {key: stack for key, stack in self._stacks.items() if key[0] != pid}


def weight(size: int, mean_gap: int) -> float:
    """Bytes that a sampled block of `size` bytes stands for: its own, by the probability that it was sampled.

    A sample falls into a block with the probability 1 - exp(-size / mean), since gaps between samples are exponential.
    """
    size = min(size, _LARGEST)
    return -size / math.expm1(-size / mean_gap) if size > 0 else 0.0


def gap_quantiles(mean: int, steps: int) -> list[int]:
    """`steps` + 1 quantiles of an exponential distribution of that mean, the largest first and 0 last.

    What is drawn between two of them, evenly, has that mean. The first is as far from the second as makes the mean of
    what is larger than the second right.
    """
    inner = [-mean * math.log(step / steps) for step in range(1, steps + 1)]
    return [round(gap) for gap in (inner[0] + 2 * mean, *inner)]
