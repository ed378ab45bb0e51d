"""Windows of a worker's requests, and at which looks they begin and end."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from samples import PROPERTY

from tracer.analysis.growth_windows import PAGE, ROUNDING, Window
from tracer.analysis.window_cutter import WARM_UP, WindowCutter

LENGTH = 4
SIZE = 2 << 20


def cut(cutter: WindowCutter, looks: list[tuple[int, int | None, str]]) -> list[Window]:
    """Windows from looks: level in pages, size of Zend's heap, key of the request that follows."""
    found = []
    for level, size, key in looks:
        window = cutter.look(level * PAGE, size, LENGTH)
        if window is not None:
            found.append(window)
        cutter.begin(key)
    return found


def warm() -> WindowCutter:
    """A cutter after the warm-up of its worker, at a level of 100 pages."""
    cutter = WindowCutter(3)
    assert cut(cutter, [(100, SIZE, "page"), (100, SIZE, "leak"), *[(100, SIZE, "hello")] * (WARM_UP - 2)]) == []
    return cutter


def test_a_window_ends_when_the_key_before_its_start_grows_the_worker_again():
    cutter = warm()
    cut(cutter, [(100, SIZE, "page"), (110, SIZE, "leak"), *[(110, SIZE, "hello")] * 3, (110, SIZE, "page")])

    # Each leak goes into what page.php freed, until the next page.php grows the worker.
    found = cut(
        cutter,
        [
            (118, SIZE, "leak"), (118, SIZE, "leak"), (118, SIZE, "hello"), (118, SIZE, "page"),
            (134, SIZE, "leak"), (134, SIZE, "hello"), (134, SIZE, "hello"), (134, SIZE, "hello"), (134, SIZE, "page"),
            (142, SIZE, "hello"),
        ],
    )  # fmt: skip

    assert [(window.growth // PAGE, window.counts) for window in found[-2:]] == [
        (16, {"leak": 2, "hello": 1, "page": 1}),
        (8, {"leak": 1, "hello": 3, "page": 1}),
    ]
    assert [(window.begins, window.ends, window.noise) for window in found[-2:]] == [("page", "page", ROUNDING)] * 2


def test_a_window_without_growth_ends_anywhere_and_is_exact():
    (first, second) = cut(warm(), [(100, SIZE, "hello")] * (2 * LENGTH + 1))

    assert first.growth == second.growth == 0
    assert first.counts == second.counts == {"hello": LENGTH}
    assert first.noise == ROUNDING


def test_an_end_that_is_not_as_the_start_may_be_off_by_what_is_hidden():
    cutter = warm()
    cut(cutter, [(100, SIZE, "page"), (110, SIZE, "page"), (120, SIZE, "page"), (130, SIZE, "hello")])

    found = cut(cutter, [(130, SIZE, "hello")] * 400)

    assert found[-1].growth == 0
    assert found[-1].noise == pytest.approx(math.hypot(ROUNDING, 10 * PAGE))


def test_looks_with_more_chunks_of_zend_are_not_compared():
    cutter = warm()

    found = cut(
        cutter,
        [
            (100, SIZE, "hello"),
            (500, 3 * SIZE, "hello"),
            (480, 2 * SIZE, "hello"),
            (101, SIZE, "hello"),
            (101, SIZE, "hello"),
        ],
    )

    assert [(window.growth, window.counts) for window in found] == [(PAGE, {"hello": 4})]


def test_windows_begin_anew_when_zends_heap_does_not_get_back_to_its_size():
    cutter = warm()

    found = cut(cutter, [*[(100, SIZE, "hello")] * 2, *[(700, 2 * SIZE, "hello")] * 60])

    assert all(window.growth == 0 for window in found)
    assert [window.chain for window in found] == [(3, 1)] + [(3, 2)] * (len(found) - 1)
    assert len(found) >= 2


def test_the_smallest_usual_size_begins_a_window():
    cutter = WindowCutter(0)
    cut(cutter, [(700 if number % 2 else 100, SIZE * (1 + number % 2), "hello") for number in range(WARM_UP + 1)])

    found = cut(cutter, [(700, 2 * SIZE, "hello"), (100, SIZE, "hello")] * LENGTH)

    assert [window.growth for window in found] == [0] * len(found)
    assert found


def test_the_first_use_of_a_key_is_left_out():
    cutter = warm()

    found = cut(cutter, [(100, SIZE, "hello"), (100, SIZE, "new"), (160, SIZE, "hello"), *[(160, SIZE, "hello")] * 3])

    assert [(window.growth, window.counts) for window in found] == [(0, {"hello": 4})]


def test_a_first_use_that_changes_zends_heap_is_left_out_until_it_has_its_size_again():
    cutter = warm()

    found = cut(
        cutter,
        [
            (100, SIZE, "hello"), (100, SIZE, "new"), (900, 2 * SIZE, "hello"), (900, 2 * SIZE, "hello"),
            *[(130, SIZE, "hello")] * 4,
        ],
    )  # fmt: skip

    assert [(window.growth, window.counts) for window in found] == [(0, {"hello": 4})]


def test_windows_of_a_worker_that_warms_up_are_young_and_begin_after_growth():
    cutter = WindowCutter(0)
    levels = [100, 100, 102, *range(104, 150, 2)]

    found = cut(cutter, [(level, SIZE, "page") for level in levels])

    assert found
    assert all(window.young and window.begins == window.ends == "page" for window in found)


def test_memory_that_a_peak_left_free_is_noise_until_the_worker_grows_again():
    cutter = warm()
    cut(cutter, [(100, SIZE, "hello"), (100, SIZE, "report"), (9_100, SIZE, "hello")])

    hidden = cut(cutter, [(9_100, SIZE, "hello")] * 20)
    cut(cutter, [(9_101, SIZE, "hello")] * 40)
    after = cut(cutter, [(9_101, SIZE, "hello")] * 80)

    assert all(window.noise > 9_000 * PAGE for window in hidden)
    assert after[-1].noise < 10 * PAGE


def test_requests_that_nobody_looked_at_are_counted():
    cutter = warm()
    cut(cutter, [(100, SIZE, "hello")])
    cutter.begin("others", 3)

    (window,) = cut(cutter, [(100, SIZE, "hello")])

    assert window.counts == {"hello": 1, "others": 3}


def test_heap_walks_give_windows_of_their_own():
    cutter = WindowCutter(5)

    assert cutter.walk(1_000) is None
    cutter.begin("page")
    cutter.begin("leak")
    window = cutter.walk(35_304)

    assert window is not None
    assert (window.walked, window.growth, window.counts) == (True, 34_304, {"page": 1, "leak": 1})
    assert window.noise < ROUNDING
    assert cutter.walk(35_304) is None, "no request came between"


LOOKS = st.lists(
    st.tuples(
        st.integers(min_value=0, max_value=2_000),
        st.sampled_from([None, *range(SIZE, 90 * SIZE, SIZE)]),
        st.sampled_from("abcdefgh"),
    ),
    max_size=300,
)


@PROPERTY
@given(LOOKS, st.integers(min_value=1, max_value=20))
def test_windows_never_count_a_request_twice_whatever_comes(looks, length):
    cutter = WindowCutter(0)
    counted = 0
    for level, size, key in looks:
        window = cutter.look(level * PAGE, size, length)
        if window is not None:
            counted += window.requests
            assert window.noise >= ROUNDING
        cutter.begin(key)
    unfinished = cutter.unfinished()
    counted += unfinished.requests if unfinished is not None else 0

    assert counted <= len(looks)
