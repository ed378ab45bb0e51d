"""Sampled blocks that are retained, their requests, and the bytes that a sample stands for."""

from __future__ import annotations

import itertools
import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st
from samples import FIND, MAIN, PROPERTY

from tracer.backends.records.held_blocks import HeldBlock, HeldBlocks, gap_quantiles, weight
from tracer.facts import STACK_LOST, Retained, Stack

PID = 4241
HASH = 0x9E3779B97F4A7C15
STACK = (MAIN, FIND)
GAP = 8191


@pytest.fixture
def held() -> HeldBlocks:
    return HeldBlocks(retained_after=5, mean_gap=GAP)


def block(nth: int, address: int = 0x1000, **changed: int) -> HeldBlock:
    return HeldBlock(**{"pid": PID, "address": address, "nth": nth, "hash": HASH, "bytes": 1 << 20, **changed})


def known(pid: int, nth: int, key: int) -> Stack | None:
    return STACK if key == HASH else None


def unknown(pid: int, nth: int, key: int) -> Stack | None:
    return None


def test_a_block_is_retained_when_the_fifth_request_after_its_own_has_ended(held):
    held.ended(PID, 11)
    early = held.look([block(7)], known)
    held.ended(PID, 12)

    found, done = held.look([block(7)], known)

    assert early == ([], [])
    assert found == [Retained(PID, 7, STACK, 1 << 20, 1)]
    assert done == [block(7)]


def test_requests_of_other_workers_do_not_age_a_block(held):
    held.ended(PID + 1, 1_009)

    assert held.look([block(7)], known) == ([], [])
    assert held.undecided == 1


def test_blocks_of_one_request_and_stack_are_added_up_and_others_are_not(held):
    held.ended(PID, 101)
    blocks = [block(7, 0x1000), block(7, 0x2000), block(11, 0x3000), block(7, 0x4000, hash=13)]

    found, _ = held.look(blocks, lambda *key: STACK if key[-1] == HASH else (MAIN,))

    assert found == [
        Retained(PID, 7, STACK, 2 << 20, 2), Retained(PID, 11, STACK, 1 << 20, 1), Retained(PID, 7, (MAIN,), 1 << 20, 1)
    ]  # fmt: skip


def test_a_stack_is_remembered_until_its_blocks_are_decided(held):
    held.ended(PID, 7)
    held.look([block(7)], known)
    held.ended(PID, 12)

    found, _ = held.look([block(7)], unknown)

    assert [fact.stack for fact in found] == [STACK]


def test_the_stack_of_a_block_that_is_gone_is_forgotten(held):
    held.ended(PID, 7)
    held.look([block(7)], known)
    held.look([], known)
    held.ended(PID, 12)

    found, _ = held.look([block(7)], unknown)

    assert [fact.stack for fact in found] == [(STACK_LOST,)]


def test_a_stack_may_arrive_as_long_as_its_request_is_running(held):
    held.ended(PID, 6)
    held.look([block(7)], unknown)
    held.look([block(7)], known)
    held.ended(PID, 12)

    found, _ = held.look([block(7)], unknown)

    assert [fact.stack for fact in found] == [STACK]


def test_a_worker_that_ended_leaves_nothing_to_another_of_its_pid(held):
    held.ended(PID, 101)
    held.look([block(99)], known)
    held.forget(PID)
    held.ended(PID, 3)

    assert held.look([block(2)], known) == ([], [])
    assert not held.is_old(block(99))


@PROPERTY
@given(st.lists(st.tuples(st.integers(0, 1 << 64), st.integers(0, 1 << 32)), max_size=7))
def test_sizes_that_no_block_has_make_no_number_that_does_not_fit_a_recording(sizes):
    held = HeldBlocks(retained_after=0, mean_gap=1)
    blocks = [block(7, address, bytes=min(size, (1 << 64) - 1)) for size, address in sizes]

    found, _ = held.look(blocks, known)

    assert all(0 <= fact.bytes < 1 << 63 for fact in found)


@pytest.mark.parametrize("size", [32, 1_040, 8_192, 65_552, 4_194_320])
def test_weights_of_the_blocks_that_gaps_sample_add_up_to_the_bytes_allocated(size):
    rng = random.Random(11)
    quantiles = gap_quantiles(GAP, 1024)
    left, found, count = 1 + round(rng.expovariate(1 / GAP)), 0.0, max(200, 20_000_000 // size)

    for _ in range(count):  # as sample() and next_gap() of native.bpf.c
        if left > size:
            left -= size
            continue
        step, part = rng.randrange(1024), rng.randrange(4096)
        left = 1 + quantiles[step] - ((quantiles[step] - quantiles[step + 1]) * part >> 12)
        found += weight(size, GAP)

    assert found == pytest.approx(size * count, rel=5 * math.sqrt(weight(size, GAP) / (size * count)))


def test_a_block_far_larger_than_the_gap_stands_for_itself_and_a_small_one_for_the_gap():
    assert weight(1 << 20, GAP) == pytest.approx(1 << 20)
    assert weight(16, GAP) == pytest.approx(GAP + 8, rel=0.001)
    assert weight(0, GAP) == 0


def test_gaps_fall_from_the_largest_to_0_and_have_the_mean_they_should():
    gaps = gap_quantiles(GAP, 1024)

    assert gaps == sorted(gaps, reverse=True)
    assert (len(gaps), gaps[-1]) == (1025, 0)
    assert gaps[0] < 1 << 32
    mean = sum((high + low) / 2 for high, low in itertools.pairwise(gaps)) / 1024
    assert mean == pytest.approx(GAP, rel=0.001)
