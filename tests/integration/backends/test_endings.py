"""Each way to end a request is recorded as such, and a request that never ended is not dropped."""

from __future__ import annotations

import os
import signal
import socket
from collections.abc import Callable

import fastcgi
import pytest
from backend_kinds import BPF, BREAKPOINTS, CANNOT_SEE, NOTES, SEES_EXIT, SYSCALLS, notes
from fpm import ONE_WORKER, TWO_WORKERS, Fpm
from php_servers import PhpCgi, PhpDashS
from proc_status import is_asleep
from tracing import Tracer
from waiting import wait_for

from tracer.facts import Note


@pytest.mark.parametrize(
    ("script", "ending", "status"),
    [
        ("hello.php", "finished", 200),
        ("exit.php", "exited", 200),
        ("fatal.php", "fatal", 500),
        ("limit.php", "fatal", 500),
        ("timeout.php", "fatal", 500),
    ],
)
def test_a_request_that_came_to_its_end_says_which(
    fpm: Fpm, traced: Tracer, backend: str, script: str, ending: str, status: int
) -> None:
    fpm.get(script)
    (request,) = traced.next()

    assert (request.ending, request.status) == (_seen(ending, backend), status)
    assert notes(request) == NOTES[backend]
    assert request.complete


@pytest.mark.parametrize(
    ("script", "ending"), [("hello.php", "finished"), ("exit.php", "exited"), ("none.php", "finished")]
)
def test_a_request_after_a_fatal_one_is_not_fatal(
    fpm: Fpm, traced: Tracer, backend: str, script: str, ending: str
) -> None:
    for each in ("fatal.php", script):
        fpm.get(each)
    fatal, request = traced.next(2)

    assert (fatal.ending, request.ending) == ("fatal", _seen(ending, backend))


# In this order in one worker: PHP resets neither its last error nor, but for php-fpm, its exit status.
_ENDINGS = {
    "hello.php": "finished",
    "late.php": "fatal",
    "hello.php?2": "finished",
    "noisy_fatal.php": "fatal",
    "exit.php": "exited",
    "fatal.php": "fatal",
    "hello.php?3": "finished",
    "exit255.php": "exited",
    "limit.php": "fatal",
    "exit.php?2": "exited",
    "timeout.php": "fatal",
    "hello.php?4": "finished",
    "fatal.php?2": "fatal",
    "late.php?2": "fatal",
    "hello.php?5": "finished",
    "late_exit255.php": "exited",
    "hello.php?6": "finished",
}
# What a way to watch cannot tell, by server.
_UNSEEN: dict[tuple[str, str], dict[str, str]] = {
    ("php-fpm", BPF): {},
    ("php-cgi", BPF): {},
    ("php-fpm", SYSCALLS): {},  # it writes its log, a system call, before the warning
    # The warning is PHP's last error when a system call shows it.
    ("php-cgi", SYSCALLS): {"noisy_fatal.php": "unknown"},
    # After an earlier fatal error, one in a shutdown function looks as an exit(255) there does.
    ("php-fpm", BREAKPOINTS): {"late.php?2": "unknown", "late_exit255.php": "unknown"},
    # A fatal error in a shutdown function looks as the earlier one does.
    ("php-cgi", BREAKPOINTS): {"late.php?2": "finished"},
}


@pytest.mark.parametrize("server", ["php-fpm", "php-cgi"])
def test_each_request_of_a_worker_has_its_own_ending(
    start_fpm: Callable[..., Fpm], trace: Callable[..., Tracer], backend: str, server: str
) -> None:
    fpm = start_fpm(www=ONE_WORKER)
    cgi = PhpCgi(fpm.folder) if server == "php-cgi" else None
    try:
        tracer = trace(str(cgi.pid if cgi else fpm.master))
        for script in _ENDINGS:
            (cgi or fpm).get(script.partition("?")[0])
        requests = tracer.next(len(_ENDINGS))
    finally:
        if cgi:
            cgi.stop()

    expected = {script: _seen(ending, backend) for script, ending in _ENDINGS.items()}
    expected |= _UNSEEN[server, backend]
    assert dict(zip(_ENDINGS, [request.ending for request in requests], strict=True)) == expected
    unknown = [request for request in requests if Note.ENDING_UNKNOWN.value in notes(request)]
    assert [request.ending for request in unknown] == ["unknown"] * list(expected.values()).count("unknown")


def test_phps_own_web_server_has_the_same_endings(fpm: Fpm, trace: Callable[..., Tracer], backend: str) -> None:
    if backend != BPF:
        pytest.skip("PHP's own web server does not speak FastCGI: ptrace cannot follow it.")
    server = PhpDashS(fpm.folder)
    try:
        tracer = trace(str(server.pid))
        for script in _ENDINGS:
            server.get(script)
        requests = tracer.next(len(_ENDINGS))
    finally:
        server.stop()

    assert dict(zip(_ENDINGS, [request.ending for request in requests], strict=True)) == _ENDINGS


