"""With ptrace the tracer holds the workers: whatever becomes of it, they go on and fail no request."""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from conftest import Fpm, Tracer, attached_to, finish, phptrace, wait_for
from test_safety import Load

from tracer.backends import PtraceMode
from tracer.backends.ptrace.backend import PtraceBackend
from tracer.errors import IncompleteError, UnsupportedError
from tracer.facts import Worker
from tracer.recording.reader import Reader

KILLS = 200


@pytest.fixture(scope="module")
def pool(start_fpm: Callable[..., Fpm]) -> Iterator[Fpm]:
    return start_fpm(www="pm = static\npm.max_children = 2\nprocess.dumpable = yes")


def state(pid: int) -> tuple[str, int]:
    """State, and the pid of who traces it."""
    lines = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
    return lines["State"].split()[0], int(lines["TracerPid"])


def tracing_process(backend: PtraceBackend) -> int:
    assert backend._tracer is not None
    return backend._tracer


MODES = pytest.mark.parametrize("mode", list(PtraceMode), ids=[mode.value for mode in PtraceMode])


def catches_traps(pid: int) -> bool:
    """Whether the worker has a handler for SIGTRAP."""
    lines = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
    return bool(int(lines["SigCgt"], 16) >> signal.SIGTRAP - 1 & 1)


def wait_for_another(load: Load) -> None:
    """Waits for a request that has begun after now: those on their way now, one a thread, do not count."""
    done = load.done
    wait_for(lambda: load.done >= done + 3, "the load to go on")


def attach_and_detach(pool: Fpm) -> bool:
    Tracer(str(pool.master), backend=PtraceBackend(mode=PtraceMode.BREAKPOINTS)).close()
    return True


@MODES
def test_sigkill_of_the_tracer_200_times_under_load_harms_no_worker_and_no_request(pool: Fpm, mode: PtraceMode) -> None:
    workers = pool.workers()
    rng = random.Random(7)

    with Load(pool) as load:
        for _ in range(KILLS):
            tracer = Tracer(str(pool.master), backend=PtraceBackend(mode=mode))
            time.sleep(rng.uniform(0.0, 0.012))
            os.kill(tracing_process(tracer.backend), signal.SIGKILL)
            tracer.close()
            wait_for_another(load)

    assert load.failed == 0
    assert pool.workers() == workers
    wait_for(lambda: {state(pid) for pid in (*workers, pool.master)} == {("S", 0)}, "everybody to be idle")


