"""Workers come and go: recycled, on demand, reloaded, stopped, of pools that were not asked for. Nothing is lost."""

from __future__ import annotations

import os
import signal
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
from backend_kinds import BPF, kept, make_backend
from fpm import ONE_WORKER, TWO_WORKERS, Fpm
from php_servers import PhpDashS, PhpServer
from proc_status import state
from tracing import Tracer
from waiting import wait_for

from tracer.errors import TargetGoneError
from tracer.facts import Fork
from tracer.targets.resolve import targets


def test_workers_recycled_every_third_request_lose_nothing(
    start_fpm: Callable[..., Fpm], trace: Callable[..., Tracer]
) -> None:
    fpm = start_fpm(www=f"{TWO_WORKERS}\npm.max_requests = 3")
    tracer = trace(str(fpm.master))
    answers = [fpm.get("hello.php", REQUEST_URI=f"/{number}") for number in range(300)]
    requests = tracer.next(300)
    tracer.close()

    assert all(answer.ended for answer in answers)
    assert sorted(int((request.uri or "")[1:]) for request in requests) == list(range(300))
    assert {request.pool for request in requests} == {"www"}
    assert {request.nth for request in requests} == {1, 2, 3}
    assert all(request.complete for request in requests)
    assert tracer.lost == 0
    born = {worker.pid for worker in tracer.workers if worker.born_ns is not None}
    died = {worker.pid: worker.exit for worker in tracer.workers if worker.died_ns is not None}
    assert len(born) >= 98
    assert len(died) >= 98
    assert set(died.values()) == {"exited:0"}


def test_each_request_of_a_recycled_worker_is_measured_to_its_end(
    start_fpm: Callable[..., Fpm], trace: Callable[..., Tracer]
) -> None:
    fpm = start_fpm(www=f"{ONE_WORKER}\npm.max_requests = 4")
    tracer = trace(str(fpm.master))
    for _ in range(12):
        fpm.get("leak.php", QUERY_STRING="1000003")
    requests = tracer.next(12)
    tracer.close()

    assert [request.ending for request in requests] == ["finished"] * 12
    assert {request.status for request in requests} == {200}
    assert all(request.complete for request in requests)
    last = [kept(request) or 0 for request in requests if request.nth == 4]
    assert len(last) == 3
    assert all(abs(growth - 1_000_003) <= 8 * 1024 for growth in last)
    assert tracer.losses == []


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
    fpm = start_fpm(www=TWO_WORKERS)
    tracer = trace(str(fpm.master))
    fpm.get("hello.php", REQUEST_URI="/before")
    (before,) = tracer.next()  # answered is not over: a reload would kill its worker in mid-shutdown
    old = set(fpm.workers())
    os.kill(fpm.master, signal.SIGUSR2)
    wait_for(lambda: len(fpm.workers()) == 2 and not old & set(fpm.workers()), "the new workers")
    wait_for(fpm.answers, "the pool to answer again")
    for number in range(10):
        fpm.get("leak.php", QUERY_STRING="1000003", REQUEST_URI=f"/after/{number}")

    def after() -> list[str]:
        return sorted(request.uri or "" for request in tracer.requests if (request.uri or "").startswith("/after"))

    wait_for(lambda: tracer.poll() or len(after()) == 10, "the requests after the reload")
    tracer.close()

    assert before.uri == "/before"
    assert after() == [f"/after/{number}" for number in range(10)]
    new = [request for request in tracer.requests if request.uri in after()]
    assert {request.pid for request in new} <= set(fpm.workers())
    assert {(request.ending, request.pool) for request in new} == {("finished", "www")}
    assert all(request.zend_peak and request.script and request.anon_before for request in new)


