"""The same workload on both backends: the same facts, as far as both can see them."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from conftest import Fpm, Tracer

from tracer.backends import PtraceMode
from tracer.backends.bpf.backend import BpfBackend
from tracer.backends.ptrace.backend import PtraceBackend

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


# Breakpoints see no system calls.
CALLS = {"map_bytes", "map_calls", "unmap_bytes", "unmap_calls", "brk_bytes", "brk_calls"}


@pytest.mark.parametrize("mode", ["syscalls", "breakpoints"])
def test_both_backends_say_the_same_of_the_same_requests(start_fpm: Callable[..., Fpm], mode: str) -> None:
    """Both at once on one worker: another worker's heap begins at another place, and grows by another page."""
    fpm = start_fpm(www="pm = static\npm.max_children = 1")
    for script, query in WORKLOAD:
        fpm.get(script, QUERY_STRING=query)
    ptrace = Tracer(str(fpm.master), backend=PtraceBackend(mode=PtraceMode(mode)))
    bpf = Tracer(str(fpm.master), backend=BpfBackend())
    for script, query in WORKLOAD:
        fpm.get(script, QUERY_STRING=query, REQUEST_URI=f"/{script}?{query}")
    pairs = list(zip(bpf.next(len(WORKLOAD)), ptrace.next(len(WORKLOAD)), strict=True))
    bpf.close()
    ptrace.close()

    assert [ours.uri for ours, _ in pairs] == [f"/{script}" for script, _ in WORKLOAD]
    assert all(request.complete for pair in pairs for request in pair)
    differing = {}
    for ours, theirs in pairs:
        for field in EQUAL if mode == "syscalls" else sorted(set(EQUAL) - CALLS):
            if getattr(ours, field) != getattr(theirs, field):
                differing[ours.uri, ours.nth, field] = getattr(ours, field), getattr(theirs, field)
        for field in ("growth", "native_growth"):
            one, other = getattr(ours, field), getattr(theirs, field)
            if one is None or other is None or abs(one - other) > 8 * KIB:
                differing[ours.uri, ours.nth, field] = one, other
    assert differing == {}
