"""Native blocks that outlive their request are found below the function that allocated them, and no others are."""

from __future__ import annotations

import math
import os
import random
from collections import Counter
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from altered_programs import Altered, altering
from backend_kinds import BPF, PROGRAMS, make_backend
from fpm import ONE_WORKER, Fpm
from samples import WITH_STACKS
from tracing import Tracer
from waiting import wait_for

from tracer.analysis.flame.node import Node
from tracer.analysis.routes import Routes
from tracer.backends import NativeOptions, StackOptions
from tracer.backends.bpf import growth_probes, native_budget, uprobe_multi
from tracer.backends.bpf.programs import ProgramKind
from tracer.commands.flame_input import View, add_recording, chosen_view, flame_builder
from tracer.errors import UnsupportedError
from tracer.facts import THREAD, Fact, Metric, Request, Retained, Stack
from tracer.recording.reader import Reader
from tracer.recording.writer import Writer
from tracer.targets import kernel, processes

LEAK = 32 * (1040 + 32)  # bytes that native_leak.php keeps
BLOCK = 100_016  # the chunk of a block of 100,003 bytes
AFTER = StackOptions().retained_after
LEAKING_LINE = ("Translations::bind", "keep.inc", 9), ("bindtextdomain", None, None)
WITHOUT_LIMIT = {"native": NativeOptions(math.inf), "stacks": StackOptions()}
EVERY_BLOCK = {"native": NativeOptions(math.inf), "stacks": StackOptions(block_bytes=16)}


def send(fpm: Fpm, tracer: Tracer, scripts: list[str]) -> None:
    for at in range(0, len(scripts), 50):
        batch = scripts[at : at + 50]
        for script in batch:
            fpm.get(script)
        tracer.next(len(batch))


def warmed(fpm: Fpm) -> Fpm:
    """Every worker has run every innocent page, and has its caches."""
    with ThreadPoolExecutor(8) as clients:
        list(clients.map(fpm.get, ["native_page.php", "hello.php"] * 40))
    return fpm


def retained(tracer: Tracer) -> dict[str, list[Retained]]:
    """Retained bytes by the name of the script."""
    scripts = {(one.pid, one.nth): os.path.basename(one.script or "") for one in tracer.requests}
    found: dict[str, list[Retained]] = {}
    for fact in tracer.facts:
        if isinstance(fact, Retained):
            found.setdefault(scripts[fact.pid, fact.nth], []).append(fact)
    return found


def total(facts: Iterable[Retained]) -> int:
    return sum(fact.bytes for fact in facts)


def leaks(stack: Stack) -> bool:
    """True if the stack ends at the line of keep.inc that keeps, in the function that allocates."""
    last = tuple((frame.name, frame.file and os.path.basename(frame.file), frame.line) for frame in stack[-2:])
    return last == LEAKING_LINE


def by_leaking(facts: Iterable[Retained]) -> int:
    return total(fact for fact in facts if leaks(fact.stack))


def old_enough(requests: Iterable[Request]) -> list[Request]:
    """The requests after which so many others of their worker ended that what they keep is retained."""
    last = Counter[int]()
    every = list(requests)
    for one in every:
        last[one.pid] = max(last[one.pid], one.nth)
    return [one for one in every if one.nth + AFTER <= last[one.pid]]


def within_sampling_error(found: int, truth: int) -> bool:
    """True if the estimate is within five standard errors: at most sqrt(truth * gap), for blocks below the gap."""
    return abs(found - truth) < 5 * (truth * StackOptions().block_bytes) ** 0.5


IN_TURN = ["native_page.php", "hello.php", "native_leak.php"] * 50
ONE_IN_TEN = ["native_leak.php"] * 60 + ["native_page.php"] * 240 + ["hello.php"] * 300


