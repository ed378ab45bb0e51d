"""Looks at processes that wait, are busy, or are gone. The processes are real; no PHP runs in them."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Sequence

import pytest
from proc_status import rollup_bytes
from samples import request
from waiting import wait_for
from waiting_process import PAUSES, READS, waiting_process

from tracer import looks as module
from tracer import worker_look
from tracer.facts import Footprint, Look, Worker
from tracer.footprints import Footprints
from tracer.looks import Looks
from tracer.targets.php import Php
from tracer.targets.processes import process
from tracer.worker_look import Subject

PID_MAX = 1 << 22  # include/linux/threads.h: no process has this pid
NO_PHP: Php = None  # type: ignore[assignment]  # it is not asked for where the bias is unknown


def subject(pid: int) -> Subject:
    found = process(pid)
    assert found is not None
    return Subject(pid, found.start_ticks, NO_PHP, None)


def without_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make looks at a busy process go on until the test ends them."""
    for name in ("BEGIN_RETRY_S", "LOOKS_S"):
        monkeypatch.setattr(module, name, 1e9)


def first_looks(*subjects: Subject) -> list[Look]:
    looks = Looks(subjects)
    looks.begin()
    wait_for(lambda: not looks.busy, "the looks")
    found = looks.take()
    assert looks.close() == []
    return found


def test_a_process_that_waits_in_accept_is_looked_at(tmp_path):
    with waiting_process(tmp_path) as pid:
        before = time.time_ns()
        (found,) = first_looks(subject(pid))

        assert (found.pid, found.anon, found.settled, found.in_accept) == (
            pid,
            rollup_bytes(pid, "Anonymous"),
            True,
            True,
        )
        assert 0 < found.malloc_in_use < found.malloc_resident < found.anon
        assert (found.zend_resident, found.why) == (None, "Zend: its PHP was not found in its memory")
        assert before <= found.at_ns <= found.at_ns + found.took_ns <= time.time_ns()
        assert found.requests is None


def test_a_process_that_reads_from_a_connection_may_be_in_a_request(tmp_path):
    with waiting_process(tmp_path, READS, connect=True) as pid:
        (found,) = first_looks(subject(pid))

        assert (found.anon, found.settled, found.in_accept) == (rollup_bytes(pid, "Anonymous"), True, False)


def test_a_process_that_does_something_else_is_left_out_after_some_time(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "BEGIN_RETRY_S", 0.1)
    with waiting_process(tmp_path, PAUSES, connect=True) as pid:
        (found,) = first_looks(subject(pid))

    assert (found.anon, found.settled, found.why) == (None, False, "it was in a request")


def test_a_process_is_tried_again_until_it_waits(tmp_path, monkeypatch):
    without_end(monkeypatch)
    look_once, tries = Looks._look, []

    def look(looks: Looks, worker: Subject, until: float) -> Look | None:
        tries.append(look_once(looks, worker, until))
        os.kill(worker.pid, signal.SIGUSR1)
        return tries[-1]

    monkeypatch.setattr(Looks, "_look", look)
    does = (
        "signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR1]); s.accept();"
        " signal.sigwait([signal.SIGUSR1]); s.accept()"
    )
    with waiting_process(tmp_path, does, connect=True) as pid:
        (found,) = first_looks(subject(pid))

    assert tries[0] is None
    assert (found.settled, found.in_accept) == (True, True)


def test_a_process_that_has_ended_is_left_out(tmp_path):
    with waiting_process(tmp_path) as pid:
        worker = subject(pid)

    (found,) = first_looks(worker)

    assert (found.anon, found.why) == (None, "it has ended")


def test_a_later_process_with_the_same_pid_is_not_looked_at(tmp_path):
    with waiting_process(tmp_path) as pid:
        (found,) = first_looks(Subject(pid, 1, NO_PHP, None))

    assert (found.anon, found.why) == (None, "it has ended")


def test_a_process_that_may_not_be_read_is_left_out_with_the_reason(tmp_path):
    with waiting_process(tmp_path) as pid:
        worker = subject(pid)
        report, write = os.pipe()
        child = os.fork()
        if child == 0:
            try:
                os.setresuid(65534, 65534, 65534)
                os.write(write, repr([look.why for look in first_looks(worker)]).encode())
            finally:
                os._exit(0)
        os.waitpid(child, 0)
        said = os.read(report, 1000).decode()
        os.close(report)
        os.close(write)

    assert said == "['its memory may not be read: CAP_SYS_PTRACE is required']"


def test_no_more_than_64_workers_are_looked_at():
    gone = [Subject(PID_MAX + number, 1, NO_PHP, None) for number in range(67)]

    reasons = [look.why for look in first_looks(*gone)]

    assert (reasons.count("more than 64 workers"), reasons.count("it has ended")) == (3, 64)


def test_looks_end_when_their_time_has_elapsed(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "LOOKS_S", 0.0)
    with waiting_process(tmp_path) as pid:
        (found,) = first_looks(subject(pid))

    assert (found.anon, found.why) == (None, "the time limit for looks was reached")


def test_a_heap_that_is_too_large_leaves_the_rest_known(tmp_path, monkeypatch):
    monkeypatch.setattr(worker_look, "LIMIT_BYTES", 1 << 12)
    with waiting_process(tmp_path) as pid:
        (found,) = first_looks(subject(pid))

        assert (found.anon, found.malloc_in_use) == (rollup_bytes(pid, "Anonymous"), None)
    assert "malloc: its heap has" in str(found.why)


