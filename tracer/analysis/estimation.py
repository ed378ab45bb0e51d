"""Estimates of what the groups of a ranking kept, as long as that of one of them is not known by counting.

An estimate takes every request of the workers, at some µs each. So requests are taken from the first one on of a group
that needs an estimate, and no more when none does.
"""

from __future__ import annotations

import dataclasses
from collections import deque
from collections.abc import Collection, Hashable, Iterable, Mapping

from tracer.analysis.kept_rates import Estimate
from tracer.analysis.native_estimate import Estimates, NativeEstimator
from tracer.analysis.uncounted import Charge
from tracer.facts import Look, Request


@dataclasses.dataclass(frozen=True, slots=True)
class Together:
    """Groups that an estimate cannot tell apart. A round is a request of the rarest, and those that come with it."""

    keys: tuple[str | None, ...]
    bytes_per_round: float
    low: float
    high: float


class Estimation:
    """Takes requests one by one, and estimates at any time. Keys are those of the groups."""

    def __init__(self, *, possible: bool) -> None:
        """`possible`: False to estimate nothing."""
        self._possible = possible
        self._needed: set[Hashable] = set()  # keys of groups of which too few requests were counted
        self._estimator: NativeEstimator | None = None
        self._looks: dict[tuple[int, int | None], deque[Look]] = {}  # by pid and start, those not passed yet
        self._latest: Estimates | None = None  # of all requests so far; None: not worked out

    def begin_recording(self, looks: Iterable[Look], *, filtered: bool) -> None:
        """Take the looks at the workers of the recording whose requests come next.

        `filtered`: requests were left out, so that from now on nothing can be estimated.
        """
        self._looks = {}
        for look in sorted(looks, key=lambda look: look.at_ns):
            # Not in accept(), a worker may be in a request, which has its own memory in the heap.
            if look.in_accept and look.malloc_in_use is not None and not look.malloc_uncertain:
                self._looks.setdefault((look.pid, look.start_ticks), deque()).append(look)
        if filtered:
            self._possible, self._estimator = False, None
            self._needed.clear()

    def add(self, request: Request, key: Hashable, *, needed: bool) -> None:
        """Take a request. `needed`: what its group kept is not known, this request included."""
        if not self._possible:
            return
        if needed:
            self._needed.add(key)
        elif self._needed:
            self._needed.discard(key)
        if not self._needed:
            self._estimator = self._latest = None
            return
        if self._estimator is None:
            self._estimator = NativeEstimator()
        self._estimator.add(request, key, heap_used=self._heap_before(request))
        self._latest = None

    def _heap_before(self, request: Request) -> int | None:
        """Bytes in use in malloc's heap between this request and the one before it, if the worker was looked at."""
        used = None
        looks = self._looks.get((request.pid, request.start_ticks))
        while looks and request.started_ns is not None and looks[0].at_ns < request.started_ns:
            used = looks.popleft().malloc_in_use
        return used

    def single(self) -> dict[Hashable, Estimate]:
        """The estimates of groups that have one of their own; empty if none is needed."""
        return {entry.keys[0]: entry for entry in self._entries() if len(entry.keys) == 1}

    def together(self, names: Mapping[Hashable, str | None], but: Collection[Hashable] = ()) -> list[Together]:
        """Estimates of several groups together, where nothing tells them apart, the largest lower bound first.

        `names` are those of the keys. `but`: without those of any of these keys.
        """
        found = []
        for entry in self._entries():
            if (
                len(entry.keys) > 1
                and self._needed.intersection(entry.keys)
                and not any(key in but for key in entry.keys)
                and entry.bytes_per_round is not None
                and entry.low
                and entry.high is not None
            ):
                keys = tuple(names[key] for key in entry.keys if key in names)
                found.append(Together(keys, entry.bytes_per_round, entry.low, entry.high))
        return found

    def keys_together(self) -> set[Hashable]:
        """The keys of groups that an estimate cannot tell from others."""
        return {key for entry in self._entries() if len(entry.keys) > 1 for key in entry.keys}

    def charges(self) -> dict[Hashable, Charge]:
        """The estimate of each group's bytes a request; the same one for groups that cannot be separated."""
        found: dict[Hashable, Charge] = {}
        for entry in self._entries():
            if not entry.keys or entry.total_bytes is None or entry.low is None or entry.high is None:
                continue  # without keys: it is of all groups that have no entry
            for key, requests in zip(entry.keys, entry.requests, strict=True):
                alone = len(entry.keys) == 1
                high = entry.high if alone else entry.high * min(entry.requests) / requests
                found[key] = Charge(entry.total_bytes / sum(entry.requests), entry.low if alone else 0.0, high)
        return found

    def why_not(self) -> str | None:
        """A reason why what was not counted is not estimated either, or is not sure; None if there is none."""
        estimates = self._estimates()
        return None if estimates is None else estimates.reason or estimates.caveat

    def _entries(self) -> list[Estimate]:
        estimates = self._estimates()
        return [] if estimates is None else estimates.entries

    def _estimates(self) -> Estimates | None:
        """None if none is needed."""
        if self._latest is None and self._estimator is not None:
            self._latest = self._estimator.result()
        return self._latest
