"""The balance of the growth of workers: exact sums, unknown parts, and the reasons."""

from __future__ import annotations

from typing import Any

import pytest
from samples import request, within

from tracer.analysis.balance import Balance, Balancing
from tracer.facts import Look, Request

BEGIN = Look(
    pid=4241, start_ticks=7919, at_ns=1_000, took_ns=100, anon=7_000_064, malloc_in_use=3_000_016, malloc_uncertain=0,
    malloc_resident=3_100_096, zend_resident=500_032, settled=True, in_accept=True, requests=None, why=None,
)  # fmt: skip
END = BEGIN._replace(at_ns=9_000, anon=7_200_071, malloc_in_use=3_068_032, malloc_resident=3_190_112,
                     zend_resident=520_033, requests=2)  # fmt: skip
WITHOUT_FIGURES = BEGIN._replace(
    anon=None, malloc_in_use=None, malloc_resident=None, zend_resident=None, settled=False, why="it was in a request"
)


def served(nth: int, started_ns: int, **changed: Any) -> Request:
    """A request of the worker that takes 50 ns, grows it by 70,003 bytes and keeps 34,003 natively."""
    return request(
        **{
            "nth": nth, "started_ns": started_ns, "duration_ns": 50, "anon_before": 1_000, "anon_after": 71_003,
            "native_alloc_bytes": 40_000, "native_free_bytes": 6_000, "native_mapped_bytes": 3,
            "native_between_bytes": 0, "native_kept": 34_003,
            **changed,
        }
    )  # fmt: skip


TWO = [served(1, 2_000), served(2, 3_000)]


def balance(looks: list[Look], requests: list[Request], **options: Any) -> Balance:
    balancing = Balancing()
    balancing.begin(looks, **options)
    for one in requests:
        balancing.add(one)
    return balancing.result()


def test_the_parts_are_exact_and_add_up_to_the_growth():
    found = balance([BEGIN, END], TWO)

    assert found == Balance(
        workers=1,
        looked_at=1,
        requests=2,
        counted=2,
        workers_grew=200_007,
        native_kept=68_006,
        zend=20_001,
        between_requests=0,
        unexplained=200_007 - 68_006 - 20_001,
        malloc_free=90_016 - 68_016,
        heap_check=16,
        why=None,
    )


def test_memory_that_is_allocated_between_requests_is_no_part_of_what_they_kept_and_known_to_the_heap_check():
    found = balance(
        [BEGIN, END], [TWO[0]._replace(native_between_bytes=6_192), TWO[1]._replace(native_between_bytes=-6_181)]
    )

    assert (found.native_kept, found.between_requests, found.heap_check) == (68_006, 11, 16 - 11)
    assert found.unexplained == 200_007 - 68_006 - 20_001 - 11


def test_the_heap_is_not_checked_where_the_calls_between_two_requests_are_not_known():
    found = balance([BEGIN, END], [TWO[0], TWO[1]._replace(native_between_bytes=None)])

    assert (found.native_kept, found.unexplained, found.heap_check) == (68_006, 51_999, None)
    assert found.why == "1 worker: malloc's heap is not known exactly"


def test_requests_may_come_in_any_order():
    assert balance([BEGIN, END], TWO[::-1]) == balance([BEGIN, END], TWO)


def test_a_worker_that_shrank_has_negative_parts():
    found = balance([BEGIN, END._replace(anon=6_900_063, zend_resident=400_031, requests=0)], [])

    assert (found.workers_grew, found.native_kept, found.zend) == (-100_001, 0, -100_001)
    assert (found.between_requests, found.unexplained) == (0, 0)


def test_workers_and_recordings_are_summed():
    other = [look._replace(pid=4243, start_ticks=7927) for look in (BEGIN, END)]
    balancing = Balancing()
    for looks, pid in (([BEGIN, END], 4241), (other, 4243)):
        assert balancing.begin(looks)
        for one in TWO:
            balancing.add(one._replace(pid=pid))

    found = balancing.result()

    assert (found.workers, found.looked_at, found.requests, found.counted) == (2, 2, 4, 4)
    assert (found.workers_grew, found.native_kept, found.zend, found.heap_check) == (400_014, 136_012, 40_002, 32)


def test_requests_of_one_recording_are_not_those_of_the_next_with_the_same_pid():
    balancing = Balancing()
    balancing.begin([BEGIN, END])
    for one in TWO:
        balancing.add(one)
    balancing.begin([BEGIN, END._replace(requests=0)])

    assert (balancing.result().workers, balancing.result().requests) == (2, 2)


def test_workers_that_had_one_pid_after_the_other_are_distinguished_by_time():
    later = [BEGIN._replace(start_ticks=7927, at_ns=20_000), END._replace(start_ticks=7927, at_ns=30_000, requests=1)]

    found = balance([BEGIN, END, *later], [*TWO, served(1, 25_000)])

    assert (found.workers, found.requests, found.native_kept, found.why) == (2, 3, 102_009, None)


