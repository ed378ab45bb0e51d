"""A request whose end is missed is reported when the next begins, not overwritten."""

from __future__ import annotations

from collections.abc import Callable

from altered_programs import Noting, altering, remove
from backend_kinds import PROGRAMS
from fpm import Fpm
from tracing import Tracer


def test_a_request_whose_end_is_missed_is_reported_when_the_next_begins(fpm: Fpm, trace: Callable[..., Tracer]) -> None:
    ends: list[int] = []
    compiled = altering("request.bpf.c", lambda programs: Noting(programs, "on_end", ends), PROGRAMS)
    tracer = trace(str(fpm.master), compiled=compiled)
    (end,) = ends
    remove(end)
    fpm.get("hello.php", REQUEST_URI="/first")
    fpm.get("hello.php", REQUEST_URI="/second")
    (first,) = tracer.next()
    tracer.close()

    assert [request.uri for request in tracer.requests] == ["/first", "/second"]
    assert {request.ending for request in tracer.requests} == {"cut_off"}
    assert (first.anon_after, first.anon_before is not None) == (None, True)
