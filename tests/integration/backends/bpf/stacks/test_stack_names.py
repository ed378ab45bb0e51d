"""Stacks name the right function: at addresses that are used again, and with strange names."""

from __future__ import annotations

import mmap
from collections.abc import Callable, Iterable, Iterator

import pytest
from backend_kinds import BPF, make_backend
from fpm import ONE_WORKER, Fpm
from tracing import Tracer

from tracer.backends import StackOptions
from tracer.facts import Growth, Metric


@pytest.fixture(scope="module")
def cached(start_fpm: Callable[..., Fpm]) -> Fpm:
    return start_fpm("opcache.enable=1", www=ONE_WORKER)


@pytest.fixture(scope="module")
def traced(uncached: Fpm, cached: Fpm) -> Iterator[Tracer]:
    tracer = Tracer(make_backend(BPF, stacks=StackOptions()), str(uncached.master), str(cached.master))
    yield tracer
    tracer.close()


def growths_of(tracer: Tracer, count: int = 1) -> list[Growth]:
    """Return the stacks of the next requests."""
    requests = {(request.pid, request.nth) for request in tracer.next(count)}
    return [growth for growth in tracer.growths if (growth.pid, growth.nth) in requests]


def by_pages(growths: Iterable[Growth]) -> dict[int, list[Growth]]:
    """The growths by mmap() from a script, by how many pages each mapped at once."""
    found: dict[int, list[Growth]] = {}
    for growth in growths:
        if growth.metric == Metric.MAPPED.value and growth.stack[-1].name == "mmap":
            found.setdefault(growth.bytes // growth.samples // mmap.PAGESIZE, []).append(growth)
    return found


def test_of_300_stacks_at_the_same_addresses_none_names_another_script(uncached: Fpm, traced: Tracer) -> None:
    names = {11: "one", 12: "two", 13: "six"}
    for _ in range(100):
        for name in names.values():
            uncached.get("layout.php", QUERY_STRING=name)

    found = by_pages(growths_of(traced, 300))
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


def test_files_included_again_and_again_in_one_request_are_told_apart(uncached: Fpm, traced: Tracer) -> None:
    assert uncached.get("reincluded.php").text == "grown"

    found = by_pages(growths_of(traced))
    files = {}
    for pages, growths in found.items():
        for growth in growths:
            files.setdefault(pages, set()).add((growth.stack[1].file or "").rpartition("-")[2])
    assert files == {11: {"one.inc"}, 12: {"two.inc"}, 13: {"six.inc"}}
    assert {pages: sum(g.samples for g in growths) for pages, growths in found.items()} == {
        11: 50,
        12: 50,
        13: 50,
    }


@pytest.mark.parametrize("pool", ["uncached", "cached"])
def test_what_is_called_at_an_address_that_was_anothers_has_its_own_name(
    uncached: Fpm, cached: Fpm, traced: Tracer, pool: str
) -> None:
    fpm = {"uncached": uncached, "cached": cached}[pool]
    assert fpm.get("bound.php").text == "grown"

    found = {
        tuple(frame.name for frame in growth.stack): (growth.bytes // mmap.PAGESIZE, growth.samples)
        for growth in growths_of(traced)
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


def test_strange_names_are_bounded_and_say_so(uncached: Fpm, traced: Tracer) -> None:
    assert uncached.get("names.php").text == "grown"

    caller = {pages: growth.stack[-3] for pages, (growth,) in by_pages(growths_of(traced)).items()}
    assert caller[21].name == "n" * 127 + "…"
    assert caller[22].name == "Deep\\Space\\\udcff\udcfe"
    assert caller[23].name == "require"
    assert (caller[23].file or "").endswith("/<script>alert(1)</x.inc")
    assert (caller[24].file or "").startswith("…")
    assert (caller[24].file or "").endswith("d" * 100 + "/y.inc")
    assert len(caller[24].file or "") == 256
    assert caller[25].name == "class@anonymous::inside"
