"""Births, titles and deaths of workers, turned into Worker facts."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from phps import executable, php_elf, running

from tracer.backends.records.request_structs import PROCESS_EVENT, EventKind
from tracer.backends.records.worker_table import WorkerTable, place_of
from tracer.facts import Place, Worker
from tracer.targets import php as php_binary
from tracer.targets.elf import open_image
from tracer.targets.processes import Process, children
from tracer.targets.resolve import Target

CLOCK_OFFSET_NS = 1_700_000_000_000_000_003
MASTER = Process(4001, 1, 7, "php-fpm: master process (x)", (3, 5))
WORKER = Process(4003, 4001, 11, "php-fpm: pool www", (3, 5))
TICK_NS = 1_000_000_000 // os.sysconf("SC_CLK_TCK")
NO_PID = 1 << 30
GONE = dataclasses.replace(MASTER, pid=NO_PID)


@pytest.fixture
def target(tmp_path: Path) -> Iterator[Target]:
    image = open_image(str(executable(tmp_path / "php-fpm", php_elf())))
    yield Target("php-fpm", php_binary.inspect(image), "fpm-fcgi", MASTER, (WORKER,), None)
    image.close()


@pytest.fixture
def table(target: Target) -> WorkerTable:
    """A table with a master, and one worker that was there already."""
    made = WorkerTable(CLOCK_OFFSET_NS)
    made.masters[MASTER.pid] = target
    made.add(WORKER, target)
    return made


@pytest.fixture
def of_shop(target: Target) -> WorkerTable:
    """A table with a master of which only the pool `shop` is wanted."""
    made = WorkerTable(CLOCK_OFFSET_NS)
    made.masters[MASTER.pid] = dataclasses.replace(target, pools=frozenset({"shop"}))
    return made


def event(kind: EventKind, pid: int = 4007, parent: int = 4001, exit_code: int = 0, title: bytes = b"") -> bytes:
    return PROCESS_EVENT.pack(kind, pid, parent, exit_code, 1_000_003, 13 * TICK_NS + 17, title)


def test_a_worker_that_was_there_already_has_no_birth(target):
    fact = WorkerTable(CLOCK_OFFSET_NS).add(WORKER, target)

    assert fact == Worker(4003, 11, "www", "8.2.36", None, None, None)


def test_a_masters_child_is_a_worker_whose_pool_is_not_yet_known(table):
    fact = table.born(event(EventKind.BORN))

    assert fact == Worker(4007, 13, None, "8.2.36", CLOCK_OFFSET_NS + 1_000_003, None, None)
    assert table.workers[4007].wanted


def test_a_child_of_another_process_is_not_a_worker(table):
    assert table.born(event(EventKind.BORN, parent=4999)) is None


def test_a_workers_child_that_serves_is_a_worker_of_the_same_target(table):
    fact = table.born(event(EventKind.BORN, parent=4003))

    assert fact == Worker(4007, 13, None, "8.2.36", CLOCK_OFFSET_NS + 1_000_003, None, None)
    assert table.workers[4007].target is table.workers[4003].target


def test_a_worker_gets_its_pool_with_its_title(table):
    table.born(event(EventKind.BORN))

    fact = table.titled(event(EventKind.TITLED, title=b"php-fpm: pool shop\0left over"))

    assert fact == Worker(4007, 13, "shop", "8.2.36", CLOCK_OFFSET_NS + 1_000_003, None, None)
    assert table.pool(4007) == "shop"


def test_a_pool_whose_name_is_longer_than_the_event_has_is_the_one_that_was_asked_for(target):
    name = "shop" * 20
    table = WorkerTable(CLOCK_OFFSET_NS)
    table.masters[MASTER.pid] = dataclasses.replace(target, pools=frozenset({"shop", name}))
    table.born(event(EventKind.BORN))

    fact = table.titled(event(EventKind.TITLED, title=f"php-fpm: pool {name}".encode()[:64]))

    assert fact is not None
    assert fact.pool == name


def test_a_worker_of_an_unwanted_pool_makes_no_fact(of_shop):
    born = of_shop.born(event(EventKind.BORN))
    titled = of_shop.titled(event(EventKind.TITLED, title=b"php-fpm: pool www"))
    died = of_shop.died(event(EventKind.DIED))

    assert (born, titled, died) == (None, None, None)


def test_a_worker_of_a_wanted_pool_makes_a_fact_once_its_title_is_known(of_shop):
    assert of_shop.born(event(EventKind.BORN)) is None

    fact = of_shop.titled(event(EventKind.TITLED, title=b"php-fpm: pool shop"))

    assert fact is not None
    assert (fact.pool, fact.born_ns) == ("shop", CLOCK_OFFSET_NS + 1_000_003)


def test_the_last_fact_of_a_worker_says_how_it_ended(table):
    fact = table.died(event(EventKind.DIED, pid=4003, exit_code=15))

    assert fact == Worker(4003, 11, "www", "8.2.36", None, CLOCK_OFFSET_NS + 1_000_003, "killed:TERM")
    assert table.pool(4003) is None


@pytest.mark.parametrize(
    ("kind", "sees_oom", "exit_code", "ended", "notes"),
    [
        (EventKind.OOM_DIED, True, 9, "killed:KILL", "oom"),
        (EventKind.DIED, True, 9, "killed:KILL", None),
        (EventKind.DIED, False, 9, "killed:KILL", "oom_unknown"),
        (EventKind.DIED, False, 11, "killed:SEGV", None),
        (EventKind.OOM_DIED, True, 0, "exited:0", None),  # it was about to end when it was chosen
    ],
)
def test_the_last_fact_of_a_worker_tells_the_oom_killer_from_others(table, kind, sees_oom, exit_code, ended, notes):
    table.sees_oom = sees_oom

    fact = table.died(event(kind, pid=4003, exit_code=exit_code))

    assert (fact.exit, fact.notes) == (ended, notes)


def test_a_worker_dies_once(table):
    table.died(event(EventKind.DIED, pid=4003))

    assert table.died(event(EventKind.DIED, pid=4003)) is None


def test_a_master_that_dies_is_not_a_worker_and_has_no_more_children(table):
    assert table.died(event(EventKind.DIED, pid=4001)) is None
    assert table.born(event(EventKind.BORN)) is None


def test_the_title_of_an_unknown_worker_makes_no_fact(table):
    assert table.titled(event(EventKind.TITLED, pid=NO_PID, title=b"php-fpm: pool www")) is None


def test_a_worker_whose_birth_was_lost_is_found_by_its_master(target, tmp_path):
    path = executable(tmp_path / "php", php_elf())
    with running(path, "php-fpm: master process (x)", ("php-fpm: pool www",)) as master:
        table = WorkerTable(CLOCK_OFFSET_NS)
        table.masters[master.pid] = target
        [worker] = children(master)

        watched = table.adopt_unknown(worker.pid)

    assert watched is not None
    assert (watched.fact.pid, watched.fact.pool, watched.wanted) == (worker.pid, "www", True)
    assert table.pool(worker.pid) == "www"


def test_a_process_without_a_traced_master_is_not_adopted(table):
    assert table.adopt_unknown(os.getpid()) is None
    assert table.adopt_unknown(NO_PID) is None


def test_a_worker_that_is_no_longer_there_is_missing_at_the_second_look(target):
    table = WorkerTable(CLOCK_OFFSET_NS)
    table.add(dataclasses.replace(WORKER, pid=os.getpid()), target)
    table.add(dataclasses.replace(WORKER, pid=NO_PID), target)

    assert table.missing_pids() == []  # news of its death may be on the way
    assert table.missing_pids() == [NO_PID]


def test_a_worker_whose_death_was_lost_ends_when_it_was_missed_for_an_unknown_reason(table):
    fact = table.mark_gone(4003, 1_700_000_000_000_000_019)

    assert fact == Worker(4003, 11, "www", "8.2.36", None, 1_700_000_000_000_000_019, "unknown")
    assert table.mark_gone(4003, 0) is None


def test_the_requests_of_a_worker_have_its_start_its_master_and_its_root(target):
    table = WorkerTable(CLOCK_OFFSET_NS)
    table.add(dataclasses.replace(WORKER, pid=os.getpid()), dataclasses.replace(target, master=GONE))

    assert table.workers[os.getpid()].origin == (11, NO_PID, None, None, None, None, "/")


def test_a_worker_that_ended_at_once_has_the_root_of_its_pool(target):
    table = WorkerTable(CLOCK_OFFSET_NS)
    table.masters[NO_PID] = dataclasses.replace(target, master=GONE)
    table.add(dataclasses.replace(WORKER, pid=os.getpid()), table.masters[NO_PID])
    roots = {}
    for pid, pool in ((NO_PID + 1, b"www"), (NO_PID + 2, b"shop")):
        table.born(event(EventKind.BORN, pid=pid, parent=NO_PID))
        table.titled(event(EventKind.TITLED, pid=pid, title=b"php-fpm: pool " + pool))
        roots[pool] = table.workers[pid].origin[-1]

    assert roots == {b"www": "/", b"shop": None}


def test_a_process_without_a_master_runs_where_it_runs_itself(target):
    table = WorkerTable(CLOCK_OFFSET_NS)
    table.add(dataclasses.replace(WORKER, pid=os.getpid()), dataclasses.replace(target, master=None))

    ticks, master, *place = table.workers[os.getpid()].origin
    assert (ticks, master) == (11, None)
    assert Place._make(place) == place_of(os.getpid())
    assert place_of(os.getpid()).cgroup is not None


def test_nothing_is_kept_of_masters_that_have_ended(target):
    table = WorkerTable(CLOCK_OFFSET_NS)
    for number in range(3):
        master = dataclasses.replace(GONE, pid=NO_PID + number)
        table.masters[master.pid] = dataclasses.replace(target, master=master)
        table.add(dataclasses.replace(WORKER, pid=os.getpid()), table.masters[master.pid])
        table.died(event(EventKind.DIED, pid=os.getpid()))
        table.died(event(EventKind.DIED, pid=master.pid))

    assert (table._places, table._roots) == ({}, {})
