"""Page faults of a worker's threads, old and new, are counted, and not those of the processes that it starts."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from fpm import Fpm
from tracing import Tracer

from tracer.backends import StackOptions
from tracer.facts import THREAD, Metric

PAGE = 4096
READ_BYTES = 65536  # by the thread of threads.php
SLACK_BYTES = 4 * PAGE  # of its own stack
GROWN_BY_CHILD = 30_000_001


@pytest.fixture
def fifo(fpm: Fpm) -> Path:
    path = fpm.folder / "fifo"
    path.unlink(missing_ok=True)
    os.mkfifo(path)
    path.chmod(0o666)
    return path


def by_threads(tracer: Tracer) -> int:
    return sum(
        growth.bytes for growth in tracer.growths if growth.metric == Metric.RSS.value and growth.stack == (THREAD,)
    )


def threads(fpm: Fpm) -> int:
    return len(os.listdir(f"/proc/{fpm.workers()[0]}/task"))


def test_a_thread_that_is_there_when_tracing_begins_is_sampled(
    fpm: Fpm, fifo: Path, trace: Callable[..., Tracer]
) -> None:
    fpm.get("threads.php", QUERY_STRING=f"start,{fifo}")
    assert threads(fpm) == 2
    tracer = trace(str(fpm.master), stacks=StackOptions(every=1))
    assert fpm.get("threads.php", QUERY_STRING=f"feed,{fifo}").text == "done"
    tracer.next()

    assert READ_BYTES <= by_threads(tracer) <= READ_BYTES + SLACK_BYTES


def test_a_thread_that_a_worker_starts_later_is_sampled_once(
    fpm: Fpm, fifo: Path, trace: Callable[..., Tracer]
) -> None:
    assert threads(fpm) == 1
    tracer = trace(str(fpm.master), stacks=StackOptions(every=1))
    assert fpm.get("threads.php", QUERY_STRING=f"both,{fifo}").text == "done"
    tracer.next()

    assert READ_BYTES <= by_threads(tracer) <= READ_BYTES + SLACK_BYTES


def test_what_a_workers_child_grows_by_is_not_the_workers(fpm: Fpm, trace: Callable[..., Tracer]) -> None:
    tracer = trace(str(fpm.master), stacks=StackOptions(every=1))
    assert fpm.get("child.php", QUERY_STRING=str(GROWN_BY_CHILD)).text == str(GROWN_BY_CHILD)
    (request,) = tracer.next()

    counted = [growth for growth in tracer.growths if growth.metric == Metric.RSS.value]
    assert {growth.pid for growth in counted} == {request.pid}
    assert 0 < sum(growth.bytes for growth in counted) < GROWN_BY_CHILD // 10
    assert sum(growth.samples for growth in counted) <= (request.minor_faults or 0)