def test_a_reload_of_a_master_that_daemonizes_itself_is_followed(
    start_fpm: Callable[..., Fpm], trace: Callable[..., Tracer]
) -> None:
    fpm = start_fpm(www=TWO_WORKERS, daemonize=True)
    tracer = trace(str(fpm.master))
    fpm.get("hello.php", REQUEST_URI="/before")
    tracer.next()

    def after() -> list[str]:
        return [uri for one in tracer.requests if (uri := one.uri or "").startswith(("/0", "/1"))]

    for reload in range(2):
        old = fpm.master
        os.kill(old, signal.SIGUSR2)
        wait_for(lambda old=old: tracer.poll() or fpm.master != old, "another master")
        wait_for(lambda: tracer.poll() or (len(fpm.workers()) == 2 and fpm.answers()), "the pool to answer again")
        for number in range(10):
            fpm.get("leak.php", QUERY_STRING="1000003", REQUEST_URI=f"/{reload}/{number}")
        # Answered is not over: a reload would kill its worker in mid-shutdown.
        wait_for(lambda reload=reload: tracer.poll() or len(after()) == 10 * (reload + 1), "the requests")
    workers = set(fpm.workers())
    tracer.close()

    assert sorted(after()) == sorted(f"/{reload}/{number}" for reload in range(2) for number in range(10))
    assert {one.pid for one in tracer.requests if (one.uri or "").startswith("/1")} <= workers
    assert all(one.complete and one.pool == "www" for one in tracer.requests)
    assert tracer.lost == 0


def test_a_pool_with_a_long_name_is_recorded_whole(start_fpm: Callable[..., Fpm], trace: Callable[..., Tracer]) -> None:
    name = "shop" * 14
    fpm = start_fpm(**{name: f"{ONE_WORKER}\npm.max_requests = 2"})
    tracer = trace(f"php-fpm:{name}")
    for number in range(8):
        fpm.get("hello.php", REQUEST_URI=f"/{number}")
    requests = tracer.next(8)

    assert [(one.uri, one.pool) for one in requests] == [(f"/{number}", name) for number in range(8)]


def test_a_pool_that_was_not_asked_for_is_not_recorded(
    start_fpm: Callable[..., Fpm], trace: Callable[..., Tracer]
) -> None:
    settings = f"{ONE_WORKER}\npm.max_requests = 2"
    fpm = start_fpm(wanted=settings, other=settings)
    tracer = trace("php-fpm:wanted")
    for number in range(10):
        fpm.get("hello.php", pool="wanted", REQUEST_URI=f"/wanted/{number}")
        fpm.get("hello.php", pool="other", REQUEST_URI=f"/other/{number}")
    requests = tracer.next(10)
    wait_for(lambda: tracer.poll() or _born(tracer), "the birth of a worker to be seen")
    tracer.close()

    # Of two workers that follow each other, the first may tell of its last request late.
    assert sorted(request.uri or "" for request in requests) == [f"/wanted/{number}" for number in range(10)]
    assert len(tracer.requests) == 10
    assert _born(tracer) == {"wanted"}


def _born(tracer: Tracer) -> set[str | None]:
    """The pools of the workers whose birth was seen."""
    return {worker.pool for worker in tracer.workers if worker.born_ns is not None}


def test_a_workers_pid_means_that_worker_alone(start_fpm: Callable[..., Fpm], trace: Callable[..., Tracer]) -> None:
    fpm = start_fpm(www=TWO_WORKERS)
    chosen = fpm.workers()[0]
    tracer = trace(str(chosen))
    wait_for(lambda: fpm.get("hello.php").ended and (tracer.poll() or tracer.requests), "the worker to be chosen")
    os.kill(chosen, signal.SIGKILL)
    wait_for(lambda: tracer.poll() or tracer.backend.watched == 0, "the worker's death")

    assert {request.pid for request in tracer.requests} == {chosen}
    assert not tracer.backend.masters