def test_without_the_timer_a_later_request_says_that_its_ending_is_unknown(
    fpm: Fpm, trace: Callable[..., Tracer], backend: str
) -> None:
    cgi = PhpCgi(fpm.folder, "max_execution_time=0")
    try:
        tracer = trace(str(cgi.pid))
        for script in ("hello.php", "fatal.php", "hello.php"):
            cgi.get(script)
        requests = tracer.next(3)
    finally:
        cgi.stop()

    last = "unknown" if backend == SYSCALLS else "finished"
    assert [request.ending for request in requests] == ["finished", "fatal", last]


def test_where_phps_layout_is_unknown_so_is_the_ending(
    start_fpm: Callable[..., Fpm], trace: Callable[..., Tracer], backend: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tracer.targets.layouts.LAYOUTS", ())
    fpm = start_fpm(www=ONE_WORKER)
    tracer = trace(str(fpm.master))
    for script in ("hello.php", "fatal.php", "exit.php"):
        fpm.get(script)
    requests = tracer.next(3)

    exited = "exited" if SEES_EXIT[backend] else "unknown"
    assert [request.ending for request in requests] == ["unknown", "unknown", exited]
    assert all(Note.PHP_LAYOUT_UNKNOWN.value in notes(request) for request in requests)


def _seen(ending: str, backend: str) -> str:
    return "finished" if ending == "exited" and not SEES_EXIT[backend] else ending


def test_the_first_fatal_error_of_a_worker_is_fatal_in_a_shutdown_function_too(
    start_fpm: Callable[..., Fpm], trace: Callable[..., Tracer]
) -> None:
    fpm = start_fpm(www=ONE_WORKER)
    tracer = trace(str(fpm.master))
    for script in ("hello.php", "late.php"):
        fpm.get(script)
    _, request = tracer.next(2)

    assert request.ending == "fatal"


def test_a_fatal_error_after_the_answer_is_fatal(fpm: Fpm, traced: Tracer) -> None:
    assert fpm.get("late_fatal.php").text == "answered"
    fpm.get("hello.php")

    assert [request.ending for request in traced.next(2)] == ["fatal", "finished"]


def test_a_memory_limit_is_recorded_and_the_peak_stops_at_it(fpm: Fpm, traced: Tracer, backend: str) -> None:
    fpm.get("limit.php")
    (request,) = traced.next()

    assert request.memory_limit == (None if "memory_limit" in CANNOT_SEE[backend] else 67_108_864)
    assert request.zend_real_peak is not None
    assert 60_000_000 < request.zend_real_peak <= 67_108_864


def test_a_request_for_no_file_has_no_script_and_says_so(fpm: Fpm, traced: Tracer, backend: str) -> None:
    fpm.get("there-is-none.php", REQUEST_URI="/there-is-none.php")
    (request,) = traced.next()

    assert (request.script, request.uri, request.status) == (None, "/there-is-none.php", 404)
    assert notes(request) == NOTES[backend] | {Note.NO_SCRIPT.value}


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGSEGV])
def test_a_request_cut_by_its_workers_death_names_the_signal(fpm: Fpm, traced: Tracer, number: signal.Signals) -> None:
    answer = fpm.get("signal.php", QUERY_STRING=str(number.value))
    (request,) = traced.next()

    assert not answer.ended
    assert request.ending == f"killed:{number.name.removeprefix('SIG')}"
    assert request.script == f"{fpm.folder}/signal.php"
    assert request.anon_before is not None
    assert request.anon_after is None
    assert request.growth is None
    assert Note.END_NOT_SEEN.value in notes(request)


def test_a_segfault_is_a_segfault(fpm: Fpm, traced: Tracer) -> None:
    fpm.get("segfault.php")
    (request,) = traced.next()

    assert (request.ending, request.anon_after) == ("killed:SEGV", None)


def test_a_worker_that_leaves_in_mid_request_cuts_it_off(fpm: Fpm, traced: Tracer) -> None:
    fpm.get("leave.php")
    (request,) = traced.next()

    assert request.ending == "cut_off"
    assert {Note.END_NOT_SEEN.value, Note.WORKER_EXITED.value} <= notes(request)
    wait_for(lambda: traced.poll() or any(w.exit == "exited:7" for w in traced.workers), "the worker's end")


