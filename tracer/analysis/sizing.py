"""Settings of a php-fpm pool that its memory allows: pm.max_children, pm.max_requests and memory_limit.

Each setting comes with the figures it was worked out from, or with the reason why they do not carry it.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Iterable

from tracer.analysis.budget import Budget
from tracer.analysis.busy_workers import Rises
from tracer.analysis.group import Group
from tracer.analysis.pool_memory import PoolMemory
from tracer.analysis.quantiles import nearest_rank
from tracer.analysis.verdict.judge import Kind
from tracer.facts import Ending, Request

LEAST_REQUESTS = 100
MOST_CHILDREN = 1000
MOST_REQUESTS = 100_000
_GROWTH_SHARE = 4  # a worker may grow by this part of its size before it is replaced,
_GROWTH_REQUESTS = 500  # or by what so many requests keep, if that does not double it
_LEAST_GROWTH = 0.01  # bytes a request: less is none
_IDLE_SHARE = 0.95
_LIMIT_SPARE = 1.25
_MIB = 1 << 20
_LIMIT_STEP = 8 << 20
_LEAST_LIMIT = 32 << 20
_CHUNK = 2 << 20  # ZEND_MM_CHUNK_SIZE, Zend/zend_alloc_sizes.h: what Zend takes at a time
_UNKNOWN_SHARE = 0.05  # of the requests
_MOST_LIMITS = 16

# Fields of a Request that are needed.
COLUMNS = ("anon_before", "anon_after", "anon_peak", "duration_ns", "cpu_ns", "zend_real_peak", "memory_limit",
           "ending", "uri", "script")  # fmt: skip


@dataclasses.dataclass(slots=True)
class RouteLoad:
    """The requests of one route."""

    name: str  # untrusted
    requests: int = 0
    busy_ns: int = 0
    rise_max: int = 0


@dataclasses.dataclass(frozen=True, slots=True)
class Growth:
    """Native bytes that a request keeps in its worker, over all routes: at most so many. None: not known."""

    per_request: float | None
    leak: bool = False  # some routes leak
    why: str | None = None  # why it is not known
    sampled: bool = False  # from samples of the workers: native memory was not counted


@dataclasses.dataclass(frozen=True, slots=True)
class Children:
    """pm.max_children, and how it was worked out. Bytes unless the name says else."""

    most: int | None  # None: not known
    why: str | None = None
    once: int = 0  # shared memory, the master, files
    each: int = 0  # of one worker at rest, when it has grown
    together: int = 0  # what `most` workers need above that, all of them in requests, several at their peaks
    needed: int = 0
    needed_for_one_more: int = 0
    worst: int = 0  # with all of them at the largest rise
    most_at_worst: int = 0  # children that fit even then


@dataclasses.dataclass(frozen=True, slots=True)
class Limit:
    """memory_limit, and how it was worked out."""

    bytes: int | None  # None: not known
    why: str | None = None
    largest: int = 0  # Zend's real size, the largest of any request
    now: tuple[int, ...] = ()  # limits that requests had; -1: none
    # Requests that ended by a fatal error, which may have been of this limit: it is theirs, and not lowered.
    fatal: int = 0


@dataclasses.dataclass(frozen=True, slots=True)
class Replacement:
    """pm.max_requests, and how it was worked out."""

    requests: int | None  # 0: never; None: not known
    why: str | None = None
    grows: int = 0  # bytes of a worker until then


@dataclasses.dataclass(frozen=True, slots=True)
class Sizing:
    """The settings of one pool, with their figures."""

    budget: Budget | None
    requests: int
    workers: int  # that were sampled
    samples: int
    only_busy: bool
    idle: int  # bytes of a worker's own, between requests: nearly the largest of any
    shared: int
    files: int
    master: int
    rise_mean: int  # weighted by time
    rise_max: int
    growth: Growth
    children: Children
    replacement: Replacement
    limit: Limit
    routes: tuple[RouteLoad, ...]  # those that raise workers most, first
    busy_ns: int
    cpu_share: float | None  # of the time of requests: CPU time


class Load:
    """Takes the requests of one pool."""

    def __init__(self) -> None:
        """No request yet."""
        self.rises = Rises()
        self.zend_largest = 0
        self.zend_known = 0
        self.limits: set[int] = set()
        self.died_at_limit = 0
        self.fatal = 0  # requests under a limit that ended by a fatal error
        self.fatal_limit = 0  # the largest limit of these
        self.cpu_ns = 0
        self._routes: dict[str, RouteLoad] = {}

    def add(self, request: Request, route: str) -> None:
        """Count a request of that route; routes must be a bounded number. Only complete ones tell a rise."""
        if not request.complete or request.anon_before is None:
            return
        top = max(request.anon_peak or 0, request.anon_after or 0)
        rise, spent = max(0, top - request.anon_before), max(1, request.duration_ns or 0)
        self.rises.add(rise, spent)
        self.cpu_ns += min(request.cpu_ns or 0, spent)
        load = self._routes.setdefault(route, RouteLoad(route))
        load.requests += 1
        load.busy_ns += spent
        load.rise_max = max(load.rise_max, rise)
        limit, peak = request.memory_limit, request.zend_real_peak
        if peak is not None:
            self.zend_known += 1
            self.zend_largest = max(self.zend_largest, peak)
        if limit is not None and len(self.limits) < _MOST_LIMITS:
            self.limits.add(limit)
        if request.ending == Ending.FATAL.value and limit is not None and limit > 0:
            self.died_at_limit += peak is not None and limit < peak + _CHUNK
            self.fatal += 1
            self.fatal_limit = max(self.fatal_limit, limit)

    def heaviest(self, most: int) -> list[RouteLoad]:
        """The routes whose requests raise workers most."""
        return sorted(self._routes.values(), key=lambda one: (-one.rise_max, -one.busy_ns, one.name))[:most]


def growth(groups: Iterable[Group]) -> Growth:
    """The growth by the routes' verdicts: what leaks counts with its upper bound, and so does what is unclear."""
    total = known = 0
    kept = 0.0
    leak = False
    for group in groups:
        total += group.requests
        kind = None if group.verdict is None else group.verdict.kind
        mean, high = group.kept_per_request, group.kept_high
        sure = kind not in (Kind.LEAK, Kind.UNCLEAR, None)
        rate = mean if sure and mean is not None else high if high is not None else mean
        if rate is not None:
            known += group.requests
            kept += max(0.0, rate) * group.requests
        leak = leak or kind is Kind.LEAK
    if not total:
        return Growth(None, why="there is no request")
    if known < total * (1 - _UNKNOWN_SHARE):
        share = 100 * known // total
        return Growth(None, leak, f"native memory is known for {share} % of the requests only")
    return Growth(kept / known, leak)


