"""The time that recordings watched."""

from __future__ import annotations

import pytest

from tracer.analysis.verdict.recorded_time import RecordedTime

SECOND = 1_000_000_000


def seconds_of(*recordings: list[tuple[int, int]]) -> float | None:
    """Of recordings of requests, each (start, end) in seconds."""
    time = RecordedTime()
    for requests in recordings:
        time.begin_recording()
        for started, ended in requests:
            time.add(started * SECOND, ended * SECOND)
    return time.seconds(range(time.recording + 1))


@pytest.mark.parametrize(
    ("recordings", "seconds"),
    [
        ([], None),
        ([[]], None),
        ([[(100, 103)]], 3.0),
        ([[(100, 101), (105, 109)]], 9.0),
        ([[(100, 101), (99, 109)]], 10.0),
        ([[(100, 101), (105, 109)], [(1000, 1001)]], 10.0),
        ([[(100, 109), (104, 105)]], 9.0),
        ([[(100, 109), (50, 51)]], None),
    ],
    ids=["none", "empty", "one", "two", "a long one", "two recordings", "late", "clock set back"],
)
def test_the_time_is_from_the_first_start_to_the_last_end_of_each_recording(recordings, seconds):
    assert seconds_of(*recordings) == seconds
