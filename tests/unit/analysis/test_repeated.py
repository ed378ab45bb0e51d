"""A leak comes again in each worker; a cache fills once."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from samples import PROPERTY

from tracer.analysis.repeated import Repeated, repeated


@pytest.mark.parametrize(
    ("kept", "found"),
    [
        ([(10, 1), (10, 1), (10, 1)], (1.0, 0)),
        ([(0, 1), (0, 1), (90, 1), (0, 2), (0, 2), (60, 2)], (0.0, 150)),
        ([(0, 1), (0, 1), (90, 1), (30, 1)], (0.25, 90)),
        ([(5, 1), (5, 1), (5, 1), (85, 1)], (0.2, 80)),
        ([(-50, 1), (0, 1), (60, 1), (0, 1)], (0.0, 10)),
        ([(-50, 1), (0, 1), (20, 1)], (1.0, 0)),
        ([(0, 1), (0, 1), (0, 1)], (1.0, 0)),
    ],
)
def test_the_bytes_that_one_request_of_each_worker_kept_beyond_the_median_came_once(kept, found):
    assert repeated(kept) == Repeated(*found)


@pytest.mark.parametrize("kept", [[], [(10, 1)], [(10, 1), (10, 1)], [(10, 1), (10, 2), (10, 3), (10, 3)]])
def test_with_fewer_requests_nobody_can_tell(kept):
    assert repeated(kept) == Repeated(None)


@PROPERTY
@given(st.lists(st.tuples(st.integers(-9, 9), st.integers(0, 3)), min_size=6, max_size=20))
def test_no_more_came_once_than_was_kept(kept):
    share, once = repeated(kept)

    assert share is not None
    assert 0.0 <= share <= 1.0
    assert 0 <= once <= max(0, sum(size for size, _ in kept))