@pytest.mark.parametrize("apart_ns", [20_000, 0], ids=["one after the other", "all at once"])
def test_a_crafted_recording_of_many_workers_with_one_pid_takes_no_time(apart_ns):
    looks = []
    for number in range(20_000):
        again = {"pid": 4241, "start_ticks": number}
        looks.append(BEGIN._replace(**again, at_ns=1_000 + apart_ns * number))
        looks.append(END._replace(**again, at_ns=9_000 + apart_ns * number, requests=1))
    requests = [served(1, 2_000 + apart_ns * number) for number in range(20_000)]

    with within(5):
        found = balance(looks, requests)

    assert found.looked_at == 20_000
    if apart_ns:
        assert (found.workers, found.native_kept) == (20_000, 20_000 * 34_003)


def test_a_request_that_ran_when_tracing_began_is_of_the_first_worker_of_its_pid():
    reading = BEGIN._replace(in_accept=False)
    later = [reading._replace(start_ticks=7927, at_ns=20_000), END._replace(start_ticks=7927, at_ns=30_000, requests=1)]
    unseen = request(nth=1, started_ns=None, duration_ns=None, anon_before=None, anon_after=None)

    found = balance([reading, END, *later], [unseen, *TWO, served(1, 25_000)])

    assert (found.workers, found.requests, found.why) == (1, 1, "1 worker: a request ran when tracing began")


def test_a_request_may_disturb_the_looks_at_two_workers_of_its_pid():
    later = [BEGIN._replace(start_ticks=7927, at_ns=20_000), END._replace(start_ticks=7927, at_ns=30_000, requests=0)]

    found = balance([BEGIN, END, *later], [served(1, 8_000, duration_ns=12_050)])

    assert found == Balance(0, 2, 0, 0, why="2 workers: a request ran during a look")


@pytest.mark.parametrize("started_ns", [500, 9_500])
def test_requests_before_the_first_look_and_after_the_last_do_not_count(started_ns):
    assert balance([BEGIN, END], [*TWO, served(3, started_ns)]) == balance([BEGIN, END], TWO)


@pytest.mark.parametrize(
    ("started_ns", "duration_ns"),
    [(990, 20), (1_050, 10), (1_099, 5_000), (500, 600), (8_990, 20), (9_099, 5), (8_000, 2_000)],
)
def test_a_look_during_a_request_is_not_compared(started_ns, duration_ns):
    found = balance([BEGIN, END], [*TWO, served(3, started_ns, duration_ns=duration_ns)])

    assert found == Balance(0, 1, 0, 0, why="1 worker: a request ran during a look")


@pytest.mark.parametrize("started_ns", [950, 1_100, 8_950, 9_100])
def test_a_request_may_end_or_begin_right_beside_a_look(started_ns):
    assert balance([BEGIN, END._replace(requests=3)], [*TWO, served(3, started_ns)]).why != (
        "1 worker: a request ran during a look"
    )


def test_a_request_that_ran_when_tracing_began_was_over_at_a_look_in_accept():
    unseen = request(nth=1, started_ns=None, duration_ns=None, anon_before=None, anon_after=None)

    assert balance([BEGIN, END], [unseen, *TWO]) == balance([BEGIN, END], TWO)
    assert balance([BEGIN._replace(in_accept=False), END], [unseen, *TWO]).why == (
        "1 worker: a request ran when tracing began"
    )


READING = {"in_accept": False}  # from a connection: idle, or in a request whose start or end nobody sees


@pytest.mark.parametrize("which", [0, 1], ids=["at the first look", "at the last look"])
@pytest.mark.parametrize(
    ("requests", "expected", "options"),
    [
        pytest.param([], 0, {}, id="none was seen"),
        pytest.param(TWO[:1], 2, {}, id="one is missing"),
        pytest.param(TWO, 2, {"requests_lost": True}, id="requests were lost"),
        pytest.param(TWO, 2, {"requests_left_out": True}, id="requests were left out"),
    ],
)
def test_a_worker_that_read_from_a_connection_was_possibly_in_a_request(which, requests, expected, options):
    looks = [BEGIN, END._replace(requests=expected)]
    looks[which] = looks[which]._replace(**READING)

    assert balance(looks, requests, **options) == Balance(0, 1, 0, 0, why="1 worker: it was possibly in a request")


def test_a_worker_that_reads_from_a_connection_that_it_keeps_is_compared_if_all_its_requests_are_there():
    assert balance([BEGIN._replace(**READING), END._replace(**READING)], TWO) == balance([BEGIN, END], TWO)


def test_a_worker_in_accept_is_compared_though_requests_were_left_out():
    assert balance([BEGIN, END], TWO, requests_left_out=True) == balance([BEGIN, END], TWO)


@pytest.mark.parametrize(
    ("requests", "expected", "why"),
    [
        pytest.param([TWO[0], TWO[1]._replace(native_alloc_bytes=None)], 2, "1 of 2", id="one is not counted"),
        pytest.param(TWO, 3, "2 of 3", id="one was filtered out"),
        pytest.param([served(1, 2_000), served(3, 3_000)], 2, "2 of 3", id="one in between is missing"),
        pytest.param([], 4, "0 of 4", id="none was recorded"),
    ],
)
def test_native_memory_is_not_known_unless_every_request_was_counted(requests, expected, why):
    found = balance([BEGIN, END._replace(requests=expected)], requests)

    assert (found.native_kept, found.unexplained, found.heap_check) == (None, None, None)
    assert (found.workers_grew, found.zend) == (200_007, 20_001)
    assert found.why == f"1 worker: {why} requests counted"