def size(load: Load, memory: PoolMemory, growth: Growth, budget: Budget | None, *, whole: bool = True) -> Sizing:
    """Work out the settings. `whole`: False if the recording left requests out by a filter."""
    (idle,) = nearest_rank(memory.idle_sizes(), _IDLE_SHARE)
    if growth.per_request is None and not memory.only_busy and load.rises.requests >= LEAST_REQUESTS and memory.samples:
        growth = Growth(memory.grown / load.rises.requests, growth.leak, growth.why, sampled=True)
    replacement = _replacement(growth, idle or 0, _why_not_of_all(load, whole))
    once = memory.shared + memory.files + memory.master
    each = (idle or 0) + replacement.grows
    why = _why_not(load, memory, budget, whole)
    if why is None and replacement.requests is None:
        why = "pm.max_requests is not known, so neither is the size that workers grow to"
    if why is not None or budget is None:
        children = Children(None, why, once, each)
    else:
        children = _children(load.rises, once, each, budget.usable)
    return Sizing(
        budget=budget,
        requests=load.rises.requests,
        workers=memory.workers,
        samples=memory.samples,
        only_busy=memory.only_busy,
        idle=idle or 0,
        shared=memory.shared,
        files=memory.files,
        master=memory.master,
        rise_mean=load.rises.mean(),
        rise_max=load.rises.largest,
        growth=growth,
        children=children,
        replacement=replacement,
        limit=_limit(load, whole),
        routes=tuple(load.heaviest(5)),
        busy_ns=load.rises.busy_ns,
        cpu_share=load.cpu_ns / load.rises.busy_ns if load.rises.busy_ns else None,
    )


