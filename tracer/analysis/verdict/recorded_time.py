"""How long a recording, or several one after the other, watched: for figures an hour.

Clocks may be set while one records. A clock that goes back by more than some seconds makes the time unknown.
"""

from __future__ import annotations

LEAST_SECONDS = 5.0  # of a rate
_BACK_NS = 10_000_000_000


class RecordedTime:
    """Takes when each request ended, in order."""

    __slots__ = ("_before_ns", "_first_ns", "_jumped", "_last_ns")

    def __init__(self) -> None:
        """No request has been added."""
        self._before_ns = 0  # of the recordings before
        self._first_ns: int | None = None
        self._last_ns = 0
        self._jumped = False

    def begin_recording(self) -> None:
        """Begin a recording: the time since the one before was not watched."""
        if self._first_ns is not None:
            self._before_ns += self._last_ns - self._first_ns
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

    @property
    def seconds(self) -> float | None:
        """Seconds from the first start to the last end; None if no request was added, or a clock was set back."""
        if self._jumped or self._first_ns is None:
            return None
        return (self._before_ns + self._last_ns - self._first_ns) / 1e9

    @property
    def hours(self) -> float | None:
        """The same in hours; None also if it is too short for a rate."""
        seconds = self.seconds
        return None if seconds is None or seconds < LEAST_SECONDS else seconds / 3600
