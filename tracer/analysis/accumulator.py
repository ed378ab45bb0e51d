"""Adds up the requests of one group, one by one, to its figures."""

from __future__ import annotations

from collections.abc import Callable

from tracer.analysis.first_runs import Run
from tracer.analysis.group import Group
from tracer.analysis.kept import How, Kept, KeptSum, estimated
from tracer.analysis.kept_rates import Estimate
from tracer.analysis.open_requests import OpenValues
from tracer.analysis.quantiles import Values
from tracer.analysis.uncounted import Charge, NetSum
from tracer.analysis.verdict.judge import Evidence
from tracer.analysis.verdict.memory import Memory
from tracer.facts import Ending, Request

_FINISHED, _FATAL, _CUT_OFF = Ending.FINISHED.value, Ending.FATAL.value, Ending.CUT_OFF.value
_NOT_KNOWN = (Ending.UNKNOWN.value, _CUT_OFF)


class Accumulator:
    """The sums of a group. It is made with its first request."""

    __slots__ = (
        "_anon_peak", "_cut_off_growth", "_duration_max", "_durations", "_ending_unknown", "_fatal", "_growth",
        "_incomplete", "_kept", "_latest", "_memory_limit", "_net", "_server_errors", "_statuses", "_zend_peak",
        "memory", "recordings", "requests",
    )  # fmt: skip

    def __init__(self, window: int | None, *, workers: int = 4096) -> None:
        """`window`: how many last requests the quantiles cover; None for all. `workers`: the most to tell apart."""
        self.requests = 0
        self.recordings: set[int] = set()  # numbers of those that have any of them, as RecordedTime counts
        self._incomplete = 0
        self.memory = Memory(workers)
        self._growth = Values(window)
        self._cut_off_growth: int | None = None  # of requests in flight: no figure of one request
        self._kept = KeptSum(window)
        self._net = NetSum()
        self._durations = Values(window)
        self._duration_max = 0
        self._fatal = 0
        self._ending_unknown = 0
        self._statuses = 0  # requests whose status is known
        self._server_errors = 0
        self._memory_limit: int | None = None  # of the request with the largest Zend peak
        self._anon_peak: int | None = None
        self._zend_peak: int | None = None
        self._latest: tuple[tuple[int, int], Group] | None = None  # the figures when they were last asked for

    def add(self, request: Request, run: Run, worker: int, taken_over: int) -> tuple[OpenValues, int] | None:
        """Count a request. Return as KeptSum.add() does; None if what it kept is not known."""
        self.requests += 1
        found = None
        before, after = request.anon_before, request.anon_after
        growth = None if before is None or after is None else after - before
        if growth is None or request.ending == _CUT_OFF:
            self._incomplete += 1
            if growth is not None:
                self._cut_off_growth = (self._cut_off_growth or 0) + growth
        else:
            self._growth.add(growth)
            found = self._kept.add(request, run, worker, taken_over)
            if found is not None and run is not Run.FIRST:
                net = request.native_net
                if net is not None:
                    self._net.add(net)
            duration = request.duration_ns
            if duration is not None:
                self._durations.add(duration)
                if duration > self._duration_max:
                    self._duration_max = duration
        peak = request.anon_peak
        if peak is not None and (self._anon_peak is None or peak > self._anon_peak):
            self._anon_peak = peak
        peak = request.zend_peak
        if peak is not None and (self._zend_peak is None or peak > self._zend_peak):
            self._zend_peak = peak
            self._memory_limit = request.memory_limit
        ending = request.ending
        if ending != _FINISHED:
            self._fatal += ending == _FATAL
            self._ending_unknown += ending in _NOT_KNOWN
        status = request.status
        if status is not None:
            self._statuses += 1
            if status >= 500:
                self._server_errors += status < 600
        return found

    @property
    def needs_estimate(self) -> bool:
        """True if requests were seen whole, and what they kept is not known."""
        return self._incomplete < self.requests and not self._kept.known

    @property
    def charge(self) -> Charge | None:
        """The bytes that its requests are taken to keep, if not counted; None if too few were counted."""
        return self._net.charge() if self._net.count and self._kept.known else None

    def lives(self) -> list[list[int]]:
        """The bytes that each worker's requests kept, in order: KeptSum.lives()."""
        return self._kept.lives()

    def evidence(self, group: Group, seconds: float | None, *, lost_share: float, together: bool) -> Evidence:
        """All that a verdict on its group is made of. `group` has its figures."""
        kept = Kept(
            How(group.kept_how) if group.kept_how else None,
            group.kept_bytes,
            group.kept_per_request,
            group.kept_low,
            group.kept_high,
            group.kept_share,
            group.kept_p50,
            group.kept_p95,
            group.warmup_bytes,
            group.counted,
        )
        return Evidence(
            group.requests, kept, self._kept.lives, self.memory, group.zend_peak_max, seconds, lost_share, together
        )

    def group(
        self,
        key: str | None,
        container: str | None,
        estimate: Estimate | None,
        correct: Callable[[Kept, int], Kept] | None,
        *,
        quantiles: bool = True,
    ) -> Group:
        """The figures so far, without a verdict. `correct`: what growth in uncounted requests leaves of the kept ones.

        An `estimate` counts where too few requests were counted. `quantiles` False: those of growth and of what
        requests kept are None, which is faster.
        """
        if quantiles:
            return self._group(key, container, estimate, correct, quantiles=True)
        version = self.requests, self._kept.version
        latest = self._latest
        if latest is None or latest[0] != version or latest[1].key != key or latest[1].container != container:
            group = self._group(key, container, None, None, quantiles=False)
            self._latest = version, group
        else:
            group = latest[1]
        if correct is None and (estimate is None or group.kept_how is not None):
            return group
        return self._group(key, container, estimate, correct, quantiles=False)

    def _group(
        self,
        key: str | None,
        container: str | None,
        estimate: Estimate | None,
        correct: Callable[[Kept, int], Kept] | None,
        *,
        quantiles: bool,
    ) -> Group:
        growth_p50, growth_p95 = self._growth.quantiles(0.5, 0.95) if quantiles else (None, None)
        growth = None if not self._growth.count else self._growth.total
        if self._cut_off_growth is not None:
            growth = (growth or 0) + self._cut_off_growth
        kept, complete = self._kept.kept(quantiles=quantiles), self.requests - self._incomplete
        if kept.how is None and estimate is not None:
            kept = estimated(estimate)._replace(counted=kept.counted)
            if kept.per_request is not None:
                kept = kept._replace(total=round(kept.per_request * complete))
        if correct is not None:
            kept = correct(kept, complete)
        (duration_p95,) = self._durations.quantiles(0.95)
        timed = self._durations.count
        return Group(
            key=key,
            requests=self.requests,
            incomplete=self._incomplete,
            growth_bytes=growth,
            growth_p50=growth_p50,
            growth_p95=growth_p95,
            kept_bytes=kept.total,
            kept_per_request=kept.per_request,
            kept_low=kept.low,
            kept_high=kept.high,
            kept_how=kept.how.value if kept.how else None,
            kept_share=kept.share,
            kept_p50=kept.p50,
            kept_p95=kept.p95,
            warmup_bytes=kept.warmup,
            counted=kept.counted,
            anon_peak_max=self._anon_peak,
            zend_peak_max=self._zend_peak,
            duration_p95_ns=duration_p95,
            container=container,
            rise_max=None if self._anon_peak is None or not self.memory.complete else self.memory.rise_max,
            memory_limit=self._memory_limit,
            fatal=self._fatal if self._ending_unknown < self.requests else None,
            status_5xx=self._server_errors if self._statuses else None,
            duration_mean_ns=self._durations.total // timed if timed else None,
            duration_max_ns=self._duration_max if timed else None,
            duration_total_ns=self._durations.total if timed else None,
        )
