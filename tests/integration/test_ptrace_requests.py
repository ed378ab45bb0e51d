"""What the ptrace backend says of requests that are not plain ones, and of workers that are not idle."""

from __future__ import annotations

import mmap
import os
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable
from pathlib import Path

import fastcgi
import pytest
from conftest import Fpm, Tracer, attached_to, phptrace, wait_for
from test_ptrace_safety import MODES, catches_traps, state

from tracer.backends import PtraceMode
from tracer.backends.ptrace.backend import PtraceBackend
from tracer.errors import UnsupportedError
from tracer.facts import Loss, Request

ONE_WORKER = "pm = static\npm.max_children = 1"
_SLEEPING = (
    "230",
    "219",
)  # clock_nanosleep, and restart_syscall when it was interrupted: arch/x86/entry/syscalls/syscall_64.tbl


class Visit:
    """A request under way in a thread."""

    def __init__(self, fpm: Fpm, script: str, **params: str) -> None:
        self.answer: fastcgi.Response | None = None
        self._thread = threading.Thread(target=self._run, args=(fpm, script, params))
        self._thread.start()

    def _run(self, fpm: Fpm, script: str, params: dict[str, str]) -> None:
        self.answer = fpm.get(script, **params)

    def text(self) -> str:
        self._thread.join()
        assert self.answer is not None
        return self.answer.text


class KeptConnection:
    """One connection to a worker, which waits on it for the next request."""

    def __init__(self, fpm: Fpm, pool: str | None = None) -> None:
        self._fpm = fpm
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.connect(str(fpm.socket(pool)))

    def get(self, uri: str, script: str = "pid.php") -> int:
        """The pid of who answered."""
        params = {"SCRIPT_FILENAME": f"{self._fpm.folder}/{script}", "REQUEST_METHOD": "GET", "REQUEST_URI": uri}
        self._socket.sendall(fastcgi.message(params, keep=True))
        return int(fastcgi.receive(self._socket).text)

    def close(self) -> None:
        self._socket.shutdown(socket.SHUT_RDWR)  # a process that traces has inherited a copy
        self._socket.close()


def is_asleep(pid: int) -> bool:
    return Path(f"/proc/{pid}/syscall").read_text().split()[0] in _SLEEPING


def sleep_through(fpm: Fpm, worker: int, before: Callable[[], None], while_asleep: Callable[[], None]) -> str:
    """What sleep.php answers if it is still asleep after `while_asleep`.

    On a busy machine that may take longer than a short sleep: then all of it is done once more, in a longer one.
    """
    for seconds in (2, 20):
        before()
        started = time.monotonic()
        visit = Visit(fpm, "sleep.php", QUERY_STRING=str(seconds))
        wait_for(lambda visit=visit: is_asleep(worker) or visit.answer, "the script to sleep")
        while_asleep()
        wait_for(lambda visit=visit: is_asleep(worker) or visit.answer, "the script to sleep on")
        asleep, in_time = is_asleep(worker), time.monotonic() < started + seconds
        text = visit.text()
        if in_time:
            assert asleep
            return text
    pytest.fail("attaching or detaching took longer than the longest sleep")


@MODES
def test_a_sleeping_script_sleeps_on_through_attaching_and_detaching(
    start_fpm: Callable[..., Fpm], mode: PtraceMode
) -> None:
    fpm = start_fpm(www=ONE_WORKER)
    [worker] = fpm.workers()

    def attach_and_detach() -> None:
        Tracer(str(fpm.master), backend=PtraceBackend(mode=mode)).close()
        assert state(worker)[1] == 0

    assert sleep_through(fpm, worker, lambda: None, attach_and_detach) == "0"


def test_a_worker_that_was_armed_and_sleeps_is_let_go_asleep(start_fpm: Callable[..., Fpm]) -> None:
    fpm = start_fpm(www=ONE_WORKER)
    [worker] = fpm.workers()
    tracers: list[Tracer] = []

    def attach() -> None:
        tracers.append(Tracer(str(fpm.master), backend=PtraceBackend(mode=PtraceMode.BREAKPOINTS)))

    def detach() -> None:
        tracers[-1].close()
        assert state(worker)[1] == 0

    def detached_from_and_without_handler() -> bool:
        attach()
        detach()
        return not catches_traps(worker)

    assert sleep_through(fpm, worker, attach, detach) == "0"
    assert [(request.uri, request.ending) for request in tracers[-1].requests] == [("/sleep.php", "cut_off")]
    # What was left in it does nothing, and the next to come takes it away; not where detaching is slow.
    assert catches_traps(worker)
    wait_for(detached_from_and_without_handler, "the handler to be taken away")


