"""The last request of each worker that did not end in order."""

from __future__ import annotations

import time

import pytest
from samples import BLOG, SHOP, request

from tracer.analysis import last_words
from tracer.analysis.last_words import LastRequests, LastWords
from tracer.facts import Worker

SECOND = 1_000_000_000
KILLED = Worker(4241, 7919, "www", "8.2.36", None, 100 * SECOND, "killed:KILL", "oom")
NO_PLACE = dict.fromkeys(("container", "container_id", "cgroup", "namespaces", "root"))


def served(nth: int, uri: str, **changed):
    """A request of that worker that took two seconds."""
    return request(**{
        **NO_PLACE, "pid": 4241, "start_ticks": 7919, "nth": nth, "uri": uri, "started_ns": nth * 10 * SECOND,
        "duration_ns": 2 * SECOND, "anon_after": 29_003, "anon_peak": 31_013, "notes": None, **changed,
    })  # fmt: skip


def cut(nth: int, uri: str, ending: str = "killed:KILL", **changed):
    """A request that the end of that worker cut off."""
    return served(nth, uri, **{"ending": ending, "anon_after": None, "notes": "end_not_seen", **changed})


def last_of(workers, *requests, requests_left_out: bool = False) -> LastRequests:
    found = LastRequests()
    found.begin_recording(workers, "web1", requests_left_out=requests_left_out)
    for one in requests:
        found.add(one)
    return found


def test_a_worker_that_died_in_a_request_has_that_one_as_its_last_words():
    found = last_of([KILLED], served(7, "/a"), cut(8, "/import", duration_ns=20 * SECOND, anon_peak=1_900_000_007))

    assert found.deaths({}) == [
        LastWords(
            "web1", 4241, "www", "killed:KILL", 100 * SECOND, True, None, True, "/import", "/srv/www/index.php",
            80 * SECOND, 20 * SECOND, 1_900_000_007,
        )
    ]  # fmt: skip


def test_a_worker_that_died_between_requests_has_the_one_before_and_what_it_left():
    (found,) = last_of([KILLED], served(7, "/a"), served(8, "/b")).deaths({})

    assert (found.in_flight, found.uri, found.started_ns, found.size) == (False, "/b", 80 * SECOND, 29_003)


def test_a_worker_of_which_no_request_is_recorded_has_none():
    (found,) = last_of([KILLED]).deaths({})

    assert (found.in_flight, found.uri, found.size, found.pool) == (None, None, None, "www")


