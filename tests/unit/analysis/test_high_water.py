"""The requests that raised each worker above all it had before, and the weight of a pool without a route."""

from __future__ import annotations

import pytest
from samples import BLOG, SHOP, request

from tracer.analysis import high_water
from tracer.analysis.high_water import HighWaterMarks, PoolWeight, Step, WithoutRoute
from tracer.facts import Worker

MIB = 1 << 20
SECOND = 1_000_000_000
SCRIPT = "/srv/www/index.php"


def served(nth: int, uri: str, before: int, after: int, *, pid: int = 4241, **changed):
    """A request that takes its worker from `before` to `after`, in MiB."""
    return request(
        **{
            "pid": pid, "start_ticks": pid, "nth": nth, "uri": uri, "script": SCRIPT, "started_ns": nth * SECOND,
            "anon_before": before * MIB, "anon_after": after * MIB, "anon_peak": max(before, after) * MIB,
            "zend_real_after": 2 * MIB, **changed,
        }
    )  # fmt: skip


def marks_of(*requests, workers=()) -> HighWaterMarks:
    found = HighWaterMarks()
    found.begin_recording(workers, "web1")
    for one in requests:
        found.add(one)
    return found


def worker(pid: int, *, born_ns: int | None = None, died_ns: int | None = None) -> Worker:
    return Worker(pid, pid, "www", "8.2.36", born_ns, died_ns, None if died_ns is None else "exited:0")


def test_a_request_that_raised_its_worker_is_a_step_with_its_uri_and_time():
    found = marks_of(served(1, "/a", 29, 29), served(2, "/export?id=7", 29, 93), served(3, "/a", 93, 93))

    (one,) = found.workers()
    assert (one.worker, one.container, one.now, one.peak, one.alive) == ("www/4241", None, 93 * MIB, 93 * MIB, True)
    assert one.steps == (
        Step("/export?id=7", SCRIPT, "/export", 2 * SECOND, 29 * MIB, 93 * MIB, starts=False),
    )  # fmt: skip
    assert (one.other_steps, one.other_bytes) == (0, 0)


def test_only_the_largest_steps_have_their_request_in_order_of_time_and_the_others_are_a_sum():
    sizes = [10, 12, 17, 18, 25, 25, 38]
    requests = [served(nth, f"/{nth}", *sizes[nth - 1 : nth + 1]) for nth in range(1, len(sizes))]

    (one,) = marks_of(*requests).workers()
    assert [(step.uri, step.after - step.before) for step in one.steps] == [
        ("/2", 5 * MIB), ("/4", 7 * MIB), ("/6", 13 * MIB),
    ]  # fmt: skip
    assert (one.other_steps, one.other_bytes) == (2, 3 * MIB)


def test_a_step_that_is_small_beside_the_others_is_none_of_the_largest():
    (one,) = marks_of(served(1, "/a", 10, 12), served(2, "/b", 12, 15), served(3, "/c", 15, 70)).workers()

    assert [step.uri for step in one.steps] == ["/b", "/c"]
    assert (one.other_steps, one.other_bytes, one.other_route) == (1, 2 * MIB, "/a")


def test_a_leak_raises_its_worker_in_small_steps_and_its_route_is_named():
    requests = [served(nth, f"/invoice/{nth}" if nth % 3 else "/a", nth, nth + 1) for nth in range(10, 51)]

    (one,) = marks_of(*requests).workers()

    assert (one.steps, one.other_steps, one.other_bytes, one.other_route) == ((), 41, 41 * MIB, "/invoice/{n}")


def test_small_steps_that_no_route_made_most_of_have_no_route():
    requests = [served(nth, f"/{'abc'[nth % 3]}", nth, nth + 1) for nth in range(9, 51)]

    assert marks_of(*requests).workers()[0].other_route is None


def test_a_step_of_few_pages_is_none_of_the_largest():
    small = served(2, "/b", 29, 29, anon_after=29 * MIB + (64 << 10) - 1)
    least = served(3, "/c", 29, 29, anon_after=29 * MIB + (128 << 10) - 1)

    (one,) = marks_of(served(1, "/a", 29, 29), small, least).workers()
    assert [step.uri for step in one.steps] == ["/c"]
    assert (one.other_steps, one.other_bytes) == (1, (64 << 10) - 1)


