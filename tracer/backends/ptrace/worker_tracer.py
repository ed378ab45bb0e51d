"""The interface through which the tracing process asks a worker's tracer, however it stops the worker."""

from __future__ import annotations

from typing import Protocol


class WorkerTracer(Protocol):
    """Follows one worker from stop to stop; the worker is stopped while a method runs."""

    pid: int
    requests: int  # begun under watch
    accepts: bool  # it has waited for a connection, so it is a worker and not a master
    malformed_count: int  # how often a connection's data was malformed, since this was last set to 0

    @property
    def request_started_ns(self) -> int:
        """When the open request started (CLOCK_MONOTONIC); 0 if there is none."""

    def exited(self, exit_code: int) -> None:
        """Record the open request as cut off: the worker died, or became another program (REPLACED)."""

    def cut_off(self) -> None:
        """Record the open request as cut off: tracing ends, and the worker runs on."""

    def close(self) -> None:
        """Close the worker's /proc files; idempotent."""
