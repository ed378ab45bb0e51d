"""The interface of a backend, which watches PHP workers and reports what they did. Only backends need privileges."""

from __future__ import annotations

import dataclasses
import enum
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Protocol

from tracer.facts import Fact, Request

if TYPE_CHECKING:  # so that reading a recording does not need pyelftools
    from tracer.targets.resolve import Target


IN_FLIGHT_MAX = 8


def longest(requests: Iterable[Request], seconds: float) -> list[Request]:
    """The requests that have run for so long at least: at most IN_FLIGHT_MAX, the longest first."""
    found = [one for one in requests if (one.duration_ns or 0) >= seconds * 1e9]
    return sorted(found, key=lambda one: -(one.duration_ns or 0))[:IN_FLIGHT_MAX]


@dataclasses.dataclass(frozen=True, slots=True)
class StackOptions:
    """How call stacks are sampled."""

    max_depth: int = 128  # frames, from the innermost
    every: int = 16  # page faults per sample
    hz: int = 999  # Zend heap samples per second of CPU time
    retained_after: int = 5  # requests that a native block has to outlive its own by
    block_bytes: int = 8192  # natively allocated bytes per sample, on average


@dataclasses.dataclass(frozen=True, slots=True)
class NativeOptions:
    """How much the counting of native memory, malloc's and its like, may cost."""

    budget: float = 0.02  # share of a pool's CPU time; math.inf for no limit
    advance_s: float = 0.1  # CPU time that a pool may spend at first
    later_s: float = 0.1  # and in parts, as requests go by; at most as much as both is saved up
    required: bool = False  # True: attach() fails where it cannot be counted


class PtraceMode(enum.Enum):
    """Where ptrace stops a worker."""

    SYSCALLS = "syscalls"  # at entry and exit of each system call
    BREAKPOINTS = "breakpoints"  # by hardware breakpoints at a request's start, Zend's teardown and its end


class Watch(Protocol):
    """Watches PHP workers and reports what they did.

    Facts of one worker come in time order; workers may interleave. What could not be delivered
    arrives as Loss. Workers forked later are included. If stacks were asked for, the Growth of a
    request follows its Request at once, and its Retained comes later, or not at all if its worker ends.
    """

    def poll(self, timeout_s: float) -> list[Fact]:
        """Return the facts since the last call. Wait up to `timeout_s` seconds for the first; [] if there is none.

        Raises IncompleteError if tracing has ended by itself (ptrace only); close() then returns what is left.
        """

    def close(self) -> list[Fact]:
        """Stop watching and return the facts that were not yet given out, with the requests still running cut off.

        Idempotent: later calls return []. Also allowed before or after an attach() that failed. The workers go on
        undisturbed.
        """

    def in_flight(self, seconds: float) -> list[Request]:
        """Return the requests that run now and have run for so long at least, with their growth so far.

        At most IN_FLIGHT_MAX, those that run for the longest time first. They are not facts: each will be one when it
        ends, or tracing does. A backend that learns of a request when it ends, as ptrace, counts from the first call
        that finds it running.
        """

    @property
    def watched(self) -> int:
        """Number of workers watched now; 0 when not attached."""

    @property
    def masters(self) -> frozenset[int]:
        """Pids of live masters, whose future workers will be watched; empty when not attached."""

    @property
    def lacking(self) -> Sequence[str]:
        """Sentences, for the user, on what cannot be measured on these targets; complete after attach()."""


class Backend(Watch, Protocol):
    """One way to watch. One instance attaches once."""

    name: str

    def attach(self, targets: Sequence[Target]) -> None:
        """Begin to watch. The targets' files stay the caller's to close, after close().

        Raises UnsupportedError if this kernel or PHP cannot be traced with this backend, NotPermittedError if this
        process lacks a right, TargetGoneError if no target is left, or another PhptraceError. Before it raises, it
        undoes what it began.
        """

    def add(self, targets: Sequence[Target]) -> bool:
        """Watch these masters, too, from now on; it is attached already. Raises as attach() does.

        False if it cannot do that, and nothing was done. The targets' files stay the caller's to close, after close().
        """