def test_a_target_that_ends_while_phptrace_gets_ready_is_gone(start_fpm: Callable[..., Fpm], backend: str) -> None:
    fpm = start_fpm(www=ONE_WORKER)
    found = targets([str(fpm.master)])
    fpm.stop()

    with pytest.raises(TargetGoneError, match=r"before it could be traced|no process was left"):
        make_backend(backend).attach(found)


def test_a_process_that_a_worker_starts_is_not_a_worker(fpm: Fpm, traced: Tracer) -> None:
    before = traced.backend.watched
    answer = fpm.get("spawn.php")
    (request,) = traced.next()

    assert answer.body == b"from a child\n"
    assert request.complete
    assert traced.backend.watched == before


def test_the_parent_of_phps_own_web_server_is_a_worker_too(
    fpm: Fpm, trace: Callable[..., Tracer], backend: str
) -> None:
    if backend != BPF:
        pytest.skip("PHP's own web server does not speak FastCGI: ptrace cannot follow it.")
    server = PhpDashS(fpm.folder, workers=2)
    try:
        children = server.children()
        tracer = trace(str(server.pid))
        watched = tracer.backend.watched
        answered = [int(server.get("pid.php")) for _ in range(60)]
        wait_for(lambda: answered.append(int(server.get("pid.php"))) or server.pid in answered, "the parent to answer")
        requests = tracer.next(len(answered))
    finally:
        server.stop()

    assert watched == 3
    assert set(answered) <= {server.pid, *children}
    assert Counter(request.pid for request in requests) == Counter(answered)
    assert all(request.complete for request in requests)
    assert {worker.pid for worker in tracer.workers} == {server.pid, *children}
    assert tracer.lost == 0


def test_a_script_that_forks_is_watched_with_its_children(fpm: Fpm, trace: Callable[..., Tracer], backend: str) -> None:
    if backend != BPF:
        pytest.skip("PHP's command line does not speak FastCGI: ptrace cannot follow it.")
    flag = fpm.folder / "go-on"
    script = PhpServer(fpm.folder, ["/usr/bin/php8.2", "forking_script.php", str(flag)])
    try:
        script.wait_for_children(2)
        children = script.children()
        tracer = trace(str(script.pid))
        watched = tracer.backend.watched
        flag.touch()
        wait_for(lambda: tracer.poll() or tracer.backend.watched == 0, "the script to end")
    finally:
        script.stop()

    assert watched == 3
    exits = {worker.pid: worker.exit for worker in tracer.workers if worker.died_ns is not None}
    assert exits == {script.pid: "exited:3", **dict.fromkeys(children, "exited:0")}


def test_a_process_that_a_worker_forks_may_serve_as_one_of_its_pool(
    start_fpm: Callable[..., Fpm], trace: Callable[..., Tracer]
) -> None:
    fpm = start_fpm(www=ONE_WORKER)
    (worker,) = fpm.workers()
    tracer = trace(str(fpm.master))
    fpm.get("fork.php", QUERY_STRING="exit")  # runs PHP's shutdown in the child, which then accepts connections
    (forked,) = _children(worker)
    answered: list[int] = []
    try:
        wait_for(lambda: answered.append(int(fpm.get("pid.php").text)) or set(answered) == {worker, forked}, "both")
        answered += [int(fpm.get("pid.php").text) for _ in range(20)]
        requests = tracer.next(1 + len(answered))
    finally:
        os.kill(forked, signal.SIGKILL)
    wait_for(lambda: tracer.poll() or any(fact.died_ns for fact in tracer.workers), "the death of the fork")

    scripts = Counter((request.pid, (request.script or "").rpartition("/")[2]) for request in requests)
    assert scripts == Counter({(worker, "fork.php"): 1, **Counter((pid, "pid.php") for pid in answered)})
    assert {request.pool for request in requests} == {"www"}
    assert [r.nth for r in requests if r.pid == forked] == list(range(1, answered.count(forked) + 1))
    assert all(request.complete for request in requests)
    born = [(fact.pid, fact.pool) for fact in tracer.workers if fact.born_ns is not None and fact.died_ns is None]
    assert born[-1] == (forked, "www")
    assert [(fact.pid, fact.exit) for fact in tracer.workers if fact.died_ns] == [(forked, "killed:KILL")]
    assert tracer.lost == 0


