"""The memory of workers outside of their requests: exact sums, and what is not known."""

from __future__ import annotations

import pytest
from samples import request, within

from tracer.analysis.between import Between, BetweenRequests
from tracer.facts import Request

PID = 4241


def served(nth: int, before: int | None, after: int | None, *, pid: int = PID, shmem: tuple[int | None, ...] = (7, 7)):
    shmem_before, shmem_after = shmem
    return request(
        pid=pid, nth=nth, anon_before=before, anon_after=after, shmem_before=shmem_before, shmem_after=shmem_after
    )


def between(*requests: Request, left_out: bool = False) -> Between:
    gaps = BetweenRequests()
    gaps.begin(requests_left_out=left_out)
    for one in requests:
        gaps.add(one)
    return gaps.result()


def test_the_parts_are_exact_and_add_up_to_the_growth():
    found = between(
        served(1, 1_000_003, 1_100_009), served(2, 1_100_019, 1_100_002), served(1, 500_009, 500_003, pid=4243),
        served(3, 1_300_021, 1_300_021), served(2, 500_003, 500_009, pid=4243),
    )  # fmt: skip

    assert found == Between(
        workers=2,
        grew=300_018,
        in_requests=100_006 - 17,
        between_requests=10 + 200_019,
        workers_between=1,
        not_known=0,
        shared_memory=0,
        workers_shared=0,
        why=None,
    )


def test_shared_memory_is_known_from_first_sample_to_last():
    found = between(
        served(1, 0, 0, shmem=(None, 4_096)), served(2, 0, 0, shmem=(8_192, 20_480)),
        served(4, 0, 0, shmem=(28_672, 28_672)), served(1, 0, 0, pid=4243), served(2, 0, 0, pid=4243),
    )  # fmt: skip

    assert (found.shared_memory, found.workers_shared, found.workers) == (24_576, 1, 2)


@pytest.mark.parametrize("left_out", [False, True])
def test_across_requests_that_are_missing_nothing_is_charged_to_the_time_between(left_out):
    found = between(served(1, 10, 20), served(2, 21, 30), served(5, 1_000, 1_000), left_out=left_out)

    assert (found.grew, found.in_requests, found.between_requests, found.not_known) == (990, 19, 1, 970)
    assert found.why == "1 of 2 times requests in between were " + ("left out by a filter" if left_out else "lost")


def test_a_request_that_ran_when_tracing_began_has_an_end():
    found = between(served(1, None, 1_000), served(2, 1_013, 1_017))

    assert found == Between(1, 17, 4, 13, 1, 0, 0, 0, None)


@pytest.mark.parametrize(
    ("requests", "not_known"),
    [
        ([served(1, 10, None), served(2, 70, 80)], 60),
        ([served(1, 10, 20), served(2, None, 80)], 60),
        ([served(1, 10, None), served(2, None, 80)], 70),
    ],
)
def test_a_sample_that_is_missing_leaves_the_rest_known(requests, not_known):
    found = between(*requests, served(3, 83, 90))

    assert (found.grew, found.between_requests, found.not_known) == (80, 3, not_known)
    assert found.why == "1 of 2 times the end of a request, or the start of the next, was not seen"


def test_the_last_request_of_a_worker_that_was_killed_has_a_start():
    assert between(served(1, 10, 20), served(2, 33, None)) == Between(1, 23, 10, 13, 1, 0, 0, 0, None)


def test_a_worker_that_has_the_pid_of_one_that_ended_is_another():
    found = between(served(1, 10, 20), served(2, 21, 30), served(1, 1_000, 1_001), served(2, 1_004, 1_004))

    assert (found.workers, found.grew, found.between_requests, found.workers_between) == (2, 24, 4, 2)


def test_a_pid_of_another_recording_is_another_worker():
    gaps = BetweenRequests()
    for nth in (1, 2):
        gaps.begin()
        gaps.add(served(nth, 10, 20))
    found = gaps.result()

    assert (found.workers, found.between_requests, found.why) == (2, None, "no worker served two requests")


def test_without_a_sample_nothing_is_known():
    nothing = {"shmem": (None, None)}

    assert between() == Between(0, why="no worker served two requests")
    assert between(served(1, None, None, **nothing), served(2, None, None, **nothing)) == Between(
        1, why="1 of 1 times the end of a request, or the start of the next, was not seen"
    )


def test_workers_without_end_are_forgotten_one_by_one():
    gaps = BetweenRequests()
    gaps.begin()
    with within(5):
        for pid in range(50_000):
            gaps.add(served(1, 10, 20, pid=pid))
            gaps.add(served(2, 21, 30, pid=pid))
            gaps.add(served(pid + 1, 1_000 * pid + 1, 1_000 * pid + 1_000, pid=99_999))
    remembered = len(gaps._latest) + len(gaps._older)
    found = gaps.result()

    assert remembered <= 2 * 8192
    assert (found.workers, found.workers_between) == (50_001, 50_001)
    assert found.between_requests == 50_000 + 49_999


@pytest.mark.parametrize(
    ("grew", "part", "much"),
    [
        (100 << 20, (5 << 20) + 1, True),
        (100 << 20, 5 << 20, False),
        (100 << 20, -(5 << 20) - 1, True),
        (0, (1 << 20) + 1, True),
        (0, 1 << 20, False),
        (0, None, False),
    ],
)
def test_more_than_five_percent_and_a_megabyte_is_much(grew, part, much):
    assert Between(1, grew, between_requests=part).much_between is much
    assert Between(1, grew, shared_memory=part).much_shared is much