@MODES
def test_a_worker_that_computes_is_let_go_before_it_is_done(start_fpm: Callable[..., Fpm], mode: PtraceMode) -> None:
    flag = Path(f"/tmp/phptrace-busy.{os.getpid()}")
    fpm = start_fpm(www=ONE_WORKER)
    [worker] = fpm.workers()
    flag.write_bytes(bytes(mmap.PAGESIZE))
    flag.chmod(0o644)
    try:
        tracer = Tracer(str(fpm.master), backend=PtraceBackend(mode=mode))
        visit = Visit(fpm, "busy.php", QUERY_STRING=str(flag))
        wait_for(lambda: flag.name in Path(f"/proc/{worker}/maps").read_text(), "the script to compute")
        tracer.close()

        assert state(worker) == ("R", 0)
        assert [(request.uri, request.ending) for request in tracer.requests] == [("/busy.php", "cut_off")]
        with open(flag, "r+b") as file:
            file.write(b"\1")
        assert visit.text() == "computed"
    finally:
        flag.unlink()


@MODES
def test_an_idle_worker_with_a_kept_connection_is_in_no_request(
    start_fpm: Callable[..., Fpm], trace: Callable[..., Tracer], mode: PtraceMode
) -> None:
    fpm = start_fpm(www=ONE_WORKER)
    connection = KeptConnection(fpm)
    connection.get("/before")
    wait_for(lambda: state(fpm.workers()[0])[0] == "S", "the worker to wait")
    tracer = trace(str(fpm.master), backend=PtraceBackend(mode=mode))
    connection.get("/after")
    (request,) = tracer.next()
    connection.close()
    tracer.close()

    assert len(tracer.requests) == 1
    assert (request.uri, request.complete) == ("/after", True)


@MODES
def test_workers_of_other_pools_are_not_touched(
    start_fpm: Callable[..., Fpm], trace: Callable[..., Tracer], mode: PtraceMode
) -> None:
    fpm = start_fpm(asked=ONE_WORKER, spared=f"{ONE_WORKER}\npm.max_requests = 2")
    connection = KeptConnection(fpm, "spared")
    spared = connection.get("/spared")
    tracer = trace("php-fpm:asked", backend=PtraceBackend(mode=mode))

    assert state(spared)[1] == 0
    connection.get("/spared")
    connection.close()
    wait_for(lambda: spared not in fpm.workers() and len(fpm.workers()) == 2, "the spared worker to be replaced")
    for number in range(4):
        fpm.get("hello.php", pool="spared", REQUEST_URI=f"/spared/{number}")
        fpm.get("hello.php", pool="asked", REQUEST_URI=f"/asked/{number}")
    requests = tracer.next(4)
    tracer.close()
    assert [request.uri for request in requests] == [f"/asked/{number}" for number in range(4)]
    assert tracer.requests == requests
    assert {worker.pool for worker in tracer.workers} == {"asked"}
    assert not any(catches_traps(pid) for pid in fpm.workers())


def test_a_script_that_accepts_connections_is_one_request(
    start_fpm: Callable[..., Fpm], trace: Callable[..., Tracer]
) -> None:
    fpm = start_fpm(www=ONE_WORKER)
    tracer = trace(str(fpm.master), backend=PtraceBackend())
    for number in range(3):
        answer = fpm.get("accept.php", QUERY_STRING="1000003", REQUEST_URI=f"/{number}")
        assert answer.text == "hello\n"
    requests = tracer.next(3)
    tracer.close()

    assert [request.uri for request in tracer.requests] == ["/0", "/1", "/2"]
    assert all(request.complete for request in requests)
    assert requests[2].native_growth is not None
    assert abs(requests[2].native_growth - 1_000_003) <= 8 * 1024


