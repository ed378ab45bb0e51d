"""The budget of a pool: how much the counting of its workers' native memory may still cost them."""

from __future__ import annotations

import math
import random

# What a hit of a probe costs a worker, in ns of its CPU time: an allocation and its free are two, or three where
# blocks are sampled, too.
HIT_NS = 1_900
# The same where the kernel single-steps an instruction.
SLOW_HIT_NS = 12_000
# The part of it that a probe costs whose program does nothing (measured: 1,390 of 1,671 ns a pair).
_TRAP = 0.83
# Parts in which a pool gets what it may spend later: each once the requests since the beginning are so many times more
# than at the part before, at random, so that no rhythm of the traffic hides from all of them.
_PARTS = 8
_UNTIL_NEXT = (1.2, 1.8)
# Share of what may be saved up from which on a paused pool is counted again, chosen anew for each pause.
_RESUME = (0.125, 0.5)


class PoolBudget:
    """In ns of the workers' CPU time. It begins with an advance, and is earned by the requests of the pool."""

    def __init__(
        self, share: float, advance_s: float, later_s: float = 0.0, *, chance: random.Random | None = None
    ) -> None:
        """`share` of the CPU time of requests is earned, math.inf for no limit.

        `advance_s` may be spent at once, and `later_s` in parts as requests go by, so that a leak that begins later is
        seen, too. At most as much as both is saved up. `chance` decides when a pause ends.
        """
        self._share = share
        self._left_ns = advance_s * 1e9
        self._most_ns = (advance_s + later_s) * 1e9
        self._part_ns = later_s * 1e9 / _PARTS
        self._parts = _PARTS if later_s else 0
        self._requests = 0
        self._next_part = 0  # requests at which it comes; 0: nothing was paused yet
        self._resume_ns = 0.0
        self._chance = chance or random.Random()
        self._spent_ns = 0  # since the last pace()
        self.paused = False  # True: none of its workers may be linked now
        self.linked = 0  # workers that are counted now

    @property
    def overdrawn(self) -> bool:
        """True if as much as may be saved up has been spent since there was nothing left."""
        return self.paused and self._left_ns < -self._most_ns

    def earn(self, cpu_ns: int) -> None:
        """Add what a request of that much CPU time earns."""
        self._requests += 1
        self._left_ns = min(self._left_ns + self._share * cpu_ns, self._most_ns)
        if self.paused and self._parts and self._requests >= self._next_part:
            self._parts -= 1
            self._left_ns += self._part_ns
            self._resume_ns = 0.0
            self._plan_next_part()

    def spend(self, hits: int, *, slow: bool = False) -> None:
        """Take away what so many hits cost; `slow`: some are where the kernel single-steps."""
        cost_ns = hits * (SLOW_HIT_NS if slow else HIT_NS)
        self._left_ns -= cost_ns
        self._spent_ns += cost_ns

    def spend_unlinking(self, hits_per_s: float, seconds: float, *, slow: bool = False) -> None:
        """Take away the cost of hits at that rate, which nobody counts, while the kernel takes a link off."""
        self.spend(round(hits_per_s * seconds * _TRAP), slow=slow)

    def pace(self, seconds: float) -> float:
        """Seconds that the rest lasts, if it is spent as fast as in the last `seconds`, since the last call."""
        spent_ns, self._spent_ns = self._spent_ns, 0
        if self._share == math.inf or self.paused or not spent_ns:
            return math.inf
        return max(0.0, self._left_ns) / spent_ns * seconds

    def settle(self) -> None:
        """Pause if too much was spent; go on once enough is there again."""
        if self._share == math.inf:
            return
        if self._left_ns < 0:
            if not self.paused:
                self.paused = True
                self._resume_ns = self._chance.uniform(*_RESUME) * self._most_ns
                if self._requests >= self._next_part:
                    self._plan_next_part()
        elif self._left_ns > self._resume_ns:
            self.paused = False

    def _plan_next_part(self) -> None:
        self._next_part = math.ceil(self._chance.uniform(*_UNTIL_NEXT) * max(1, self._requests))


class Places:
    """How many workers may be counted at a time, of a pool and in all: each makes every hit of all 55 ns dearer.

    A worker that is counted where others wait gives its place to one of them after a while.
    """

    OF_A_POOL = 8
    IN_ALL = 16
    TURN_S = 2.0

    def __init__(self) -> None:
        """All places are free."""
        self.taken = 0
        self._next_turn = 0.0

    def free(self, pool: PoolBudget) -> bool:
        """True if one more worker of that pool may be counted."""
        return not pool.paused and pool.linked < self.OF_A_POOL and self.taken < self.IN_ALL

    def take(self, pool: PoolBudget) -> None:
        """Count a worker of that pool."""
        pool.linked += 1
        self.taken += 1

    def give_back(self, pool: PoolBudget) -> None:
        """Stop counting one."""
        pool.linked -= 1
        self.taken -= 1

    def turn_is_over(self, now: float) -> bool:
        """True, once a turn, if some worker is to give up its place; `now` is time.monotonic()."""
        if now < self._next_turn:
            return False
        self._next_turn = now + self.TURN_S
        return True