@pytest.mark.parametrize(
    ("workers", "scripts", "shuffled"),
    [(1, IN_TURN, False), (2, IN_TURN, True), (2, ONE_IN_TEN, True)],
    ids=["in turn", "shuffled", "1 in 10"],
)
def test_a_leak_among_innocent_pages_is_on_the_leaking_line(
    start_fpm: Callable[..., Fpm],
    trace: Callable[..., Tracer],
    tmp_path: Path,
    workers: int,
    scripts: list[str],
    shuffled: bool,
) -> None:
    fpm = warmed(start_fpm(www=f"pm = static\npm.max_children = {workers}"))
    scripts = random.Random(7).sample(scripts, len(scripts)) if shuffled else scripts
    tracer = trace(str(fpm.master), **WITHOUT_LIMIT)

    send(fpm, tracer, scripts)
    tracer.close()

    found = retained(tracer)
    of_leak = found.pop("native_leak.php")
    truth = LEAK * sum("leak" in (one.script or "") for one in old_enough(tracer.requests))
    assert by_leaking(of_leak) >= 0.95 * total(of_leak)
    assert within_sampling_error(total(of_leak), truth), (total(of_leak), truth)
    # The name of a locale may outlive five requests; a sample of it stands for 8 KiB.
    assert sum(map(total, found.values())) <= 0.03 * truth
    assert tracer.losses == []
    assert_flame_shows_the_leaking_line(tmp_path, tracer)


def test_a_leak_below_six_megabytes_of_rows_is_on_the_leaking_line(
    start_fpm: Callable[..., Fpm], trace: Callable[..., Tracer], tmp_path: Path
) -> None:
    fpm = warmed(start_fpm(www=ONE_WORKER))
    tracer = trace(str(fpm.master), **EVERY_BLOCK)

    send(fpm, tracer, ["native_catalogue.php", "hello.php"] * 50)
    tracer.close()

    found = retained(tracer)
    of_leak = found.pop("native_catalogue.php")
    truth = LEAK * sum("catalogue" in (one.script or "") for one in old_enough(tracer.requests))
    assert by_leaking(of_leak) >= 0.95 * total(of_leak)
    assert abs(total(of_leak) - truth) < 0.02 * truth
    assert found == {}
    assert_flame_shows_the_leaking_line(tmp_path, tracer)


def assert_flame_shows_the_leaking_line(folder: Path, tracer: Tracer) -> None:
    """Assert that the default flame shows it, and that its total is the bytes that the requests kept."""
    path = recorded(folder / "r.phptrace", tracer.facts)
    kept = Counter[str]()
    with Reader(path) as recording:
        view = chosen_view([recording], None, retained=False)
        builder, tally, about = flame_builder(view, Routes())
        add_recording(recording, builder, tally, about)
        root = builder.finish()
        for request in recording.requests():
            kept[request.script or ""] += request.native_retained or 0
    assert view == View(Metric.RETAINED, True)
    assert abs(root.bytes - sum(max(0, size) for size in kept.values())) <= 0.01 * root.bytes
    assert below(root, "bindtextdomain") >= 0.95 * root.bytes


def recorded(path: Path, facts: list[Fact]) -> str:
    with Writer(str(path), WITH_STACKS) as file:
        file.add(facts)
    return str(path)


def below(node: Node, label: str) -> int:
    if node.label == label:
        return node.bytes
    return sum(below(child, label) for child in node.children.values())


@pytest.mark.parametrize(("requests", "is_retained"), [(1, False), (AFTER, False), (AFTER + 1, True)])
def test_a_block_is_retained_if_it_is_freed_after_so_many_more_requests_have_ended(
    fpm: Fpm, trace: Callable[..., Tracer], requests: int, is_retained: bool
) -> None:
    held = fpm.folder / "held"
    held.write_text("")
    held.chmod(0o666)
    tracer = trace(str(fpm.master), **EVERY_BLOCK)

    for _ in range(17):
        fpm.get("native_hold.php", QUERY_STRING=str(requests))
    tracer.next(17)
    tracer.close()

    blocks = [fact for fact in tracer.facts if isinstance(fact, Retained) and fact.bytes == BLOCK]
    expected = [one.nth for one in old_enough(tracer.requests)] if is_retained else []
    assert sorted(fact.nth for fact in blocks) == expected
    assert {fact.stack[-1].name for fact in blocks} <= {"malloc"}


# Bytes of the block that is kept, by what is asked of native_calls.php.
CALLS = {
    "malloc": 1024,
    "calloc": 7072,
    "strdup": 1024,
    "freed": 0,
    "realloc up": 50_032,
    "realloc down": 1024,
    "realloc of nothing": 1024,
    "realloc to nothing": 0,
    "aligned": 1040,
    "mapped": 3_000_032,
    "mapped and freed": 0,
    "mapped and resized": 5_001_216,
}


