"""The figures of a group of requests."""

from __future__ import annotations

import dataclasses

from tracer.analysis.verdict.judge import Verdict


@dataclasses.dataclass(frozen=True, slots=True)
class Group:
    """Figures of the requests with one key, in bytes and nanoseconds. None: measured on none of them.

    `growth_*` is the growth of the workers' anonymous memory, Zend's chunk cache included: memory that one request
    takes, another may free. Its quantiles are of the requests that were seen whole. `kept_*` is the native memory that
    the requests allocated and did not free, see analysis.kept.Kept; `kept_how` is a How's value. Quantiles are by
    nearest rank: values that occurred. `container` names the place where the requests ran; None if all requests of the
    ranking ran in one, or the key is its name. `kept_per_hour` goes by the time that was recorded. `rise_max` is the
    most that one request needed beyond what its worker had, `memory_limit` that of the request with the largest Zend
    peak (-1: there is none), and `status_5xx` the number of requests with such a status. Mean and total of the duration
    are of all requests seen whole.
    """

    key: str | None
    requests: int
    incomplete: int
    growth_bytes: int | None
    growth_p50: int | None
    growth_p95: int | None
    kept_bytes: int | None
    kept_per_request: float | None
    kept_low: float | None
    kept_high: float | None
    kept_how: str | None
    kept_share: float | None
    kept_p50: int | None
    kept_p95: int | None
    warmup_bytes: int | None
    counted: int
    anon_peak_max: int | None
    zend_peak_max: int | None
    duration_p95_ns: int | None
    container: str | None = None
    verdict: Verdict | None = None  # None: groups of this kind are not judged
    kept_per_hour: float | None = None
    rise_max: int | None = None
    memory_limit: int | None = None
    fatal: int | None = None
    status_5xx: int | None = None
    duration_mean_ns: int | None = None
    duration_max_ns: int | None = None
    duration_total_ns: int | None = None
