"""One worker between two looks at it, and the requests that it served meanwhile."""

from __future__ import annotations

from operator import itemgetter

from tracer.facts import Look, Request

# Fields of Request that a Course needs.
FIELDS = (
    "nth", "started_ns", "duration_ns", "anon_before", "anon_after", "native_alloc_bytes", "native_free_bytes",
    "native_mapped_bytes", "native_between_bytes",
)  # fmt: skip
_VALUES = itemgetter(*map(Request._fields.index, FIELDS))


class Course:
    """One worker between its two looks. Bytes; None: not known.

    `seen` is the number of its requests that are in the recording, `counted` that of those of which the allocations
    were counted; `lost` is True if some were lost.
    """

    __slots__ = (
        "_begin", "_disturbed", "_end", "_expected", "_first_nth", "_from", "_growth", "_known", "_last_nth",
        "_left_out", "_mapped", "_net", "_outside", "_until", "counted", "lost", "seen",
    )  # fmt: skip

    def __init__(self, begin: Look, end: Look, *, requests_lost: bool, left_out: bool) -> None:
        """`requests_lost`, `left_out`: as in Balancing.begin()."""
        self._begin = begin
        self._end = end
        # Between the looks: a request that is not within them wholly is before, after, or during one of them.
        self._from, self._until = begin.at_ns + begin.took_ns, end.at_ns
        self.lost = requests_lost
        self._left_out = left_out
        self._expected = end.requests or 0
        self._first_nth = self._last_nth = 0
        self._growth = self._known = 0  # anonymous memory, and of how many requests it is known
        self._net = self._mapped = 0
        self._outside: int | None = 0  # allocated less freed outside of requests
        self.seen = 0
        self.counted = 0
        self._disturbed: str | None = None  # as disturbed, as far as the requests show it

    def add(self, request: Request) -> None:
        """Take a request of this pid, at whatever time."""
        nth, started, duration, before, after, allocated, freed, mapped, outside = _VALUES(request)
        if started is None:
            # It ran when tracing began. In accept(), it was over at the first look; else it may have been in it.
            if not self._begin.in_accept:
                self._disturbed = "a request ran when tracing began"
            return
        ended = started + (duration or 0)
        if started < self._from or ended > self._until:
            if ended > self._begin.at_ns and started < self._end.at_ns + self._end.took_ns:
                self._disturbed = "a request ran during a look"
            return
        self.seen += 1
        if nth < self._first_nth or self.seen == 1:
            self._first_nth = nth
        if nth > self._last_nth:
            self._last_nth = nth
        if before is not None and after is not None:
            self._known += 1
            self._growth += after - before
        if allocated is not None and freed is not None and mapped is not None:
            self.counted += 1
            self._net += allocated - freed
            self._mapped += mapped
            self._outside = None if self._outside is None or outside is None else self._outside + outside

    @property
    def began_ns(self) -> int:
        """When the first look began."""
        return self._begin.at_ns

    @property
    def disturbed(self) -> str | None:
        """Why the looks cannot be compared; None if they can."""
        if self._disturbed is None and not (self._begin.in_accept and self._end.in_accept):
            # Every request that ran during a look is there, unless it ran from before the first look to after the
            # last one: then there is no other.
            all_there = self.seen == self.every and not self.lost and not self._left_out
            if not all_there or not self.seen:
                return "it was possibly in a request"
        return self._disturbed

    @property
    def every(self) -> int:
        """Requests of the worker between the looks, whether or not they are in the recording."""
        span = self._last_nth - self._first_nth + 1 if self.seen else 0
        return max(self._expected, span, self.seen)

    @property
    def whole(self) -> bool:
        """True if every request of the worker between the looks is there, and was counted."""
        return not self.lost and self.counted == self._known == self.every

    @property
    def grew(self) -> int | None:
        """Change of resident anonymous memory."""
        return _difference(self._end.anon, self._begin.anon)

    @property
    def zend(self) -> int | None:
        """Change of the resident memory of Zend's heap."""
        return _difference(self._end.zend_resident, self._begin.zend_resident)

    @property
    def native(self) -> int | None:
        """Allocated, less freed, plus other mappings, by the requests."""
        return self._net + self._mapped if self.whole else None

    @property
    def between(self) -> int | None:
        """Bytes allocated and not freed outside of requests; of anonymous memory where that was not counted."""
        if self.whole and self._outside is not None:
            return self._outside
        grew = self.grew
        return None if grew is None or self.lost or self._known < self.every else grew - self._growth

    @property
    def malloc_free(self) -> int | None:
        """Change of resident memory that malloc keeps free."""
        resident = _difference(self._end.malloc_resident, self._begin.malloc_resident)
        in_use = _difference(self._end.malloc_in_use, self._begin.malloc_in_use)
        return None if resident is None or in_use is None else resident - in_use

    @property
    def heap_check(self) -> int | None:
        """Change of malloc's memory in use, less what was allocated and not freed, by the requests and between them."""
        if not self.whole or self._outside is None or self._begin.malloc_uncertain or self._end.malloc_uncertain:
            return None
        in_use = _difference(self._end.malloc_in_use, self._begin.malloc_in_use)
        return None if in_use is None else in_use - self._net - self._outside


def _difference(now: int | None, then: int | None) -> int | None:
    return None if now is None or then is None else now - then
