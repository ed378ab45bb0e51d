"""A forked process has the request that forked it, whichever of the two the kernel reports first."""

from __future__ import annotations

import os
import subprocess
from typing import Any

import pytest

from tracer.backends.ptrace.attached_processes import AttachedProcesses
from tracer.backends.records.request_structs import FORK_EVENT


class _Worker:
    requests = 0

    def __init__(self, request_started_ns: int) -> None:
        self.request_started_ns = request_started_ns

    def close(self) -> None:
        pass


class _Factory:
    def tracer(self, pid: int, target: Any, *, born: bool) -> _Worker:
        return _Worker(0)


@pytest.fixture
def child():
    with subprocess.Popen(["/bin/sleep", "60"]) as process:
        yield process.pid
        process.kill()


def _attached(parent: int) -> tuple[AttachedProcesses, _Worker, list[Any]]:
    sent: list[Any] = []
    attached = AttachedProcesses(_Factory(), sent.append, lambda *_: None)  # type: ignore[arg-type]
    worker = _Worker(7000)
    attached.workers[parent] = worker  # type: ignore[assignment]
    attached._targets[parent] = object()  # type: ignore[assignment]
    return attached, worker, sent


@pytest.mark.parametrize("child_first", [False, True])
def test_a_fork_belongs_to_the_request_that_made_it_though_that_has_ended_when_the_child_shows(child, child_first):
    attached, worker, sent = _attached(os.getpid())
    if child_first:
        attached.adopt(child)
    attached.note_fork(os.getpid(), child)
    worker.request_started_ns = 0
    if not child_first:
        attached.adopt(child)
    attached.report_fork(child, ended=False)

    assert [FORK_EVENT.unpack(make())[1:5] for make in sent] == [(child, os.getpid(), 0, 7000)]


def test_a_child_that_ends_before_it_shows_is_forgotten(child):
    attached, _, sent = _attached(os.getpid())
    attached.note_fork(os.getpid(), child)
    attached.forget(child)
    attached.report_fork(child, ended=True)

    assert attached.is_announced(child)
    assert sent == []
