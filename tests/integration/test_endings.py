"""How a request ends is told apart, and a request that never ended is not dropped."""

from __future__ import annotations

import os
import signal
import socket
from collections.abc import Callable

import fastcgi
import pytest
from conftest import Fpm, Tracer, wait_for

from tracer.backends.bpf.attaching import UPROBES_ON_PHP
from tracer.backends.bpf.backend import BpfBackend
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
def test_the_ending_of_a_request_that_came_to_one(
    fpm: Fpm, traced: Tracer, script: str, ending: str, status: int
) -> None:
    fpm.get(script)
    (request,) = traced.next()

    assert (request.ending, request.status) == (ending, status)
    assert request.notes is None
    assert request.complete


@pytest.mark.parametrize(
    ("script", "ending"), [("hello.php", "finished"), ("exit.php", "exited"), ("none.php", "finished")]
)
def test_a_request_after_a_fatal_one_is_not_fatal(fpm: Fpm, traced: Tracer, script: str, ending: str) -> None:
    for each in ("fatal.php", script):
        fpm.get(each)
    fatal, request = traced.next(2)

    assert (fatal.ending, request.ending) == ("fatal", ending)


def test_a_fatal_error_in_a_shutdown_function_is_fatal(fpm: Fpm, traced: Tracer) -> None:
    for script in ("hello.php", "late.php"):
        fpm.get(script)
    _, request = traced.next(2)

    assert request.ending == "fatal"


def test_a_memory_limit_is_recorded_and_the_peak_stops_at_it(fpm: Fpm, traced: Tracer) -> None:
    fpm.get("limit.php")
    (request,) = traced.next()

    assert request.memory_limit == 67_108_864
    assert request.zend_real_peak is not None
    assert 60_000_000 < request.zend_real_peak <= 67_108_864


def test_a_request_for_no_file_has_no_script_and_says_so(fpm: Fpm, traced: Tracer) -> None:
    fpm.get("there-is-none.php", REQUEST_URI="/there-is-none.php")
    (request,) = traced.next()

    assert (request.script, request.uri, request.status) == (None, "/there-is-none.php", 404)
    assert request.notes == Note.NO_SCRIPT.value


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
    assert request.notes == Note.END_NOT_SEEN.value


def test_a_segfault_is_a_segfault(fpm: Fpm, traced: Tracer) -> None:
    fpm.get("segfault.php")
    (request,) = traced.next()

    assert request.ending == "killed:SEGV"


def test_a_worker_that_leaves_in_mid_request_cuts_it_off(fpm: Fpm, traced: Tracer) -> None:
    fpm.get("leave.php")
    (request,) = traced.next()

    assert request.ending == "cut_off"
    assert request.notes == f"{Note.NO_END.value},{Note.WORKER_EXITED.value}"
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
    fpm = start_fpm(www="pm = static\npm.max_children = 1\nrequest_terminate_timeout = 1")
    tracer = trace(str(fpm.master))
    answer = fpm.get("wait.php", QUERY_STRING="/nowhere")
    (request,) = tracer.next()

    assert not answer.ended
    assert request.ending == "killed:TERM"


def test_a_request_in_flight_when_tracing_begins_is_counted_as_cut(fpm: Fpm, trace: Callable[..., Tracer]) -> None:
    flag = fpm.folder / "begin"
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(str(fpm.socket()))
        fastcgi.send(connection, _params(fpm, f"{flag}"))
        wait_for(lambda: _busy(fpm), "the request to run")
        tracer = trace(str(fpm.master))
        flag.touch()
        assert fastcgi.receive(connection).body == b"waited"
    fpm.get("hello.php")
    cut, whole = tracer.next(2)

    assert (cut.ending, cut.notes) == ("cut_off", Note.START_NOT_SEEN.value)
    assert (cut.growth, cut.uri, cut.script, cut.anon_after) == (None, None, None, None)
    assert whole.complete


def test_a_request_in_flight_when_tracing_ends_is_counted_as_cut(fpm: Fpm, trace: Callable[..., Tracer]) -> None:
    flag = fpm.folder / "end"
    tracer = trace(str(fpm.master))
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(str(fpm.socket()))
        fastcgi.send(connection, _params(fpm, f"{flag}"))
        wait_for(lambda: _busy(fpm), "the request to run")
        tracer.close()
        flag.touch()
        assert fastcgi.receive(connection).body == b"waited"
    (request,) = tracer.requests

    assert (request.ending, request.notes) == ("cut_off", Note.END_NOT_SEEN.value)
    assert request.script == f"{fpm.folder}/wait.php"
    assert request.anon_before is not None
    assert request.anon_after is None
    assert request.duration_ns is not None
    assert request.duration_ns > 0


def _params(fpm: Fpm, query: str) -> dict[str, str]:
    return {
        "SCRIPT_FILENAME": f"{fpm.folder}/wait.php",
        "REQUEST_URI": "/wait",
        "REQUEST_METHOD": "GET",
        "QUERY_STRING": query,
    }


def _busy(fpm: Fpm) -> bool:
    """Whether the one worker is in wait.php's usleep()."""
    (worker,) = fpm.workers()
    with open(f"/proc/{worker}/wchan") as wchan:
        return "nanosleep" in wchan.read()


def test_a_request_whose_end_is_missed_is_told_when_the_next_begins(fpm: Fpm, trace: Callable[..., Tracer]) -> None:
    tracer = trace(str(fpm.master))
    assert isinstance(tracer.backend, BpfBackend)
    at = [name for name in UPROBES_ON_PHP if name != "on_startup"].index("on_end")
    php = len(tracer.backend._attachment.uprobes) - len(UPROBES_ON_PHP)
    os.close(tracer.backend._attachment.uprobes.pop(php + at))
    fpm.get("hello.php", REQUEST_URI="/first")
    fpm.get("hello.php", REQUEST_URI="/second")
    (first,) = tracer.next()
    tracer.close()

    assert [request.uri for request in tracer.requests] == ["/first", "/second"]
    assert {request.ending for request in tracer.requests} == {"cut_off"}
    assert (first.anon_after, first.anon_before is not None) == (None, True)