@pytest.fixture(scope="module")
def of_calls(fpm: Fpm) -> dict[str, list[list[Retained]]]:
    """Return the blocks retained of three requests for each way to call malloc and its like, request by request."""
    tracer = Tracer(make_backend(BPF, **EVERY_BLOCK), str(fpm.master))
    for call in CALLS:
        for _ in range(3):
            fpm.get("native_calls.php", QUERY_STRING=call)
    for _ in range(AFTER):
        fpm.get("hello.php")
    tracer.next(3 * len(CALLS) + AFTER)
    tracer.close()
    # FFI's own parser allocates natively, too, by functions of other names.
    blocks = [fact for fact in tracer.facts if isinstance(fact, Retained) and fact.bytes >= 1000]
    by_request = [[fact for fact in blocks if fact.nth == request.nth] for request in tracer.requests]
    return {call: by_request[3 * at : 3 * at + 3] for at, call in enumerate(CALLS)}


@pytest.mark.parametrize("call", CALLS)
def test_each_way_to_allocate_a_block_and_to_free_it_is_sampled(
    of_calls: dict[str, list[list[Retained]]], call: str
) -> None:
    blocks = [fact for of_request in of_calls[call] for fact in of_request]

    assert [len(of_request) for of_request in of_calls[call]] == [1 if CALLS[call] else 0] * 3
    assert {fact.samples for fact in blocks} <= {1}
    # Whether a large block is a mapping of its own, of whole pages, depends on what was freed before.
    assert [fact.bytes for fact in blocks] == [pytest.approx(CALLS[call], rel=0.001)] * len(blocks)


def test_what_comes_of_a_block_in_a_child_that_is_forked_does_not_matter(
    fpm: Fpm, trace: Callable[..., Tracer]
) -> None:
    tracer = trace(str(fpm.master), **EVERY_BLOCK)

    for _ in range(13):
        assert fpm.get("native_forked_block.php").text == "done"
    tracer.next(13)
    tracer.close()

    blocks = [fact for fact in tracer.facts if isinstance(fact, Retained) and fact.bytes >= BLOCK]
    assert sorted(fact.nth for fact in blocks) == list(range(1, 14 - AFTER))
    assert {(fact.bytes, fact.samples) for fact in blocks} == {(BLOCK, 1)}


def test_a_block_of_another_thread_is_retained_without_a_stack(
    start_fpm: Callable[..., Fpm], trace: Callable[..., Tracer]
) -> None:
    fpm = start_fpm(www=ONE_WORKER)
    tracer = trace(str(fpm.master), **EVERY_BLOCK)

    for _ in range(13):
        assert fpm.get("native_thread.php").text == "done"
    tracer.next(13)
    tracer.close()

    blocks = [fact for fact in tracer.facts if isinstance(fact, Retained) and fact.bytes >= BLOCK]
    assert {fact.stack for fact in blocks} == {(THREAD,)}
    assert sorted(fact.nth for fact in blocks) == list(range(1, 14 - AFTER))


def test_workers_that_end_after_a_few_requests_have_retained_what_was_old_enough(
    start_fpm: Callable[..., Fpm], trace: Callable[..., Tracer]
) -> None:
    fpm = start_fpm(www="pm = static\npm.max_children = 2\npm.max_requests = 30")
    tracer = trace(str(fpm.master), **EVERY_BLOCK)

    for _ in range(6):
        for _ in range(50):
            fpm.get("native_leak.php")
        tracer.next(50)
    tracer.close()

    facts = [fact for fact in tracer.facts if isinstance(fact, Retained)]
    assert len({fact.pid for fact in facts}) >= 4
    assert by_leaking(facts) >= 0.95 * total(facts)
    # A worker is linked when its first requests have run, which were not counted.
    counted = [one for one in old_enough(tracer.requests) if one.native_kept is not None]
    assert len(counted) >= 50
    assert total(facts) == pytest.approx(LEAK * len(counted), rel=0.05)
    ends = {one.pid: one for one in tracer.workers if one.died_ns is not None}
    assert all("killed" not in (one.exit or "") for one in ends.values())


