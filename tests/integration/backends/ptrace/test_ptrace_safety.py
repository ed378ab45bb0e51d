"""Workers run on and fail no request, however their ptrace tracer ends."""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from backend_kinds import BREAKPOINTS, SYSCALLS, make_backend
from command import attached_to, phptrace
from fpm import ONE_WORKER, TWO_WORKERS, Fpm
from load import Load
from proc_status import catches_traps, state
from tracing import Tracer
from waiting import wait_for

from tracer.backends import Backend, PtraceMode
from tracer.backends.ptrace.backend import PtraceBackend
from tracer.errors import IncompleteError, UnsupportedError

pytestmark = pytest.mark.needs_ptrace
TURNS = [20, pytest.param(500, marks=pytest.mark.slow)]


@pytest.fixture(scope="module")
def pool(start_fpm: Callable[..., Fpm]) -> Fpm:
    return start_fpm(www=f"{TWO_WORKERS}\nprocess.dumpable = yes")


def tracing_process(backend: Backend) -> int:
    assert isinstance(backend, PtraceBackend)
    assert backend._tracer is not None
    return backend._tracer


def _end_under_load(pool: Fpm, backend: str, number: signal.Signals, turns: int) -> None:
    """Attach and send the tracing process a signal, `turns` times; then prove that no worker was harmed."""
    workers = pool.workers()
    rng = random.Random(7)
    with Load(pool) as load:
        for _ in range(turns):
            tracer = Tracer(make_backend(backend), str(pool.master))
            time.sleep(rng.uniform(0.0, 0.012))  # a moment at random, not a condition
            os.kill(tracing_process(tracer.backend), number)
            tracer.close()
        load.wait_for_more(turns)

    assert load.failed == 0
    assert pool.workers() == workers
    wait_for(
        lambda: {state(pid) for pid in (*workers, pool.master)} == {("S", 0)}, "all workers and the master to be idle"
    )


@pytest.mark.parametrize("turns", TURNS)
def test_sigkill_of_the_tracer_under_load_harms_no_worker_and_no_request(pool: Fpm, backend: str, turns: int) -> None:
    _end_under_load(pool, backend, signal.SIGKILL, turns)


# SIGINT is for the parent: the tracing process ignores it.
@pytest.mark.parametrize("turns", TURNS)
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_clean_end_under_load_fails_no_request_and_leaves_no_handler_for_good(
    pool: Fpm, backend: str, number: signal.Signals, turns: int
) -> None:
    # Remove handlers left by a killed tracer: they are not part of this test.
    Tracer(make_backend(BREAKPOINTS), str(pool.master)).close()

    _end_under_load(pool, backend, number, turns)

    def has_no_handler_after_another_tracer() -> bool:
        Tracer(make_backend(BREAKPOINTS), str(pool.master)).close()
        return not any(catches_traps(pid) for pid in pool.workers())

    # A slow detach on a busy machine leaves the handler, which does nothing, and the next tracer removes it.
    if any(catches_traps(pid) for pid in pool.workers()):
        wait_for(has_no_handler_after_another_tracer, "the handlers to be removed")


@pytest.mark.parametrize("mode", [mode.value for mode in PtraceMode])
def test_the_death_of_the_recorder_detaches_the_workers(pool: Fpm, tmp_path: Path, mode: str) -> None:
    process = phptrace(
        "record", "--backend", "ptrace", "--ptrace-mode", mode, "-o", str(tmp_path / "r.phptrace"), str(pool.master)
    )
    attached_to(process)
    with Load(pool) as load:
        load.wait_for_more(100)
        process.kill()
        process.communicate()
        wait_for(
            lambda: all(state(pid)[1] == 0 for pid in (*pool.workers(), pool.master)), "the workers to be detached"
        )

    assert load.failed == 0


def test_the_death_of_the_tracing_process_is_an_error(pool: Fpm) -> None:
    tracer = Tracer(make_backend(SYSCALLS), str(pool.master))
    os.kill(tracing_process(tracer.backend), signal.SIGKILL)

    def poll_forever() -> None:
        while True:
            tracer.poll()

    with pytest.raises(IncompleteError, match=r"the tracing process has ended \(killed by SIGKILL\)"):
        poll_forever()
    tracer.close()


def test_workers_of_other_pools_that_come_and_go_are_not_watched(
    start_fpm: Callable[..., Fpm], trace: Callable[..., Tracer]
) -> None:
    fpm = start_fpm(wanted=TWO_WORKERS, other=f"{ONE_WORKER}\npm.max_requests = 1")
    tracer = trace("php-fpm:wanted")
    assert isinstance(tracer.backend, PtraceBackend)
    for _ in range(7):
        before = set(fpm.workers())
        fpm.get("hello.php", pool="other")
        wait_for(lambda before=before: set(fpm.workers()) - before, "the next worker of the other pool")
        tracer.poll()
    fpm.get("hello.php", pool="other")
    wait_for(lambda: tracer.poll() or len(tracer.backend._table.workers) == 2, "those of other pools to be dropped")
    watched = tracer.backend.watched
    fpm.stop()
    wait_for(lambda: tracer.poll() or not tracer.backend.masters, "the end of the master")
    wait_for(lambda: tracer.poll() or tracer.backend.watched == 0, "the end of the workers")
    for _ in range(5):
        tracer.poll()

    assert watched == 2
    assert tracer.losses == []


def test_a_second_tracer_is_refused_with_the_pid_of_the_first(pool: Fpm) -> None:
    first = Tracer(make_backend(SYSCALLS), str(pool.master))
    try:
        with pytest.raises(UnsupportedError, match=f"already traced, by process {tracing_process(first.backend)} "):
            Tracer(make_backend(SYSCALLS), str(pool.master))
        pool.get("hello.php")
        assert len(first.next()) == 1
    finally:
        first.close()


def test_phptrace_warns_that_the_slowlog_is_not_written_while_it_traces(start_fpm: Callable[..., Fpm]) -> None:
    fpm = start_fpm(www=f"{ONE_WORKER}\nrequest_slowlog_timeout = 1s\nslowlog = {{folder}}/slow.log")
    tracer = Tracer(make_backend(SYSCALLS), str(fpm.master))
    lacking = " ".join(tracer.backend.lacking)
    tracer.close()

    assert "request_slowlog_timeout" in lacking
