"""Call stacks against what PHP says of itself: debug_backtrace(), with opcache on, off, and JIT."""

from __future__ import annotations

import json
import mmap
from collections.abc import Callable, Iterator

import pytest
from backend_kinds import BPF_PARAM, SYSCALLS_PARAM, make_backend
from backtraces import SITUATIONS, expected
from fpm import ONE_WORKER, Fpm
from tracing import Tracer

from tracer.backends import StackOptions
from tracer.facts import Frame, Metric

_JIT = ("opcache.enable=1", "opcache.jit_buffer_size=64M")
OPCACHE = {
    "opcache": ("opcache.enable=1", "opcache.jit=off"),
    "no opcache": ("opcache.enable=0",),
    "jit of functions": (*_JIT, "opcache.jit=function"),
    "jit of traces": (*_JIT, "opcache.jit=tracing", "opcache.jit_hot_func=2", "opcache.jit_hot_loop=2"),
}
DEPTH = 128


@pytest.fixture(scope="module", params=[BPF_PARAM, SYSCALLS_PARAM])
def backend(request: pytest.FixtureRequest) -> str:
    """The backends that have stacks: all without breakpoints."""
    return str(request.param)


@pytest.fixture(scope="module", params=OPCACHE)
def pool(request: pytest.FixtureRequest, start_fpm: Callable[..., Fpm], backend: str) -> Iterator[tuple[Fpm, Tracer]]:
    fpm = start_fpm(*OPCACHE[request.param], www=ONE_WORKER)
    jit = fpm.get("jit.php").text
    assert jit == ("1" if "jit" in request.param else "")
    tracer = Tracer(make_backend(backend, stacks=StackOptions(max_depth=DEPTH)), str(fpm.master))
    yield fpm, tracer
    tracer.close()


def shown(stack: tuple[Frame, ...]) -> list[tuple[str, int | None]]:
    return [(frame.name, frame.line) for frame in reversed(stack)]


def test_every_situation_has_the_stack_that_php_says(pool: tuple[Fpm, Tracer]) -> None:
    fpm, tracer = pool
    for _ in range(3):  # the third finds compiled what JIT compiles
        answer = fpm.get("stacks.php")
        (request,) = tracer.next()
    truth = json.loads(answer.body)
    found = {
        growth.bytes // mmap.PAGESIZE: growth.stack
        for growth in tracer.growths
        if growth.metric == Metric.MAPPED.value and growth.nth == request.nth
        and growth.stack[-1].name == "mmap"
    }  # fmt: skip

    differing = {}
    for name, (pages, backtrace) in truth.items():
        internal, probe, *callers = shown(found[pages])
        wanted = expected(backtrace)[1:]
        if len(wanted) > DEPTH - 2:
            wanted = [*wanted[: DEPTH - 2], ("[truncated]", None)]
        if (internal, probe[0], callers) != (("mmap", None), "probe", wanted):
            differing[name] = callers, wanted
    assert differing == {}
    assert len(truth) == SITUATIONS
