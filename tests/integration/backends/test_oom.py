"""A worker that the kernel's OOM killer ends is not taken for one that a process killed, nor the other way round."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable

from backend_kinds import BPF, notes
from fpm import ONE_WORKER, Fpm
from memory_cgroups import memory_cgroup
from tracing import Tracer
from waiting import wait_for

from tracer.analysis.last_words import LastRequests
from tracer.facts import Worker

_LIMIT = 64 << 20


def _death(tracer: Tracer, pid: int) -> Worker:
    """The last fact of a worker."""
    found: list[Worker] = []

    def died() -> bool:
        tracer.poll()
        found[:] = [fact for fact in tracer.workers if fact.pid == pid and fact.died_ns is not None]
        return bool(found)

    wait_for(died, "the worker's end to be delivered")
    return found[0]


def test_a_worker_that_the_oom_killer_ends_in_a_request_is_its_victim(
    start_fpm: Callable[..., Fpm], trace: Callable[..., Tracer], backend: str
) -> None:
    fpm = start_fpm(www=ONE_WORKER)
    tracer = trace(str(fpm.master))
    (worker,) = fpm.workers()
    with memory_cgroup(_LIMIT) as group:
        (group.folder / "cgroup.procs").write_text(str(worker))
        answer = fpm.get("eat.php")
        (request,) = tracer.next()
        death = _death(tracer, worker)

    assert not answer.ended
    assert (request.ending, request.uri) == ("killed:KILL", "/eat.php")
    assert ("oom" in notes(request)) is (backend == BPF)
    assert (death.exit, death.notes) == ("killed:KILL", "oom" if backend == BPF else "oom_unknown")
    found = LastRequests()
    found.begin_recording([death], request.host)
    found.add(request)
    (last,) = found.deaths({})
    assert (last.uri, last.in_flight, last.by_oom_killer) == ("/eat.php", True, True if backend == BPF else None)
    assert last.size is not None
    assert last.size >= (request.anon_before or 0)


def test_a_worker_in_such_a_cgroup_that_a_process_kills_is_not(
    start_fpm: Callable[..., Fpm], trace: Callable[..., Tracer], backend: str
) -> None:
    fpm = start_fpm(www=ONE_WORKER)
    tracer = trace(str(fpm.master))
    (worker,) = fpm.workers()
    with memory_cgroup(_LIMIT) as group:
        (group.folder / "cgroup.procs").write_text(str(worker))
        fpm.get("hello.php")
        tracer.next()
        os.kill(worker, signal.SIGKILL)
        death = _death(tracer, worker)

    assert (death.exit, death.notes) == ("killed:KILL", None if backend == BPF else "oom_unknown")


def test_a_request_that_a_process_kills_has_no_such_note(
    start_fpm: Callable[..., Fpm], trace: Callable[..., Tracer]
) -> None:
    fpm = start_fpm(www=ONE_WORKER)
    tracer = trace(str(fpm.master))
    fpm.get("signal.php", QUERY_STRING=str(signal.SIGKILL.value))
    (request,) = tracer.next()

    assert request.ending == "killed:KILL"
    assert "oom" not in notes(request)