def test_a_process_that_a_worker_forks_and_that_only_works_is_no_worker(
    start_fpm: Callable[..., Fpm], trace: Callable[..., Tracer]
) -> None:
    fpm = start_fpm(www=ONE_WORKER)
    (worker,) = fpm.workers()
    tracer = trace(str(fpm.master))
    for script in ("fork.php", "spawn.php", "child.php", "fork.php?stay"):
        fpm.get(script.partition("?")[0], QUERY_STRING=script.partition("?")[2] or "kill")
    requests = tracer.next(4)
    watched = tracer.backend.watched
    tracer.close()
    alive = [pid for pid in _children(worker) if state(pid)[0] != "Z"]
    for pid in alive:
        os.kill(pid, signal.SIGKILL)

    killed, stayed = (fact for fact in tracer.facts if isinstance(fact, Fork))
    assert [(fact.parent_pid, fact.started_ns) for fact in (killed, stayed)] == [
        (worker, requests[0].started_ns),
        (worker, requests[3].started_ns),
    ]
    assert (killed.ended_ns is None, killed.anon, stayed.ended_ns) == (False, None, None)
    assert [stayed.pid] == alive
    assert (stayed.anon or 0) > 100_000
    assert [(request.pid, request.ending) for request in requests] == [(worker, "finished")] * 4
    assert watched == 1
    assert [fact.pid for fact in tracer.workers] == [worker]
    assert len(tracer.requests) == 4
    assert tracer.lost == 0


def _children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def _stop(pid: int) -> None:
    os.kill(pid, signal.SIGSTOP)
    wait_for(lambda: state(pid)[0] in "tT", "the worker to stop")


def test_a_worker_stopped_while_traced_stays_stopped_and_then_goes_on(
    start_fpm: Callable[..., Fpm], trace: Callable[..., Tracer]
) -> None:
    fpm = start_fpm(www=TWO_WORKERS)
    stopped, other = fpm.workers()
    tracer = trace(str(fpm.master))
    _stop(stopped)
    answered = {fpm.get("pid.php").text for _ in range(20)}
    os.kill(stopped, signal.SIGCONT)
    tracer.next(20)
    wait_for(lambda: fpm.get("pid.php").text == str(stopped), "the worker to go on")
    tracer.close()

    assert answered == {str(other)}
    wait_for(lambda: state(stopped) == ("S", 0), "the worker to be idle and untraced")


def test_a_worker_stopped_when_tracing_ends_is_still_stopped(
    start_fpm: Callable[..., Fpm], trace: Callable[..., Tracer]
) -> None:
    fpm = start_fpm(www=TWO_WORKERS)
    stopped = fpm.workers()[0]
    tracer = trace(str(fpm.master))
    _stop(stopped)
    try:
        tracer.close()
        wait_for(lambda: state(stopped) == ("T", 0), "the worker to be stopped and untraced")
    finally:
        os.kill(stopped, signal.SIGCONT)
    assert all(fpm.get("hello.php").body == b"hello" for _ in range(20))


def test_a_worker_stopped_before_tracing_begins_is_still_stopped_when_it_ends(
    start_fpm: Callable[..., Fpm], trace: Callable[..., Tracer]
) -> None:
    fpm = start_fpm(www=TWO_WORKERS)
    stopped = fpm.workers()[0]
    _stop(stopped)
    try:
        tracer = trace(str(fpm.master))
        tracer.close()
        wait_for(lambda: state(stopped) == ("T", 0), "the worker to be stopped and untraced")
    finally:
        os.kill(stopped, signal.SIGCONT)
    assert all(fpm.get("hello.php").body == b"hello" for _ in range(20))
