"""Levels of workers, who raised them, and the steps of a high-water mark."""

from __future__ import annotations

from samples import request

from tracer.analysis.seen_workers import SeenWorkers
from tracer.analysis.verdict.memory import HighWater, Memory
from tracer.analysis.verdict.worker_levels import Level
from tracer.facts import Request

MIB = 1 << 20


def between(before: int, after: int, nth: int = 1, **changed: object) -> Request:
    memory = {"anon_before": before, "anon_after": after, "anon_peak": max(before, after), "zend_real_after": 2 * MIB}
    return request(**{"nth": nth, **memory, **changed})


class Levels:
    """The levels of the workers of a ranking."""

    def __init__(self) -> None:
        self._workers = SeenWorkers()

    def add(self, request: Request) -> tuple[Level, int]:
        level = self._workers.of(request).level
        return level, level.add(request.anon_before, request.anon_after, request.zend_real_after)


def raised(*requests: Request) -> list[int]:
    levels = Levels()
    return [levels.add(one)[1] for one in requests]


def of(*requests: Request) -> Memory:
    levels, memory = Levels(), Memory()
    for one in requests:
        memory.add(one, *levels.add(one))
    return memory


def test_a_worker_is_raised_by_what_is_above_all_its_levels_before():
    assert raised(
        between(10 * MIB, 13 * MIB, 1), between(13 * MIB, 11 * MIB, 2), between(11 * MIB, 12 * MIB, 3),
        between(12 * MIB, 17 * MIB, 4),
    ) == [3 * MIB, 0, 0, 4 * MIB]  # fmt: skip


def test_chunks_that_zend_keeps_for_later_raise_nobody():
    assert raised(between(10 * MIB, 30 * MIB, zend_real_after=22 * MIB), between(30 * MIB, 11 * MIB, 2)) == [0, MIB]


def test_each_worker_has_levels_of_its_own_and_so_has_the_next_one_of_a_pid():
    assert raised(
        between(10 * MIB, 13 * MIB, 7), between(20 * MIB, 21 * MIB, 7, pid=9), between(5 * MIB, 6 * MIB, 1)
    ) == [3 * MIB, MIB, MIB]


def test_requests_that_were_not_measured_raise_nobody():
    assert raised(between(10 * MIB, 11 * MIB), request(nth=2, anon_after=None), between(11 * MIB, 13 * MIB, 3)) == [
        MIB, 0, 2 * MIB,
    ]  # fmt: skip


def test_a_step_that_stays_is_a_high_water_mark():
    memory = of(
        between(29 * MIB, 93 * MIB, 1), *[between(93 * MIB, 93 * MIB, nth) for nth in range(2, 9)],
        between(28 * MIB, 40 * MIB, 1, pid=9), between(40 * MIB, 40 * MIB, 2, pid=9),
    )  # fmt: skip

    assert memory.high_water() == HighWater(2, 64 * MIB, 29 * MIB, 93 * MIB, 76 * MIB)


def test_a_step_that_is_given_back_is_none():
    assert of(between(29 * MIB, 93 * MIB, 1), between(93 * MIB, 30 * MIB, 2)).high_water() is None


def test_many_even_steps_are_none():
    assert of(*[between((10 + 2 * nth) * MIB, (12 + 2 * nth) * MIB, nth + 1) for nth in range(40)]).high_water() is None


def test_a_worker_that_is_raised_by_small_steps_is_not_among_those_that_were_raised_by_large_ones():
    small = [between(9 * MIB + nth * 4096, 9 * MIB + nth * 4096 + 4096, nth + 1, pid=9) for nth in range(300)]

    assert of(between(29 * MIB, 93 * MIB, 1), *small).high_water() == HighWater(
        1, 64 * MIB, 29 * MIB, 93 * MIB, 64 * MIB
    )


def test_shared_memory_and_files_of_started_workers_are_added_up_and_the_largest_rise_is_kept():
    memory = of(
        between(10, 20, 1, anon_peak=70, file_before=3, file_after=9_000_003, shmem_before=7, shmem_after=18),
        between(20, 20, 2, file_before=9_000_003, file_after=9_000_003, shmem_before=7, shmem_after=7),
        between(20, 20, 3, anon_peak=50, file_before=9_000_003, file_after=9_000_003, shmem_before=7, shmem_after=7),
        between(20, 20, 4, file_before=9_000_003, file_after=9_000_005, shmem_before=7, shmem_after=6),
    )  # fmt: skip

    assert (memory.shared, memory.rise_max, memory.complete) == (11 + 2 - 1, 60, 4)


def test_the_growth_of_the_workers_is_that_after_their_first_requests():
    memory = of(*[between((10 + nth) * MIB, (11 + nth) * MIB, nth + 1) for nth in range(10)])

    assert memory.workers_grew == 7 * MIB
    assert memory.raised == 10 * MIB


def test_a_live_group_keeps_the_figures_of_the_64_workers_that_came_last():
    levels, memory = Levels(), Memory(64)
    for pid in range(1, 101):
        one = between(10 * MIB, 29 * MIB, pid=pid)
        memory.add(one, *levels.add(one))

    assert (memory.workers, len(memory.served)) == (100, 64)
    assert memory.high_water() == HighWater(64, 19 * MIB, 10 * MIB, 29 * MIB, 64 * 19 * MIB)