def test_a_heap_beyond_the_deadline_leaves_the_rest_known(tmp_path):
    with waiting_process(tmp_path) as pid:
        found = Looks(())._look(subject(pid), time.monotonic())

        assert found is not None
        assert (found.anon, found.malloc_in_use) == (rollup_bytes(pid, "Anonymous"), None)
        assert "malloc: the time limit for looks was reached" in str(found.why)


def test_only_workers_with_figures_are_looked_at_again(tmp_path):
    with waiting_process(tmp_path) as pid:
        looks = Looks([subject(pid)])
        looks.begin()
        wait_for(lambda: not looks.busy, "the looks")
        assert [look.zend_resident for look in looks.take()] == [None]
        looks.end()

        assert (looks.busy, looks.close()) == (False, [])


def test_close_ends_looks_that_have_not_ended(tmp_path, monkeypatch):
    without_end(monkeypatch)
    with waiting_process(tmp_path, PAUSES, connect=True) as pid:
        looks = Looks([subject(pid)])
        looks.begin()

        assert [look.why for look in looks.close()] == ["it was in a request"]
        assert not looks.busy


def test_a_request_of_a_worker_without_a_look_does_not_matter():
    looks = Looks(())
    looks.begin()
    looks.count(request())
    looks.end()

    assert (looks.busy, looks.take(), looks.close()) == (False, [], [])


def test_the_call_of_a_process_that_has_ended_is_not_known(tmp_path):
    with waiting_process(tmp_path) as pid:
        number, _ = module.processes.call_waited_in(pid) or (None, None)

    assert number in (43, 288)
    assert module.processes.call_waited_in(pid) is None


class Scripted(Looks):
    """Looks whose figures and moments the test gives."""

    def __init__(self, moments: Sequence[int], pid: int = 7) -> None:
        super().__init__([Subject(pid, 1, NO_PHP, None)])
        self.moments = list(moments)

    def _look(self, worker: Subject, until: float) -> Look | None:
        found = self._absent(worker, "")._replace(anon=1, zend_resident=1, settled=True, in_accept=True)
        return found._replace(at_ns=self.moments.pop(0), took_ns=1, why=None)

    def take_round(self) -> list[Look]:
        """One round of looks."""
        given: list[Look] = []
        left = len(self.moments)
        wait_for(lambda: given.extend(self.take()) or len(self.moments) < left, "a round")
        wait_for(lambda: not self.busy, "the looks")
        return given

    def serve(self, *starts: int) -> None:
        """Requests of the worker that began then."""
        for started_ns in starts:
            self.count(request(pid=7, started_ns=started_ns))


def test_each_request_is_counted_between_the_two_looks_it_was_between(monkeypatch):
    monkeypatch.setattr(module, "BETWEEN_S", 0.0)
    monkeypatch.setattr(module, "_CPU_SHARE", 1e9)
    looks = Scripted([100, 200, 300, 400])
    looks.begin()
    wait_for(lambda: not looks.busy, "the looks")
    given = looks.take_round()  # the first look is given out, the second one taken
    looks.serve(90, 110, 120)
    looks.serve(210)  # before the second look has arrived
    given += looks.take_round()
    looks.serve(190)  # after it has arrived
    looks.serve(220, 310)
    looks.end()
    wait_for(lambda: not looks.busy, "the looks")
    given += looks.take()
    looks.serve(320, 410)
    given += looks.close()

    assert [(look.at_ns, look.requests) for look in given] == [(100, None), (200, 3), (300, 2), (400, 2)]


def test_looks_in_between_take_no_more_than_their_share_of_a_cpu(monkeypatch):
    monkeypatch.setattr(module, "BETWEEN_S", 0.0)
    looks = Scripted([100, 200])
    looks.begin()
    wait_for(lambda: not looks.busy, "the looks")
    looks._took_s = 1e6
    for _ in range(3):
        looks.take()
        assert not looks.busy

    assert looks.moments == [200]


def test_a_worker_that_has_ended_is_no_longer_looked_at():
    looks = Scripted([100, 200])
    looks.begin()
    wait_for(lambda: not looks.busy, "the looks")
    assert len(looks.take()) == 1
    looks.serve(110)

    looks.follow(Worker(7, 1, None, None, None, 150, "exited:0"))

    assert [(look.why, look.requests) for look in looks.take()] == [("it has ended", 1)]
    looks.end()
    assert looks.moments == [200]
    assert looks.close() == []


def test_a_worker_that_no_master_of_ours_forked_is_not_looked_at(tmp_path):
    with waiting_process(tmp_path) as pid:
        looks = Looks(())
        looks.begin()
        looks.follow(Worker(pid, subject(pid).start_ticks, None, None, 5, None, None))
        looks.take()

        assert not looks.busy
    assert looks.close() == []


def test_footprints_of_the_workers_that_are_followed_come_with_the_looks(tmp_path):
    with waiting_process(tmp_path) as pid:
        looks = Looks((), footprints=Footprints())
        looks.begin()
        found: list[Look | Footprint] = []

        def sampled() -> bool:
            found.extend(looks.take())
            return bool(found)

        looks.follow(Worker(pid, subject(pid).start_ticks, "www", None, None, None, None))
        wait_for(sampled, "a sample")
        found += looks.close()

    assert {(type(one), one.pid) for one in found} == {(Footprint, pid)}
    assert threading.active_count() == 1
