"""The capture loop: its duration, its count, the facts it keeps, and its end. Its backend plays back given facts."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Sequence
from typing import Any

import pytest
from samples import COMPLETE, FIND, MAIN, growth, request
from waiting import wait_for
from waiting_process import PAUSES, waiting_process

from tracer import capture as loop
from tracer.backends import Backend
from tracer.capture import Filter, Progress, Stop, Why, capture
from tracer.facts import Fact, Look, Loss, Release, Request, Worker
from tracer.looks import Looks
from tracer.targets.php import Php
from tracer.targets.processes import process
from tracer.targets.resolve import Target
from tracer.worker_look import Subject

WORKER = Worker(4241, 7919, "www", "8.2.36", None, None, None)
NO_PHP: Php = None  # type: ignore[assignment]  # it is not asked for where the bias is unknown
LOSS = Loss(1, 13, "requests: the ring buffer was full")


class Clock:
    """Time that passes only where somebody waits."""

    def __init__(self) -> None:
        self.now_s = 1009.0

    def monotonic(self) -> float:
        return self.now_s


class Playback:
    """A backend of tracer.backends.Backend: each poll() gives the next batch, or waits as long as it may.

    A batch may be something to do instead. When the batches are over, `watched` is what is left.
    """

    name = "playback"
    lacking: Sequence[str] = ()

    def __init__(
        self,
        clock: Clock,
        *batches: list[Fact] | Callable[[], list[Fact]],
        under_way: tuple[Fact, ...] = (),
        watched_after: int = 1,
        masters: frozenset[int] = frozenset(),
    ) -> None:
        self.clock = clock
        self.batches = list(batches)
        self.under_way = list(under_way)
        self.watched_after = watched_after
        self.masters = masters
        self.closed = 0
        self.waits_s: list[float] = []

    def add(self, targets: Sequence[Target]) -> bool:
        return False

    def attach(self, targets: Sequence[Target]) -> None:
        raise AssertionError("it is attached already")

    def poll(self, timeout_s: float) -> list[Fact]:
        self.waits_s.append(timeout_s)
        if not self.batches:
            self.clock.now_s += timeout_s
            return []
        batch = self.batches.pop(0)
        return batch if isinstance(batch, list) else batch()

    def close(self) -> list[Fact]:
        self.closed += 1
        facts, self.under_way = self.under_way, []
        return facts

    def in_flight(self, seconds: float) -> list[Request]:
        return []

    @property
    def watched(self) -> int:
        return 1 if self.batches else self.watched_after


def no_tick(progress: Progress) -> None:
    """Do nothing: for captures whose course does not matter."""


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(loop, "time", made)
    return made


class Capture:
    """The outcome of a capture."""

    def __init__(self, playback: Playback, stop: Stop | None = None, **options: Any) -> None:
        backend: Backend = playback  # so that mypy sees when Playback is a Backend no more
        self.facts: list[Fact] = []
        self.ticks: list[tuple[float, int, float, bool]] = []
        options.setdefault("tick", self._tick)
        self.why, self.progress = capture(backend, self.facts.extend, stop=stop or Stop(), **options)

    def _tick(self, progress: Progress) -> None:
        self.ticks.append((progress.elapsed_s, progress.seen, progress.requests_per_s, progress.idle))


def test_it_ends_after_as_many_requests_as_asked_for_over_all_workers(clock):
    batches = [[request(pid=pid, nth=nth) for pid in (2, 3, 5)] for nth in (1, 2, 3)]
    backend = Playback(clock, *batches)

    found = Capture(backend, count=7)

    assert found.why is Why.COUNT
    assert [(r.pid, r.nth) for r in found.facts] == [(2, 1), (3, 1), (5, 1), (2, 2), (3, 2), (5, 2), (2, 3)]


def test_facts_other_than_requests_do_not_count_and_are_kept(clock):
    found = Capture(Playback(clock, [WORKER, COMPLETE, LOSS], [COMPLETE, COMPLETE, LOSS, WORKER]), count=2)

    assert found.facts == [WORKER, COMPLETE, LOSS, COMPLETE, LOSS, WORKER]


def test_it_ends_when_the_duration_has_elapsed(clock):
    backend = Playback(clock, [COMPLETE])

    found = Capture(backend, duration_s=0.6)

    assert found.why is Why.DURATION
    assert found.progress.elapsed_s == pytest.approx(0.6)
    assert backend.waits_s == [0.25, 0.25, 0.25, pytest.approx(0.1)]


def test_it_waits_no_longer_than_a_quarter_of_a_second_at_a_time(clock):
    backend = Playback(clock)

    Capture(backend, duration_s=3600.0)

    assert max(backend.waits_s) == 0.25


def test_it_ends_when_neither_worker_nor_master_is_left(clock):
    found = Capture(Playback(clock, [COMPLETE], watched_after=0))

    assert (found.why, found.facts) == (Why.TARGET_GONE, [COMPLETE])


def test_a_master_without_workers_is_waited_for(clock):
    found = Capture(Playback(clock, [COMPLETE], watched_after=0, masters=frozenset({4711})), duration_s=7.0)

    assert found.why is Why.DURATION


def test_facts_under_way_at_the_end_are_consumed(clock):
    cut = request(nth=5, ending="cut_off", anon_after=None)

    found = Capture(Playback(clock, [COMPLETE], under_way=(cut, LOSS)), duration_s=1.0)

    assert found.facts == [COMPLETE, cut, LOSS]
    assert found.progress.seen == 2


def test_facts_under_way_at_the_end_are_left_out_once_there_are_enough(clock):
    found = Capture(Playback(clock, [COMPLETE], under_way=(request(nth=5), LOSS)), count=1)

    assert found.facts == [COMPLETE, LOSS]
    assert (found.progress.kept, found.progress.seen) == (1, 2)


def test_the_backend_is_closed_once_at_the_end(clock):
    backend = Playback(clock)

    Capture(backend, duration_s=1.0)

    assert backend.closed == 1


def test_the_backend_is_closed_when_the_consumer_fails(clock):
    def fails(facts: list[Fact]) -> None:
        raise BrokenPipeError

    backend = Playback(clock, [COMPLETE])
    with pytest.raises(BrokenPipeError):
        capture(backend, fails, stop=Stop(), tick=no_tick)

    assert backend.closed == 1


def test_the_backend_is_closed_when_polling_fails(clock):
    def fails() -> list[Fact]:
        raise BlockingIOError

    backend = Playback(clock, [COMPLETE], fails, under_way=(LOSS,))
    facts: list[Fact] = []
    with pytest.raises(BlockingIOError):
        capture(backend, facts.extend, stop=Stop(), tick=no_tick)

    assert (backend.closed, facts) == (1, [COMPLETE, LOSS])


def test_nothing_is_consumed_when_nothing_came(clock):
    calls: list[list[Fact]] = []

    capture(Playback(clock, [], [COMPLETE]), calls.append, stop=Stop(), duration_s=1.0, tick=no_tick)

    assert calls == [[COMPLETE]]


def test_requests_that_are_filtered_out_are_seen_and_not_kept(clock):
    facts = [request(script="/a.php"), request(script="/b.php"), WORKER, request(script="/a.php")]

    found = Capture(Playback(clock, facts), duration_s=1.0, keep=Filter(script="*/b.php"))

    assert found.facts == [facts[1], WORKER]
    assert (found.progress.seen, found.progress.kept) == (3, 1)


def test_the_count_is_of_requests_that_are_kept(clock):
    facts = [request(script=script, nth=nth) for nth, script in enumerate(["/a", "/b", "/a", "/a"])]

    found = Capture(Playback(clock, facts), count=2, keep=Filter(script="/a"))

    assert [r.nth for r in found.facts] == [0, 2]


def test_growth_of_a_request_that_is_kept_is_kept_and_of_others_is_not(clock):
    [a, b, c] = [request(script=script, nth=nth) for nth, script in enumerate(("/a.php", "/b.php", "/a.php"))]
    of_a, of_b, of_c = (
        [growth(size, MAIN, of=one), growth(size, FIND, of=one)] for one, size in ((a, 2), (b, 3), (c, 5))
    )

    found = Capture(Playback(clock, [a, *of_a, WORKER, b, *of_b, LOSS, c, *of_c]), duration_s=1.0,
                    keep=Filter(script="/b.php"))  # fmt: skip

    assert found.facts == [WORKER, b, *of_b, LOSS]
    assert (found.progress.seen, found.progress.kept) == (3, 1)


def test_growth_of_all_requests_is_kept_where_nothing_is_filtered_out(clock):
    facts = [COMPLETE, growth(101, MAIN), LOSS, growth(103, FIND), request(nth=5)]

    assert Capture(Playback(clock, facts), duration_s=1.0).facts == facts


def test_growth_of_requests_beyond_the_count_is_dropped_with_them(clock):
    [first, second] = [request(nth=nth) for nth in (2, 3)]

    found = Capture(Playback(clock, [first, growth(101, MAIN, of=first), second, growth(103, MAIN, of=second), WORKER]),
                    count=1)  # fmt: skip

    assert found.facts == [first, growth(101, MAIN, of=first), WORKER]


def test_growth_that_is_still_under_way_at_the_end_is_filtered_too(clock):
    [a, b] = [request(script=script, nth=nth) for nth, script in enumerate(("/a.php", "/b.php"))]
    rest = (a, growth(2, MAIN, of=a), b, growth(3, MAIN, of=b))

    found = Capture(Playback(clock, under_way=rest), duration_s=1.0, keep=Filter(script="/b.php"))

    assert found.facts == [b, growth(3, MAIN, of=b)]


def released(of: Request, size: int) -> Release:
    return Release(of.pid, of.started_ns or 0, size, 1)


def test_releases_of_requests_that_are_kept_are_kept_and_others_are_not(clock):
    [a, b, c] = [request(script=f"/{name}.php", nth=nth, started_ns=nth) for nth, name in enumerate("aba", 2)]
    other = request(script="/a.php", pid=5, started_ns=3)  # as b
    unseen = request(started_ns=1)
    facts = [a, released(unseen, 11), b, released(a, 13), other, released(other, 17), released(b, 19), c]

    found = Capture(Playback(clock, facts, [released(b, 23)], under_way=(released(c, 29), released(b, 31))),
                    duration_s=1.0, keep=Filter(script="/b.php"))  # fmt: skip

    assert found.facts == [b, released(b, 19), released(b, 23), released(b, 31)]


def test_releases_of_requests_beyond_the_count_are_dropped_with_them(clock):
    [first, second] = [request(nth=nth, started_ns=nth) for nth in (2, 3)]

    found = Capture(Playback(clock, [first, second], under_way=(released(second, 7), released(first, 11))), count=1)

    assert found.facts == [first, released(first, 11)]


def test_all_releases_are_kept_where_no_request_is_left_out(clock):
    facts = [COMPLETE, released(request(started_ns=1), 11), released(COMPLETE, 13)]

    assert Capture(Playback(clock, facts), duration_s=1.0, keep=Filter()).facts == facts


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_ends_it_and_what_came_before_is_kept(clock, number):
    def interrupted() -> list[Fact]:
        os.kill(os.getpid(), number)
        return [COMPLETE]

    with Stop().on_signals() as stop:
        found = Capture(Playback(clock, interrupted, [LOSS], under_way=(WORKER,)), stop)

    assert (found.why, found.facts) == (Why.ASKED, [COMPLETE, WORKER])


def test_a_second_signal_interrupts_at_once_and_the_backend_is_closed(clock):
    def interrupted_twice() -> list[Fact]:
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)
        return [COMPLETE]

    backend = Playback(clock, interrupted_twice)
    with Stop().on_signals() as stop, pytest.raises(KeyboardInterrupt):
        Capture(backend, stop)

    assert backend.closed == 1


def test_the_handlers_of_signals_are_put_back():
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGHUP)

    with Stop().on_signals():
        during = signal.getsignal(signal.SIGINT)

    after = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGHUP)
    assert during != before[0]
    assert after == before


def test_it_ticks_once_a_second_with_where_it_stands(clock):
    found = Capture(Playback(clock, [COMPLETE] * 7), duration_s=3.0)

    assert found.ticks == [(1.0, 7, 7.0, False), (2.0, 7, 0.0, False), (3.0, 7, 0.0, False)]


def test_it_is_idle_once_nothing_was_seen_for_five_seconds(clock):
    found = Capture(Playback(clock), duration_s=7.0)

    assert [idle for *_, idle in found.ticks] == [False, False, False, False, True, True, True]


def test_it_is_idle_no_more_once_a_request_was_seen(clock):
    quiet: list[list[Fact]] = [[]] * 3

    def after_six_seconds() -> list[Fact]:
        clock.now_s += 6.0
        return []

    found = Capture(Playback(clock, *quiet, after_six_seconds, [COMPLETE]), duration_s=8.0)

    assert [idle for *_, idle in found.ticks] == [True, False, False]


@pytest.mark.parametrize(
    ("keep", "kept"),
    [
        (Filter(), True),
        (Filter(uri="/index.*"), True),
        (Filter(uri="/INDEX.*"), False),
        (Filter(uri="index"), False),
        (Filter(script="*/index.php", uri="/index.php"), True),
        (Filter(script="*/index.php", uri="/other"), False),
        (Filter(slow_ns=12_345_701), True),
        (Filter(slow_ns=12_345_702), False),
        (Filter(since_ns=1_700_000_000_123_456_789), True),
        (Filter(since_ns=1_700_000_000_123_456_790), False),
        (Filter(until_ns=1_700_000_000_123_456_790, uri="/index.*"), True),
        (Filter(until_ns=1_700_000_000_123_456_789), False),
        (Filter(min_growth=102_336), True),  # the native memory that it kept
        (Filter(min_growth=102_337), False),
    ],
)
def test_a_filter_keeps_requests_that_meet_every_condition(keep, kept):
    assert keep.keeps(COMPLETE) is kept


_NOTHING: dict[str, Any] = dict.fromkeys(Request._fields)
UNKNOWN = Request(**{**_NOTHING, "host": "h", "pid": 2, "nth": 1, "ending": "cut_off"})


@pytest.mark.parametrize(
    "keep", [Filter(uri="*"), Filter(script="*"), Filter(slow_ns=0), Filter(min_growth=-(1 << 62)), Filter(since_ns=0)]
)
def test_a_request_of_which_the_value_asked_for_is_unknown_is_not_kept(keep):
    assert not keep.keeps(UNKNOWN)


def test_a_filter_without_conditions_is_false():
    assert not Filter()
    assert Filter(min_growth=0)
    assert Filter().keeps(UNKNOWN)


def test_workers_are_looked_at_before_the_first_request_and_after_the_last(clock, tmp_path):
    with waiting_process(tmp_path) as pid:
        found = process(pid)
        assert found is not None
        looks = Looks([Subject(pid, found.start_ticks, NO_PHP, None)])

        def when_looked_at() -> list[Fact]:
            wait_for(lambda: not looks.busy, "the looks")
            return [COMPLETE]

        capture = Capture(Playback(clock, when_looked_at, [LOSS]), looks=looks, duration_s=1.0)

    look, *others = capture.facts
    assert isinstance(look, Look)
    assert (look.pid, look.settled, look.requests) == (pid, True, None)
    # Without PHP, nothing is known of Zend's heap: there is no second look.
    assert others == [COMPLETE, LOSS]


def test_a_capture_that_fails_ends_its_looks(clock, tmp_path):
    def fail() -> list[Fact]:
        raise ZeroDivisionError

    with waiting_process(tmp_path, PAUSES, connect=True) as pid:
        found = process(pid)
        assert found is not None
        looks = Looks([Subject(pid, found.start_ticks, NO_PHP, None)])
        facts: list[Fact] = []

        with pytest.raises(ZeroDivisionError):
            capture(Playback(clock, fail), facts.extend, stop=Stop(), tick=no_tick, looks=looks)

    assert not looks.busy
    assert [fact.why for fact in facts if isinstance(fact, Look)] == ["it was in a request"]
