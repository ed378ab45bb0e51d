"""Blocks that outlived their request are recorded with it, however much later they come."""

from __future__ import annotations

from pathlib import Path

import pytest
from samples import COMPLETE, FIND, MAIN, WITH_STACKS, growth, recording, request
from stack_recordings import read

from tracer.facts import Frame, Metric, Retained, Worker
from tracer.recording import recent_rows
from tracer.recording.reader import Reader
from tracer.recording.writer import Writer


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "r.phptrace"


def kept_by(nth: int, size: int, *stack: Frame) -> Retained:
    return Retained(COMPLETE.pid, nth, stack, size, 1)


def test_a_retained_block_belongs_to_its_request_however_much_later_it_comes(path):
    with Writer(str(path), WITH_STACKS) as file:
        file.add([request(nth=3), request(nth=5), growth(2, MAIN, of=request(nth=5)), kept_by(3, 101, MAIN)])
        file.flush()
        file.add([request(nth=7), kept_by(5, 103, MAIN, FIND), kept_by(3, 107, FIND)])

    assert read(path, Metric.RETAINED) == [[((MAIN,), 101, 1), ((FIND,), 107, 1)], [((MAIN, FIND), 103, 1)], []]
    assert read(path) == [[], [((MAIN,), 2, 1)], []]


def test_a_retained_block_of_a_request_that_was_not_kept_is_not_recorded(path):
    recording(path, [request(nth=3), kept_by(2, 101, MAIN), kept_by(3, 103, MAIN)], WITH_STACKS)

    assert read(path, Metric.RETAINED) == [[((MAIN,), 103, 1)]]


def test_a_retained_block_of_a_request_that_was_not_counted_is_not_recorded(path):
    recording(path, [request(nth=3, native_alloc_calls=None), kept_by(3, 103, MAIN)], WITH_STACKS)

    assert read(path, Metric.RETAINED) == [[]]


def test_retained_blocks_of_many_workers_are_recorded(path):
    pids = range(2, 1002)
    served = [request(pid=pid, nth=nth) for nth in (1, 2) for pid in pids]
    retained = [Retained(pid, nth, (MAIN,), 1000 * pid + nth, 1) for nth in (2, 1) for pid in pids]

    recording(path, [*served, *retained], WITH_STACKS)

    assert read(path, Metric.RETAINED) == [[((MAIN,), 1000 * one.pid + one.nth, 1)] for one in served]


def test_blocks_of_a_request_too_long_ago_are_reported_as_lost(path, monkeypatch):
    monkeypatch.setattr(recent_rows, "_LATEST", 3)

    recording(path, [*(request(nth=nth) for nth in range(1, 7)), *(kept_by(nth, 100 + nth, MAIN) for nth in range(7))],
              WITH_STACKS)  # fmt: skip

    assert [[size for _, size, _ in grown] for grown in read(path, Metric.RETAINED)] == [[]] * 3 + [[104], [105], [106]]
    with Reader(str(path)) as file:
        [loss] = file.losses()
    assert (loss.lost, loss.why) == (4, "growth events of retained memory: their requests ended too long ago")


def test_retained_blocks_of_a_worker_are_recorded_though_it_has_ended(path):
    ended = Worker(COMPLETE.pid, 7919, "www", None, None, 17, "exited:0")
    with Writer(str(path), WITH_STACKS) as file:
        file.add([request(nth=3), ended])
        file.flush()
        file.add([kept_by(3, 103, MAIN)])

    assert read(path, Metric.RETAINED) == [[((MAIN,), 103, 1)]]


@pytest.mark.parametrize(("bound", "most"), [("_DEAD_ROWS", 2), ("_DEAD_WORKERS", 1)])
def test_of_workers_that_have_ended_the_latest_are_remembered(path, monkeypatch, bound, most):
    monkeypatch.setattr(recent_rows, bound, most)
    ends = [Worker(pid, 7919, "www", None, None, 17, "exited:0") for pid in (2, 3)]
    facts = [request(pid=pid, nth=nth) for pid in (2, 3, 5) for nth in (1, 2)]
    late = [Retained(pid, 2, (MAIN,), 100 + pid, 1) for pid in (2, 3, 5)]

    recording(path, [*facts, *ends, *late, request(pid=2, nth=1), Retained(2, 1, (MAIN,), 211, 1)], WITH_STACKS)

    found = [[size for _, size, _ in grown] for grown in read(path, Metric.RETAINED)]
    assert found == [[], [], [], [103], [], [105], [211]]
    with Reader(str(path)) as file:
        assert [loss.lost for loss in file.losses()] == [1]
