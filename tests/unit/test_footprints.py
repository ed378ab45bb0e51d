"""Samples of the memory of processes that wait, are busy, or are gone. The processes are real; no PHP runs in them."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from proc_status import rollup_bytes
from waiting import wait_for
from waiting_process import PAUSES, READS, waiting_process

from tracer import footprints as module
from tracer.facts import Footprint, Worker
from tracer.footprints import Footprints
from tracer.targets import processes
from tracer.targets.processes import process
from tracer.targets.rollup import rollup


@pytest.fixture
def sampling() -> Iterator[Footprints]:
    found = Footprints()
    yield found
    found.close()


@pytest.fixture
def often(monkeypatch: pytest.MonkeyPatch) -> None:
    """Take turns as fast as they come."""
    monkeypatch.setattr(module, "EVERY_S", 0.001)
    monkeypatch.setattr(module, "_EVERY_SHARE", 0.0)
    monkeypatch.setattr(module, "CPU_SHARE", 1.0)


def worker(pid: int, **changed: object) -> Worker:
    found = process(pid)
    assert found is not None
    return Worker(pid, found.start_ticks, "www", None, None, None, None)._replace(**changed)


def samples(sampling: Footprints, count: int) -> list[Footprint]:
    """Wait for so many samples."""
    found: list[Footprint] = []

    def enough() -> bool:
        found.extend(sampling.take())
        return len(found) >= count

    wait_for(enough, f"{count} samples")
    return found


def test_a_worker_that_waits_is_sampled_with_the_kernels_figures(tmp_path, sampling):
    with waiting_process(tmp_path) as pid:
        before = time.time_ns()
        sampling.follow(worker(pid))
        sampling.begin()
        (found,) = samples(sampling, 1)

        assert (found.pid, found.start_ticks, found.idle) == (pid, worker(pid).start_ticks, True)
        assert (found.anonymous, found.rss) == (rollup_bytes(pid, "Anonymous"), rollup_bytes(pid, "Rss"))
        assert before <= found.at_ns <= time.time_ns()
        assert 0 < found.took_ns < 10**9


def test_a_worker_is_sampled_at_most_once_a_second(tmp_path, sampling, monkeypatch):
    monkeypatch.setattr(module, "CPU_SHARE", 1.0)
    with waiting_process(tmp_path) as pid:
        sampling.follow(worker(pid))
        sampling.begin()
        first, second = samples(sampling, 2)

        assert second.at_ns - first.at_ns >= 0.99e9


def test_a_busy_worker_is_not_sampled_until_it_was_busy_for_many_turns(tmp_path, sampling, often):
    with waiting_process(tmp_path, PAUSES, connect=True) as pid:
        turns = []
        take_turn = sampling._take_turn
        sampling._take_turn = lambda one: (turns.append(one.busy_turns), take_turn(one))  # type: ignore[method-assign]
        sampling.follow(worker(pid))
        sampling.begin()
        found = samples(sampling, 1)

    assert found[0].idle is False
    assert turns[: module._BUSY_TURNS + 1] == list(range(module._BUSY_TURNS + 1))


def test_a_worker_that_reads_a_connection_that_it_keeps_is_idle(tmp_path, sampling):
    with waiting_process(tmp_path, READS, connect=True) as pid:
        sampling.follow(worker(pid))
        sampling.begin()

        assert samples(sampling, 1)[0].idle is True


def test_a_worker_that_has_ended_is_no_longer_sampled(tmp_path, sampling, often):
    with waiting_process(tmp_path) as pid:
        fact = worker(pid)
        sampling.follow(fact)
        sampling.begin()
        samples(sampling, 1)
        os.kill(pid, signal.SIGKILL)
        wait_for(lambda: not sampling._processes, "the worker to be forgotten")

    sampling.follow(fact)  # its pid may be that of another process by now
    assert sampling._processes == {}


def test_a_worker_whose_end_is_reported_is_no_longer_sampled(tmp_path, sampling):
    with waiting_process(tmp_path) as pid:
        sampling.follow(worker(pid))
        sampling.follow(worker(pid, start_ticks=1, died_ns=7))  # an earlier one
        assert list(sampling._processes) == [pid]
        sampling.follow(worker(pid, died_ns=7))

    assert sampling._processes == {}


def test_the_master_is_sampled_too(tmp_path, sampling, often, monkeypatch):
    parent = os.getpid()
    monkeypatch.setattr(processes, "MASTER_TITLE", process(parent).title)  # type: ignore[union-attr]
    with waiting_process(tmp_path) as pid:
        sampling.follow(worker(pid))
        sampling.begin()
        found = samples(sampling, 4)

    assert {(one.pid, one.idle) for one in found} == {(pid, True), (parent, False)}


def test_many_workers_are_sampled_in_turns_within_the_budget(tmp_path, sampling, monkeypatch):
    monkeypatch.setattr(module, "CPU_SHARE", 1.0)
    monkeypatch.setattr(module, "MOST", 3)
    monkeypatch.setattr(module, "_EVERY_SHARE", 0.0)
    monkeypatch.setattr(module, "EVERY_S", 0.001)
    for name in "abcd":
        (tmp_path / name).mkdir()
    with (
        waiting_process(tmp_path / "a") as first,
        waiting_process(tmp_path / "b") as second,
        waiting_process(tmp_path / "c") as third,
        waiting_process(tmp_path / "d") as fourth,
    ):
        for pid in (first, second, third, fourth):
            sampling.follow(worker(pid))
        sampling.begin()
        found = samples(sampling, 9)

    assert {one.pid for one in found} == {first, second, third}
    assert {one.pid for one in found[:3]} == {one.pid for one in found[3:6]}


def test_sampling_pauses_so_that_it_stays_within_its_share_of_a_cpu(tmp_path, sampling, monkeypatch):
    pauses: list[float] = []
    real_wait = sampling._stop.wait

    def wait(pause: float) -> bool:
        pauses.append(pause)
        return real_wait(0)

    monkeypatch.setattr(sampling._stop, "wait", wait)
    monkeypatch.setattr(module, "EVERY_S", 0.0)
    monkeypatch.setattr(module, "_EVERY_SHARE", 0.0)
    with waiting_process(tmp_path) as pid:
        sampling.follow(worker(pid))
        sampling.begin()
        found = samples(sampling, 20)

    least = [one.took_ns / 1e9 / module.CPU_SHARE for one in found]
    assert all(pause >= expected for pause, expected in zip(pauses[1:], least, strict=False))


def test_samples_that_nobody_takes_are_bounded(tmp_path, sampling, often, monkeypatch):
    monkeypatch.setattr(module, "_WAITING", 3)
    with waiting_process(tmp_path) as pid:
        sampling.follow(worker(pid))
        sampling.begin()
        wait_for(lambda: sampling._found.qsize() == 3, "three samples")
        due = sampling._processes[pid].due
        wait_for(lambda: sampling._processes[pid].due > due, "another turn")
        assert len(sampling.close()) == 3


def test_close_does_not_wait_for_a_worker_that_is_stuck_in_the_kernel(tmp_path, sampling, often, monkeypatch):
    go_on = threading.Event()

    def stuck(pid: int) -> object:
        go_on.wait(60)
        return rollup(pid)

    monkeypatch.setattr(module, "rollup", stuck)
    with waiting_process(tmp_path) as pid:
        sampling.follow(worker(pid))
        sampling.begin()
        thread = sampling._thread
        began = time.monotonic()
        assert sampling.close() == []
        assert time.monotonic() - began < 30
        assert thread is not None
        assert thread.is_alive()
        go_on.set()
        thread.join(60)


def test_a_process_whose_memory_may_not_be_read_is_left_out(tmp_path, sampling, often, monkeypatch):
    def refused(pid: int) -> object:
        raise PermissionError

    monkeypatch.setattr(module, "rollup", refused)
    with waiting_process(tmp_path) as pid:
        sampling.follow(worker(pid))
        sampling.begin()
        wait_for(lambda: not sampling._processes, "the process to be left out")

    assert sampling.take() == []


def test_a_new_worker_with_the_pid_of_one_that_has_ended_is_sampled(sampling, monkeypatch):
    ended, new = module._Process(4241, 7, is_master=False), module._Process(4241, 9, is_master=False)
    sampling._processes[4241] = ended

    def ends(_: object) -> Footprint:
        sampling._processes[4241] = new
        raise ProcessLookupError

    monkeypatch.setattr(sampling, "_sample", ends)
    sampling._take_turn(ended)

    assert sampling._processes == {4241: new}


def test_no_thread_is_left_after_close(tmp_path, sampling, often):
    with waiting_process(Path(tmp_path)) as pid:
        sampling.follow(worker(pid))
        sampling.begin()
        thread = sampling._thread
        samples(sampling, 1)
        sampling.close()

        assert thread is not None
        assert not thread.is_alive()
        assert sampling.close() == []