def test_memory_that_was_given_back_and_taken_again_is_no_step():
    found = marks_of(served(1, "/a", 29, 93), served(2, "/b", 93, 40), served(3, "/c", 40, 93))

    assert [step.uri for step in found.workers()[0].steps] == ["/a"]


def test_chunks_that_zend_keeps_for_later_are_no_step():
    found = marks_of(served(1, "/a", 29, 29), served(2, "/b", 29, 59, zend_real_after=32 * MIB))

    assert found.workers()[0].steps == ()
    assert found.workers()[0].now == 59 * MIB


def test_the_peak_is_the_most_that_a_worker_had_during_a_request():
    found = marks_of(served(1, "/a", 29, 30, anon_peak=121 * MIB), served(2, "/b", 30, 30))

    assert found.workers()[0].peak == 121 * MIB


def test_the_worker_with_the_highest_peak_comes_first():
    found = marks_of(served(1, "/a", 29, 30, pid=11), served(1, "/a", 29, 31, pid=13), served(1, "/a", 29, 30, pid=7))

    assert [one.worker for one in found.workers()] == ["www/13", "www/11", "www/7"]


def test_a_worker_that_was_not_measured_has_no_sizes_and_comes_last():
    nothing = dict.fromkeys(("anon_before", "anon_after", "anon_peak"))

    found = marks_of(served(1, "/a", 29, 30, pid=11, **nothing), served(1, "/a", 29, 31, pid=13))

    assert [(one.worker, one.now, one.peak, one.steps) for one in found.workers()][1] == ("www/11", None, None, ())
    assert found.pools()[0].workers == 1


def test_a_workers_first_request_is_its_start_if_it_was_born_while_tracing():
    requests = [served(1, "/a", 8, 20, pid=11), served(1, "/a", 8, 20, pid=13)]

    found = marks_of(*requests, workers=[worker(11, born_ns=1), worker(13)])

    assert {one.worker: one.steps[0].starts for one in found.workers()} == {"www/11": True, "www/13": False}
    assert found.pools()[0].without == (WithoutRoute("/a", 1, 28 * MIB),)


def test_a_pool_weighs_less_without_the_route_that_raised_its_workers():
    requests = []
    for pid in (11, 13, 17):
        requests += [served(1, "/a", 29, 30, pid=pid), served(2, f"/export/{pid}", 30, 93, pid=pid)]
    requests.append(served(1, "/a", 29, 30, pid=19))

    found = marks_of(*requests)

    assert found.pools() == [
        PoolWeight(
            None,
            "www",
            None,
            4,
            309 * MIB,
            (WithoutRoute("/export/{n}", 3, 120 * MIB), WithoutRoute("/a", 4, 305 * MIB)),
        )
    ]


def test_memory_that_a_worker_has_given_back_since_is_not_saved_once_more():
    requests = [served(1, "/a", 30, 30), served(2, "/export", 30, 93), served(3, "/a", 93, 50)]

    assert marks_of(*requests).pools()[0].without == (WithoutRoute("/export", 1, 30 * MIB),)


def test_a_route_whose_memory_was_all_given_back_saves_nothing():
    requests = [served(1, "/a", 30, 30), served(2, "/export", 30, 93), served(3, "/a", 93, 29)]

    assert marks_of(*requests).pools()[0].without == ()


def test_workers_that_have_ended_are_marked_and_do_not_weigh():
    requests = [served(1, "/a", 29, 93, pid=11), served(1, "/a", 29, 31, pid=13)]

    found = marks_of(*requests, workers=[worker(11, died_ns=5), worker(13)])

    assert [(one.worker, one.alive) for one in found.workers()] == [("www/11", False), ("www/13", True)]
    assert (found.pools()[0].workers, found.pools()[0].weight) == (1, 31 * MIB)


