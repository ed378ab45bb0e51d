"""The same workload on both backends: the same facts, as far as both can see them."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from backend_kinds import BPF, BREAKPOINTS, CANNOT_SEE, PTRACE_PARAMS, make_backend
from fpm import ONE_WORKER, Fpm
from tracing import Tracer

pytestmark = pytest.mark.needs_bpf
KIB = 1024
# (script, query string): each is run on a worker that has seen it before.
WORKLOAD = (
    ("hello.php", ""),
    ("leak.php", "1000003"),
    ("leak.php", "131072"),
    ("hold.php", "10"),
    ("hello.php", ""),
    ("huge.php", "30000001"),
    ("gd.php", ""),
    ("brk.php", ""),
    ("fatal.php", ""),
    ("hello.php", ""),
    ("nosuch.php", ""),
    ("finish.php", ""),
    ("hello.php", "a=1"),
)
EQUAL = ("uri", "script", "method", "status", "ending", "map_bytes", "map_calls", "unmap_bytes", "unmap_calls",
         "brk_bytes", "brk_calls", "zend_real_before", "zend_real_after", "zend_real_peak", "nth", "pool")  # fmt: skip


@pytest.mark.parametrize("backend", PTRACE_PARAMS)
def test_both_backends_say_the_same_of_the_same_requests(start_fpm: Callable[..., Fpm], backend: str) -> None:
    """Both at once on one worker: another worker's heap begins at another place, and grows by another page."""
    fpm = start_fpm(www=ONE_WORKER)
    for script, query in WORKLOAD:
        fpm.get(script, QUERY_STRING=query)
    ptrace = Tracer(make_backend(backend), str(fpm.master))
    bpf = Tracer(make_backend(BPF), str(fpm.master))
    for script, query in WORKLOAD:
        fpm.get(script, QUERY_STRING=query, REQUEST_URI=f"/{script}?{query}")
    pairs = list(zip(bpf.next(len(WORKLOAD)), ptrace.next(len(WORKLOAD)), strict=True))
    bpf.close()
    ptrace.close()

    assert [ours.uri for ours, _ in pairs] == [f"/{script}" for script, _ in WORKLOAD]
    assert all(request.complete for pair in pairs for request in pair)
    differing = {}
    for ours, theirs in pairs:
        for field in sorted(set(EQUAL) - CANNOT_SEE[backend]):
            if getattr(ours, field) != getattr(theirs, field):
                differing[ours.uri, ours.nth, field] = getattr(ours, field), getattr(theirs, field)
        if ours.growth is None or theirs.growth is None or abs(ours.growth - theirs.growth) > 8 * KIB:
            differing[ours.uri, ours.nth, "growth"] = ours.growth, theirs.growth
    assert differing == {}


@pytest.mark.needs_ptrace
def test_breakpoints_leave_brk_bytes_empty(fpm: Fpm) -> None:
    tracer = Tracer(make_backend(BREAKPOINTS), str(fpm.master))
    fpm.get("brk.php")
    (request,) = tracer.next()
    tracer.close()

    assert request.brk_bytes is None
