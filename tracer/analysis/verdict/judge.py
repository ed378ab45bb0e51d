"""The verdict on a group of requests, by rules in a fixed order.

An innocent must not be called a leak: a leak needs that the counting, or a sure estimate, says so (analysis.kept.Kept);
that it goes on in the last third of each worker's requests, with an interval of 99.9 %, since hundreds of groups are
judged at once; that two of three workers agree; and a size that matters.
"""

from __future__ import annotations

import dataclasses
import enum
from collections.abc import Callable, Iterable, Sequence

from tracer.analysis.kept import How, Kept
from tracer.analysis.verdict.course import LEAST_LAST, Course, course
from tracer.analysis.verdict.memory import HighWater, Memory
from tracer.analysis.verdict.recorded_time import LEAST_SECONDS

_LEAST_BYTES = 64 << 10  # less in a whole recording is nobody's leak
_LEAST_REQUESTS = 12
_SMALL_ESTIMATE = 1024  # bytes a request
_LEAST_HIGH_WATER = 8 << 20  # of one worker
_LEAST_SHARED = 2 << 20  # a worker
_LEAST_CHURN = 16 << 20
_SHARED_OF_CHURN = 1 / 4
_LOST = 0.01  # share of all requests: with more, blocks may have been freed unseen


class Kind(enum.Enum):
    """The effect of a group of requests on memory."""

    LEAK = "leak"  # keeps native memory, again and again, in each worker
    WARM_UP = "warm-up"  # kept native memory in the beginning, and no more
    HIGH_WATER = "high-water"  # raised workers in few steps, and they stayed there
    CHURN = "churn"  # needs much, and gives it back
    CACHE = "cache/shared"  # its workers mapped more shared memory and files
    STEADY = "steady"
    UNCLEAR = "unclear"


class Why(enum.Enum):
    """Why a verdict is unclear."""

    NOT_SEEN = "not seen"  # no request was seen from its start to its end
    LOST = "lost"
    NOT_COUNTED = "not counted"
    NOT_SURE = "not sure"  # an estimate may be nothing
    TOGETHER = "together"  # its requests always came with those of others, and an estimate cannot tell them apart
    FEW = "few"
    RARE = "rare"  # too few of its requests kept anything
    FALLS = "falls"
    WORKERS_DIFFER = "workers differ"
    FREED_MORE = "freed more"


@dataclasses.dataclass(frozen=True, slots=True)
class Verdict:
    """A verdict and its figures. Bytes; None: not known, or no part of this verdict."""

    kind: Kind
    why: Why | None = None  # of an unclear one
    requests: int = 0  # that the verdict is based on: those that were counted, if any was
    needed: int | None = None  # more requests that would decide
    kept: int | None = None  # all that the requests kept
    per_request: float | None = None
    low: float | None = None  # 95 % interval of the mean
    high: float | None = None
    estimated: bool = False
    share: float | None = None  # of the requests, that kept anything
    per_hour: float | None = None
    workers: int = 0  # that served it
    agree: int = 0  # of these, those that kept any; where workers differ, those that went on
    early: float | None = None  # bytes a request in the beginning
    late: float | None = None  # and in the end
    fades: bool = False  # it still keeps some, and less and less
    high_water: HighWater | None = None
    needs: int | None = None  # the most that a request needed
    shared: int | None = None
    lost_share: float = 0.0


@dataclasses.dataclass(frozen=True, slots=True)
class Evidence:
    """All that a verdict on a group is made of."""

    requests: int  # of the group
    kept: Kept
    lives: Callable[[], Iterable[Sequence[int]]]  # bytes that the requests of each worker kept, in order
    memory: Memory
    zend_peak: int | None
    seconds: float | None  # that were recorded
    lost_share: float = 0.0  # of all requests
    together: bool = False  # an estimate cannot tell it from others

    @property
    def every(self) -> int:
        """Bytes that all its requests kept."""
        return (self.kept.total or 0) + (self.kept.warmup or 0)


def judge(found: Evidence) -> Verdict:
    """The verdict on a group."""
    if not found.memory.complete:
        return Verdict(Kind.UNCLEAR, Why.NOT_SEEN, requests=found.requests)
    kept = found.kept
    if kept.how is How.COUNTED or (kept.counted and kept.per_request is not None):
        return _of_counted(found)
    if kept.how is How.ESTIMATED:
        return _of_estimated(found)
    if found.together:
        return _unclear(found, Why.TOGETHER)
    return _of_memory(found, otherwise=None if _workers_stayed(found) else Why.NOT_COUNTED)


def _of_counted(found: Evidence) -> Verdict:
    kept, every = found.kept, found.every
    if every <= -_LEAST_BYTES:
        return _unclear(found, Why.FREED_MORE)
    if every < _LEAST_BYTES:
        return _of_memory(found, otherwise=Why.FEW if kept.counted < _LEAST_REQUESTS else None)
    life = course(found.lives())
    least = max(0.0, kept.low or 0.0) * found.requests
    if life.last is not None and life.last.low is not None and life.last.low > 0:
        why = _why_no_leak(found, life, least)
        if why is None:
            return _with(_figures(found, Kind.LEAK), life)
        if why is Why.WORKERS_DIFFER:
            return dataclasses.replace(_with(_unclear(found, why), life), workers=life.asked, agree=life.agree)
        is_warm_up = life.fades
    else:
        enough = life.last_requests >= LEAST_LAST
        why = Why.RARE if enough else Why.FEW
        is_warm_up = life.stopped or (enough and least <= 0 and (life.once or life.total < _LEAST_BYTES))
    if is_warm_up:
        return _with(_of_memory(found, otherwise=None, warm=every), life)
    if _large_high_water(found, every) is not None:
        return _of_memory(found, otherwise=None)
    return _with(_unclear(found, why, life.last_requests), life)