@MODES
def test_a_fatal_error_after_the_answer_is_told(
    start_fpm: Callable[..., Fpm], trace: Callable[..., Tracer], mode: PtraceMode
) -> None:
    fpm = start_fpm(www=ONE_WORKER)
    tracer = trace(str(fpm.master), backend=PtraceBackend(mode=mode))
    assert fpm.get("late_fatal.php").text == "answered"
    fpm.get("hello.php")

    assert [request.ending for request in tracer.next(2)] == ["fatal", "finished"]


def test_what_the_processor_was_set_to_is_not_changed(start_fpm: Callable[..., Fpm]) -> None:
    fpm = start_fpm(www=ONE_WORKER)
    upwards = "2048"  # FE_UPWARD
    assert fpm.get("rounding.php", QUERY_STRING=upwards).text == upwards
    assert fpm.get("rounding.php").text == upwards
    tracer = Tracer(str(fpm.master), backend=PtraceBackend(mode=PtraceMode.BREAKPOINTS))
    while_traced = fpm.get("rounding.php").text
    tracer.next()
    tracer.close()

    assert (while_traced, fpm.get("rounding.php").text) == (upwards, upwards)


def test_more_workers_than_there_are_descriptors_are_let_be_and_told(
    start_fpm: Callable[..., Fpm], tmp_path: Path
) -> None:
    fpm = start_fpm(www="pm = static\npm.max_children = 30")
    process = subprocess.Popen(
        ["prlimit", "--nofile=72:72", "/usr/bin/python3", "-m", "tracer", "record", "--backend", "ptrace",
         "-o", str(tmp_path / "r.phptrace"), str(fpm.master)],
        stderr=subprocess.PIPE, text=True, cwd=Path(__file__).parents[2],
    )  # fmt: skip
    attached_to(process)
    answers = [fpm.get("hello.php").text for _ in range(60)]
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=30)

    assert answers == ["hello"] * 60
    assert process.returncode == 8
    assert "workers no longer traced: OSError: [Errno 24] Too many open files" in said
    assert {state(pid)[1] for pid in fpm.workers()} == {0}


def test_few_descriptors_are_made_more_where_that_is_permitted(start_fpm: Callable[..., Fpm], tmp_path: Path) -> None:
    fpm = start_fpm(www="pm = static\npm.max_children = 30")
    process = phptrace("record", "--backend", "ptrace", "-o", str(tmp_path / "r.phptrace"), str(fpm.master),
                       preexec_fn=lambda: __import__("resource").setrlimit(7, (72, 4096)))  # fmt: skip
    said = attached_to(process)
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=30)

    assert "30 workers, backend ptrace" in said
    assert process.returncode == 0


@MODES
def test_php_that_speaks_no_fastcgi_is_refused(mode: PtraceMode) -> None:
    process = subprocess.Popen(["/usr/bin/php8.2", "-r", "echo 'x'; fgets(STDIN);"], stdin=subprocess.PIPE,
                               stdout=subprocess.PIPE)  # fmt: skip
    try:
        assert process.stdout is not None
        process.stdout.read(1)
        with pytest.raises(UnsupportedError, match=r"is PHP's cli: .*FastCGI.*--backend bpf"):
            Tracer(str(process.pid), backend=PtraceBackend(mode=mode))
    finally:
        process.kill()
        process.communicate()


@MODES
def test_each_request_of_recycled_workers_is_complete(start_fpm: Callable[..., Fpm], mode: PtraceMode) -> None:
    fpm = start_fpm(www="pm = static\npm.max_children = 1\npm.max_requests = 4")
    tracer = Tracer(str(fpm.master), backend=PtraceBackend(mode=mode))
    for _ in range(12):
        fpm.get("leak.php", QUERY_STRING="1000003")
    requests: list[Request] = tracer.next(12)
    tracer.close()

    assert [request.ending for request in requests] == ["finished"] * 12
    assert {request.status for request in requests} == {200}
    assert all(request.complete for request in requests)
    last = [request.native_growth or 0 for request in requests if request.nth == 4]
    assert len(last) == 3
    assert all(abs(growth - 1_000_003) <= 8 * 1024 for growth in last)
    assert [fact for fact in tracer.facts if isinstance(fact, Loss)] == []
