"""The growth of the workers between two looks at them, and what explains it.

A check of the whole: the native memory that each request kept is counted call by call, the growth is read from
outside. If the two do not fit, something is held that the counting does not see.
"""

from __future__ import annotations

import dataclasses
from bisect import bisect_right
from collections import Counter
from collections.abc import Iterable, Sequence

from tracer.analysis.worker_course import FIELDS, Course
from tracer.facts import Look, Request

COLUMNS = ("pid", *FIELDS)  # fields of Request that a Balancing needs
_LARGE_SHARE = 0.05
_LARGE_BYTES = 1 << 20
_REASONS = 4  # the most reasons that are counted separately
NOT_LOOKED = "no worker was looked at"


@dataclasses.dataclass(frozen=True, slots=True)
class Balance:
    """Where the growth of the covered workers comes from, in bytes; None: not known, and `why` says for what reason.

    workers_grew = native_kept + zend + between_requests + unexplained, exactly. The first three are measured, each in a
    way of its own, and `unexplained` is what they leave. No byte is in two parts.
    """

    workers: int  # covered by the figures
    looked_at: int  # those and the workers that `why` is about
    requests: int  # of the covered workers, between the looks
    counted: int  # of these, requests whose allocations and frees were counted
    workers_grew: int | None = None  # resident anonymous memory at the second look, less that at the first
    # Allocated, less freed, plus other private mappings, by the requests between the looks. Address space: what was
    # never touched counts; what fills a hole that another left counts, too.
    native_kept: int | None = None
    zend: int | None = None  # change of the resident memory of Zend's chunks and huge blocks
    # Allocated, less freed, outside of requests: before the first and between two. PHP's SAPI does so. Where that was
    # not counted: change of anonymous memory there, which has pages that requests left, or take.
    between_requests: int | None = None
    # What anonymous memory changed by during requests, less native_kept and zend: holes and free memory that malloc
    # keeps, rounding to pages, memory of allocators that are not counted, stacks, copied pages of files (a probe that
    # is set copies one).
    unexplained: int | None = None
    malloc_free: int | None = None  # change of resident memory that malloc keeps free: a part of unexplained
    # Change of malloc's memory in use, less what was allocated and not freed, by the requests and between them. 0 if no
    # call was missed; what a worker frees after its last request is not seen.
    heap_check: int | None = None
    why: str | None = None  # why workers are not covered, or a figure is None; None: there is nothing to explain

    @property
    def doubtful(self) -> bool:
        """True if more is unexplained than 5 % of the change and 1 MiB, free memory that malloc keeps apart."""
        if self.unexplained is None or self.workers_grew is None:
            return False
        rest = abs(self.unexplained - (self.malloc_free or 0))
        return rest > max(_LARGE_SHARE * abs(self.workers_grew), _LARGE_BYTES)


