"""The events of processes that end: they stay open as long as a process uses them that has inherited them."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from waiting_process import waiting_process

from tracer.backends.bpf.thread_sampling import ThreadSampling

# Processes that are never looked at.
DAEMON, NEXT, WORKER, OTHER = range(4_194_305, 4_194_309)


class Kernel:
    """Opens a descriptor for each event."""

    def __init__(self) -> None:
        self.opened: list[int] = []

    @property
    def open(self) -> int:
        return len([fd for fd in self.opened if os.path.exists(f"/proc/self/fd/{fd}")])

    def on_software_event(self, function: str, event: int, period: int, tid: int) -> int:
        self.opened.append(os.open(os.devnull, os.O_RDONLY))
        return self.opened[-1]


@pytest.fixture
def kernel() -> Kernel:
    return Kernel()


@pytest.fixture
def sampling(kernel: Kernel) -> Iterator[ThreadSampling]:
    made = ThreadSampling(kernel, every=16, hz=999)  # type: ignore[arg-type]
    yield made
    made.close()


@pytest.fixture
def master(tmp_path: Path) -> Iterator[int]:
    with waiting_process(tmp_path) as pid:
        yield pid


def test_the_events_of_a_process_that_has_forked_nobody_are_closed_when_it_ends(kernel, sampling, master):
    sampling.start(master)
    before = kernel.open
    sampling.ended(master, [])

    assert (before, kernel.open) == (2, 0)


def test_the_events_of_a_master_are_closed_when_the_last_of_its_workers_has_ended(kernel, sampling, master):
    sampling.start(master)
    sampling.ended(master, [WORKER, OTHER])
    opened = [kernel.open]
    for pid in (WORKER, OTHER):
        sampling.ended(pid, [])
        opened.append(kernel.open)

    assert opened == [2, 2, 0]
    assert sampling._heirs == {}


def test_a_master_that_makes_itself_a_daemon_again_and_again_hands_its_events_on(kernel, sampling, master):
    sampling.start(master)
    sampling.ended(master, [DAEMON, WORKER])
    sampling.ended(WORKER, [])
    sampling.ended(DAEMON, [NEXT])
    handed_on = kernel.open
    sampling.ended(NEXT, [])

    assert (handed_on, kernel.open) == (2, 0)
