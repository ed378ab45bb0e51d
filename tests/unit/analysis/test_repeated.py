"""A leak comes again in each worker; a cache fills once."""

from __future__ import annotations

import pytest

from tracer.analysis.repeated import share_kept_again


@pytest.mark.parametrize(
    ("kept", "share"),
    [
        ([(10, 1), (10, 1), (10, 1)], 1.0),
        ([(0, 1), (0, 1), (90, 1), (0, 2), (0, 2), (60, 2)], 0.0),
        ([(0, 1), (0, 1), (90, 1), (30, 1)], 1 / 3),
        ([(5, 1), (5, 1), (5, 1), (85, 1)], 0.2),
        ([(90, 1), (90, 2), (90, 3), (90, 4), (0, 4), (0, 3)], 0.0),
        ([(-50, 1), (0, 1), (60, 1), (0, 1)], 0.0),
        ([(-50, 1), (0, 1), (20, 1)], 1.0),
        ([(0, 1), (0, 1), (0, 1)], 1.0),
    ],
)
def test_requests_other_than_the_one_of_each_worker_that_kept_most_tell_what_is_kept_again(kept, share):
    assert share_kept_again(kept) == pytest.approx(share)


@pytest.mark.parametrize("kept", [[], [(10, 1)], [(10, 1), (10, 1)], [(10, 1), (10, 2), (10, 3), (10, 3)]])
def test_with_fewer_requests_nobody_can_tell(kept):
    assert share_kept_again(kept) is None