class Balancing:
    """Adds up the requests between two looks at each worker. Keeps a few figures a worker.

    begin() a recording, add() its requests, then begin() the next one, or take the result().
    """

    def __init__(self) -> None:
        self._courses: list[Course] = []
        self._by_pid: dict[int, list[Course]] = {}  # in the order of their first looks
        self._reasons: Counter[str] = Counter()  # for workers without two looks

    def begin(self, looks: Iterable[Look], *, requests_lost: bool = False, requests_left_out: bool = False) -> bool:
        """Begin a recording that has these looks. Return False if its requests need not be added.

        `requests_lost`: some of its requests were lost, so that nobody knows if those of a worker are all there.
        `requests_left_out`: some were not recorded, so that the number of a worker's requests is known, and no more.
        """
        self._by_pid = {}
        first: dict[tuple[int, int], Look] = {}
        last: dict[tuple[int, int], Look] = {}  # with the requests since the first; one that can be compared, if any
        requests: Counter[tuple[int, int]] = Counter()
        for look in looks:
            worker = look.pid, look.start_ticks
            if look.requests is None:
                first[worker] = look
                continue
            requests[worker] += look.requests
            if worker not in last or look.bookable or not last[worker].bookable:
                last[worker] = look._replace(requests=requests[worker])
        for worker, begin in first.items():
            if worker in last:
                self._pair(begin, last[worker], requests_lost=requests_lost, left_out=requests_left_out)
            else:
                self._reasons[_reason(begin) or "there was no second look"] += 1
        for courses in self._by_pid.values():
            courses.sort(key=_began_ns)
        return bool(self._by_pid)

    def _pair(self, begin: Look, end: Look, *, requests_lost: bool, left_out: bool) -> None:
        reason = _reason(begin) or _reason(end)
        if reason is not None:
            self._reasons[reason] += 1
            return
        course = Course(begin, end, requests_lost=requests_lost, left_out=left_out)
        self._courses.append(course)
        self._by_pid.setdefault(begin.pid, []).append(course)

    def add(self, request: Request) -> None:
        """Take a request of the recording that was begun last, in any order."""
        courses = self._by_pid.get(request.pid)
        if courses is None:
            return
        if len(courses) > 1:
            # One worker had the pid after the other: it is a request of one of them, or runs from one to the next.
            # If it ran when tracing began, it is the first one's.
            started = request.started_ns
            behind = 0 if started is None else bisect_right(courses, started, key=_began_ns)
            courses = courses[max(0, behind - 1) : behind + 1]
        for course in courses:
            course.add(request)

    def result(self) -> Balance:
        """The balance so far.

        Covers the workers of which every request was counted; if no request was, those that have two looks, with the
        parts that are known for all of them.
        """
        sound = [course for course in self._courses if course.disturbed is None]
        whole = [course for course in sound if course.whole]
        # Where nothing was counted, workers without a request are whole all the same: they do not stand for the rest.
        covered = whole if any(course.seen for course in whole) else sound
        grew = _sum(course.grew for course in covered)
        native = _sum(course.native for course in covered)
        zend = _sum(course.zend for course in covered)
        between = _sum(course.between for course in covered)
        known = None not in (grew, native, zend, between)
        return Balance(
            workers=len(covered),
            looked_at=len(self._courses) + sum(self._reasons.values()),
            requests=sum(course.seen for course in covered),
            counted=sum(course.counted for course in covered),
            workers_grew=grew,
            native_kept=native,
            zend=zend,
            between_requests=between,
            unexplained=(grew or 0) - (native or 0) - (zend or 0) - (between or 0) if known else None,
            malloc_free=_sum(course.malloc_free for course in covered),
            heap_check=_sum(course.heap_check for course in covered),
            why=self._why(sound) or (None if covered else NOT_LOOKED),
        )

    def _why(self, sound: Sequence[Course]) -> str:
        """Why not every worker has every figure, by number of workers; empty if each has."""
        reasons = self._reasons + Counter(course.disturbed for course in self._courses if course.disturbed)
        reasons["requests were lost"] += sum(course.lost for course in sound)
        partly = [course for course in sound if not course.lost and not course.whole]
        if partly:
            counted, every = sum(one.counted for one in partly), sum(one.every for one in partly)
            reasons[f"{counted:,} of {every:,} requests counted"] += len(partly)
        reasons["malloc's heap is not known exactly"] += sum(one.whole and one.heap_check is None for one in sound)
        parts = [f"{_workers(count)}: {reason}" for reason, count in reasons.most_common(_REASONS) if count]
        others = reasons.total() - sum(count for _, count in reasons.most_common(_REASONS))
        return "; ".join([*parts, f"{_workers(others)}: other reasons"] if others else parts)


def _began_ns(course: Course) -> int:
    return course.began_ns


def _reason(look: Look) -> str | None:
    """Why a look cannot be compared; None if it can."""
    return None if look.bookable else look.why or "its memory changed during the look"


def _sum(values: Iterable[int | None]) -> int | None:
    """Their sum; None if one of them is unknown, or there is none."""
    found = list(values)
    known = [value for value in found if value is not None]
    return sum(known) if found and len(known) == len(found) else None


def _workers(count: int) -> str:
    return f"{count:,} worker{'' if count == 1 else 's'}"
