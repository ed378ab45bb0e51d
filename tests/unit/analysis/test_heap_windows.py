"""The growth of malloc's heap between looks, less what was counted."""

from __future__ import annotations

from samples import request

from tracer.analysis.heap_windows import HeapWindow, HeapWindows
from tracer.facts import Look, Request


def look(at_ns: int, in_use: int, *, start_ticks: int = 7919, in_accept: bool = True, uncertain: int = 0) -> Look:
    return Look(
        4241, start_ticks, at_ns, 1, 1 << 24, in_use, uncertain, 1 << 23, 1 << 21, settled=True, in_accept=in_accept,
        requests=None, why=None,
    )  # fmt: skip


def served(nth: int, started_ns: int, net: int | None, *, grew: int = 0) -> Request:
    """A request that allocated so much more than it freed; None: it was not counted."""
    calls = {"native_kept": None, "native_alloc_bytes": None, "native_free_bytes": None}
    if net is not None:
        calls = {"native_kept": net, "native_alloc_bytes": 1_000_003 + net, "native_free_bytes": 1_000_003}
    return request(
        nth=nth,
        started_ns=started_ns,
        anon_before=9_000_000,
        anon_after=9_000_000 + grew,
        native_between_bytes=0,
        **calls,
    )


def windows(looks: list[Look], *requests: Request, first: tuple[int, ...] = ()) -> list[HeapWindow]:
    found = HeapWindows()
    found.begin_recording(looks)
    for one in requests:
        found.add(one, "key", first=one.nth in first)
    return found.windows()


def test_a_window_has_the_growth_between_two_looks_and_what_was_counted_of_it():
    looks = [look(100, 5_000_000), look(200, 5_034_304), look(300, 5_100_007)]

    found = windows(
        looks, served(1, 110, 34_304), served(2, 210, 331), served(3, 220, None), served(4, 230, None, grew=77),
        first=(4,),
    )  # fmt: skip

    assert found == [HeapWindow(200, 65_703, 331, 3, 77, {"key": 2})]


def test_memory_from_between_requests_is_part_of_the_counted_growth():
    """PHP allocates parameters between requests, and the request frees them."""
    looks = [look(100, 5_000_000), look(200, 5_006_271)]
    requests = [served(1, 110, 6_000)._replace(native_between_bytes=271), served(2, 120, None)]

    assert windows(looks, *requests) == [HeapWindow(100, 6_271, 6_271, 2, 0, {"key": 1})]


def test_looks_that_are_uncertain_or_possibly_within_a_request_end_no_window():
    looks = [look(100, 5_000_000), look(200, 9_000_000, in_accept=False), look(250, 7_000_000, uncertain=16)]

    assert windows([*looks, look(300, 5_000_013)], served(1, 110, None), served(2, 210, None)) == [
        HeapWindow(100, 13, 0, 2, 0, {"key": 2})
    ]


def test_a_window_in_which_a_request_is_missing_says_nothing():
    looks = [look(100, 5_000_000), look(200, 6_000_000), look(300, 6_000_017)]

    found = windows(looks, served(1, 110, None), served(3, 120, None), served(4, 210, None))

    assert found == [HeapWindow(200, 17, 0, 1, 0, {"key": 1})]


def test_a_window_does_not_end_with_a_look_at_another_worker_that_got_the_pid():
    looks = [look(100, 5_000_000), look(200, 8_000_000, start_ticks=7927), look(300, 8_000_019, start_ticks=7927)]

    found = windows(looks, served(1, 110, None), served(1, 210, None), served(2, 220, None))
    assert found == []
    after = windows([*looks[1:], look(400, 8_000_050, start_ticks=7927)], served(1, 210, None), served(2, 310, None))

    assert [(window.began_ns, window.growth) for window in after] == [(200, 19), (300, 31)]


def test_windows_of_one_recording_do_not_end_in_the_next():
    found = HeapWindows()
    found.begin_recording([look(100, 5_000_000), look(200, 5_000_023)])
    found.add(served(1, 110, None), "key", first=False)
    found.begin_recording([look(1000, 7_000_000), look(1100, 7_000_029)])
    found.add(served(1, 1010, None), "key", first=False)

    assert [window.growth for window in found.windows()] == [23, 29]
