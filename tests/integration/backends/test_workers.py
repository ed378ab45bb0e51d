"""Workers come and go: recycled, on demand, reloaded, of pools one did not ask for. Nothing is lost."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable

import pytest
from conftest import Fpm, Tracer, wait_for

from tracer.backends.bpf.backend import BpfBackend
from tracer.errors import NoTargetError, TargetGoneError, UnsupportedError
from tracer.targets.resolve import targets


def test_workers_recycled_every_third_request_lose_nothing(
    start_fpm: Callable[..., Fpm], trace: Callable[..., Tracer]
) -> None:
    fpm = start_fpm(www="pm = static\npm.max_children = 2\npm.max_requests = 3")
    tracer = trace(str(fpm.master))
    answers = [fpm.get("hello.php", REQUEST_URI=f"/{number}") for number in range(300)]
    requests = tracer.next(300)

    assert all(answer.ended for answer in answers)
    assert sorted(int((request.uri or "")[1:]) for request in requests) == list(range(300))
    assert {request.pool for request in requests} == {"www"}
    assert {request.nth for request in requests} == {1, 2, 3}
    assert all(request.complete for request in requests)
    assert tracer.lost == 0
    born = {worker.pid for worker in tracer.workers if worker.born_ns is not None}
    died = {worker.pid: worker.exit for worker in tracer.workers if worker.died_ns is not None}
    assert len(born) >= 98
    assert set(died.values()) == {"exited:0"}


def test_workers_started_on_demand_are_traced_from_their_first_request(
    start_fpm: Callable[..., Fpm], trace: Callable[..., Tracer]
) -> None:
    fpm = start_fpm(shop="pm = ondemand\npm.max_children = 3\npm.process_idle_timeout = 1s")
    assert fpm.workers() == []
    tracer = trace(str(fpm.master))
    fpm.get("hello.php")
    (request,) = tracer.next()

    assert (request.nth, request.pool, request.complete) == (1, "shop", True)
    wait_for(lambda: tracer.poll() or any(worker.died_ns for worker in tracer.workers), "the idle worker to go")


def test_a_graceful_reload_is_followed(start_fpm: Callable[..., Fpm], trace: Callable[..., Tracer]) -> None:
    fpm = start_fpm(www="pm = static\npm.max_children = 2")
    tracer = trace(str(fpm.master))
    fpm.get("hello.php")
    tracer.next()
    old = set(fpm.workers())
    os.kill(fpm.master, signal.SIGUSR2)
    wait_for(lambda: len(fpm.workers()) == 2 and not old & set(fpm.workers()), "the new workers")
    wait_for(lambda: _answers(fpm), "the pool to answer again")
    tracer.poll()
    fpm.get("hello.php", REQUEST_URI="/after-reload")
    wait_for(lambda: tracer.poll() or any(r.uri == "/after-reload" for r in tracer.requests), "the request")

    request = tracer.requests[-1]
    assert request.pid in set(fpm.workers())
    assert request.zend_peak is not None
    assert request.anon_before is not None
    assert (request.ending, request.pool) == ("finished", "www")


def _answers(fpm: Fpm) -> bool:
    try:
        return fpm.get("hello.php").ended
    except OSError:
        return False


def test_a_pool_that_was_not_asked_for_is_not_recorded(
    start_fpm: Callable[..., Fpm], trace: Callable[..., Tracer]
) -> None:
    settings = "pm = static\npm.max_children = 1\npm.max_requests = 2"
    fpm = start_fpm(wanted=settings, other=settings)
    tracer = trace("php-fpm:wanted")
    for number in range(10):
        fpm.get("hello.php", pool="wanted", REQUEST_URI=f"/wanted/{number}")
        fpm.get("hello.php", pool="other", REQUEST_URI=f"/other/{number}")
    requests = tracer.next(10)
    tracer.poll()

    assert [request.uri for request in requests] == [f"/wanted/{number}" for number in range(10)]
    assert len(tracer.requests) == 10
    assert {worker.pool for worker in tracer.workers if worker.born_ns} <= {"wanted"}


def test_a_workers_pid_means_that_worker_alone(start_fpm: Callable[..., Fpm], trace: Callable[..., Tracer]) -> None:
    fpm = start_fpm(www="pm = static\npm.max_children = 2")
    chosen = fpm.workers()[0]
    tracer = trace(str(chosen))
    wait_for(lambda: fpm.get("hello.php").ended and (tracer.poll() or tracer.requests), "the worker to be chosen")
    os.kill(chosen, signal.SIGKILL)
    wait_for(lambda: tracer.poll() or tracer.backend.watched == 0, "the worker's death")

    assert {request.pid for request in tracer.requests} == {chosen}
    assert tracer.backend.masters == 0


def test_a_target_that_dies_while_phptrace_gets_ready_is_gone(start_fpm: Callable[..., Fpm]) -> None:
    fpm = start_fpm(www="pm = static\npm.max_children = 1")
    found = targets([str(fpm.master)])
    fpm.stop()

    backend = BpfBackend()
    with pytest.raises(TargetGoneError, match="before it could be traced"):
        backend.attach(found)


def test_every_master_and_its_pools_are_found(start_fpm: Callable[..., Fpm]) -> None:
    first = start_fpm(red="pm = static\npm.max_children = 2")
    second = start_fpm(blue="pm = ondemand\npm.max_children = 2")

    masters = {target.master.pid: target for target in targets(["php-fpm"]) if target.master is not None}
    assert {first.master, second.master} <= set(masters)
    assert sorted(p.pid for p in masters[first.master].workers) == sorted(first.workers())
    assert masters[first.master].sapi == "fpm-fcgi"
    (idle,) = targets(["php-fpm:blue"])
    assert (idle.master is not None, idle.workers) == (True, ())


def test_what_a_worker_starts_is_not_taken_for_a_worker(fpm: Fpm, traced: Tracer) -> None:
    before = traced.backend.watched
    answer = fpm.get("spawn.php")
    (request,) = traced.next()

    assert answer.body == b"from a child\n"
    assert request.complete
    assert traced.backend.watched == before


def test_a_pool_nobody_has_is_refused_with_those_there_are(start_fpm: Callable[..., Fpm]) -> None:
    start_fpm(green="pm = ondemand\npm.max_children = 1")

    with pytest.raises(NoTargetError, match=r"'purple'.*green"):
        targets(["php-fpm:purple"])


def test_two_names_for_the_same_workers_are_one_target(fpm: Fpm) -> None:
    found = targets([str(fpm.master), str(fpm.workers()[0]), str(fpm.master)])

    assert len(found) == 1


def test_a_pid_that_is_gone_is_told_from_one_that_is_not_php() -> None:
    with pytest.raises(TargetGoneError):
        targets(["4194303"])
    with pytest.raises(UnsupportedError, match="not PHP"):
        targets([str(os.getpid())])
