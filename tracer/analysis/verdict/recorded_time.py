"""How long a recording, or several one after the other, watched: for figures an hour.

Clocks may be set while one records. A clock that goes back by more than some seconds makes the time unknown.
"""

from __future__ import annotations

from collections.abc import Collection

LEAST_SECONDS = 5.0  # of a rate
_BACK_NS = 10_000_000_000


class RecordedTime:
    """Takes when each request ended, in order."""

    __slots__ = ("_ended_ns", "_first_ns", "_jumped", "_last_ns")

    def __init__(self) -> None:
        """No request has been added."""
        self._ended_ns: list[int] = []  # of the recordings before, each
        self._first_ns: int | None = None
        self._last_ns = 0
        self._jumped = False

    @property
    def recording(self) -> int:
        """The number of the recording whose requests are added now."""
        return len(self._ended_ns)

    @property
    def _current_ns(self) -> int:
        return 0 if self._first_ns is None else self._last_ns - self._first_ns

    def begin_recording(self) -> None:
        """Begin a recording: the time since the one before was not watched."""
        if self._first_ns is not None:
            self._ended_ns.append(self._current_ns)
        self._first_ns = None

    def add(self, started_ns: int, ended_ns: int) -> None:
        """Take a request."""
        if self._first_ns is None:
            self._first_ns, self._last_ns = started_ns, ended_ns
        elif ended_ns > self._last_ns:
            self._last_ns = ended_ns
            if started_ns < self._first_ns:
                self._first_ns = started_ns
        elif ended_ns < self._last_ns - _BACK_NS:
            self._jumped = True

    def seconds(self, recordings: Collection[int]) -> float | None:
        """Seconds of these recordings, each from the first start to the last end.

        None if no request was added, or a clock was set back.
        """
        every = [*self._ended_ns, self._current_ns]
        if self._jumped or (self._first_ns is None and not self._ended_ns):
            return None
        return sum(every[number] for number in recordings if number < len(every)) / 1e9

    def hours(self, recordings: Collection[int]) -> float | None:
        """The same in hours; None also if it is too short for a rate."""
        seconds = self.seconds(recordings)
        return None if seconds is None or seconds < LEAST_SECONDS else seconds / 3600
