"""How long a worker's calls are counted: whole requests, one after the last that counts, and no worker too many."""

from __future__ import annotations

import itertools
import os
import shutil
import signal
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from code_text import allocator_code
from fpm import ONE_WORKER, Fpm
from tracing import Tracer
from waiting import wait_for

from tracer.backends import NativeOptions
from tracer.backends.bpf import native_probes
from tracer.backends.bpf.native_budget import HIT_NS, Places
from tracer.facts import Request
from tracer.targets import processes

LEAK = 32 * (1040 + 32)  # bytes that native_leak.php keeps


def budget_of(hits: int) -> NativeOptions:
    """A budget that no request adds to."""
    return NativeOptions(0.0, advance_s=hits * HIT_NS / 1e9, later_s=0.0)


def counted(requests: list[Request]) -> list[bool]:
    return [one.native_kept is not None for one in requests]


def meanwhile(tracer: Tracer, fpm: Fpm, phases: str) -> list[Request]:
    """The request, while which the backend looks at what it spends."""
    with ThreadPoolExecutor(1) as client:
        client.submit(fpm.get, "native_phases.php", QUERY_STRING=phases)
        return tracer.next()


def test_a_request_in_which_the_budget_runs_out_is_counted_whole_and_one_more(
    start_fpm: Callable[..., Fpm], trace: Callable[..., Tracer]
) -> None:
    fpm = start_fpm(www=ONE_WORKER)
    fpm.get("native_phases.php", QUERY_STRING="1-0-1")
    tracer = trace(str(fpm.master), native=budget_of(2000))

    # 2,400 hits before the sleep: the budget is spent, and not overdrawn.
    found = meanwhile(tracer, fpm, "1200-500000-100")
    fpm.get("native_phases.php", QUERY_STRING="10-0-0")
    found += tracer.next()
    (worker,) = fpm.workers()
    linked = allocator_code(worker)
    wait_for(lambda: tracer.poll() or allocator_code(worker) != linked, "the link to end")
    fpm.get("hello.php")
    (last,) = tracer.next()

    assert counted([*found, last]) == [True, True, False]
    assert [one.native_alloc_calls for one in found] == [1300, 10]


def test_counting_begins_again_as_requests_go_by(start_fpm: Callable[..., Fpm], trace: Callable[..., Tracer]) -> None:
    fpm = start_fpm(www=ONE_WORKER)
    fpm.get("native_phases.php", QUERY_STRING="1-0-1")
    part_s = 1000 * HIT_NS / 1e9
    tracer = trace(str(fpm.master), native=NativeOptions(0.0, advance_s=part_s, later_s=8 * part_s))
    found: list[bool] = []

    def counted_again() -> bool:
        fpm.get("native_phases.php", QUERY_STRING="100-0-0")
        found.extend(counted(tracer.next()))
        return [of_these for of_these, _ in itertools.groupby(found)].count(True) == 3

    wait_for(counted_again, "two more parts of the budget")
    assert found[0]


def test_a_request_that_spends_another_advance_is_cut_and_not_counted(
    start_fpm: Callable[..., Fpm], trace: Callable[..., Tracer]
) -> None:
    fpm = start_fpm(www=ONE_WORKER)
    fpm.get("native_phases.php", QUERY_STRING="1-0-1")
    tracer = trace(str(fpm.master), native=budget_of(100))

    assert counted(meanwhile(tracer, fpm, "200-500000-100")) == [False]


