"""The budget of a pool: how much the counting of its workers' native memory may still cost them."""

from __future__ import annotations

import math

# Each link makes every hit of every linked worker 55 ns dearer: that many of a pool at a time.
MOST_OF_A_POOL = 8
# Where a pool has more workers than are counted at a time, one of them gives its turn to another so often.
_TURN_S = 2.0
# What a counted call costs a worker, in ns of its CPU time: half of an allocation and its free.
CALL_NS = 1_500
# The same where blocks are sampled, too.
SAMPLED_CALL_NS = 2_000
# Share of the advance from which on a paused pool is counted again.
_RESUME = 0.1


class PoolBudget:
    """In ns of the workers' CPU time. It begins with an advance, and is earned by the requests of the pool."""

    def __init__(self, share: float, advance_s: float) -> None:
        """`share` of the CPU time of requests is earned, math.inf for no limit; at most the advance is saved up."""
        self._share = share
        self._advance_ns = self._left_ns = advance_s * 1e9
        self._next_turn = 0.0
        self.paused = False  # True: none of its workers may be counted now
        self.linked = 0  # workers that are counted now

    @property
    def has_room(self) -> bool:
        """True if one more worker may be counted."""
        return not self.paused and self.linked < MOST_OF_A_POOL

    def earn(self, cpu_ns: int) -> None:
        """Add what a request of that much CPU time earns."""
        self._left_ns = min(self._left_ns + self._share * cpu_ns, self._advance_ns)

    def spend(self, calls: int, *, sampled: bool = False) -> None:
        """Take away what the counting of so many calls cost; `sampled`: blocks of them were sampled, too."""
        self._left_ns -= calls * (SAMPLED_CALL_NS if sampled else CALL_NS)

    def settle(self) -> None:
        """Pause if too much was spent; go on once a part of the advance is there again."""
        if self._share == math.inf:
            return
        if self._left_ns < 0:
            self.paused = True
        elif self._left_ns > _RESUME * self._advance_ns:
            self.paused = False

    def turn_is_over(self, now: float) -> bool:
        """True if a worker has to give its place to another that waits; `now` is time.monotonic()."""
        if self.linked < MOST_OF_A_POOL or now < self._next_turn:
            return False
        self._next_turn = now + _TURN_S
        return True
