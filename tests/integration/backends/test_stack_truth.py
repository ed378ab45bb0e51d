"""Call stacks against what PHP says of itself: debug_backtrace(), with opcache on, off, and JIT."""

from __future__ import annotations

import json
import mmap
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from conftest import Fpm, Tracer

from tracer.backends import StackOptions
from tracer.backends.bpf.backend import BpfBackend
from tracer.backends.ptrace.backend import PtraceBackend
from tracer.facts import Frame, Metric

_JIT = ("opcache.enable=1", "opcache.jit_buffer_size=64M")
OPCACHE = {
    "opcache": ("opcache.enable=1", "opcache.jit=off"),
    "no opcache": ("opcache.enable=0",),
    "jit of functions": (*_JIT, "opcache.jit=function"),
    "jit of traces": (*_JIT, "opcache.jit=tracing", "opcache.jit_hot_func=2", "opcache.jit_hot_loop=2"),
}
DEPTH = 128
SITUATIONS = 45
_INCLUDES = ("require", "require_once", "include", "include_once")


@pytest.fixture(scope="module", params=[(mode, "bpf") for mode in OPCACHE] + [("opcache", "ptrace")], ids="-".join)
def pool(request: pytest.FixtureRequest, start_fpm: Callable[..., Fpm]) -> Iterator[tuple[Fpm, Tracer]]:
    mode, backend = request.param
    fpm = start_fpm(*OPCACHE[mode], www="pm = static\npm.max_children = 1")
    jit = fpm.get("jit.php").text
    assert jit == ("1" if "jit" in mode else "")
    stacks = StackOptions(max_depth=DEPTH)
    tracer = Tracer(
        str(fpm.master), backend=BpfBackend(stacks=stacks) if backend == "bpf" else PtraceBackend(stacks=stacks)
    )
    yield fpm, tracer
    tracer.close()


def expected(backtrace: list[dict[str, Any]]) -> list[tuple[str, int | None]]:
    """(name, line) of each frame, the innermost first, from what debug_backtrace() said in probe().

    An entry names a function and says where it was called, which is the line of the next.
    """
    frames: list[tuple[str, int | None]] = []
    line: int | None = None  # of the innermost, probe(): it is not in there
    for entry in backtrace:
        name = "require" if entry["function"] in _INCLUDES else entry["function"]
        if "class" in entry:
            name = f"{entry['class'].split(chr(0))[0]}::{name}"
        frames.append((name, line))
        line = entry.get("line")
    if line is not None:
        frames.append(("<main>", line))
    return frames


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