def test_blocks_of_a_pool_that_is_left_alone_are_forgotten_unless_they_are_retained(
    start_fpm: Callable[..., Fpm], trace: Callable[..., Tracer], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(native_budget, "HIT_NS", 100_000)  # 16 requests of 128 hits
    fpm = warmed(start_fpm(www=ONE_WORKER))
    tracer = trace(str(fpm.master), native=NativeOptions(0.0), stacks=StackOptions())

    def left_alone() -> bool:
        fpm.get("native_leak.php")
        return tracer.next()[0].native_kept is None

    wait_for(left_alone, "the pool to be left alone")
    for _ in range(3 * AFTER):
        fpm.get("hello.php")
    tracer.next(3 * AFTER)
    tracer.close()

    last_counted = max(one.nth for one in tracer.requests if one.native_kept is not None)
    found = {fact.nth for fact in tracer.facts if isinstance(fact, Retained)}
    assert found
    assert max(found) + AFTER <= last_counted


def test_without_stacks_no_block_is_sampled(fpm: Fpm, trace: Callable[..., Tracer]) -> None:
    tracer = trace(str(fpm.master))

    send(fpm, tracer, ["native_leak.php"] * 3 * AFTER)
    tracer.close()

    assert all(LEAK <= (one.native_kept or 0) <= LEAK + 64 * 16 for one in tracer.requests[2:])
    assert [fact for fact in tracer.facts if isinstance(fact, Retained)] == []


def test_without_a_budget_no_block_is_sampled(fpm: Fpm, trace: Callable[..., Tracer]) -> None:
    tracer = trace(str(fpm.master), native=None, stacks=StackOptions())

    send(fpm, tracer, ["native_leak.php"] * 3 * AFTER)
    tracer.close()

    assert [fact for fact in tracer.facts if isinstance(fact, Retained)] == []


@pytest.mark.parametrize(
    ("module", "name", "value", "why"),
    [
        (
            uprobe_multi,
            "_RETURN",
            1 << 5,
            "cannot set probes in process {pid} alone: Invalid argument. Run `phptrace doctor`.",
        ),
        (
            kernel,
            "filters_refuse_returns",
            lambda: True,
            "cannot set probes in process {pid}: on this kernel, its seccomp filter forbids probes on returns."
            " Use Linux 6.14 or later.",
        ),
    ],
)
def test_where_returns_cannot_be_probed_nothing_is_counted_or_sampled(
    fpm: Fpm,
    trace: Callable[..., Tracer],
    monkeypatch: pytest.MonkeyPatch,
    module: object,
    name: str,
    value: object,
    why: str,
) -> None:
    monkeypatch.setattr(module, name, value)
    monkeypatch.setattr(processes, "has_seccomp_filter", lambda _: True)
    tracer = trace(str(fpm.master), **WITHOUT_LIMIT)

    send(fpm, tracer, ["native_leak.php"] * 3 * AFTER)
    tracer.close()

    (pid,) = fpm.workers()
    assert tuple(tracer.backend.lacking) == (f"native memory not counted: {why.format(pid=pid)}",)
    assert all(one.native_kept is None for one in tracer.requests)
    assert [fact for fact in tracer.facts if isinstance(fact, Retained)] == []


def test_where_the_program_for_blocks_is_refused_other_stacks_are_recorded(
    fpm: Fpm, trace: Callable[..., Tracer]
) -> None:
    class Refused(Altered):
        def fd(self, function: str, kind: ProgramKind = ProgramKind.UPROBE) -> int:
            if function == "on_block":
                raise UnsupportedError("the kernel refused the BPF program on_block: too large")
            return self.programs.fd(function, kind)

    compiled = altering("growth.bpf.c", Refused, PROGRAMS)
    tracer = trace(str(fpm.master), **WITHOUT_LIMIT, compiled=compiled)

    send(fpm, tracer, ["native_leak.php"] * 3 * AFTER)
    tracer.close()

    assert tuple(tracer.backend.lacking) == (
        "not measured: call stacks of retained memory (the kernel refused the BPF program on_block: too large)",
    )
    assert all(one.native_kept is not None for one in tracer.requests)
    assert {one.metric for one in tracer.growths} >= {Metric.MAPPED.value}


def test_blocks_that_the_table_has_no_room_for_are_counted_as_lost(
    fpm: Fpm, trace: Callable[..., Tracer], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(growth_probes, "BLOCKS_MAX", 1)
    tracer = trace(str(fpm.master), **EVERY_BLOCK)

    fpm.get("native_leak.php")
    tracer.next()
    tracer.close()

    (loss,) = tracer.losses
    assert loss.why == "growth events of retained memory: the table of sampled blocks was full"
    assert loss.lost >= 32 - 1