def test_an_idle_worker_keeps_no_link_for_a_request_that_does_not_come(
    start_fpm: Callable[..., Fpm], trace: Callable[..., Tracer], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(native_probes, "_LAST_REQUESTS_S", 0.2)
    fpm = start_fpm(www=ONE_WORKER)
    fpm.get("hello.php")
    (worker,) = fpm.workers()
    before = allocator_code(worker)
    tracer = trace(str(fpm.master), native=budget_of(10))
    assert allocator_code(worker) != before

    fpm.get("native_phases.php", QUERY_STRING="8-0-0")

    wait_for(lambda: tracer.poll() or allocator_code(worker) == before, "the link to end")
    assert counted(tracer.next()) == [True]


def test_a_worker_that_is_named_by_its_pid_pays_too(
    start_fpm: Callable[..., Fpm], trace: Callable[..., Tracer]
) -> None:
    fpm = start_fpm(www=ONE_WORKER)
    fpm.get("hello.php")
    (worker,) = fpm.workers()
    before = allocator_code(worker)
    tracer = trace(str(worker), native=budget_of(100))
    assert allocator_code(worker) != before

    for _ in range(2):
        fpm.get("native_phases.php", QUERY_STRING="60-0-0")
        tracer.next()

    def left_alone() -> bool:
        fpm.get("hello.php")
        return tracer.next()[0].native_kept is None

    wait_for(left_alone, "the worker to be left alone")
    wait_for(lambda: allocator_code(worker) == before, "the link to be closed")


def test_workers_of_a_pool_that_was_not_asked_for_keep_their_malloc(
    start_fpm: Callable[..., Fpm], trace: Callable[..., Tracer]
) -> None:
    settings = f"{ONE_WORKER}\npm.max_requests = 3"
    fpm = start_fpm(wanted=settings, other=settings)
    untouched = allocator_code(fpm.workers()[0])
    tracer = trace("php-fpm:wanted")
    old = set(fpm.workers())
    for _ in range(3):
        fpm.get("hello.php", pool="wanted")
        fpm.get("hello.php", pool="other")

    def new_workers() -> list[int]:
        tracer.poll()
        return [pid for pid in fpm.workers() if pid not in old]

    wait_for(lambda: len(new_workers()) == 2, "new workers")
    fpm.get("hello.php", pool="wanted")
    fpm.get("hello.php", pool="other")
    new = {processes.process(pid).pool: pid for pid in new_workers()}

    wait_for(
        lambda: tracer.poll() or allocator_code(new["other"]) == untouched, "the other pool's worker to be unlinked"
    )
    wait_for(lambda: tracer.poll() or allocator_code(new["wanted"]) != untouched, "the wanted pool's to be linked")


def test_no_more_workers_are_linked_than_there_are_places_and_each_comes_to_its_turn(
    start_fpm: Callable[..., Fpm], trace: Callable[..., Tracer], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Places, "OF_A_POOL", 2)
    monkeypatch.setattr(Places, "IN_ALL", 3)
    monkeypatch.setattr(Places, "TURN_S", 0.0)
    pool = "pm = static\npm.max_children = 3"
    fpm = start_fpm(one=pool, two=pool)
    untouched = allocator_code(fpm.workers()[0])
    tracer = trace(str(fpm.master))
    most, linked = 0, set()
    pools = itertools.cycle(["one", "two"])

    def all_had_a_turn() -> bool:
        nonlocal most
        fpm.get("hello.php", pool=next(pools))
        tracer.poll()
        now = {pid for pid in fpm.workers() if allocator_code(pid) != untouched}
        linked.update(now)
        most = max(most, len(now))
        return linked == set(fpm.workers())

    monkeypatch.setattr(native_probes, "_LAST_REQUESTS_S", 0.1)
    wait_for(all_had_a_turn, "each worker to have had a turn")
    # A worker whose link is being closed still has it for a moment.
    assert 3 <= most <= 5


def test_new_workers_take_the_places_of_those_that_ended(
    start_fpm: Callable[..., Fpm], trace: Callable[..., Tracer], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Places, "OF_A_POOL", 2)
    fpm = start_fpm(www="pm = static\npm.max_children = 4\npm.max_requests = 5")
    tracer = trace(str(fpm.master))
    most, born = 0, 0

    def many_born() -> bool:
        nonlocal most, born
        fpm.get("hello.php")
        tracer.poll()
        born = sum(worker.born_ns is not None for worker in tracer.workers)
        most = max(most, *(pool.linked for pool in tracer.backend._native_probes._pools.values()))
        return born >= 40

    wait_for(many_born, "workers to be born")
    assert most == 2


def test_a_reload_with_another_c_library_is_followed(
    start_fpm: Callable[..., Fpm], trace: Callable[..., Tracer], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tmp_path.chmod(0o755)
    at, new = tmp_path / "libc.so.6", tmp_path / "new"
    for copy in (at, new):
        shutil.copy("/lib/x86_64-linux-gnu/libc.so.6", copy)
    monkeypatch.setenv("LD_LIBRARY_PATH", str(tmp_path))
    fpm = start_fpm(www=ONE_WORKER)
    monkeypatch.delenv("LD_LIBRARY_PATH")
    tracer = trace(str(fpm.master))
    fpm.get("native_leak.php")
    fpm.get("native_leak.php")
    before = tracer.next(2)[1]
    (old,) = fpm.workers()

    new.rename(at)
    os.kill(fpm.master, signal.SIGUSR2)
    wait_for(lambda: fpm.workers() not in ([], [old]), "the new worker")
    wait_for(fpm.answers, "the pool to answer again")

    def counted_again() -> bool:
        fpm.get("native_leak.php")
        tracer.poll()
        return tracer.requests[-1].pid != old and counted(tracer.requests[-2:]) == [True, True]

    wait_for(counted_again, "the new worker to be counted")
    after = tracer.requests[-1]
    assert (after.native_alloc_calls, before.native_alloc_calls) == (64, 64)
    assert after.native_kept is not None
    assert LEAK <= after.native_kept <= LEAK + 64 * 16
    assert after.brk_calls is not None