def test_the_worker_that_follows_a_killed_one_is_traced(fpm: Fpm, traced: Tracer) -> None:
    fpm.get("signal.php", QUERY_STRING=str(signal.SIGKILL.value))
    (killed,) = traced.next()
    fpm.get("hello.php")
    (request,) = traced.next()

    assert request.pid != killed.pid
    assert (request.nth, request.pool) == (1, "www")


def test_a_request_over_request_terminate_timeout_is_killed_by_the_master(
    start_fpm: Callable[..., Fpm], trace: Callable[..., Tracer]
) -> None:
    fpm = start_fpm(www=f"{ONE_WORKER}\nrequest_terminate_timeout = 1")
    tracer = trace(str(fpm.master))
    answer = fpm.get("wait.php", QUERY_STRING="/nowhere")
    (request,) = tracer.next()

    assert not answer.ended
    assert (request.ending, request.anon_after) == ("killed:TERM", None)


def test_a_request_in_flight_when_tracing_begins_is_counted_as_cut(
    start_fpm: Callable[..., Fpm], trace: Callable[..., Tracer]
) -> None:
    fpm = start_fpm(www=ONE_WORKER)
    flag = fpm.folder / "begin"
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(str(fpm.socket()))
        fastcgi.send(connection, fpm.params("wait.php", REQUEST_URI="/wait", QUERY_STRING=str(flag)))
        wait_for(lambda: _busy(fpm), "the request to run")
        tracer = trace(str(fpm.master))
        flag.touch()
        assert fastcgi.receive(connection).body == b"waited"
        connection.shutdown(socket.SHUT_RDWR)  # a process that traces has inherited a copy
    fpm.get("hello.php")
    cut, whole = tracer.next(2)

    assert cut.ending == "cut_off"
    assert Note.START_NOT_SEEN.value in notes(cut)
    assert (cut.uri, cut.script, cut.method) == ("/wait", f"{fpm.folder}/wait.php", "GET")
    assert cut.growth is not None
    assert cut.duration_ns is not None
    assert not cut.complete
    assert whole.complete


def test_a_request_in_flight_when_tracing_ends_is_counted_as_cut(
    start_fpm: Callable[..., Fpm], trace: Callable[..., Tracer]
) -> None:
    fpm = start_fpm(www=ONE_WORKER)
    flag = fpm.folder / "end"
    tracer = trace(str(fpm.master))
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(str(fpm.socket()))
        fastcgi.send(connection, fpm.params("wait.php", REQUEST_URI="/wait", QUERY_STRING=str(flag)))
        wait_for(lambda: _busy(fpm), "the request to run")
        tracer.close()
        flag.touch()
        assert fastcgi.receive(connection).body == b"waited"
    (request,) = tracer.requests

    assert request.ending == "cut_off"
    assert Note.END_NOT_SEEN.value in notes(request)
    assert request.script == f"{fpm.folder}/wait.php"
    assert request.anon_before is not None
    assert request.anon_after is not None
    assert not request.complete
    assert request.duration_ns is not None
    assert request.duration_ns > 0


BLOCK = 1_003_520  # bytes that Zend's heap takes for 1,000,000: 245 pages


class Stream:
    """A request of in_flight.php, which holds as many blocks as hold() asks for."""

    def __init__(self, fpm: Fpm, blocks: int) -> None:
        self._file = fpm.folder / "ticks"
        self._held = fpm.folder / "ticks.held"
        self._held.write_text("0")
        self._held.chmod(0o666)
        self.hold(blocks, wait=False)
        self._connection = socket.socket(socket.AF_UNIX)
        self._connection.connect(str(fpm.socket()))
        fastcgi.send(self._connection, fpm.params("in_flight.php", REQUEST_URI="/s?x=1", QUERY_STRING=str(self._file)))
        self.hold(blocks)

    def hold(self, blocks: int, *, wait: bool = True) -> None:
        """Have it hold so many blocks; 0 ends it."""
        new = self._file.with_suffix(".new")  # an empty file would end it
        new.write_text(str(blocks))
        new.rename(self._file)
        if blocks and wait:
            wait_for(lambda: self._held.read_text() == str(blocks), "the stream to hold its blocks")

    def end(self) -> None:
        self.hold(0)
        assert fastcgi.receive(self._connection).body == b"done"
        self._connection.shutdown(socket.SHUT_RDWR)  # a process that traces has inherited a copy
        self._connection.close()


