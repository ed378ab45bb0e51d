"""The growth that phptrace attributes to each PHP function, against its own figures and the kernel's."""

from __future__ import annotations

import dataclasses
import json
from collections import Counter
from collections.abc import Callable

import pytest
from backend_kinds import BPF, make_backend
from fpm import Fpm
from tracing import Tracer

from tracer.backends import StackOptions
from tracer.facts import Metric

MIB = 1 << 20
ONE_REQUEST_A_WORKER = "pm = static\npm.max_children = 1\npm.max_requests = 1"
GROWERS = ("small_strings", "arrays", "blocks", "huge", "file_in_one_piece", "native")
ZEND, ANON, VM = range(3)


@pytest.fixture(scope="module")
def fresh(start_fpm: Callable[..., Fpm]) -> Fpm:
    """A worker for each request, so that nothing is there that another left."""
    fpm = start_fpm("memory_limit=1G", www=ONE_REQUEST_A_WORKER)
    (fpm.folder / "ten-megabytes").write_bytes(b"x" * 10_000_019)
    return fpm


def grown(tracer: Tracer, metric: Metric) -> Counter[str]:
    """Bytes that each function and its callees added."""
    found: Counter[str] = Counter()
    for growth in tracer.growths:
        if growth.metric == metric.value:
            for name in {frame.name for frame in growth.stack}:
                found[name] += growth.bytes
    return found


def run(fpm: Fpm, tracer: Tracer, functions: tuple[str, ...]) -> dict[str, list[int]]:
    """One request; what its functions say they added."""
    answer = fpm.get("growers.php", QUERY_STRING=",".join(functions))
    tracer.next()
    truth: dict[str, list[int]] = json.loads(answer.body)
    return truth


@dataclasses.dataclass(frozen=True)
class Measured:
    """One request that ran GROWERS, and maybe more."""

    every: int  # page faults a sample
    tracer: Tracer  # closed
    truth: dict[str, list[int]]


def measured(fpm: Fpm, every: int, *more: str) -> Measured:
    tracer = Tracer(make_backend(BPF, stacks=StackOptions(every=every)), str(fpm.master))
    truth = run(fpm, tracer, (*GROWERS, *more))
    tracer.close()
    return Measured(every, tracer, truth)


@pytest.fixture(scope="module", params=[1, 16])
def faulted(request: pytest.FixtureRequest, fresh: Fpm) -> Measured:
    return measured(fresh, request.param)


@pytest.fixture(scope="module")
def churned(fresh: Fpm) -> Measured:
    return measured(fresh, StackOptions().every, "churn")


def test_page_faults_are_within_2_percent_of_the_rss_each_function_added(faulted: Measured) -> None:
    every, tracer, truth = faulted.every, faulted.tracer, faulted.truth

    found = grown(tracer, Metric.RSS)
    tolerance = {name: 0.02 * truth[name][ANON] + every * 4096 for name in GROWERS}
    wrong = {
        name: (found[name], truth[name][ANON])
        for name in GROWERS
        if abs(found[name] - truth[name][ANON]) > tolerance[name]
    }
    assert wrong == {}


def test_mapped_is_exactly_what_each_function_added_to_the_address_space(churned: Measured) -> None:
    truth = churned.truth

    found = grown(churned.tracer, Metric.MAPPED)
    assert {name: found[name] for name in truth} == {name: truth[name][VM] for name in truth}


def test_all_that_is_mapped_is_what_the_address_space_changed_by(churned: Measured) -> None:
    (request,) = churned.tracer.requests

    total = sum(growth.bytes for growth in churned.tracer.growths if growth.metric == Metric.MAPPED.value)
    assert request.vm_after is not None
    assert request.vm_before is not None
    assert total == request.vm_after - request.vm_before


def test_looks_at_zends_heap_are_within_5_percent_of_what_each_function_allocated(
    fresh: Fpm, trace: Callable[..., Tracer]
) -> None:
    functions = ("small_strings", "arrays", "blocks")
    tracer = trace(str(fresh.master), stacks=StackOptions(hz=4999))

    truth = run(fresh, tracer, functions)

    found = grown(tracer, Metric.ZEND)
    wrong = {
        name: (found[name], truth[name][ZEND])
        for name in functions
        if abs(found[name] - truth[name][ZEND]) > 0.05 * truth[name][ZEND]
    }
    assert wrong == {}


def test_memory_that_was_freed_again_is_not_mapped_growth(fresh: Fpm, trace: Callable[..., Tracer]) -> None:
    tracer = trace(str(fresh.master), stacks=StackOptions(every=1))

    truth = run(fresh, tracer, ("churn", "huge"))

    (request,) = tracer.requests
    assert (request.map_calls or 0) >= 7 + 2
    assert (request.unmap_calls or 0) >= 7
    assert grown(tracer, Metric.MAPPED)["churn"] == 0
    assert grown(tracer, Metric.MAPPED)["huge"] == truth["huge"][VM] >= 18_000_030
    assert grown(tracer, Metric.RSS)["churn"] >= 7 * 9_000_011  # it was touched each time


@pytest.mark.parametrize(
    ("script", "function", "least"),
    [("dom.php", "DOMDocument::loadXML", 10 * MIB), ("gd.php", "imagecreatetruecolor", 4 * MIB)],
)
def test_an_extensions_memory_stands_on_its_function(
    fresh: Fpm, trace: Callable[..., Tracer], script: str, function: str, least: int
) -> None:
    tracer = trace(str(fresh.master), stacks=StackOptions())

    fresh.get(script)
    (request,) = tracer.next()

    leaves: Counter[str] = Counter()
    for growth in tracer.growths:
        if growth.metric == Metric.RSS.value:
            leaves[growth.stack[-1].name] += growth.bytes
    assert leaves.most_common(1)[0][0] == function
    assert leaves[function] >= least
    assert request.zend_peak is not None
    assert request.zend_peak < 4 * MIB


def test_of_page_faults_outside_zends_heap_only_what_is_native_is_found(faulted: Measured) -> None:
    every, truth = faulted.every, faulted.truth

    found = grown(faulted.tracer, Metric.NATIVE)
    tolerance = 0.02 * truth["native"][ANON] + every * 4096  # as above: of the faults, and of sampling them
    assert abs(found["native"] - truth["native"][ANON]) <= tolerance
    slack = {name: 0.01 * truth[name][ANON] + 4 * every * 4096 for name in GROWERS if name != "native"}
    assert {name: found[name] for name in slack if found[name] > slack[name]} == {}