def test_growth_between_requests_is_known_if_all_requests_are_there_and_none_was_counted():
    requests = [one._replace(native_alloc_bytes=None) for one in TWO]

    assert balance([BEGIN, END], requests).between_requests == 60_001
    assert balance([BEGIN, END], requests[:1]).between_requests is None


def test_a_worker_that_was_not_counted_is_left_out_beside_one_that_was():
    other = [BEGIN._replace(pid=4243), END._replace(pid=4243, requests=5)]

    found = balance([BEGIN, END, *other], TWO)

    assert (found.workers, found.looked_at, found.native_kept) == (1, 2, 68_006)
    assert found.why == "1 worker: 0 of 5 requests counted"


def test_an_idle_worker_does_not_stand_for_those_that_were_not_counted():
    idle = [BEGIN._replace(pid=4243), END._replace(pid=4243, requests=0)]

    found = balance([BEGIN, END, *idle], [one._replace(native_alloc_bytes=None) for one in TWO])

    assert (found.workers, found.workers_grew, found.native_kept) == (2, 400_014, None)


def test_nothing_is_known_of_native_memory_if_requests_were_lost():
    found = balance([BEGIN, END], TWO, requests_lost=True)

    assert (found.native_kept, found.between_requests, found.unexplained) == (None, None, None)
    assert found.why == "1 worker: requests were lost"


@pytest.mark.parametrize(
    ("looks", "why"),
    [
        ([], "no worker was looked at"),
        ([BEGIN], "1 worker: there was no second look"),
        ([WITHOUT_FIGURES], "1 worker: it was in a request"),
        ([BEGIN, WITHOUT_FIGURES._replace(requests=2)], "1 worker: it was in a request"),
        ([BEGIN, END._replace(settled=False)], "1 worker: its memory changed during the look"),
        ([BEGIN, END._replace(zend_resident=None, why="Zend: why not")], "1 worker: Zend: why not"),
        ([END], "no worker was looked at"),
    ],
)
def test_without_two_looks_nothing_is_known_but_the_reason(looks, why):
    balancing = Balancing()

    assert not balancing.begin(looks)
    found = balancing.result()
    assert (found.workers, found.workers_grew, found.native_kept, found.zend) == (0, None, None, None)
    assert (found.unexplained, found.why, found.doubtful) == (None, why, False)


def test_many_reasons_are_summed_up():
    looks = [BEGIN._replace(pid=pid, settled=False, why=f"reason {min(pid, 7)}") for pid in range(1, 10)]

    assert balance(looks, []).why == (
        "3 workers: reason 7; 1 worker: reason 1; 1 worker: reason 2; 1 worker: reason 3; 3 workers: other reasons"
    )


@pytest.mark.parametrize(
    "changed", [{"malloc_in_use": None}, {"malloc_uncertain": 32}], ids=["malloc is unknown", "malloc is not exact"]
)
def test_the_heap_is_not_checked_where_malloc_is_not_exact(changed):
    for looks in ([BEGIN._replace(**changed), END], [BEGIN, END._replace(**changed)]):
        found = balance(looks, TWO)
        assert (found.heap_check, found.native_kept, found.unexplained) == (None, 68_006, 112_000)
        assert found.why == "1 worker: malloc's heap is not known exactly"


@pytest.mark.parametrize(
    ("grew", "unexplained", "doubtful"),
    [
        (100 << 20, (5 << 20) + 1, True),
        (100 << 20, 5 << 20, False),
        (100 << 20, -(5 << 20) - 1, True),
        (0, (1 << 20) + 1, True),
        (4096, 1 << 20, False),
        (None, None, False),
    ],
)
def test_more_than_a_megabyte_and_five_percent_unexplained_is_doubtful(grew, unexplained, doubtful):
    assert Balance(1, 1, 1, 1, workers_grew=grew, unexplained=unexplained).doubtful is doubtful


def test_a_page_that_one_request_leaves_to_what_is_read_before_the_next_is_counted_once():
    """Memory becomes resident between requests, and is held by those that allocate within it."""
    between = [one._replace(anon_before=1_000, anon_after=1_000) for one in TWO]

    found = balance([BEGIN, END], between)

    assert (found.between_requests, found.unexplained) == (0, 200_007 - 68_006 - 20_001)


@pytest.mark.parametrize(("malloc_free", "doubtful"), [(18 << 20, False), (16 << 20, True), (None, True)])
def test_free_memory_that_malloc_keeps_is_an_explanation(malloc_free, doubtful):
    found = Balance(1, 1, 1, 1, workers_grew=20 << 20, unexplained=18 << 20, malloc_free=malloc_free)

    assert found.doubtful is doubtful