@MODES
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_clean_end_100_times_under_load_fails_no_request(pool: Fpm, number: signal.Signals, mode: PtraceMode) -> None:
    workers = pool.workers()
    rng = random.Random(11)

    with Load(pool) as load:
        for _ in range(KILLS // 2):
            tracer = Tracer(str(pool.master), backend=PtraceBackend(mode=mode))
            time.sleep(rng.uniform(0.0, 0.012))
            os.kill(tracing_process(tracer.backend), number)  # SIGINT is for its parent: it goes on
            tracer.close()
            wait_for_another(load)

    assert load.failed == 0
    assert pool.workers() == workers
    wait_for(lambda: {state(pid) for pid in (*workers, pool.master)} == {("S", 0)}, "everybody to be idle")
    if mode is PtraceMode.BREAKPOINTS:  # a slow detach leaves one; the next tracer takes it away
        wait_for(lambda: attach_and_detach(pool) and not any(map(catches_traps, workers)), "no handler to be left")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_a_recording_cleanly(pool: Fpm, tmp_path: Path, number: signal.Signals) -> None:
    path = tmp_path / "r.phptrace"
    process = phptrace("record", "--backend", "ptrace", "-o", str(path), str(pool.master))
    said = attached_to(process)
    with Load(pool) as load:
        wait_for(lambda: load.done > 100, "some load")
        code, _, more = finish(process, number)

    assert "backend ptrace (asked for)" in said
    assert code == 0, more
    assert load.failed == 0
    with Reader(str(path)) as recording:
        assert recording.ended
        assert recording.totals().requests > 50
        assert recording.totals().lost == 0


@pytest.mark.parametrize("mode", ["syscalls", "breakpoints"])
def test_the_death_of_the_recorder_lets_the_workers_go(pool: Fpm, tmp_path: Path, mode: str) -> None:
    process = phptrace(
        "record", "--backend", "ptrace", "--ptrace-mode", mode, "-o", str(tmp_path / "r.phptrace"), str(pool.master)
    )
    attached_to(process)
    with Load(pool) as load:
        wait_for(lambda: load.done > 100, "some load")
        process.kill()
        process.communicate()
        wait_for(lambda: all(state(pid)[1] == 0 for pid in (*pool.workers(), pool.master)), "the workers to be let go")

    assert load.failed == 0


def test_the_death_of_the_process_that_traces_is_told(pool: Fpm) -> None:
    tracer = Tracer(str(pool.master), backend=PtraceBackend())
    os.kill(tracing_process(tracer.backend), signal.SIGKILL)

    def until_told() -> None:
        while True:
            tracer.poll()

    with pytest.raises(IncompleteError, match=r"the process that traces has ended \(killed by SIGKILL\)"):
        until_told()
    tracer.close()


def test_a_second_tracer_is_refused_and_told_who_the_first_is(pool: Fpm) -> None:
    first = Tracer(str(pool.master), backend=PtraceBackend())
    try:
        with pytest.raises(UnsupportedError, match=f"already traced, by process {tracing_process(first.backend)} "):
            Tracer(str(pool.master), backend=PtraceBackend())
        pool.get("hello.php")
        assert len(first.next()) == 1
    finally:
        first.close()


@MODES
def test_a_stopped_worker_stays_stopped_and_then_goes_on(pool: Fpm, mode: PtraceMode) -> None:
    worker = min(pool.workers())
    tracer = Tracer(str(pool.master), backend=PtraceBackend(mode=mode))
    os.kill(worker, signal.SIGSTOP)
    wait_for(lambda: state(worker)[0] in "tT", "the worker to stop")
    answered = {pool.get("pid.php").text for _ in range(20)}
    os.kill(worker, signal.SIGCONT)
    wait_for(lambda: pool.get("pid.php").text == str(worker), "the worker to go on")
    tracer.next(21)
    tracer.close()

    assert answered == {str(max(pool.workers()))}
    assert state(worker) == ("S", 0)


@MODES
def test_a_worker_stopped_when_tracing_ends_is_still_stopped(pool: Fpm, mode: PtraceMode) -> None:
    worker = min(pool.workers())
    tracer = Tracer(str(pool.master), backend=PtraceBackend(mode=mode))
    os.kill(worker, signal.SIGSTOP)
    wait_for(lambda: state(worker)[0] in "tT", "the worker to stop")
    try:
        tracer.close()
        wait_for(lambda: state(worker) == ("T", 0), "the worker to be stopped and untraced")
    finally:
        os.kill(worker, signal.SIGCONT)
    assert all(pool.get("hello.php").body == b"hello" for _ in range(20))


@MODES
def test_workers_recycled_every_third_request_lose_nothing(start_fpm: Callable[..., Fpm], mode: PtraceMode) -> None:
    fpm = start_fpm(www="pm = static\npm.max_children = 2\npm.max_requests = 3")
    tracer = Tracer(str(fpm.master), backend=PtraceBackend(mode=mode))
    answers = [fpm.get("hello.php", REQUEST_URI=f"/{number}") for number in range(60)]
    requests = tracer.next(60)
    tracer.close()

    assert all(answer.ended for answer in answers)
    assert sorted(int((request.uri or "")[1:]) for request in requests) == list(range(60))
    assert {request.pool for request in requests} == {"www"}
    assert {request.nth for request in requests} == {1, 2, 3}
    assert all(request.complete for request in requests)
    assert tracer.lost == 0
    died = {fact.pid: fact.exit for fact in tracer.facts if isinstance(fact, Worker) and fact.died_ns is not None}
    assert len(died) >= 18
    assert set(died.values()) == {"exited:0"}


@MODES
def test_a_graceful_reload_is_followed(start_fpm: Callable[..., Fpm], mode: PtraceMode) -> None:
    fpm = start_fpm(www="pm = static\npm.max_children = 2")
    tracer = Tracer(str(fpm.master), backend=PtraceBackend(mode=mode))
    fpm.get("hello.php", REQUEST_URI="/before")
    requests = tracer.next(1)  # answered is not over: a reload would kill its worker in mid-shutdown
    before = set(fpm.workers())
    os.kill(fpm.master, signal.SIGUSR2)
    wait_for(lambda: len(fpm.workers()) == 2 and not before & set(fpm.workers()), "new workers")
    for number in range(10):
        fpm.get("leak.php", QUERY_STRING="1000003", REQUEST_URI=f"/after/{number}")
    requests += tracer.next(10)
    tracer.close()

    # Of two workers: whose request comes first is nobody's promise.
    assert sorted(request.uri or "" for request in requests) == [
        *(f"/after/{number}" for number in range(10)),
        "/before",
    ]
    assert {request.ending for request in requests} == {"finished"}
    assert all(request.zend_peak for request in requests)
    assert all(request.script for request in requests)


@MODES
def test_a_request_cut_by_its_workers_death_is_told(start_fpm: Callable[..., Fpm], mode: PtraceMode) -> None:
    fpm = start_fpm(www="pm = static\npm.max_children = 1\nrequest_terminate_timeout = 1s")
    tracer = Tracer(str(fpm.master), backend=PtraceBackend(mode=mode))
    fpm.get("segfault.php")
    fpm.get("wait.php", QUERY_STRING="/nonexistent")
    crashed, terminated = tracer.next(2)
    tracer.close()

    assert crashed.ending == "killed:SEGV"
    assert terminated.ending == "killed:TERM"
    assert (crashed.anon_after, terminated.anon_after) == (None, None)


@MODES
def test_a_keep_alive_connections_requests_are_told_apart(pool: Fpm, mode: PtraceMode) -> None:
    import socket

    import fastcgi

    tracer = Tracer(str(pool.master), backend=PtraceBackend(mode=mode))
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(str(pool.socket()))
        for number in range(7):
            params = {
                "SCRIPT_FILENAME": f"{pool.folder}/hello.php", "REQUEST_METHOD": "GET", "REQUEST_URI": f"/{number}",
            }  # fmt: skip
            connection.sendall(fastcgi.message(params, keep=True))
            answer = b""
            while answer[-16:-14] != b"\x01\x03":
                answer += connection.recv(65536)
        requests = tracer.next(7)
    tracer.close()

    assert [request.uri for request in requests] == [f"/{number}" for number in range(7)]
    assert {request.ending for request in requests} == {"finished"}


def test_the_slowlog_is_not_written_while_traced_and_that_is_told(start_fpm: Callable[..., Fpm]) -> None:
    fpm = start_fpm(www="pm = static\npm.max_children = 1\nrequest_slowlog_timeout = 1s\nslowlog = {folder}/slow.log")
    tracer = Tracer(str(fpm.master), backend=PtraceBackend())
    lacking = " ".join(tracer.backend.lacking)
    tracer.close()

    assert "request_slowlog_timeout" in lacking
