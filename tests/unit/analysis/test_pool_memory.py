"""The memory that a worker has to itself, and with others, by the figures of smaps_rollup."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from samples import FOOTPRINT, PROPERTY

from tracer.analysis import pool_memory
from tracer.analysis.pool_memory import PoolMemory, file_bytes, own_bytes, shared_bytes
from tracer.facts import Footprint


def test_the_memory_of_a_worker_is_divided_into_its_own_shared_memory_and_files():
    assert own_bytes(FOOTPRINT) == 20_011_000
    assert shared_bytes(FOOTPRINT) == 5_000_000 + 3_000_000
    assert file_bytes(FOOTPRINT) == 40_011_000 - 23_000_000 - 5_000_000


def test_shared_memory_that_one_worker_alone_has_used_is_not_its_own():
    alone = FOOTPRINT._replace(pss_shmem=5_000_000, private_dirty=25_000_000)

    assert (own_bytes(alone), shared_bytes(alone)) == (20_011_000, 5_000_000 + 3_000_000)


def test_shared_memory_of_two_workers_is_not_their_own():
    both = FOOTPRINT._replace(pss_shmem=2_500_000)

    assert own_bytes(both) == 20_011_000


def test_memory_in_swap_counts_as_the_workers_own():
    assert own_bytes(FOOTPRINT._replace(swap_pss=700_001)) == 20_711_001


def test_an_old_kernel_that_does_not_tell_shared_memory_apart_gives_no_less():
    old = FOOTPRINT._replace(pss_shmem=None, shmem=None, swap_pss=None, page_tables=None)

    assert own_bytes(old) == 20_000_000


@PROPERTY
@given(st.lists(st.integers(0, 1 << 63), min_size=8, max_size=8))
def test_no_figures_give_a_negative_size(figures):
    rss, pss, pss_shmem, clean, dirty, anonymous, shmem, swap = figures
    found = FOOTPRINT._replace(rss=rss, pss=pss, pss_shmem=pss_shmem, private_clean=clean, private_dirty=dirty,
                            anonymous=anonymous, shmem=shmem, swap_pss=swap)  # fmt: skip

    assert min(own_bytes(found), shared_bytes(found), file_bytes(found)) >= 0


def pool(*found: Footprint, workers: int = 3) -> PoolMemory:
    """The memory of the workers 4241, 4242, …, of the master 4001."""
    memory = PoolMemory({(4241 + number, 7) for number in range(workers)}, {4001})
    for one in found:
        memory.add(one)
    return memory


def test_the_last_sample_between_two_requests_is_the_size_of_a_worker():
    other = FOOTPRINT._replace(pid=4242, private_dirty=9_000_000)
    memory = pool(FOOTPRINT, other, FOOTPRINT._replace(private_dirty=21_000_000),
                  FOOTPRINT._replace(private_dirty=99_000_000, idle=False))  # fmt: skip

    assert memory.idle_sizes() == [9_011_000, 21_011_000]
    assert (memory.workers, memory.samples, memory.only_busy, memory.grown) == (2, 4, False, 1_000_000)


def test_other_pools_and_an_earlier_worker_of_the_same_pid_are_left_out():
    memory = pool(FOOTPRINT._replace(pid=5003), FOOTPRINT._replace(start_ticks=5))

    assert (memory.samples, memory.idle_sizes()) == (0, [])


def test_the_master_counts_with_what_it_has_to_itself():
    memory = pool(FOOTPRINT, FOOTPRINT._replace(pid=4001, start_ticks=3, private_dirty=2_000_000, idle=False))

    assert (memory.master, memory.workers) == (2_011_000, 1)


def test_workers_that_were_never_idle_count_as_they_were():
    memory = pool(FOOTPRINT._replace(idle=False))

    assert (memory.only_busy, memory.workers, memory.idle_sizes()) == (True, 1, [20_011_000])


def test_a_live_worker_without_a_sample_counts_as_the_mean_of_the_others():
    other = FOOTPRINT._replace(pid=4242, private_dirty=10_000_000)
    memory = pool(FOOTPRINT, other)

    alive = {(4241, 7), (4242, 7), (4243, 7)}
    assert memory.now(alive) == 20_011_000 + 10_011_000 + 15_011_000 + memory.shared + memory.master


def test_many_workers_one_after_the_other_are_counted_in_bounded_memory(monkeypatch):
    monkeypatch.setattr(pool_memory, "_MOST_WORKERS", 5)
    memory = PoolMemory({(pid, 7) for pid in range(100)}, set())
    for pid in range(100):
        memory.add(FOOTPRINT._replace(pid=pid, private_dirty=8_178_432))
        memory.add(FOOTPRINT._replace(pid=pid, private_dirty=8_180_992))  # with page tables just below 2,000 pages

    assert len(memory._idle) == len(memory._first) == 5
    assert (memory.workers, memory.grown) == (100, 100 * 2560)
    assert memory.idle_sizes() == [8_191_992] * 5 + [8_192_000] * 95
