"""A connection that is kept, and connections a script accepts itself: each request is one request."""

from __future__ import annotations

from collections.abc import Callable

from backend_kinds import kept
from fpm import ONE_WORKER, TWO_WORKERS, Fpm
from proc_status import state
from tracing import Tracer
from visits import KeptConnection
from waiting import wait_for


def test_requests_of_a_kept_connection_are_told_apart(
    start_fpm: Callable[..., Fpm], trace: Callable[..., Tracer]
) -> None:
    fpm = start_fpm(www=TWO_WORKERS)
    tracer = trace(str(fpm.master))
    connection = KeptConnection(fpm)
    for number in range(7):
        assert connection.get(f"/{number}", "hello.php") == "hello"
    requests = tracer.next(7)
    connection.close()

    assert [request.uri for request in requests] == [f"/{number}" for number in range(7)]
    assert {request.ending for request in requests} == {"finished"}


def test_an_idle_worker_with_a_kept_connection_is_in_no_request(
    start_fpm: Callable[..., Fpm], trace: Callable[..., Tracer]
) -> None:
    fpm = start_fpm(www=ONE_WORKER)
    connection = KeptConnection(fpm)
    connection.get("/before")
    wait_for(lambda: state(fpm.workers()[0])[0] == "S", "the worker to wait")
    tracer = trace(str(fpm.master))
    connection.get("/after")
    (request,) = tracer.next()
    connection.close()
    tracer.close()

    assert len(tracer.requests) == 1
    assert (request.uri, request.complete) == ("/after", True)


def test_a_script_that_accepts_connections_is_one_request(
    start_fpm: Callable[..., Fpm], trace: Callable[..., Tracer]
) -> None:
    fpm = start_fpm(www=ONE_WORKER)
    tracer = trace(str(fpm.master))
    for number in range(3):
        answer = fpm.get("accept.php", QUERY_STRING="1000003", REQUEST_URI=f"/{number}")
        assert answer.text == "hello\n"
    requests = tracer.next(3)
    tracer.close()

    assert [request.uri for request in tracer.requests] == ["/0", "/1", "/2"]
    assert all(request.complete for request in requests)
    grown = kept(requests[2])
    assert grown is not None
    assert abs(grown - 1_000_003) <= 8 * 1024
