"""Stacks name the right function or none, where they are deeper than is asked for, and in PHPs that are not known."""

from __future__ import annotations

import dataclasses
import json
import mmap
from collections.abc import Callable

import pytest
from backtraces import SITUATIONS, expected
from fpm import Fpm
from tracing import Tracer

from tracer.backends import StackOptions
from tracer.backends.bpf.programs import Programs
from tracer.facts import UNREADABLE, FrameKind, Loss, Metric
from tracer.targets import php as php_binary
from tracer.targets.layouts import StackLayout


def test_a_stack_deeper_than_asked_for_is_marked_and_keeps_its_innermost(
    uncached: Fpm, trace: Callable[..., Tracer]
) -> None:
    tracer = trace(str(uncached.master), stacks=StackOptions(max_depth=5))
    uncached.get("stacks.php")
    tracer.next()

    deep = [growth.stack for growth in tracer.growths if growth.stack[-2:][0].name == "probe" and len(growth.stack) > 5]
    assert deep != []
    assert {(stack[0].name, len(stack)) for stack in deep} == {("[truncated]", 6)}


def test_a_depth_the_verifier_refuses_is_halved_and_reported(uncached: Fpm, trace: Callable[..., Tracer]) -> None:
    tracer = trace(str(uncached.master), stacks=StackOptions(max_depth=512), compiled=Programs)
    uncached.get("stacks.php")
    tracer.next()

    told = [lack for lack in tracer.backend.lacking if lack.startswith("stacks: at most")]
    assert told == ["stacks: at most 256 frames of a stack, not 512: the kernel does not load more"]
    assert max(len(growth.stack) for growth in tracer.growths) > 150


def test_an_unknown_php_is_traced_without_stacks_and_says_why(
    uncached: Fpm, trace: Callable[..., Tracer], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(php_binary, "stack_layout_of", lambda _: None)
    tracer = trace(str(uncached.master), stacks=StackOptions())
    uncached.get("leak.php", QUERY_STRING="1000003")
    (request,) = tracer.next()

    assert request.complete
    assert tracer.growths == []
    assert "not measured: call stacks (PHP 8.2 is not in the table of layouts)" in tracer.backend.lacking


@pytest.mark.parametrize("field", ["filename", "opcodes", "last", "eg_current_execute_data"])
def test_a_layout_that_is_not_this_builds_names_no_wrong_function_and_no_wrong_line(
    uncached: Fpm, trace: Callable[..., Tracer], monkeypatch: pytest.MonkeyPatch, field: str
) -> None:
    known = php_binary.stack_layout_of((8, 2, 36))
    assert known is not None
    wrong: StackLayout = dataclasses.replace(known, **{field: getattr(known, field) + 16})
    monkeypatch.setattr(php_binary, "_stack", lambda *_: (wrong, None))
    tracer = trace(str(uncached.master), stacks=StackOptions())
    answer = uncached.get("stacks.php")
    tracer.next()

    # Of the innermost, probe(), debug_backtrace() does not say the line: it is that of the call of mmap().
    mapping = (uncached.folder / "stacks.php").read_text().split("libc->mmap", 1)[0].count("\n") + 1
    truth = {("probe", mapping)}
    for _, backtrace in json.loads(answer.body).values():
        truth |= set(expected(backtrace)[1:])
    mapped = [g for g in tracer.growths if g.metric == Metric.MAPPED.value and g.stack[-1].name == "mmap"]
    frames = [frame for growth in mapped for frame in growth.stack if frame.kind == FrameKind.USER.value]
    assert tracer.growths != []
    assert {frame.name for frame in frames} <= {name for name, _ in truth}
    assert {(frame.name, frame.line) for frame in frames if frame.line is not None} <= truth
    for growth in tracer.growths:
        for frame in growth.stack:
            assert frame.file is None or frame.file.startswith(("/", "…"))
    if field in ("filename", "eg_current_execute_data"):
        assert not any(frame.kind == FrameKind.USER.value for growth in tracer.growths for frame in growth.stack)
    else:
        # Without lines, some are the same stack.
        assert sum(growth.bytes for growth in mapped) == mmap.PAGESIZE * sum(range(1, SITUATIONS + 1))
        assert {frame.name for frame in frames} >= {"probe", "Situations::method", "{closure}"}
    if field == "filename":
        assert any(UNREADABLE in growth.stack for growth in tracer.growths)
        tracer.next(0)
        tracer.close()
        assert any("call stacks: none could be read" in f.why for f in tracer.facts if isinstance(f, Loss))
