"""More than there is room for: stacks of a request in the kernel, records in the ring."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable

import pytest
from fpm import Fpm
from tracing import Tracer
from waiting import wait_for

from tracer.backends import StackOptions
from tracer.facts import STACK_LOST, Loss, Metric

PAGE = 4096
FUNCTIONS, TURNS = 200, 3  # of many_stacks.php
CALLS, UNHEARD = 120_000, 3_000_017  # of flood.php


def leaves(tracer: Tracer, metric: Metric, name: str) -> Counter[str]:
    """Bytes by the function that called grow(), which called the named one."""
    found: Counter[str] = Counter()
    for growth in tracer.growths:
        if growth.metric == metric.value and growth.stack[-1].name == name and growth.stack[-2].name == "grow":
            found[growth.stack[-3].name] += growth.bytes
    return found


@pytest.mark.parametrize("metric", [Metric.RSS, Metric.MAPPED])
def test_sums_are_exact_where_a_request_has_more_stacks_than_are_summed_up_at_a_time(
    fpm: Fpm, trace: Callable[..., Tracer], metric: Metric
) -> None:
    tracer = trace(str(fpm.master), stacks=StackOptions(every=1))
    assert fpm.get("many_stacks.php").text == "grown"
    tracer.next()

    leaf = "memset" if metric is Metric.RSS else "mmap"
    assert leaves(tracer, metric, leaf) == {f"grow_{i}": TURNS * (1 + i % 7) * PAGE for i in range(FUNCTIONS)}
    assert tracer.lost == 0


def test_what_a_full_ring_does_not_take_is_counted_and_the_next_request_is_whole(
    fpm: Fpm, trace: Callable[..., Tracer]
) -> None:
    fpm.folder.chmod(0o777)
    # No native block is sampled: its stack would be lost, too.
    tracer = trace(str(fpm.master), native=None, stacks=StackOptions(every=1, hz=1))
    filled, go = fpm.folder / "filled", fpm.folder / "go"
    client = threading.Thread(target=fpm.get, args=("flood.php",), kwargs={"QUERY_STRING": f"{filled},{go}"})
    client.start()
    wait_for(filled.exists, "the ring to be full")  # since nobody reads it
    tracer.poll()
    go.touch()
    client.join()
    (request,) = tracer.next()
    assert fpm.get("many_stacks.php").text == "grown"
    tracer.next()
    tracer.close()

    first = [growth for growth in tracer.growths if growth.nth == request.nth]
    delivered = sum(growth.samples for growth in first if growth.metric == Metric.MAPPED.value)
    lost = Counter({fact.why.split(":")[0]: 0 for fact in tracer.facts if isinstance(fact, Loss)})
    for fact in tracer.facts:
        if isinstance(fact, Loss):
            lost[fact.why.split(":")[0]] += fact.lost
    unheard = [growth for growth in first if growth.stack == (STACK_LOST,) and growth.metric == Metric.RSS.value]
    assert (request.map_calls, request.unmap_calls, request.brk_calls) == (CALLS + 1, 0, 0)
    assert set(lost) == {"growth events", "call stacks"}
    assert delivered + lost["growth events"] == CALLS + 1
    assert abs(sum(growth.bytes for growth in unheard) - UNHEARD) <= 16 * PAGE
    # Each of these faults tried to send the stack; so did the mmap() before them.
    assert lost["call stacks"] == sum(growth.samples for growth in unheard) + 1
    assert len(leaves(tracer, Metric.RSS, "memset")) == FUNCTIONS