def _why_not(load: Load, memory: PoolMemory, budget: Budget | None, whole: bool) -> str | None:
    """Return the reason why the figures do not carry pm.max_children; None if they do."""
    if not memory.samples:
        return (
            "the recording has no sample of its workers' memory: an older phptrace made it, or it was too short, or"
            " /proc/PID/smaps_rollup could not be read. Record again, as root"
        )
    if not whole:
        return "requests were left out by a filter when it was recorded. Record again, without one"
    if load.rises.requests < LEAST_REQUESTS:
        return f"{load.rises.requests} requests are too few; it takes {LEAST_REQUESTS}. Record for longer"
    if budget is None:
        return "the recording does not have the memory of its host. Use --budget 4G"
    return None


def _children(rises: Rises, once: int, each: int, usable: int) -> Children:
    """Return the most children that fit, all of them busy."""
    largest = each + rises.largest
    before = (0, 0, once)
    for count, above in enumerate(itertools.islice(rises.together(), MOST_CHILDREN + 1), 1):
        needed = once + count * each + above
        if needed > usable or count > MOST_CHILDREN:
            break
        before = count, above, needed
    most, together, fits = before
    if not most:
        return Children(None, "not one worker fits into the budget", once, each, needed_for_one_more=needed)
    at_worst = max(0, (usable - once) // max(1, largest))
    worst = once + most * largest
    return Children(most, None, once, each, together, fits, needed, worst, min(most, at_worst))


def _why_not_of_all(load: Load, whole: bool) -> str | None:
    """Return the reason why the requests do not stand for all requests of the pool; None if they do."""
    if load.rises.requests < LEAST_REQUESTS:
        return f"{load.rises.requests} requests are too few; it takes {LEAST_REQUESTS}"
    return None if whole else "requests were left out by a filter when it was recorded"


def _replacement(growth: Growth, idle: int, why: str | None) -> Replacement:
    """Return after how many requests a worker must be replaced, and how much it grows until then.

    `why` the requests do not stand for all requests.
    """
    if why is not None:
        return Replacement(None, why)
    rate = growth.per_request
    if rate is None:
        return Replacement(None, growth.why)
    if rate < _LEAST_GROWTH:
        return Replacement(0)
    if not idle:
        return Replacement(None, "the size of a worker between requests was not sampled")
    allowed = max(idle / _GROWTH_SHARE, min(float(idle), _GROWTH_REQUESTS * rate))
    requests = _two_digits(min(MOST_REQUESTS, int(allowed / rate)))
    if not requests:
        return Replacement(None, "one request keeps more than an idle worker has. Find the leak first")
    return Replacement(requests, None, math.ceil(rate * requests))


def _two_digits(number: int) -> int:
    """The number rounded down to two digits that are not 0."""
    step = int("1" + "0" * (len(str(number)) - 2))
    return number // step * step


def _limit(load: Load, whole: bool) -> Limit:
    limits = tuple(sorted(load.limits))
    why = _why_not_of_all(load, whole)
    if why is None and load.zend_known < load.rises.requests * (1 - _UNKNOWN_SHARE):
        why = "the size of Zend's heap was not measured"
    if why is None and load.died_at_limit:
        died = "1 request died" if load.died_at_limit == 1 else f"{load.died_at_limit} requests died"
        why = f"{died} of memory_limit, so it is not known how much they need. Raise it, and record again"
    if why is None:
        wanted = -(-int(load.zend_largest * _LIMIT_SPARE) // _LIMIT_STEP) * _LIMIT_STEP
        wanted = max(_LEAST_LIMIT, wanted)
        # A block that does not fit below the limit ends a request, and is not in its size.
        if wanted < load.fatal_limit:
            return Limit(-(-load.fatal_limit // _MIB) * _MIB, None, load.zend_largest, limits, load.fatal)
        return Limit(wanted, None, load.zend_largest, limits)
    return Limit(None, why, load.zend_largest, limits)
