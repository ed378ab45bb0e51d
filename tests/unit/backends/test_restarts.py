"""Masters that end and are started anew, as scripted: what is attached, closed and reported."""

from __future__ import annotations

import errno
import os
from collections.abc import Collection, Sequence
from types import SimpleNamespace
from typing import Any

import pytest

from tracer.backends import restarts
from tracer.backends.restarts import Restarts
from tracer.errors import UnsupportedError
from tracer.facts import Fact, Loss


class Scripted:
    """A backend that watches the masters it is given."""

    def __init__(self, name: str, *masters: int) -> None:
        self.name = name
        self.masters = frozenset(masters)
        self.watched = 0
        self.lacking: Sequence[str] = ("one", name)
        self.closed = False
        self.facts: list[Fact] = []

    def attach(self, targets: Sequence[object]) -> None: ...

    def poll(self, timeout_s: float) -> list[Fact]:
        facts, self.facts = self.facts, []
        return facts

    def close(self) -> list[Fact]:
        self.closed = True
        return []


class Later:
    def __init__(self, backend: Scripted, *targets: Any) -> None:
        self.backend = backend
        self.targets = targets
        self.closed = False
        self.holds_files = False

    def close(self) -> None:
        assert self.backend is None or self.backend.closed, "the files are closed after the backend"
        self.closed = True


def target(pid: int, named: str = "php-fpm") -> Any:
    return SimpleNamespace(master=SimpleNamespace(pid=pid), named=named)


