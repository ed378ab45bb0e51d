"""The one loop that takes facts from a backend: when it stops, which requests it keeps, how it reports progress."""

from __future__ import annotations

import contextlib
import dataclasses
import enum
import fnmatch
import signal
import time
from array import array
from bisect import bisect_left, insort
from collections.abc import Callable, Iterator
from types import FrameType
from typing import TYPE_CHECKING

from tracer.backends import Watch
from tracer.facts import Fact, Growth, Release, Request, Worker

if TYPE_CHECKING:  # see capture()
    from tracer.looks import Looks

IDLE_S = 5.0
_POLL_S = 0.25
_LOOK_POLL_S = 0.02  # while workers are looked at before the end
_TICK_S = 1.0
_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Why(enum.Enum):
    """Why a capture ended."""

    ASKED = "asked to stop"
    DURATION = "duration elapsed"
    COUNT = "request count reached"
    TARGET_GONE = "the target ended"


@dataclasses.dataclass(frozen=True, slots=True)
class Filter:
    """Which requests to keep; None asks for nothing. A request that lacks a value asked for is dropped."""

    uri: str | None = None  # shell pattern
    script: str | None = None  # shell pattern
    slow_ns: int | None = None  # least duration
    min_growth: int | None = None  # least bytes of native memory kept, or of growth where that was not counted
    since_ns: int | None = None  # Unix time: the request began then or later
    until_ns: int | None = None  # and before that

    def __bool__(self) -> bool:
        """True if there is any condition."""
        return any(getattr(self, name) is not None for name in self.__slots__)

    def in_time(self, request: Request) -> bool:
        """True if the request began in the time that is asked for."""
        if self.since_ns is None and self.until_ns is None:
            return True
        started_ns = request.started_ns
        if started_ns is None or (self.since_ns is not None and started_ns < self.since_ns):
            return False
        return self.until_ns is None or started_ns < self.until_ns

    def keeps(self, request: Request) -> bool:
        """True if the request meets every condition."""
        if not self.in_time(request):
            return False
        if self.uri is not None and not (request.uri is not None and fnmatch.fnmatchcase(request.uri, self.uri)):
            return False
        if self.script is not None and not (
            request.script is not None and fnmatch.fnmatchcase(request.script, self.script)
        ):
            return False
        if self.slow_ns is not None and (request.duration_ns is None or request.duration_ns < self.slow_ns):
            return False
        growth = request.growth if request.native_kept is None else request.native_kept
        return self.min_growth is None or (growth is not None and growth >= self.min_growth)


class Stop:
    """A request to stop, made by SIGINT, SIGTERM or SIGHUP; a second signal raises KeyboardInterrupt."""

    def __init__(self) -> None:
        """Nobody has asked to stop yet."""
        self.asked = False

    @contextlib.contextmanager
    def on_signals(self) -> Iterator[Stop]:
        """Handle the signals until the block ends, then restore the handlers that were there before."""
        # nohup makes its programs ignore SIGHUP: respect that. A shell makes the background jobs of a script
        # ignore SIGINT: handle it all the same, since a SIGINT sent to a tracer is meant to stop it.
        nohup = signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
        handled = [number for number in _SIGNALS if number != signal.SIGHUP or not nohup]
        before = {number: signal.signal(number, self._handle) for number in handled}
        try:
            yield self
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.asked:
            raise KeyboardInterrupt
        self.asked = True


@dataclasses.dataclass(slots=True)
class Progress:
    """The state of a capture, which the tick is given about once a second."""

    elapsed_s: float = 0.0
    seen: int = 0  # requests, before the filter
    kept: int = 0
    requests_per_s: float = 0.0
    watched: int = 0  # workers that are traced now
    idle: bool = False  # no request was seen yet, after IDLE_S seconds


def capture(
    watch: Watch,
    consume: Callable[[list[Fact]], None],
    *,
    stop: Stop,
    duration_s: float | None = None,
    count: int | None = None,
    keep: Filter | None = None,
    tick: Callable[[Progress], None],
    looks: Looks | None = None,
) -> tuple[Why, Progress]:
    """Pass the facts of an attached backend to `consume` until it is time to stop. Returns why, and the last state.

    `count` is the number of kept requests, over all workers; `keep` None keeps every request. `looks`: the workers are
    looked at now, from time to time, and before the end. Closes the backend and consumes what it returns, also if
    polling raises.
    """
    from tracer.looks import Looks  # needs pyelftools, which reading a recording does not

    looking = looks or Looks(())
    progress = Progress()
    started = last_tick = time.monotonic()
    seen_at_tick = 0
    selection = _Selection(keep or Filter(), count)

    def take(facts: list[Fact]) -> None:
        kept: list[Fact] = [*looking.take()]
        for fact in facts:
            if isinstance(fact, Request):
                progress.seen += 1
                looking.count(fact)
            elif isinstance(fact, Worker):
                looking.follow(fact)
            if selection.keeps(fact):
                kept.append(fact)
        progress.kept = selection.requests
        if kept:
            consume(kept)

    try:
        looking.begin()
        while True:
            now = time.monotonic()
            why = _ended(watch, stop, progress, now - started, duration_s, count)
            if why is not None:
                break
            left = _POLL_S if duration_s is None else min(_POLL_S, duration_s - (now - started))
            take(watch.poll(max(0.0, left)))
            progress.watched = watch.watched
            now = time.monotonic()
            if now - last_tick >= _TICK_S:
                progress.elapsed_s = now - started
                progress.requests_per_s = (progress.seen - seen_at_tick) / (now - last_tick)
                progress.idle = progress.seen == 0 and progress.elapsed_s >= IDLE_S
                last_tick, seen_at_tick = now, progress.seen
                tick(progress)
        looking.end()
        while looking.busy:
            take(watch.poll(_LOOK_POLL_S))
    finally:
        take(watch.close())
        last = looking.close()
        if last:
            consume([*last])
        progress.elapsed_s = time.monotonic() - started
    return why, progress


class _Selection:
    """Chooses the facts that are kept: some requests, what belongs to these, and all that belongs to no request."""

    def __init__(self, keep: Filter, count: int | None) -> None:
        self.requests = 0  # kept
        self._filter = keep
        self._count = count
        self._last = True  # the last request was kept
        # When requests started that were kept and counted, by pid, ascending: what is freed of them may come hours
        # later. 8 bytes each; None: all are kept.
        self._starts: dict[int, array[int]] | None = {} if keep or count is not None else None

    def keeps(self, fact: Fact) -> bool:
        """True if the fact is kept. Call it once a fact, in order."""
        if isinstance(fact, Request):
            self._last = self._filter.keeps(fact) and (self._count is None or self.requests < self._count)
            self.requests += self._last
            if self._last and self._starts is not None and fact.started_ns is not None and fact.native_kept is not None:
                insort(self._starts.setdefault(fact.pid, array("q")), fact.started_ns)
            return self._last
        if isinstance(fact, Growth):
            return self._last
        if isinstance(fact, Release) and self._starts is not None and fact.started_ns:
            starts = self._starts.get(fact.pid, ())
            at = bisect_left(starts, fact.started_ns)
            return at < len(starts) and starts[at] == fact.started_ns
        return True


def _ended(
    watch: Watch, stop: Stop, progress: Progress, elapsed_s: float, duration_s: float | None, count: int | None
) -> Why | None:
    if stop.asked:
        return Why.ASKED
    if duration_s is not None and elapsed_s >= duration_s:
        return Why.DURATION
    if count is not None and progress.kept >= count:
        return Why.COUNT
    if watch.watched == 0 and not watch.masters:
        return Why.TARGET_GONE
    return None