def _why_no_leak(found: Evidence, life: Course, least: float) -> Why | None:
    """Why a group that goes on keeping memory is not called a leak; None: it is one. `least`: bytes that it kept."""
    if life.falls:
        return Why.FALLS
    if not _most(life.agree, life.asked):
        return Why.WORKERS_DIFFER
    if least < _LEAST_BYTES:
        return Why.RARE
    return Why.LOST if found.lost_share > _LOST else None


def _most(agree: int, asked: int) -> bool:
    return agree > 0 and 3 * agree >= 2 * asked


def _with(verdict: Verdict, life: Course) -> Verdict:
    return dataclasses.replace(
        verdict,
        workers=verdict.workers if verdict.kind is Kind.WARM_UP else life.workers,
        agree=life.kept_in,
        early=life.early_mean,
        late=life.last_mean,
        fades=life.fades,
    )


def _of_estimated(found: Evidence) -> Verdict:
    kept = found.kept
    if kept.per_request is None:
        most = round((kept.high or 0.0) * found.requests)
        if _workers_stayed(found):
            return _of_memory(found, otherwise=None)
        small = most < max(_LEAST_BYTES, _SMALL_ESTIMATE * found.requests)
        rose = found.memory.raised >= _LEAST_BYTES * found.memory.workers
        return _of_memory(found, otherwise=None if small and not rose else Why.NOT_SURE, possibly=most)
    if (kept.low or 0.0) * found.requests < _LEAST_BYTES:
        return _of_memory(found, otherwise=None)
    asked = agree = 0
    for level, requests in found.memory.served.items():
        if requests >= _LEAST_REQUESTS and level.top is not None and level.settled is not None:
            asked += 1
            agree += level.top - level.settled >= kept.per_request * requests / 4
    if not _most(agree, asked):
        return dataclasses.replace(_unclear(found, Why.WORKERS_DIFFER), workers=asked, agree=agree)
    if found.lost_share > _LOST:
        return _unclear(found, Why.LOST)
    return dataclasses.replace(_figures(found, Kind.LEAK), workers=asked, agree=agree)


def _workers_stayed(found: Evidence) -> bool:
    """True if the workers that served the group did not grow, whichever request they served."""
    memory = found.memory
    return memory.complete >= _LEAST_REQUESTS and memory.workers_grew < _LEAST_BYTES


def _large_high_water(found: Evidence, kept: int) -> HighWater | None:
    """A rise in few steps that native memory which was kept does not explain."""
    rise = found.memory.high_water()
    if rise is None or rise.raised < _LEAST_HIGH_WATER or kept > rise.raised_all / 2:
        return None
    return rise


def _of_memory(found: Evidence, *, otherwise: Why | None, warm: int = 0, possibly: int = 0) -> Verdict:
    """The verdict on a group that leaks nothing; `otherwise`: that is not known, why.

    `warm` are bytes that its workers kept in the beginning; `possibly`, bytes that its requests keep at most.
    """
    rise = _large_high_water(found, warm + possibly)
    if rise is not None:
        return dataclasses.replace(_figures(found, Kind.HIGH_WATER), high_water=rise)
    if otherwise is not None:
        return _unclear(found, otherwise)
    needs = max(found.memory.rise_max, found.zend_peak or 0)
    shared, workers = found.memory.shared, max(1, found.memory.workers)
    if shared >= _LEAST_SHARED * workers and shared >= max(warm, _SHARED_OF_CHURN * needs):
        return _figures(found, Kind.CACHE)
    if warm >= _LEAST_BYTES * workers:
        return dataclasses.replace(_figures(found, Kind.WARM_UP), kept=warm)
    return _figures(found, Kind.CHURN if needs >= _LEAST_CHURN else Kind.STEADY)


def _unclear(found: Evidence, why: Why, last_requests: int = 0) -> Verdict:
    verdict = dataclasses.replace(_figures(found, Kind.UNCLEAR), why=why)
    if why is Why.FEW:
        return dataclasses.replace(verdict, needed=max(1, 3 * LEAST_LAST - max(3 * last_requests, found.kept.counted)))
    return verdict


def _figures(found: Evidence, kind: Kind) -> Verdict:
    kept, memory, seconds = found.kept, found.memory, found.seconds
    total = kept.total
    known = total is not None and seconds is not None and seconds >= LEAST_SECONDS
    return Verdict(
        kind,
        requests=kept.counted if kept.how is How.COUNTED else found.requests,
        kept=total,
        per_request=kept.per_request,
        low=kept.low,
        high=kept.high,
        estimated=kept.how is How.ESTIMATED,
        share=kept.share,
        per_hour=total * 3600 / seconds if known and total is not None and seconds is not None else None,
        workers=memory.workers,
        needs=max(memory.rise_max, found.zend_peak or 0),
        shared=memory.shared,
        lost_share=found.lost_share,
    )
