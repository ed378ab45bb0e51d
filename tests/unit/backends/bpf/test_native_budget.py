"""The time for which a pool's workers are counted: an advance, earnings of requests, turns."""

from __future__ import annotations

import math

from tracer.backends.bpf.native_budget import CALL_NS, MOST_OF_A_POOL, PoolBudget


def spent(budget: PoolBudget, calls: int) -> bool:
    """True if counting so many calls more made it pause."""
    budget.spend(calls)
    budget.settle()
    return budget.paused


def test_a_pool_is_paused_when_its_advance_is_spent():
    budget = PoolBudget(0.02, advance_s=1000 * CALL_NS / 1e9)

    assert [spent(budget, calls) for calls in (999, 1, 1)] == [False, False, True]
    assert not budget.has_room


def test_a_paused_pool_goes_on_when_its_requests_have_earned_a_tenth_of_the_advance():
    budget = PoolBudget(0.5, advance_s=1000 * CALL_NS / 1e9)
    assert spent(budget, 1100)

    budget.earn(2 * 199 * CALL_NS)
    assert spent(budget, 0)
    budget.earn(2 * 2 * CALL_NS)
    assert not spent(budget, 0)
    assert budget.has_room


def test_no_more_is_saved_up_than_the_advance():
    budget = PoolBudget(0.5, advance_s=10 * CALL_NS / 1e9)

    budget.earn(10**12)

    assert [spent(budget, calls) for calls in (10, 1)] == [False, True]


def test_without_a_limit_a_pool_is_never_paused():
    budget = PoolBudget(math.inf, advance_s=0.0)

    assert not spent(budget, 10**9)


def test_a_pool_has_room_for_so_many_workers_and_they_take_turns():
    budget = PoolBudget(0.02, advance_s=1.0)
    budget.linked = MOST_OF_A_POOL - 1
    assert budget.has_room
    assert not budget.turn_is_over(100.0)

    budget.linked += 1
    assert not budget.has_room
    assert [budget.turn_is_over(now) for now in (100.0, 101.9, 102.0)] == [True, False, True]
