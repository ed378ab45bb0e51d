"""Stacks name the right function or none: addresses used again, strange names, PHPs that are not known."""

from __future__ import annotations

import dataclasses
import json
import mmap
from collections.abc import Callable

import pytest
from backtraces import SITUATIONS, expected
from fpm import ONE_WORKER, Fpm
from tracing import Tracer

from tracer.backends import StackOptions
from tracer.backends.bpf.programs import Programs
from tracer.facts import UNREADABLE, FrameKind, Growth, Loss, Metric
from tracer.targets import php as php_binary
from tracer.targets.layouts import StackLayout


@pytest.fixture(scope="module")
def uncached(start_fpm: Callable[..., Fpm]) -> Fpm:
    """Without opcache, whose shared memory would give every function an address of its own."""
    fpm = start_fpm("opcache.enable=0", www=ONE_WORKER)
    fpm.folder.chmod(0o777)  # its scripts write files to include
    return fpm


@pytest.fixture(scope="module")
def cached(start_fpm: Callable[..., Fpm]) -> Fpm:
    return start_fpm("opcache.enable=1", www=ONE_WORKER)


def by_pages(tracer: Tracer) -> dict[int, list[Growth]]:
    """The growths by mmap() from a script, by how many pages each mapped at once."""
    found: dict[int, list[Growth]] = {}
    for growth in tracer.growths:
        if growth.metric == Metric.MAPPED.value and growth.stack[-1].name == "mmap":
            found.setdefault(growth.bytes // growth.samples // mmap.PAGESIZE, []).append(growth)
    return found


def test_of_300_stacks_at_the_same_addresses_none_names_another_script(
    uncached: Fpm, trace: Callable[..., Tracer]
) -> None:
    tracer = trace(str(uncached.master), stacks=StackOptions())
    names = {11: "one", 12: "two", 13: "six"}
    for _ in range(100):
        for name in names.values():
            uncached.get("layout.php", QUERY_STRING=name)
    tracer.next(300)

    found = by_pages(tracer)
    stacks = [(names[pages], growth.stack) for pages in names for growth in found[pages]]
    wrong = [
        (name, stack)
        for name, stack in stacks
        if [frame.name for frame in stack] != ["<main>", "require", f"grow_{name}", "mmap"]
        or not (stack[1].file or "").endswith(f"/layout_{name}.inc")
        or (stack[1].line, stack[2].line) != (6, 4)
    ]
    assert len(stacks) == 300
    assert wrong == []


def test_files_included_again_and_again_in_one_request_are_told_apart(
    uncached: Fpm, trace: Callable[..., Tracer]
) -> None:
    tracer = trace(str(uncached.master), stacks=StackOptions())
    assert uncached.get("reincluded.php").text == "grown"
    tracer.next()

    files = {}
    for pages, growths in by_pages(tracer).items():
        for growth in growths:
            files.setdefault(pages, set()).add((growth.stack[1].file or "").rpartition("-")[2])
    assert files == {11: {"one.inc"}, 12: {"two.inc"}, 13: {"six.inc"}}
    assert {pages: sum(g.samples for g in growths) for pages, growths in by_pages(tracer).items()} == {
        11: 50,
        12: 50,
        13: 50,
    }


@pytest.mark.parametrize("pool", ["uncached", "cached"])
def test_what_is_called_at_an_address_that_was_anothers_has_its_own_name(
    uncached: Fpm, cached: Fpm, trace: Callable[..., Tracer], pool: str
) -> None:
    fpm = {"uncached": uncached, "cached": cached}[pool]
    tracer = trace(str(fpm.master), stacks=StackOptions())
    assert fpm.get("bound.php").text == "grown"
    tracer.next()

    found = {
        tuple(frame.name for frame in growth.stack): (growth.bytes // mmap.PAGESIZE, growth.samples)
        for growth in tracer.growths
        if growth.metric == Metric.MAPPED.value and growth.stack[-1].name.startswith("mmap")
    }
    assert found == {
        ("<main>", "A::{closure}", "mmap"): (20 * 31, 20),
        ("<main>", "B::{closure}", "mmap"): (20 * 32, 20),
        ("<main>", "C::{closure}", "mmap"): (20 * 33, 20),
        ("<main>", "D::{closure}", "mmap"): (20 * 34, 20),
        ("<main>", "mmap"): (20 * 35, 20),
        ("<main>", "mmap64"): (20 * 36, 20),
    }


def test_strange_names_are_bounded_and_say_so(uncached: Fpm, trace: Callable[..., Tracer]) -> None:
    tracer = trace(str(uncached.master), stacks=StackOptions())
    assert uncached.get("names.php").text == "grown"
    tracer.next()

    caller = {pages: growth.stack[-3] for pages, (growth,) in by_pages(tracer).items()}
    assert caller[21].name == "n" * 127 + "…"
    assert caller[22].name == "Deep\\Space\\\udcff\udcfe"
    assert caller[23].name == "require"
    assert (caller[23].file or "").endswith("/<script>alert(1)</x.inc")
    assert (caller[24].file or "").startswith("…")
    assert (caller[24].file or "").endswith("d" * 100 + "/y.inc")
    assert len(caller[24].file or "") == 256
    assert caller[25].name == "class@anonymous::inside"


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
    tracer = trace(str(uncached.master), stacks=StackOptions(max_depth=1024), compiled=Programs)
    uncached.get("stacks.php")
    tracer.next()

    told = [lack for lack in tracer.backend.lacking if lack.startswith("stacks: at most")]
    assert told == ["stacks: at most 256 frames of a stack, not 1024: the kernel does not load more"]
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
