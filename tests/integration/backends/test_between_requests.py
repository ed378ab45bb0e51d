"""Growth of a worker between its requests, and of shared memory, with every backend and against /proc."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from fpm import ONE_WORKER, TWO_WORKERS, Fpm
from proc_status import status_bytes, waits_for_a_request
from tracing import Tracer
from waiting import wait_for

from tracer.analysis.between import Between, BetweenRequests
from tracer.facts import Request

KIB = 1024
# 30 parameters of 60 KB each: nginx allows some 32 KB in all, but a web server may send any.
MANY = {f"HTTP_X_{number}": "h" * 60 * KIB for number in range(30)}
# Two samples of a counter of pages, where the kernel sums it late (before Linux 6.16) or PHP touches its stack.
NEAR = 8 * 4 * KIB


def between(requests: list[Request]) -> Between:
    gaps = BetweenRequests()
    gaps.begin()
    for one in requests:
        gaps.add(one)
    return gaps.result()


def test_the_parts_are_the_change_of_the_workers(start_fpm: Callable[..., Fpm], trace: Callable[..., Tracer]) -> None:
    fpm = start_fpm(www=TWO_WORKERS)
    tracer = trace(str(fpm.master))

    for number in range(30):
        fpm.get("native_leak.php", HTTP_COOKIE="c" * KIB * (6 if number % 3 else 60))
        fpm.get("hello.php", HTTP_COOKIE="c" * KIB * 6)
    found = tracer.next(60)

    sums = between(found)
    of_each = [[one for one in found if one.pid == pid] for pid in {one.pid for one in found}]
    ends = [(one[0], one[-1]) for one in of_each]
    assert sums.grew == sum((last.anon_after or 0) - (first.anon_before or 0) for first, last in ends)
    assert sums.in_requests == sum(one.growth or 0 for one in found)
    assert sums.between_requests == (sums.grew or 0) - (sums.in_requests or 0)
    assert (sums.not_known, sums.why, sums.workers) == (0, None, len(of_each))
    assert sums.shared_memory == sum((last.shmem_after or 0) - (first.shmem_before or 0) for first, last in ends)
    assert tracer.lost == 0
    wait_for(lambda: all(waits_for_a_request(worker) for worker in fpm.workers()), "the workers to rest")
    for _, last in ends:
        anon, shmem = status_bytes(last.pid, "RssAnon", "RssShmem")
        assert abs(anon - (last.anon_after or 0)) <= NEAR
        assert shmem == last.shmem_after


def test_parameters_show_between_requests_and_leave_in_the_request(
    start_fpm: Callable[..., Fpm], trace: Callable[..., Tracer]
) -> None:
    fpm = start_fpm(www=ONE_WORKER)
    for params in ({}, MANY, {}):
        fpm.get("hello.php", **params)
    tracer = trace(str(fpm.master))

    fpm.get("hello.php")
    for _ in range(5):
        fpm.get("hello.php", **MANY)
    found = tracer.next(6)

    sums = between(found)
    large = 30 * 60 * KIB
    assert sums.between_requests == pytest.approx(5 * large, rel=0.1)
    assert sums.in_requests == pytest.approx(-5 * large, rel=0.1)
    assert abs(sums.grew or 0) < 256 * KIB
    assert (sums.much_between, sums.workers_between) == (True, 1)


def test_shared_memory_grows_by_what_opcache_takes(start_fpm: Callable[..., Fpm], trace: Callable[..., Tracer]) -> None:
    fpm = start_fpm("opcache.enable=1", "opcache.file_update_protection=0", www=ONE_WORKER)
    fpm.get("hello.php")
    large = fpm.folder / "large.php"
    size = 5_000_011
    large.write_text(f"<?php\necho strlen('{'s' * size}' . $_SERVER['QUERY_STRING']);\n")
    tracer = trace(str(fpm.master))

    for script, answer in (("hello.php", "hello"), ("large.php", str(size)), ("hello.php", "hello")):
        assert fpm.get(script).text == answer
    found = tracer.next(3)

    sums = between(found)
    assert 0 <= (sums.shared_memory or 0) - size < 1024 * KIB
    assert (sums.much_shared, sums.workers_shared) == (True, 1)
    assert sums.shared_memory == (found[-1].shmem_after or 0) - (found[0].shmem_before or 0)


def test_a_worker_that_is_killed_leaves_its_last_growth_unknown(
    start_fpm: Callable[..., Fpm], trace: Callable[..., Tracer]
) -> None:
    fpm = start_fpm(www=ONE_WORKER)
    tracer = trace(str(fpm.master))

    for script in ("hello.php", "hello.php", "segfault.php", "hello.php", "hello.php"):
        fpm.get(script)
    found = tracer.next(5)

    first, second, killed, third, fourth = found
    assert (killed.anon_after, len({one.pid for one in found})) == (None, 2)
    sums = between(found)
    assert sums.workers == 2
    assert sums.grew == (
        (killed.anon_before or 0) - (first.anon_before or 0) + (fourth.anon_after or 0) - (third.anon_before or 0)
    )
    assert sums.in_requests == sum(one.growth or 0 for one in (first, second, third, fourth))
    assert (sums.not_known, sums.why) == (0, None)
