"""The time for which a pool's workers are counted: an advance, earnings of requests, turns."""

from __future__ import annotations

import itertools
import math
import random

import pytest

from tracer.backends import NativeOptions
from tracer.backends.bpf.native_budget import HIT_NS, SLOW_HIT_NS, Places, PoolBudget


def spent(budget: PoolBudget, hits: int) -> bool:
    """True if counting so many hits more made it pause."""
    budget.spend(hits)
    budget.settle()
    return budget.paused


def test_a_pool_is_paused_when_its_advance_is_spent():
    budget = PoolBudget(0.02, advance_s=1000 * HIT_NS / 1e9)

    assert [spent(budget, hits) for hits in (999, 1, 1)] == [False, False, True]


@pytest.mark.parametrize("seed", range(20))
def test_a_paused_pool_goes_on_when_its_requests_have_earned_an_eighth_to_a_half_of_the_advance(seed):
    budget = PoolBudget(0.5, advance_s=1000 * HIT_NS / 1e9, chance=random.Random(seed))
    assert spent(budget, 1100)

    budget.earn(2 * 224 * HIT_NS)
    assert spent(budget, 0)
    budget.earn(2 * 377 * HIT_NS)
    assert not spent(budget, 0)


def bursts(seed: int, requests: int, *, cpu_ns: int, hits: int) -> tuple[list[int], int]:
    """Numbers of the requests at which counting begins again, and how many are counted, of a pool with the defaults."""
    options = NativeOptions()
    budget = PoolBudget(options.budget, options.advance_s, options.later_s, chance=random.Random(seed))
    begun, counted = [], 0
    for number in range(requests):
        paused = budget.paused
        budget.earn(cpu_ns)
        budget.settle()
        if paused and not budget.paused:
            begun.append(number)
        if not budget.paused:
            counted += 1
            budget.spend(hits)
            budget.settle()
    return begun, counted


@pytest.mark.parametrize("seed", range(20))
def test_a_pool_is_counted_again_and_again_not_only_at_the_beginning(seed):
    begun, counted = bursts(seed, 1800, cpu_ns=0, hits=240)

    # At first 0.1 s, which are 220 requests, and an eighth of that each time.
    assert 220 + 27 * len(begun[:-1]) < counted <= 220 + 28 * len(begun)
    assert 4 <= len(begun) <= 8
    assert all(later <= 1.8 * earlier + 28 for earlier, later in itertools.pairwise([220, *begun]))
    assert begun[-1] >= 1000


@pytest.mark.parametrize("seed", range(20))
def test_in_the_long_run_a_pool_spends_its_share_and_what_it_may_spend_first(seed):
    requests, cpu_ns, hits = 100_000, 1_000_000, 660

    _, counted = bursts(seed, requests, cpu_ns=cpu_ns, hits=hits)

    assert 0.9 < counted * hits * HIT_NS / (0.02 * requests * cpu_ns + 0.2e9) <= 1.01


def test_the_pauses_of_two_pools_end_at_different_requests():
    assert len({tuple(bursts(seed, 5000, cpu_ns=500_000, hits=240)[0]) for seed in range(10)}) == 10


def test_no_more_is_saved_up_than_the_advance():
    budget = PoolBudget(0.5, advance_s=10 * HIT_NS / 1e9)

    budget.earn(10**12)

    assert [spent(budget, hits) for hits in (10, 1)] == [False, True]


def test_a_budget_lasts_as_long_as_it_is_spent_at_the_last_pace():
    budget = PoolBudget(0.02, advance_s=1000 * HIT_NS / 1e9)

    assert budget.pace(0.5) == math.inf
    budget.spend(400)
    assert budget.pace(0.05) == pytest.approx(600 / 400 * 0.05)
    assert budget.pace(0.05) == math.inf
    budget.spend(601)
    assert budget.pace(0.05) == 0
    budget.settle()
    budget.spend(1)
    assert budget.pace(0.05) == math.inf


def test_without_a_limit_a_pool_is_never_paused():
    budget = PoolBudget(math.inf, advance_s=0.0)

    assert not spent(budget, 10**9)
    assert budget.pace(1.0) == math.inf


def test_a_pool_that_goes_on_spending_while_it_is_paused_overdraws_its_budget():
    budget = PoolBudget(0.02, advance_s=10 * HIT_NS / 1e9)

    assert [spent(budget, 11), budget.overdrawn] == [True, False]
    assert [spent(budget, 9), budget.overdrawn] == [True, False]
    assert [spent(budget, 1), budget.overdrawn] == [True, True]


def test_where_the_kernel_steps_through_an_instruction_a_hit_costs_more():
    budget = PoolBudget(0.02, advance_s=2 * SLOW_HIT_NS / 1e9)

    budget.spend(2, slow=True)
    assert not spent(budget, 0)
    budget.spend(1, slow=True)
    assert spent(budget, 0)


def test_hits_while_a_link_is_taken_off_cost_the_trap_alone():
    budget = PoolBudget(0.02, advance_s=1000 * HIT_NS / 1e9)

    budget.spend_unlinking(12_000, 0.1)

    assert [spent(budget, hits) for hits in (3, 2)] == [False, True]
    budget.spend_unlinking(12_000, 0.1, slow=True)
    assert budget.overdrawn


def test_so_many_workers_of_a_pool_have_a_place_and_so_many_in_all():
    places = Places()
    pools = [PoolBudget(0.02, advance_s=1.0) for _ in range(3)]
    taken = []
    for pool in pools:
        while places.free(pool):
            places.take(pool)
        taken.append(pool.linked)

    assert taken == [8, 8, 0]
    places.give_back(pools[0])
    assert [places.free(pool) for pool in pools] == [True, False, True]


def test_a_turn_is_over_every_two_seconds():
    assert [Places.TURN_S, *map(Places().turn_is_over, (100.0, 101.9, 102.0, 102.1))] == [2.0, True, False, True, False]
