"""Requests after which nothing was counted: they count only as far as others of their group kept as much."""

from __future__ import annotations

from samples import request

from tracer.analysis.group import Group
from tracer.analysis.open_requests import OpenValues
from tracer.analysis.ranking import GroupBy, Ranking
from tracer.facts import Request

MESSAGE = 146_000  # bytes that /load.php leaves for the next request to free


def served(nth: int, script: str, kept: int | None, released: int = 0, pid: int = 7) -> Request:
    return request(
        script=script, pid=pid, nth=nth, started_ns=nth, native_kept=kept, native_released=released,
        native_freed_earlier=0,
    )  # fmt: skip


def group_of(script: str, *requests: Request) -> Group:
    ranking = Ranking(GroupBy.SCRIPT, estimate=False)
    for one in requests:
        ranking.add(one)
    [group] = [group for group in ranking.groups() if group.key == script]
    return group


def test_a_page_whose_blocks_the_next_request_frees_is_not_accused_for_its_last_request():
    pages = [served(nth, "/load.php", MESSAGE, MESSAGE if nth < 6 else 0) for nth in range(1, 7)]

    group = group_of("/load.php", *pages)

    assert (group.kept_bytes, group.kept_per_request, group.kept_low, group.kept_high) == (0, 0.0, 0.0, 0.0)
    assert group.counted == 6


def test_a_request_that_is_followed_by_one_that_was_not_counted_stays_open():
    turns = []
    for nth in range(1, 31, 3):
        turns += [
            served(nth, "/load.php", MESSAGE, MESSAGE), served(nth + 1, "/load.php", MESSAGE),
            served(nth + 2, "/load.php", None),
        ]  # fmt: skip

    group = group_of("/load.php", *turns)

    assert (group.kept_per_request, group.kept_how, group.counted) == (0.0, "counted", 20)


def test_a_leakers_last_request_counts_as_others_keep_as_much():
    group = group_of("/leak.php", *[served(nth, "/leak.php", 34_304) for nth in range(1, 9)])

    assert (group.kept_bytes, group.kept_per_request, group.kept_share) == (8 * 34_304, 34_304.0, 1.0)


def test_the_interval_reaches_to_zero_where_no_request_is_known_to_be_followed():
    rare = [served(2, "/rare.php", 34_304, pid=pid) for pid in range(3)]
    again = [served(3, "/rare.php", 34_304, pid=pid) for pid in range(3)]
    seen_before = [served(1, "/rare.php", None, pid=pid) for pid in range(3)]

    first = group_of("/rare.php", *rare)
    assert (first.kept_per_request, first.kept_low, first.kept_high) == (34_304.0, 0.0, 34_304.0)
    followed = group_of("/rare.php", *seen_before, *rare, *again, *[one._replace(nth=4) for one in again])
    assert (followed.kept_low, followed.kept_high) == (34_304.0, 34_304.0)


def test_a_request_after_which_a_filter_left_some_out_is_not_open():
    group = group_of("/a.php", *[served(nth, "/a.php", 100 * nth) for nth in (1, 3, 5, 9)], served(11, "/b.php", 0))

    assert group.kept_per_request == (300 + 500 + 900) / 3


def test_another_worker_with_the_same_pid_does_not_follow():
    first = [served(1, "/a.php", 0), served(2, "/a.php", 10), served(3, "/a.php", MESSAGE)]

    group = group_of("/a.php", *first, served(1, "/b.php", 0))

    assert group.kept_per_request == 10.0


def add(values: OpenValues, kept: int, *, is_open: bool) -> None:
    number = values.add(kept, 7)
    if not is_open:
        values.close(number)


def test_an_open_request_that_leaves_the_window_is_decided_on_for_good():
    values = OpenValues(3)
    for kept, is_open in [(10, False), (900, True), (5, True), (12, False), (700, True)]:
        add(values, kept, is_open=is_open)

    # 900 has left the window: 12 is the most that one kept after which the next was counted.
    assert values.believed == (3, 27, 269.0, 3)
    for kept in (1000, 1000, 1000):
        add(values, kept, is_open=False)
    assert values.believed[:2] == (7, 10 + 5 + 12 + 700 + 3000)


def test_blocks_freed_of_a_request_that_was_left_out_for_good_change_nothing():
    values = OpenValues(4)
    for kept, is_open in [(10, False), (1_000_000, True), *[(10, False)] * 8]:
        add(values, kept, is_open=is_open)

    values.change(1, 1_000_000, 0)

    assert values.believed == (9, 90, 900.0, 9)


def test_the_blocks_of_others_that_a_leakers_last_request_frees_change_nothing():
    leaks = [served(nth, "/leak.php", 34_304 + nth // 8) for nth in range(1, 9)]
    leaks = [one._replace(native_freed_earlier=MESSAGE) for one in leaks]

    assert group_of("/leak.php", *leaks).kept_per_request == 34_304.0