def test_each_of_two_workers_with_one_pid_has_its_own_last_request_by_the_time_of_its_death():
    earlier = KILLED._replace(start_ticks=3001, died_ns=75 * SECOND)
    requests = [served(nth, uri, start_ticks=None) for nth, uri in ((7, "/a"), (8, "/b"))]

    found = last_of([KILLED, earlier], *requests).deaths({})

    assert [(one.died_ns // SECOND, one.uri) for one in found] == [(75, "/a"), (100, "/b")]


def test_a_worker_whose_start_is_not_known_is_found_by_the_time_of_its_death():
    workers = [KILLED._replace(start_ticks=None), KILLED._replace(start_ticks=11, died_ns=20 * SECOND)]

    found = last_of(workers, served(1, "/a", start_ticks=11), served(8, "/b"), served(11, "/c")).deaths({})

    assert [(one.died_ns // SECOND, one.uri) for one in found] == [(20, "/a"), (100, "/b")]


def test_many_workers_with_one_pid_take_no_time_of_each_request():
    """Each request was compared with each death of its pid: ten thousand of both took seconds."""
    workers = [KILLED._replace(start_ticks=at, died_ns=at * SECOND) for at in range(1, 9001)]
    found = last_of(workers)

    began = time.thread_time()
    for nth in range(9000):
        found.add(served(1, "/a", start_ticks=10_007, started_ns=nth))
    assert time.thread_time() - began < 2


def test_where_requests_were_left_out_the_last_one_that_is_there_may_be_another():
    (between,) = last_of([KILLED], served(7, "/a"), requests_left_out=True).deaths({})
    (cut_off,) = last_of([KILLED], cut(7, "/a"), requests_left_out=True).deaths({})

    assert (between.in_flight, cut_off.in_flight) == (None, True)


@pytest.mark.parametrize(
    ("ended", "notes", "by_oom_killer"),
    [
        ("killed:KILL", "oom", True),
        ("killed:KILL", None, False),
        ("killed:KILL", "oom_unknown", None),
        ("killed:SEGV", None, False),
        ("exited:70", None, False),
    ],
)
def test_the_oom_killer_is_distinguished_from_others(ended, notes, by_oom_killer):
    (found,) = last_of([KILLED._replace(exit=ended, notes=notes)]).deaths({})

    assert found.by_oom_killer is by_oom_killer


@pytest.mark.parametrize("ended", ["exited:0", "replaced", "unknown", None])
def test_a_worker_that_ended_in_order_is_not_there(ended):
    found = last_of([KILLED._replace(exit=ended)], served(7, "/a"))

    assert (found.deaths({}), found.stopped) == ([], 0)


def test_a_worker_that_lives_is_not_there():
    assert last_of([KILLED._replace(died_ns=None, exit=None)], served(7, "/a")).deaths({}) == []


@pytest.mark.parametrize("ended", ["killed:TERM", "killed:QUIT"])
def test_a_worker_that_was_stopped_between_requests_is_counted_and_one_in_a_request_is_named(ended):
    worker = KILLED._replace(exit=ended, notes=None)

    between, within = last_of([worker], served(7, "/a")), last_of([worker], served(7, "/a"), cut(8, "/b", ended))

    assert (between.deaths({}), between.stopped) == ([], 1)
    assert ([death.uri for death in within.deaths({})], within.stopped) == (["/b"], 0)


def test_a_script_that_ends_its_worker_is_in_flight():
    worker = KILLED._replace(exit="exited:7", notes=None)

    (found,) = last_of([worker], cut(7, "/leave", "cut_off", notes="end_not_seen,worker_exited")).deaths({})

    assert (found.exit, found.in_flight, found.uri) == ("exited:7", True, "/leave")


def test_a_report_on_some_requests_has_the_deaths_in_these():
    found = LastRequests()
    found.begin_recording([KILLED, KILLED._replace(pid=4243), KILLED._replace(pid=4253)], "web1", selected=True)
    found.add(served(7, "/a"), shown=False)
    found.add(cut(8, "/import"))
    found.add(served(7, "/import", pid=4243))
    found.add(cut(8, "/a", pid=4243), shown=False)

    assert [(death.pid, death.uri) for death in found.deaths({})] == [(4241, "/import")]


def test_two_workers_that_had_one_pid_have_their_own_requests():
    later = KILLED._replace(start_ticks=7927, died_ns=300 * SECOND, exit="killed:SEGV", notes=None)

    requests = [served(7, "/a"), served(11, "/b", start_ticks=7927), served(12, "/other", start_ticks=7933)]

    assert [death.uri for death in last_of([later, KILLED], *requests).deaths({})] == ["/a", "/b"]


def test_without_the_start_of_a_worker_its_requests_are_found_by_time():
    later = KILLED._replace(start_ticks=None, died_ns=90 * SECOND)

    found = last_of([later], served(7, "/a", start_ticks=None), served(11, "/b", start_ticks=None))

    assert [death.uri for death in found.deaths({})] == ["/a"]


def test_a_request_of_another_recording_is_not_of_a_worker_with_that_pid():
    found = last_of([KILLED], served(7, "/a"))
    found.begin_recording([], "web2")
    found.add(served(8, "/b"))

    assert [death.uri for death in found.deaths({})] == ["/a"]


def test_the_deaths_are_in_the_order_of_time():
    workers = [KILLED._replace(pid=pid, start_ticks=pid, died_ns=at) for pid, at in ((11, 30), (13, 10), (17, 20))]

    assert [death.pid for death in last_of(workers).deaths({})] == [13, 17, 11]


def test_where_requests_ran_in_several_containers_a_worker_has_the_name_of_its_own():
    found = last_of([KILLED], served(7, "/a", **SHOP._asdict()))

    assert [death.container for death in found.deaths({SHOP: "shop", BLOG: "blog"})] == ["shop"]
    assert [death.container for death in found.deaths({SHOP: "shop"})] == [None]


def test_memory_is_bounded_and_those_that_were_only_stopped_are_left_out_first(monkeypatch):
    monkeypatch.setattr(last_words, "_DEATHS_MAX", 2)
    workers = [
        KILLED._replace(pid=pid, start_ticks=pid, died_ns=pid, exit=f"killed:{name}", notes=None)
        for pid, name in ((11, "SEGV"), (13, "TERM"), (17, "SEGV"), (19, "TERM"))
    ]

    found = last_of(workers)

    assert ([death.pid for death in found.deaths({})], found.stopped, found.more) == ([11, 17], 0, 2)