def test_a_worker_that_died_in_a_later_recording_has_ended():
    found = marks_of(served(1, "/a", 29, 93), workers=[worker(4241)])
    found.begin_recording([worker(4241, died_ns=5)], "web1")

    assert not found.workers()[0].alive


def test_a_worker_of_another_host_with_that_pid_has_not_ended():
    found = marks_of(served(1, "/a", 29, 93), workers=[worker(4241)])
    found.begin_recording([worker(4241, died_ns=5)], "web2")

    assert found.workers()[0].alive


def test_a_second_recording_of_a_worker_goes_on_where_the_first_ended():
    found = marks_of(served(1, "/a", 29, 40), workers=[worker(4241)])
    found.begin_recording([worker(4241)], "web1")
    found.add(served(1, "/b", 42, 50))

    (one,) = found.workers()
    assert [(step.uri, step.before, step.after) for step in one.steps] == [
        ("/a", 29 * MIB, 40 * MIB), ("/b", 42 * MIB, 50 * MIB),
    ]  # fmt: skip
    assert found.pools()[0].without == (WithoutRoute("/a", 1, 39 * MIB), WithoutRoute("/b", 1, 42 * MIB))


def test_pools_of_two_hosts_are_not_added_up():
    found = marks_of(served(1, "/a", 29, 30, host="web1"), served(1, "/a", 29, 31, host="web2"))

    assert [(one.host, one.pool, one.weight) for one in found.pools()] == [
        ("web2", "www", 31 * MIB), ("web1", "www", 30 * MIB),
    ]  # fmt: skip


def test_pools_of_two_containers_are_not_added_up():
    requests = [served(1, "/a", 29, 32, **SHOP._asdict()), served(1, "/a", 29, 33, **BLOG._asdict())]

    found = marks_of(*requests)

    assert [(one.container, one.weight) for one in found.pools()] == [("blog", 33 * MIB), ("shop", 32 * MIB)]
    assert [(one.worker, one.container) for one in found.workers()] == [("www/4241", "blog"), ("www/4241", "shop")]


def test_memory_is_bounded_by_workers(monkeypatch):
    monkeypatch.setattr(high_water, "_WORKERS_MAX", 3)

    found = marks_of(*(served(1, "/a", 29, 30, pid=pid) for pid in range(11, 18)))

    assert (len(found.workers()), found.forgotten) == (3, 4)


def test_memory_is_bounded_by_routes_and_those_that_raised_a_worker_most_are_kept(monkeypatch):
    monkeypatch.setattr(high_water, "_ROUTES_MAX", 2)
    requests = [served(nth, uri, *sizes) for nth, (uri, *sizes) in enumerate(
        [("/a", 29, 34), ("/b", 34, 41), ("/c", 41, 42), ("/d", 42, 45)], 1
    )]  # fmt: skip

    assert [one.route for one in marks_of(*requests).pools()[0].without] == ["/b", "/a"]


@pytest.mark.parametrize("size", [(1 << 63) - 1, -(1 << 63)])
def test_sizes_of_64_bits_are_no_trouble(size):
    found = marks_of(served(1, "/a", 29, 30), served(2, "/b", 0, 0, anon_after=size, anon_peak=size))

    assert len(found.workers()) == 1
    assert len(found.pools()) == 1


def test_a_request_that_ran_when_tracing_began_is_no_level_that_later_ones_are_compared_with():
    running = served(1, "/limit", 28, 48, ending="cut_off", zend_real_after=None, anon_peak=60 * MIB)

    found = marks_of(running, served(2, "/a", 48, 10), served(3, "/leak", 10, 17), served(4, "/a", 17, 17))

    (one,) = found.workers()
    assert (one.now, one.peak) == (17 * MIB, 60 * MIB)
    assert [(step.uri, step.before, step.after) for step in one.steps] == [("/leak", 10 * MIB, 17 * MIB)]


def test_a_request_that_goes_on_when_the_recording_ends_is_not_the_size_of_its_worker():
    found = marks_of(served(1, "/a", 10, 10), served(2, "/limit", 10, 120, ending="cut_off"))

    (one,) = found.workers()
    assert (one.now, one.peak, one.steps) == (10 * MIB, 120 * MIB, ())