class Host:
    """The masters of a host, and what is attached to them."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *pids: int) -> None:
        self.pids = set(pids)
        self.later: list[Later] = []
        self.asked: list[set[int]] = []
        self.reports: list[str] = []
        self.now = 100.0
        self.meant = {*range(1, 50)}
        monkeypatch.setattr(restarts, "time", self)
        self.first = Scripted("first", *pids)
        self.watch = Restarts(
            self.first, [target(pid) for pid in pids], masters=lambda: self.pids, attach_to=self.attach_to,
            report=self.reports.append,
        )  # fmt: skip

    def time(self) -> float:
        return 1_800_000_000 + self.now

    def time_ns(self) -> int:
        return int(self.time() * 1e9)

    def monotonic(self) -> float:
        return self.now

    def attach_to(self, pids: Collection[int]) -> Later | None:
        self.asked.append(set(pids))
        if 24 in pids:
            raise OSError(errno.EMFILE, "Too many open files")
        if 13 in pids:
            raise UnsupportedError("cannot trace process 13: it is static. Use ptrace.")
        found = [target(pid) for pid in sorted(pids) if pid in self.meant]
        if not found:
            return None
        self.later.append(Later(Scripted(f"later {pids}", *pids), *found))
        return self.later[-1]

    def poll(self, seconds: float = 0.25) -> list[Loss]:
        self.now += seconds
        return [fact for fact in self.watch.poll(0.0) if isinstance(fact, Loss)]


def test_a_master_that_was_started_anew_is_attached_to_and_the_gap_is_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    host = Host(monkeypatch, 5)
    assert host.poll() == []

    host.first.masters, host.pids = frozenset(), set()
    assert host.poll() == []
    assert host.watch.masters == {5}, "a capture goes on while its successor is waited for"
    host.pids = {6}
    (gap,) = host.poll()

    assert gap.lost == 1
    assert gap.why == (
        "gaps in tracing: master 5 of php-fpm ended at 2027-01-15T08:01:40.5Z, and its successor has been traced"
        " since 2027-01-15T08:01:40.7Z"
    )
    assert host.watch.masters == {6}
    assert host.reports == [
        "master 5 of php-fpm has ended; waiting for php-fpm to be started again",
        "now tracing master 6 of php-fpm, started after master 5 ended",
    ]
    assert host.watch.close() == []
    assert host.later[0].closed


def test_a_master_that_is_not_started_again_is_lost_until_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    host = Host(monkeypatch, 5)
    host.first.masters, host.pids = frozenset(), set()
    host.poll()

    (gap,) = host.watch.close()

    assert isinstance(gap, Loss)
    assert gap.why.endswith("ended at 2027-01-15T08:01:40.2Z, and no new master was started")


def test_masters_that_are_started_later_are_attached_to_without_a_gap(monkeypatch: pytest.MonkeyPatch) -> None:
    host = Host(monkeypatch, 5)
    host.poll()
    host.pids |= {6}

    assert [host.poll(1.0) for _ in range(6)] == [[]] * 6
    assert (host.asked, host.watch.masters) == ([{6}], {5, 6})
    assert host.reports == ["now tracing master 6 of php-fpm"]


def test_a_master_that_daemonizes_itself_has_no_gap(monkeypatch: pytest.MonkeyPatch) -> None:
    host = Host(monkeypatch, 5)
    host.poll()
    host.first.masters, host.pids = frozenset({6}), {6}

    assert host.poll() == []
    assert (host.reports, host.asked, host.watch.masters) == ([], [], {6})


def test_masters_that_are_not_meant_or_cannot_be_traced_are_left_alone_for_a_while(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    host = Host(monkeypatch, 5)
    host.pids |= {77}
    for _ in range(20):
        host.poll(1.0)
    assert host.asked == [{77}]

    host.pids |= {13}
    for _ in range(20):
        host.poll(1.0)
    assert host.asked == [{77}, {13}, {77}]
    assert host.reports == ["not traced: cannot trace process 13: it is static. Use ptrace."]


def test_a_master_that_cannot_be_traced_is_reported_once_and_is_the_reason_of_the_gap(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    host = Host(monkeypatch, 5)
    host.first.masters, host.pids = frozenset(), {13}
    for _ in range(200):
        host.poll(1.0)

    assert host.asked == [{13}] * 7
    assert host.reports[1:] == ["not traced: cannot trace process 13: it is static. Use ptrace."]
    (gap,) = host.watch.close()
    assert isinstance(gap, Loss)
    assert gap.why == (
        "gaps in tracing: master 5 of php-fpm ended at 2027-01-15T08:01:41.0Z, and one that was started since is not"
        " traced (cannot trace process 13: it is static. Use ptrace.)"
    )


def test_a_host_that_is_short_of_files_does_not_end_the_capture(monkeypatch: pytest.MonkeyPatch) -> None:
    host = Host(monkeypatch, 5)
    host.pids |= {24}
    host.first.facts = [Loss(7, 3, "requests: the ring buffer was full")]

    assert host.poll() == [Loss(7, 3, "requests: the ring buffer was full")]
    assert host.reports == ["not traced: [Errno 24] Too many open files"]


def test_no_fact_is_lost_where_looking_for_masters_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    host = Host(monkeypatch, 5)
    host.first.facts = [Loss(7, 3, "requests: the ring buffer was full")]
    monkeypatch.setattr(host.watch, "_masters", lambda: os.listdir("/proc/self/no-such-folder"))

    with pytest.raises(FileNotFoundError):
        host.poll()
    assert host.watch.close() == [Loss(7, 3, "requests: the ring buffer was full")]


def test_a_master_that_was_left_out_from_the_start_is_not_reported_again(monkeypatch: pytest.MonkeyPatch) -> None:
    host = Host(monkeypatch, 5)
    reports: list[str] = []
    watch = Restarts(
        host.first, [target(5)], masters=lambda: {5, 13}, attach_to=host.attach_to, report=reports.append,
        known={"cannot trace process 13: it is static. Use ptrace."},
    )  # fmt: skip

    watch.poll(0.0)

    assert (host.asked, reports) == ([{13}], [])


def test_a_backend_whose_masters_have_all_ended_is_closed_when_the_next_is_attached(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    host = Host(monkeypatch, 5)
    host.first.masters, host.pids = frozenset(), {6}
    host.poll()
    for pid in (7, 8):
        host.later[-1].backend.masters, host.pids = frozenset(), {pid}
        host.poll()

    assert [later.closed for later in host.later] == [True, True, False]
    assert host.watch.lacking == ("one", "first", "later {8}", "later {6}", "later {7}")
    host.watch.close()
    assert host.watch.lacking == ("one", "first", "later {6}", "later {7}", "later {8}")


def test_a_php_fpm_that_is_restarted_for_ever_fills_no_report(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(restarts, "_GAPS_SHOWN", 2)
    host = Host(monkeypatch, 1)
    found = []
    backend = host.first
    for pid in range(2, 7):
        backend.masters, host.pids = frozenset(), {pid}
        found += host.poll()
        backend = host.later[-1].backend

    assert [why.why.startswith("gaps in tracing: master") for why in found] == [True, True, False, False, False]
    assert {why.why for why in found[2:]} == {"gaps in tracing: further restarts of php-fpm"}


def test_a_successor_that_is_not_ready_is_looked_for_again_soon(monkeypatch: pytest.MonkeyPatch) -> None:
    host = Host(monkeypatch, 5)
    host.meant = set()
    host.first.masters, host.pids = frozenset(), {6}
    host.poll()
    host.meant = {6}

    assert [len(host.poll(0.5)) for _ in range(3)] == [0, 1, 0]
    assert host.asked == [{6}, {6}]


def test_masters_that_the_first_backend_can_watch_need_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    host = Host(monkeypatch, 5)
    added = Later(host.first, target(6))
    monkeypatch.setattr(added, "backend", None)
    monkeypatch.setattr(host.watch, "_attach_to", lambda _: added)
    host.first.masters, host.pids = frozenset(), {6}

    (gap,) = host.poll()
    host.first.masters = frozenset({6})

    assert "its successor has been traced" in gap.why
    assert host.poll(10.0) == []
    assert host.watch.masters == {6}


def test_nothing_is_kept_of_restarts_that_need_no_other_backend(monkeypatch: pytest.MonkeyPatch) -> None:
    host = Host(monkeypatch, 5)
    for pid in range(6, 16):
        added = Later(host.first, target(pid))
        added.holds_files = pid == 7  # a new file
        monkeypatch.setattr(added, "backend", None)
        monkeypatch.setattr(host.watch, "_attach_to", lambda _, added=added: added)
        host.first.masters, host.pids = frozenset(), {pid}
        host.poll()
        host.first.masters = frozenset({pid})
        host.poll()

    assert [later.targets[0].master.pid for later in host.watch._later] == [7]


def test_a_master_that_is_named_by_its_pid_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    host = Host(monkeypatch, 4242)
    first = Scripted("first", 4242, 5)
    watch = Restarts(
        first, [target(4242, "4242"), target(5)], masters=lambda: host.pids, attach_to=host.attach_to,
        report=host.reports.append,
    )  # fmt: skip
    first.masters = frozenset({5})
    watch.poll(0.0)
    alive = watch.masters
    first.masters = frozenset()
    watch.poll(0.0)

    assert (alive, watch.masters) == ({5}, {5})
    assert host.reports == ["master 5 of php-fpm has ended; waiting for php-fpm to be started again"]
    assert [loss.why.partition(" ended at ")[0] for loss in watch.close()] == ["gaps in tracing: master 5 of php-fpm"]
