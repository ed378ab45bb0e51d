"""The same workload on both backends: the same facts, as far as both can see them."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
from conftest import Fpm, Tracer

from tracer.backends.bpf import BpfBackend
from tracer.backends.ptrace import PtraceBackend
from tracer.facts import Request

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


@pytest.fixture(scope="module", params=["bpf", "syscalls", "boundaries"])
def seen(request: pytest.FixtureRequest, start_fpm: Callable[..., Fpm]) -> Iterator[tuple[str, list[Request]]]:
    """What a backend says of the workload, the second time it is run."""
    fpm = start_fpm(www="pm = static\npm.max_children = 1")
    for script, query in WORKLOAD:
        fpm.get(script, QUERY_STRING=query)
    backend = BpfBackend() if request.param == "bpf" else PtraceBackend(boundaries=request.param == "boundaries")
    tracer = Tracer(str(fpm.master), backend=backend)
    for script, query in WORKLOAD:
        fpm.get(script, QUERY_STRING=query, REQUEST_URI=f"/{script}?{query}")
    found = tracer.next(len(WORKLOAD))
    tracer.close()
    return request.param, [fact._replace(script=(fact.script or "").rpartition("/")[2] or None) for fact in found]


_FOUND: dict[str, list[Request]] = {}


def test_a_backend_sees_the_workload(seen: tuple[str, list[Request]]) -> None:
    name, requests = seen
    _FOUND[name] = requests

    assert [request.uri for request in requests] == [f"/{script}" for script, _ in WORKLOAD]
    assert all(request.complete for request in requests)


@pytest.mark.parametrize("mode", ["syscalls", "boundaries"])
def test_both_say_the_same(mode: str) -> None:
    differing = {}
    for bpf, ptrace in zip(_FOUND["bpf"], _FOUND[mode], strict=True):
        for field in EQUAL if mode == "syscalls" else sorted(set(EQUAL) - CALLS):
            if getattr(bpf, field) != getattr(ptrace, field):
                differing[bpf.uri, bpf.nth, field] = getattr(bpf, field), getattr(ptrace, field)
        for field in ("growth", "native_growth"):
            ours, theirs = getattr(bpf, field), getattr(ptrace, field)
            if ours is None or theirs is None or abs(ours - theirs) > 8 * KIB:
                differing[bpf.uri, bpf.nth, field] = ours, theirs
    assert differing == {}
