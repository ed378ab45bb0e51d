"""Counts of requests that were seen, seen in part, or lost."""

from __future__ import annotations

import sys

import pytest
from samples import BLOG, COMPLETE, SHOP, request

from tracer.analysis.tally import Forked, Tally
from tracer.facts import Fact, Fork, Loss, Worker

WORKER = Worker(4241, 7919, "www", "8.2.36", None, None, None)
BORN_NS, DIED_NS = 1_700_000_000_000_000_003, 1_700_000_000_000_000_019


def tallied(*facts: Fact) -> Tally:
    tally = Tally()
    tally.add_all(facts)
    return tally


def test_nothing_seen_is_nothing_counted():
    tally = tallied()

    assert (tally.requests, tally.incomplete, tally.workers, tally.lost, tally.losses) == (0, 0, 0, 0, {})


def test_requests_are_counted_and_those_seen_in_part_apart():
    tally = tallied(COMPLETE, COMPLETE, request(anon_before=None), request(anon_after=None), COMPLETE)

    assert (tally.requests, tally.incomplete) == (5, 2)


@pytest.mark.parametrize(
    ("ending", "killed", "fatal"),
    [
        ("finished", 0, 0),
        ("exited", 0, 0),
        ("cut_off", 0, 0),
        ("fatal", 0, 1),
        ("killed:SEGV", 1, 0),
        ("killed:63", 1, 0),
    ],
)
def test_requests_that_ended_badly_are_counted_by_how(ending, killed, fatal):
    tally = tallied(request(ending=ending), COMPLETE)

    assert (tally.killed, tally.fatal) == (killed, fatal)


def test_a_complete_request_whose_uri_is_unknown_is_counted():
    tally = tallied(request(uri=None), request(uri=None, anon_before=None), request(uri=""))

    assert tally.uri_unknown == 1


def test_a_worker_is_counted_once_however_often_it_is_reported():
    tally = tallied(WORKER, WORKER, WORKER._replace(pool="shop"))

    assert tally.workers == 1


def test_a_day_of_workers_that_serve_one_request_each_takes_no_memory():
    tally = Tally()
    for ticks in range(100):
        tally.add_all([WORKER, WORKER])
        born = WORKER._replace(pid=3, start_ticks=ticks, born_ns=BORN_NS)
        tally.add_all([born, born._replace(pool="www"), born._replace(died_ns=DIED_NS, exit="exited:0")])

    assert (tally.workers, tally.born, tally.died) == (101, 100, 100)
    assert sys.getsizeof(tally._alive) < 1000


def test_a_worker_of_the_same_pid_born_later_is_another():
    tally = tallied(WORKER, WORKER._replace(start_ticks=7927), WORKER._replace(pid=4243))

    assert tally.workers == 3


def test_workers_of_two_hosts_are_two_though_pid_and_start_are_alike():
    tally = Tally()
    for host in ("web1", "web2", "web1"):
        tally.add_all([WORKER], host=host)

    assert tally.workers == 2


def test_births_and_deaths_are_counted():
    born = WORKER._replace(pid=3, born_ns=BORN_NS)

    tally = tallied(WORKER, born, born._replace(pool="www"), born._replace(died_ns=DIED_NS, exit="exited:0"))

    assert (tally.workers, tally.born, tally.died) == (2, 1, 1)


def test_the_growth_of_workers_in_incomplete_requests_is_added_up():
    cut = request(ending="cut_off", anon_before=1_000, anon_after=5_096)

    tally = tallied(cut, cut._replace(anon_after=1_000 - 96), cut._replace(anon_after=None), COMPLETE)

    assert (tally.incomplete, tally.incomplete_growth) == (3, 4_000)


def test_losses_are_summed_by_why():
    tally = tallied(Loss(1, 3, "ring"), Loss(2, 5, "table"), Loss(3, 7, "ring"))

    assert (tally.lost, tally.losses) == (15, {"ring": 10, "table": 5})


def test_processes_that_workers_forked_are_counted_by_the_uri_of_their_request():
    spawn, other = request(pid=7, started_ns=11, uri="/spawn.php"), request(pid=7, started_ns=13, uri=None)
    forks = [Fork(31, 7, 11, 17, None), Fork(37, 7, 11, None, 4_096), Fork(41, 7, 11, None, 8_192),
             Fork(43, 7, 13, 19, None), Fork(47, 5, None, None, None)]  # fmt: skip

    tally = tallied(*forks, spawn, other, COMPLETE)

    assert tally.forked() == [
        Forked("/spawn.php", 3, 2, 12_288),
        Forked(other.script, 1, 0, 0),
        Forked(None, 1, 1, 0),
    ]


def test_a_day_of_requests_that_fork_takes_no_memory():
    tally = Tally()
    for number in range(1, 5001):
        started = 10 * number
        spawn = request(pid=7, started_ns=started, uri="/spawn.php")
        tally.add_all([Fork(31, 7, started, 17, None), Fork(37, 7, started, 19, None), spawn])
        tally.add(Fork(41, 7, started, 23, None))  # it ends after its request
        tally.add(Fork(43, 7, started + 1, 29, None))  # of a request that was lost

    assert (len(tally._unnamed), len(tally._forkers), len(tally._forked)) == (1, 1000, 2)
    tally.add(WORKER._replace(pid=7, died_ns=DIED_NS))
    assert tally._unnamed == {}
    assert tally.forked() == [Forked("/spawn.php", 15_000, 0, 0), Forked(None, 5000, 0, 0)]


def test_processes_are_named_by_requests_that_come_after_those_of_all_workers():
    forks = [Fork(31 + number, 7, number, 17, None) for number in range(100)]
    tally = tallied(*forks, *(request(pid=7, started_ns=number, uri=f"/{number % 2}") for number in range(100)))

    assert tally.forked() == [Forked("/0", 50, 0, 0), Forked("/1", 50, 0, 0)]


def test_names_beyond_a_number_are_counted_together(monkeypatch):
    monkeypatch.setattr("tracer.analysis.tally._FORKERS_MAX", 2)
    tally = Tally()
    for number in range(5):
        tally.add_all([Fork(31, 7, number, 17, None), request(pid=7, started_ns=number, uri=f"/{number}")])

    assert tally.forked() == [Forked(None, 3, 0, 0), Forked("/0", 1, 0, 0), Forked("/1", 1, 0, 0)]


def test_requests_in_two_places_are_noticed():
    assert not tallied(request(**SHOP._asdict()), request(**SHOP._asdict())).several_places
    assert tallied(request(**SHOP._asdict()), request(**BLOG._asdict()), request(**SHOP._asdict())).several_places
