"""Stacks over a worker's life: born under watch, killed, in mid-request when tracing ends; and without stacks."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
from altered_programs import Altered, Noting, altering, remove
from backend_kinds import BPF, PROGRAMS, make_backend
from fpm import ONE_WORKER, TWO_WORKERS, Fpm
from kernel_objects import PERF_EVENT, PROGRAM, UPROBE_LINK, kernel_objects
from tracing import Tracer
from waiting import wait_for

from tracer.backends import StackOptions
from tracer.backends.bpf.backend import BpfBackend
from tracer.backends.bpf.programs import Programs
from tracer.errors import UnsupportedError
from tracer.facts import Growth, Metric, Request

LEAKED = 3_000_017
GROWTH = "growth.bpf.c"
_MEMORY_CALLS = ("mmap", "munmap", "mremap", "brk")  # the hooks in libc
_OF_STACKS_ALONE = ("on_fault", "on_clock", "on_exit")


def leaks(tracer: Tracer) -> dict[tuple[int, int], int]:
    """Bytes of page faults in memset(), by pid and request."""
    found: dict[tuple[int, int], int] = {}
    for growth in tracer.growths:
        if growth.metric == Metric.RSS.value and growth.stack[-1].name == "memset":
            found[growth.pid, growth.nth] = found.get((growth.pid, growth.nth), 0) + growth.bytes
    return found


@pytest.mark.parametrize(
    "manager",
    [
        f"{TWO_WORKERS}\npm.max_requests = 1",
        "pm = ondemand\npm.max_children = 3\npm.max_requests = 1",
    ],
)
def test_workers_born_under_watch_are_sampled_once_from_their_first_request(
    start_fpm: Callable[..., Fpm], trace: Callable[..., Tracer], manager: str
) -> None:
    fpm = start_fpm(www=manager)
    tracer = trace(str(fpm.master), stacks=StackOptions(every=1))
    for _ in range(10):
        fpm.get("leak.php", QUERY_STRING=str(LEAKED))
    tracer.next(10)

    found = leaks(tracer)
    assert len(found) == 10
    assert all(abs(size - LEAKED) <= 3 * 4096 for size in found.values()), found


def _in_mid_request(fpm: Fpm, tmp_path: Path) -> threading.Thread:
    """A request that has grown its worker, and goes on until the file `go` is there."""
    grown = fpm.folder / "grown"
    grown.unlink(missing_ok=True)
    fpm.folder.chmod(0o777)
    client = threading.Thread(
        target=fpm.get, args=("late_growth.php",), kwargs={"QUERY_STRING": f"{grown},{fpm.folder}/go"}
    )
    client.start()
    wait_for(grown.exists, "the request to grow")
    return client


def test_growth_of_a_request_whose_worker_is_killed_is_kept(
    start_fpm: Callable[..., Fpm], trace: Callable[..., Tracer], tmp_path: Path
) -> None:
    fpm = start_fpm(www=ONE_WORKER)
    tracer = trace(str(fpm.master), stacks=StackOptions(every=1))
    client = _in_mid_request(fpm, tmp_path)

    os.kill(fpm.workers()[0], signal.SIGKILL)
    client.join()
    (request,) = tracer.next()

    assert request.ending == "killed:KILL"
    assert abs(leaks(tracer)[request.pid, request.nth] - LEAKED) <= 3 * 4096


def test_growth_of_a_request_in_mid_course_when_tracing_ends_is_given_out(
    start_fpm: Callable[..., Fpm], tmp_path: Path
) -> None:
    fpm = start_fpm(www=ONE_WORKER)
    tracer = Tracer(make_backend(BPF, stacks=StackOptions(every=1)), str(fpm.master))
    client = _in_mid_request(fpm, tmp_path)

    tracer.close()
    (fpm.folder / "go").touch()
    client.join()

    (request,) = tracer.requests
    assert request.ending == "cut_off"
    assert abs(leaks(tracer)[request.pid, request.nth] - LEAKED) <= 3 * 4096


def test_growth_of_a_request_that_ends_between_the_probes_on_its_end_is_given_out(
    start_fpm: Callable[..., Fpm], tmp_path: Path
) -> None:
    fpm = start_fpm(www=ONE_WORKER)
    ends: list[int] = []  # the probe of the stacks on the end of requests

    compiled = altering(GROWTH, lambda programs: Noting(programs, "on_end", ends), PROGRAMS)
    tracer = Tracer(make_backend(BPF, stacks=StackOptions(every=1), compiled=compiled), str(fpm.master))
    client = _in_mid_request(fpm, tmp_path)

    # Detaching closes all probes at once, in whatever order; here that of the stacks is first.
    (end,) = ends
    remove(end)
    (fpm.folder / "go").touch()
    client.join()
    tracer.close()

    (request,) = tracer.requests
    assert request.ending == "finished"
    assert abs(leaks(tracer)[request.pid, request.nth] - LEAKED) <= 3 * 4096


def test_a_worker_forked_while_its_master_comes_under_watch_is_sampled_once(
    start_fpm: Callable[..., Fpm], trace: Callable[..., Tracer]
) -> None:
    fpm = start_fpm(www="pm = ondemand\npm.max_children = 1")
    forked: list[int] = []

    class Forking(Altered):
        def on_software_event(self, function: str, event: int, period: int, tid: int) -> int:
            """Have the master fork its worker just before the first event is set on the master."""
            if not forked:
                fpm.get("hello.php")
                forked.extend(fpm.workers())
            return self.programs.on_software_event(function, event, period, tid)

    compiled = altering(GROWTH, Forking, PROGRAMS)
    tracer = trace(str(fpm.master), stacks=StackOptions(every=1), compiled=compiled)
    (worker,) = forked
    fpm.get("leak.php", QUERY_STRING=str(LEAKED))
    (request,) = tracer.next()

    assert request.pid == worker
    assert abs(leaks(tracer)[request.pid, request.nth] - LEAKED) <= 3 * 4096


def test_workers_after_a_graceful_reload_are_sampled_once(
    start_fpm: Callable[..., Fpm], trace: Callable[..., Tracer]
) -> None:
    fpm = start_fpm(www=TWO_WORKERS)
    tracer = trace(str(fpm.master), stacks=StackOptions(every=1))
    fpm.get("leak.php", QUERY_STRING=str(LEAKED))
    tracer.next()
    old = set(fpm.workers())
    os.kill(fpm.master, signal.SIGUSR2)
    wait_for(lambda: tracer.poll() or (len(fpm.workers()) == 2 and not old & set(fpm.workers())), "the new workers")
    wait_for(fpm.answers, "the pool to answer again")
    fpm.get("leak.php", QUERY_STRING=str(LEAKED), REQUEST_URI="/after-reload")
    wait_for(lambda: tracer.poll() or any(r.uri == "/after-reload" for r in tracer.requests), "the request")
    tracer.close()

    (request,) = [request for request in tracer.requests if request.uri == "/after-reload"]
    assert request.pid not in old
    found = leaks(tracer)
    assert len(found) == 2
    assert all(abs(size - LEAKED) <= 3 * 4096 for size in found.values()), found


def test_workers_after_the_reload_of_a_daemon_are_sampled_once(
    start_fpm: Callable[..., Fpm], trace: Callable[..., Tracer]
) -> None:
    fpm = start_fpm(www=TWO_WORKERS, daemonize=True)
    tracer = trace(str(fpm.master), stacks=StackOptions(every=1))
    old = fpm.master
    os.kill(old, signal.SIGUSR2)
    wait_for(lambda: tracer.poll() or fpm.master != old, "another master")
    wait_for(lambda: tracer.poll() or (len(fpm.workers()) == 2 and fpm.answers()), "the pool to answer again")
    for _ in range(3):
        fpm.get("leak.php", QUERY_STRING=str(LEAKED))
    wait_for(lambda: tracer.poll() or sum("leak" in (r.uri or "") for r in tracer.requests) == 3, "the requests")
    tracer.close()

    found = leaks(tracer)
    assert len(found) == 3
    assert all(abs(size - LEAKED) <= 3 * 4096 for size in found.values()), found


def test_workers_that_serve_on_after_their_master_was_killed_are_sampled(
    start_fpm: Callable[..., Fpm], trace: Callable[..., Tracer]
) -> None:
    fpm = start_fpm(www=ONE_WORKER)
    (worker,) = fpm.workers()
    tracer = trace(str(fpm.master), stacks=StackOptions(every=1))
    fpm.process.kill()
    wait_for(lambda: tracer.poll() or not tracer.backend.masters, "the master's end to be seen")
    try:
        for _ in range(3):
            fpm.get("leak.php", QUERY_STRING=str(LEAKED))
        tracer.next(3)
        tracer.close()
    finally:
        os.kill(worker, signal.SIGKILL)

    found = leaks(tracer)
    assert len(found) == 3
    assert all(abs(size - LEAKED) <= 3 * 4096 for size in found.values()), found


def test_growth_comes_right_behind_its_request(fpm: Fpm, trace: Callable[..., Tracer]) -> None:
    tracer = trace(str(fpm.master), stacks=StackOptions())
    for _ in range(50):
        fpm.get("leak.php", QUERY_STRING="1000003")
        fpm.get("hello.php")
    tracer.next(100)

    last: Request | None = None
    for fact in tracer.facts:
        if isinstance(fact, Request):
            last = fact
        elif isinstance(fact, Growth):
            assert last is not None
            assert (fact.pid, fact.nth) == (last.pid, last.nth)
    assert tracer.lost == 0
    assert {growth.nth % 2 for growth in tracer.growths if growth.stack[-1].name == "memset"} == {1}


def test_only_where_stacks_are_asked_for_does_anything_of_them_run(fpm: Fpm) -> None:
    ours: dict[bool, Counter[str]] = {}
    for stacks in (None, StackOptions()):
        before = kernel_objects()
        # Programs that are cached would be there before and after.
        tracer = Tracer(BpfBackend(stacks=stacks, compiled=Programs), str(fpm.master))
        ours[stacks is not None] = kernel_objects() - before
        tracer.close()

        assert kernel_objects() == before

    without, with_stacks = ours[False], ours[True]
    sampled = 2 * 2  # page faults and the CPU clock, of a master and its worker
    hooked = 1 + len(_MEMORY_CALLS)  # the end of requests, and memory calls
    events, links = (with_stacks[kind] - without[kind] for kind in (PERF_EVENT, UPROBE_LINK))
    assert (events, links) in [(sampled, hooked), (sampled + hooked, 0)]  # the latter before Linux 6.6
    assert with_stacks[PROGRAM] - without[PROGRAM] == hooked + len(_OF_STACKS_ALONE)
    assert without[PROGRAM] > 0


def test_memory_calls_seen_by_the_kernel_alone_have_their_stacks_too(fpm: Fpm, trace: Callable[..., Tracer]) -> None:
    tracer = trace(str(fpm.master), stacks=StackOptions(), calls_by_tracepoint=True)
    fpm.get("brk.php")
    (request,) = tracer.next()

    mapped = [growth for growth in tracer.growths if growth.metric == Metric.MAPPED.value]
    assert request.vm_after is not None
    assert request.vm_before is not None
    assert sum(growth.bytes for growth in mapped) == request.vm_after - request.vm_before
    assert {"malloc", "realloc"} <= {growth.stack[-1].name for growth in mapped}


def test_columns_are_there_where_only_the_stacks_program_of_memory_calls_is_refused(
    fpm: Fpm, trace: Callable[..., Tracer]
) -> None:
    class Refused(Altered):
        def on_raw_tracepoint(self, tracepoint: str, function: str, until: contextlib.ExitStack) -> None:
            if function == "on_syscall_exit":
                raise UnsupportedError("the kernel refused the BPF program on_syscall_exit: too large")
            self.programs.on_raw_tracepoint(tracepoint, function, until)

    compiled = altering(GROWTH, Refused, PROGRAMS)
    tracer = trace(str(fpm.master), stacks=StackOptions(), calls_by_tracepoint=True, compiled=compiled)
    fpm.get("brk.php")
    (request,) = tracer.next()

    assert request.brk_calls is not None
    assert request.brk_calls > 0
    assert request.map_calls is not None
    assert request.notes is None
    (told,) = [lack for lack in tracer.backend.lacking if not lack.startswith("speed:")]
    assert told == (
        "not measured: call stacks of mmap and brk (the kernel refused the BPF program on_syscall_exit: too large)"
    )
