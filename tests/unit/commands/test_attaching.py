"""Masters that were started later: the backend that watches them, its files, and what it lacks."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace

import pytest
from phps import executable, php_elf, running

from tracer.backends.choose import BACKENDS, Choice
from tracer.commands.attaching import Plan, Session, _added
from tracer.targets.processes import process
from tracer.targets.resolve import Target

POOL = "phptrace-attaching-test"
PLAN = Plan.of(
    targets=[f"php-fpm:{POOL}"], pids=(), duration=None, count=None, backend="auto", uri=None, script=None, slow=None,
    min_growth=None, query="strip", force=False,
)  # fmt: skip


class Scripted:
    """A backend that notes what it is to watch, too."""

    def __init__(self, name: str, *, adds: bool = True) -> None:
        self.name = name
        self.lacking: Sequence[str] = (f"not measured: {name}",)
        self.added: list[Target] = []
        self._adds = adds

    def add(self, targets: Sequence[Target]) -> bool:
        self.added += targets if self._adds else ()
        return self._adds


@pytest.fixture(autouse=True)
def both_backends_work_here(monkeypatch: pytest.MonkeyPatch) -> None:
    table = {name: dataclasses.replace(factory, unmet=list) for name, factory in BACKENDS.items()}
    monkeypatch.setattr("tracer.backends.choose.BACKENDS", table)


def test_ten_restarts_are_added_to_the_backend_that_can_and_open_one_file(tmp_path: Path) -> None:
    path = executable(tmp_path / "php-fpm", php_elf())
    full, bpf, ptrace = Scripted("bpf", adds=False), Scripted("bpf"), Scripted("ptrace")
    open_files, kept, descriptors = {}, [], []
    for _ in range(10):
        with running(path, "php-fpm: master process (x)", (f"php-fpm: pool {POOL}",)) as master:
            later = _added(PLAN, PLAN.names, [master.pid], [ptrace, full, bpf], open_files)
            assert later is not None
            assert (later.backend, [target.master for target in later.targets]) == (None, [master])
            kept.append(later)
            descriptors.append(len(os.listdir("/proc/self/fd")))
    holding = [later.holds_files for later in kept]
    for later in kept:
        later.close()

    assert descriptors == [descriptors[0]] * 10
    assert holding == [True] + [False] * 9
    assert (len(bpf.added), full.added, ptrace.added) == (10, [], [])
    assert len({target.php.image.fd for target in bpf.added}) == 1
    assert len(os.listdir("/proc/self/fd")) == descriptors[0] - 1


def test_no_file_stays_open_where_no_backend_can_watch_a_master_too(tmp_path: Path) -> None:
    path = executable(tmp_path / "php-fpm", php_elf())
    before = len(os.listdir("/proc/self/fd"))
    with running(path, "php-fpm: master process (x)", (f"php-fpm: pool {POOL}",)) as master:
        assert _added(PLAN, PLAN.names, [master.pid], [Scripted("ptrace"), Scripted("bpf", adds=False)], {}) is None

    assert len(os.listdir("/proc/self/fd")) == before


def test_a_recording_says_what_masters_lack_that_were_started_later() -> None:
    choice = Choice(Scripted("bpf"), "asked for", (), (), ())  # type: ignore[arg-type]
    watch = SimpleNamespace(lacking=("not measured: bpf", "not measured: later"))

    meta = Session(choice, watch, "php-fpm").meta(PLAN)  # type: ignore[arg-type]

    assert meta["lacking"] == ["not measured: bpf", "not measured: later"]


def test_a_recording_has_the_timeouts_of_the_pools_that_are_traced(tmp_path: Path) -> None:
    configuration = tmp_path / "php-fpm.conf"
    configuration.write_text("[www]\nrequest_terminate_timeout = 7\n[shop]\nrequest_terminate_timeout = 11s\n")
    master = dataclasses.replace(process(os.getpid()), title=f"php-fpm: master process ({configuration})")
    target = Target("php-fpm:shop", None, "fpm-fcgi", master, (), frozenset({"shop"}))
    alone = dataclasses.replace(target, master=None)
    backend = Scripted("bpf")

    session = Session(Choice(backend, "asked for", (target, alone), (), ()), backend, "php-fpm")

    assert session._timeouts == [
        {
            "master_pid": os.getpid(),
            "pool": "shop",
            "request_terminate_timeout_s": 11.0,
            "max_execution_time_s": None,
        }
    ]