@pytest.mark.parametrize("began", ["before tracing", "while tracing"])
def test_a_request_that_runs_is_shown_with_its_growth_so_far(
    start_fpm: Callable[..., Fpm], trace: Callable[..., Tracer], began: str
) -> None:
    fpm = start_fpm(www=TWO_WORKERS)
    if began == "before tracing":
        stream = Stream(fpm, 3)
        tracer = trace(str(fpm.master))
    else:
        tracer = trace(str(fpm.master))
        stream = Stream(fpm, 3)
    backend = tracer.backend
    tracer.poll()
    wait_for(lambda: backend.in_flight(0.0), "the request to be noticed")
    stream.hold(23)
    [found] = backend.in_flight(0.0)
    long_ones = backend.in_flight(3600.0)
    stream.end()

    assert (found.uri, found.script) == ("/s", f"{fpm.folder}/in_flight.php")
    assert found.growth is not None
    assert found.growth > 19 * BLOCK
    assert long_ones == []
    tracer.next()
    assert backend.in_flight(0.0) == []


def test_a_request_that_began_before_tracing_and_goes_on_after_it_has_its_growth_meanwhile(
    start_fpm: Callable[..., Fpm], trace: Callable[..., Tracer]
) -> None:
    fpm = start_fpm(www=ONE_WORKER)
    stream = Stream(fpm, 3)
    tracer = trace(str(fpm.master))
    tracer.poll()
    stream.hold(23)
    tracer.poll()
    tracer.close()
    stream.end()

    (request,) = tracer.requests
    assert (request.uri, request.script, request.method) == ("/s", f"{fpm.folder}/in_flight.php", "GET")
    assert (request.ending, request.pool, request.complete) == ("cut_off", "www", False)
    assert notes(request) >= {Note.START_NOT_SEEN.value, Note.END_NOT_SEEN.value}
    assert request.growth == pytest.approx(20 * BLOCK, rel=0.05)
    assert request.zend_real_before is not None
    assert request.zend_real_after is not None
    assert request.zend_real_after - request.zend_real_before == pytest.approx(20 * BLOCK, abs=2 * 2_097_152)


def test_a_request_that_began_while_tracing_and_goes_on_after_it_has_its_growth_until_then(
    start_fpm: Callable[..., Fpm], trace: Callable[..., Tracer]
) -> None:
    fpm = start_fpm(www=ONE_WORKER)
    tracer = trace(str(fpm.master))
    stream = Stream(fpm, 20)
    tracer.poll()
    tracer.close()
    stream.end()

    (request,) = tracer.requests
    assert (request.uri, request.ending, request.complete) == ("/s", "cut_off", False)
    assert request.growth == pytest.approx(20 * BLOCK, rel=0.1)


def test_after_a_reload_too_a_request_that_goes_on_after_tracing_has_its_growth_until_then(
    start_fpm: Callable[..., Fpm], trace: Callable[..., Tracer]
) -> None:
    fpm = start_fpm(www=ONE_WORKER)
    tracer = trace(str(fpm.master))
    [before] = fpm.workers()
    os.kill(fpm.master, signal.SIGUSR2)
    wait_for(lambda: fpm.workers() not in ([], [before]) and fpm.answers(), "php-fpm to be reloaded")
    stream = Stream(fpm, 20)
    tracer.next()
    tracer.poll()
    tracer.close()
    stream.end()

    *_, request = tracer.requests
    assert (request.uri, request.ending, request.complete) == ("/s", "cut_off", False)
    assert request.growth == pytest.approx(20 * BLOCK, rel=0.1)


def test_a_request_that_began_before_tracing_and_ends_in_it_has_its_growth_since(
    start_fpm: Callable[..., Fpm], trace: Callable[..., Tracer]
) -> None:
    fpm = start_fpm(www=ONE_WORKER)
    stream = Stream(fpm, 40)
    tracer = trace(str(fpm.master))
    tracer.poll()
    stream.end()
    fpm.get("hello.php")

    cut, whole = tracer.next(2)
    assert (cut.uri, cut.ending, cut.complete) == ("/s", "cut_off", False)
    assert Note.START_NOT_SEEN.value in notes(cut)
    # At its end Zend gives back what the array took, but for the chunks that it caches.
    assert cut.growth is not None
    assert -40 * BLOCK - 2_097_152 < cut.growth < -10 * BLOCK
    assert cut.zend_real_before is not None
    assert cut.zend_real_before > 40 * BLOCK
    assert (whole.uri, whole.complete) == ("/hello.php", True)


def test_a_worker_that_is_idle_when_tracing_begins_has_no_request_of_its_own(
    start_fpm: Callable[..., Fpm], trace: Callable[..., Tracer]
) -> None:
    fpm = start_fpm(www=ONE_WORKER)
    fpm.get("grow.php")
    tracer = trace(str(fpm.master))
    fpm.get("hello.php")
    (request,) = tracer.next()
    tracer.close()

    assert tracer.requests == [request]
    assert request.complete


def _busy(fpm: Fpm) -> bool:
    """True if the one worker is in wait.php's usleep()."""
    (worker,) = fpm.workers()
    return is_asleep(worker)
