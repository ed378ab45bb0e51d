"""pm.max_children, pm.max_requests and memory_limit by exact arithmetic, and the reasons where they are not known."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from samples import COMPLETE, FOOTPRINT, PROPERTY

from tracer.analysis.budget import Budget, BudgetFrom
from tracer.analysis.group import Group
from tracer.analysis.pool_memory import PoolMemory
from tracer.analysis.sizing import Growth, Limit, Load, Replacement, Sizing, growth, size
from tracer.analysis.verdict.judge import Kind, Verdict, Why
from tracer.facts import Footprint, Request

MIB = 1 << 20
SECOND = 10**9
NO_GROWTH = Growth(0.0)
BUDGET = Budget(BudgetFrom.GIVEN, 400 * MIB)  # 380 MiB of it are usable


def served(rise: int = 4 * MIB, **changed: Any) -> Request:
    fields = {"anon_before": 10 * MIB, "anon_after": 10 * MIB, "anon_peak": 10 * MIB + rise, "duration_ns": SECOND,
              "cpu_ns": SECOND // 4, "ending": "finished", "zend_real_peak": 4 * MIB,
              "memory_limit": 128 * MIB}  # fmt: skip
    return COMPLETE._replace(**{**fields, **changed})


def load(*requests: Request, route: str = "/") -> Load:
    found = Load()
    for one in requests:
        found.add(one, route)
    return found


def steady(count: int = 100) -> Load:
    return load(*[served()] * count)


# 10 MiB of its own; 30 MiB shared with the others, 16 MiB of files.
IDLE = Footprint(
    pid=4241, start_ticks=7, at_ns=11, took_ns=1, idle=True, rss=56 * MIB, pss=20 * MIB, pss_shmem=6 * MIB,
    private_clean=0, private_dirty=9 * MIB, anonymous=9 * MIB, shmem=30 * MIB, swap_pss=0, page_tables=MIB,
)  # fmt: skip
MASTER = IDLE._replace(pid=4001, private_dirty=2 * MIB, anonymous=2 * MIB, page_tables=0, idle=False)


def memory(*found: Footprint) -> PoolMemory:
    pool = PoolMemory({(4241, 7), (4242, 7)}, {4001})
    for one in found or (IDLE, MASTER):
        pool.add(one)
    return pool


def sized(
    budget: Budget | None = BUDGET, grows: Growth = NO_GROWTH, *, of: Load | None = None, **options: Any
) -> Sizing:
    return size(of or steady(), options.pop("memory", None) or memory(), grows, budget, **options)


def test_the_children_are_those_that_fit_into_the_budget():
    found = sized()

    once = 30 * MIB + 17 * MIB + 2 * MIB
    assert (found.idle, found.rise_mean) == (10 * MIB, 4 * MIB)
    assert (found.children.once, found.children.each) == (once, 10 * MIB)
    assert found.children.most == (380 * MIB - once) // (14 * MIB) == 23
    assert (found.children.together, found.children.needed) == (23 * 4 * MIB, once + 23 * 14 * MIB)
    assert found.children.needed_for_one_more == once + 24 * 14 * MIB
    assert (found.children.worst, found.children.most_at_worst) == (once + 23 * 14 * MIB, 23)


def test_a_budget_that_one_worker_fills_to_the_byte_has_room_for_it():
    usable = 49 * MIB + 14 * MIB
    exact = Budget(BudgetFrom.GIVEN, usable, others=-int(0.05 * usable))  # so that all of it is usable

    assert sized(exact).children.most == 1
    assert sized(dataclasses.replace(exact, others=exact.others + 1)).children.most is None


def test_several_at_their_peak_at_once_take_children_away():
    rare = load(*[served(0)] * 98, *[served(64 * MIB)] * 2)
    found = sized(Budget(BudgetFrom.GIVEN, 800 * MIB), of=rare)

    # Of 46 workers, 8 at most are in the heavy request at once, as the binomial distribution has it.
    assert found.children.each == 10 * MIB
    assert found.children.together % (64 * MIB) == 0
    spent = 49 * MIB + (found.children.most or 0) * 10 * MIB + found.children.together
    assert spent == found.children.needed <= 760 * MIB < found.children.needed_for_one_more
    assert found.children.most_at_worst == (760 * MIB - 49 * MIB) // (74 * MIB) == 9
    assert found.children.worst == 49 * MIB + (found.children.most or 0) * 74 * MIB


def test_a_leak_takes_a_quarter_of_an_idle_worker_before_it_is_replaced():
    found = sized(grows=Growth(1000.0, leak=True))

    assert found.replacement == Replacement(2600, None, 2_600_000)  # 2,621 requests keep 2.5 MiB
    assert found.children.each == 10 * MIB + 2_600_000


def test_a_large_leak_lets_a_worker_double_for_five_hundred_requests():
    assert sized(grows=Growth(8000.0)).replacement == Replacement(500, None, 4_000_000)
    assert sized(grows=Growth(84 * 1024.0)).replacement == Replacement(120, None, 120 * 84 * 1024)


def test_a_leak_that_one_request_fills_a_worker_with_has_no_setting():
    found = sized(grows=Growth(11.0 * MIB))

    assert found.replacement.requests is None
    assert found.children.most is None
    assert found.children.why == "pm.max_requests is not known, so neither is the size that workers grow to"


def test_few_requests_and_those_that_a_filter_left_say_nothing_about_replacement():
    few = sized(grows=Growth(1000.0, leak=True), of=steady(99))
    filtered = sized(grows=Growth(1000.0, leak=True), whole=False)

    assert few.replacement == Replacement(None, "99 requests are too few; it takes 100")
    assert filtered.replacement == Replacement(None, "requests were left out by a filter when it was recorded")


def test_a_leak_in_workers_that_were_not_sampled_is_not_taken_for_none():
    found = sized(grows=Growth(1000.0, leak=True), memory=PoolMemory({(4241, 7)}, {4001}))

    assert found.replacement == Replacement(None, "the size of a worker between requests was not sampled")


def test_workers_that_do_not_grow_are_never_replaced():
    assert sized().replacement == Replacement(0)


def test_workers_that_hardly_grow_are_replaced_after_a_hundred_thousand_requests():
    assert sized(grows=Growth(3.0)).replacement == Replacement(100_000, None, 300_000)


def test_growth_that_was_not_counted_is_that_of_the_samples():
    grew = memory(IDLE, IDLE._replace(private_dirty=9 * MIB + 100_000), MASTER)
    found = sized(grows=Growth(None, why="not counted"), memory=grew)

    assert (found.growth.per_request, found.growth.sampled) == (1000.0, True)
    assert found.replacement.requests == 2600


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"memory": PoolMemory(set(), set())}, "the recording has no sample of its workers' memory"),
        ({"of": steady(99)}, "99 requests are too few; it takes 100"),
        ({"budget": None}, "the recording does not have the memory of its host"),
        ({"whole": False}, "requests were left out by a filter"),
        ({"budget": Budget(BudgetFrom.GIVEN, 60 * MIB)}, "not one worker fits into the budget"),
        ({"grows": Growth(None, why="native memory was not counted"), "memory": memory(IDLE._replace(idle=False))},
         "pm.max_requests is not known"),
    ],
)  # fmt: skip
def test_figures_that_do_not_carry_the_children_are_refused_with_the_reason(options, why):
    found = sized(**options)

    assert found.children.most is None
    assert found.children.why is not None
    assert found.children.why.startswith(why)


def test_memory_limit_is_the_largest_heap_with_a_quarter_to_spare():
    large = load(*[served()] * 99, served(zend_real_peak=90 * MIB))

    assert sized(of=large).limit == Limit(120 * MIB, None, 90 * MIB, (128 * MIB,))
    assert sized().limit.bytes == 32 * MIB


@pytest.mark.parametrize(
    ("requests", "whole", "why"),
    [
        ([served()] * 99, True, "99 requests are too few; it takes 100"),
        ([served(zend_real_peak=None)] * 100, True, "the size of Zend's heap was not measured"),
        ([served()] * 100, False, "requests were left out by a filter when it was recorded"),
        ([served()] * 99 + [served(ending="fatal", zend_real_peak=127 * MIB)], True,
         "1 request died of memory_limit, so it is not known how much they need. Raise it, and record again"),
    ],
)  # fmt: skip
def test_a_memory_limit_that_is_not_known_has_its_reason(requests, whole, why):
    limit = sized(of=load(*requests), whole=whole).limit

    assert (limit.bytes, limit.why) == (None, why)


def test_a_limit_that_fatal_errors_may_have_been_of_is_not_lowered():
    """PHP refuses a block that does not fit: it is in no size of the request."""
    died = [served(ending="fatal", zend_real_peak=40 * MIB, memory_limit=limit) for limit in (128 * MIB - 1, 64 * MIB)]
    unlimited = served(ending="fatal", zend_real_peak=40 * MIB, memory_limit=-1)

    assert sized(of=load(*[served()] * 98, *died)).limit == Limit(
        128 * MIB, None, 40 * MIB, (64 * MIB, 128 * MIB - 1, 128 * MIB), 2
    )
    assert sized(of=load(*[served()] * 99, unlimited)).limit == Limit(56 * MIB, None, 40 * MIB, (-1, 128 * MIB))


def test_a_fatal_error_far_below_the_limit_is_no_death_of_it():
    found = sized(of=load(*[served()] * 99, served(ending="fatal", zend_real_peak=125 * MIB)))

    assert found.limit.bytes == 160 * MIB


def test_requests_that_were_cut_off_tell_no_rise():
    found = load(served(), served(ending="cut_off"), served(anon_before=None), served(anon_after=None))

    assert found.rises.requests == 1


def test_the_routes_that_raise_a_worker_most_come_first():
    found = load(served(MIB), served(MIB, duration_ns=3 * SECOND), route="/a")
    found.add(served(9 * MIB), "/b")

    assert [(one.name, one.requests, one.busy_ns, one.rise_max) for one in found.heaviest(5)] == [
        ("/b", 1, SECOND, 9 * MIB),
        ("/a", 2, 4 * SECOND, MIB),
    ]


def group(kind: Kind, requests: int, **kept: Any) -> Group:
    figures = {**dict.fromkeys(field.name for field in dataclasses.fields(Group)), "requests": requests, **kept}
    why = Why.FEW if kind is Kind.UNCLEAR else None
    return Group(**{**figures, "incomplete": 0, "counted": requests, "verdict": Verdict(kind, why)})


def test_leaks_and_what_is_unclear_count_with_their_upper_bounds():
    groups = [
        group(Kind.LEAK, 300, kept_per_request=900.0, kept_high=1000.0),
        group(Kind.UNCLEAR, 100, kept_per_request=None, kept_high=500.0),
        group(Kind.STEADY, 600, kept_per_request=-7.0, kept_high=20_000.0),
    ]

    assert growth(groups) == Growth((300 * 1000.0 + 100 * 500.0) / 1000, leak=True)


def test_growth_is_not_known_where_more_than_a_few_requests_were_not_counted():
    steady = group(Kind.STEADY, 94, kept_per_request=0.0)

    assert growth([steady, group(Kind.UNCLEAR, 6)]) == Growth(
        None, why="native memory is known for 94 % of the requests only"
    )
    assert growth([steady, group(Kind.UNCLEAR, 4)]) == Growth(0.0)
    assert growth([]).per_request is None


@PROPERTY
@given(
    st.lists(st.integers(0, 256 * MIB), min_size=1, max_size=8),
    st.integers(0, 1 << 32),
    st.integers(0, 1 << 32),
    st.floats(0, 1 << 20),
)
def test_more_budget_never_gives_fewer_children(some, budget, more, rate):
    requests = load(*[served(rise) for rise in some] * 100)
    small, large = (
        size(requests, memory(), Growth(rate), Budget(BudgetFrom.GIVEN, total)) for total in (budget, budget + more)
    )

    assert (small.children.most or 0) <= (large.children.most or 0)
    assert small.children.needed <= Budget(BudgetFrom.GIVEN, budget).usable or small.children.most is None


@PROPERTY
@given(st.integers(0, 1 << 30), st.integers(0, 1 << 30))
def test_larger_workers_never_give_more_children(own, more):
    small, large = (
        size(steady(), memory(FOOTPRINT._replace(private_dirty=dirty)), NO_GROWTH, Budget(BudgetFrom.GIVEN, 1 << 32))
        for dirty in (own, own + more)
    )

    assert (small.children.most or 0) >= (large.children.most or 0)
