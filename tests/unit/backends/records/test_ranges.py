"""Ranges of addresses with their owners, against a model that knows the owner of every single page."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from samples import PROPERTY

from tracer.backends.records.ranges import Ranges

PAGES = 41
PLACES = st.tuples(st.integers(0, PAGES), st.integers(0, PAGES)).filter(lambda both: both[0] <= both[1])
# An owner: enter it; None: take out.
STEPS = st.lists(st.tuples(PLACES, st.none() | st.sampled_from("abc")), max_size=23)


def pages(taken: list[tuple[int, int, str]]) -> dict[int, str]:
    return {page: owner for start, end, owner in taken for page in range(start, end)}


def entered(*ranges: tuple[int, int, str]) -> Ranges[str]:
    made = Ranges[str]()
    for start, end, owner in ranges:
        made.add(start, end, owner)
    return made


@PROPERTY
@given(STEPS)
def test_each_page_has_the_owner_that_entered_it_last(steps):
    ranges, model = Ranges[str](), dict[int, str]()
    for (start, end), owner in steps:
        was_there = {page: model.pop(page) for page in range(start, end) if page in model}
        if owner is not None:
            model.update(dict.fromkeys(range(start, end), owner))

        taken = ranges.take(start, end) if owner is None else ranges.add(start, end, owner)

        assert pages(taken) == was_there
        assert sum(stop - begin for begin, stop, _ in taken) == len(was_there)

    assert pages(ranges.take(0, PAGES)) == model
    assert len(ranges) == 0


@PROPERTY
@given(STEPS)
def test_taken_ranges_come_in_the_order_of_addresses_and_never_twice(steps):
    ranges = Ranges[str]()
    for (start, end), owner in steps:
        ranges.add(start, end, owner or "d")

    bounds = [bound for begin, stop, _ in ranges.take(0, PAGES) for bound in (begin, stop)]

    assert bounds == sorted(bounds)


def test_a_range_in_the_middle_of_another_leaves_both_its_ends():
    ranges = entered((3, 31, "a"))

    assert ranges.add(11, 13, "b") == [(11, 13, "a")]
    assert ranges.take(0, 99) == [(3, 11, "a"), (11, 13, "b"), (13, 31, "a")]


def test_an_empty_range_takes_nothing_out_and_replaces_nothing():
    ranges = entered((3, 31, "a"))

    assert (ranges.take(11, 11), ranges.add(13, 13, "b"), ranges.take(17, 7)) == ([], [], [])
    assert ranges.take(0, 99) == [(3, 31, "a")]


def test_neighbours_are_left_alone():
    ranges = entered((3, 7, "a"), (7, 11, "b"), (11, 13, "c"))

    assert ranges.take(7, 11) == [(7, 11, "b")]
    assert ranges.take(7, 11) == []
    assert len(ranges) == 2


def test_neighbours_of_one_owner_are_one_range_in_whatever_order_they_come():
    for order in ((3, 7), (7, 11), (11, 13)), ((11, 13), (7, 11), (3, 7)), ((3, 7), (11, 13), (7, 11)):
        ranges = entered(*((start, end, "a") for start, end in order))

        assert len(ranges) == 1
        assert ranges.take(0, 99) == [(3, 13, "a")]


def test_a_range_that_was_never_entered_is_not_taken():
    assert entered((3, 7, "a"), (17, 19, "b")).take(5, 18) == [(5, 7, "a"), (17, 18, "b")]
