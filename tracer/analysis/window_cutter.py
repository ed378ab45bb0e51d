"""Cuts the requests of a worker into windows whose native growth can be compared.

A worker's anonymous memory is looked at between its requests. Two looks can be compared if as much memory lay free but
resident at both, in Zend's heap and in malloc's. For Zend's heap: if it has the same size, and preferably the smallest
of its usual sizes, with which it has no chunks whose pages may be touched or not. For malloc's: right after a script
that grew the worker did so again. While that request ran, no free memory that it could use was left; after it, what
this script frees is free. Such a request ends windows, whichever script keeps the memory. Windows that do not begin
and end alike are used where nothing better comes, and say how far they may be off.

A key's first use in a worker loads its classes, patterns and locales. Its growth is left out.
"""

from __future__ import annotations

import dataclasses
import enum
from collections.abc import Hashable
from typing import NamedTuple

from tracer.analysis.growth_windows import NOBODY, PAGE, ROUNDING, Window, add_counts

_COUNTED = 64.0  # standard deviation of a difference of two heap walks, in bytes: what glibc's caches hold
WARM_UP = 32  # first requests of a worker: they touch what every worker touches once
_SOONEST = 8  # before so many requests no window begins; until the warm-up is over, only one that ends as it began
_FIRST_USE_LOOKS = 16  # after so many looks that cannot be compared with the one before, the windows begin anew
_PATIENCE = 4  # a window may be so many times longer than asked for until it ends as it began
_FEW_PAGES = 4 * PAGE  # so few hidden bytes matter less than windows that are too long
_PEAK = 2 << 20  # a jump beyond Zend's first chunk may be a peak of malloc's heap, of which all may be free afterwards
_USUAL = 16  # a size of Zend's heap is usual if one look in so many has it
_SIZES = 64  # of Zend's heap, that are counted
_KEYS = 256  # of one worker, whose first uses and growth are known; the others are taken as they come


class _End(enum.IntEnum):
    """How well a look ends a window, from the worst."""

    NONE = 0  # it has not been comparable yet
    SAME_ZEND = 1  # Zend's heap has the size it had at the start
    ANCHOR = 2  # and the request before grew the worker; the start was not after such a one
    AS_BEGUN = 3  # and the start was after such a request of the same key


class _Look(NamedTuple):
    level: int  # bytes
    size: int | None  # of Zend's heap


@dataclasses.dataclass(slots=True)
class _Open:
    """The window that has begun."""

    start: _Look
    anchor: Hashable  # as Window.begins
    spare: int  # the cutter's, at the start
    served: int  # requests of the worker before
    counts: dict[Hashable, int] = dataclasses.field(default_factory=dict)  # up to the best end so far
    end: _Look | None = None
    end_anchor: Hashable = NOBODY
    quality: _End = _End.NONE
    rest: dict[Hashable, int] = dataclasses.field(default_factory=dict)  # requests since the best end
    requests: int = 0  # all


class WindowCutter:
    """The windows of one worker, as its requests come: a look, then the request's key, then the next look."""

    def __init__(self, number: int) -> None:
        self.number = number
        self._served = 0
        self._previous: _Look | None = None
        self._key: Hashable = NOBODY  # of the request before
        self._first_used = False  # the request before was a first use
        self._used: set[Hashable] = set()  # keys
        self._before_first_use: _Look | None = None  # until a look comes that can be compared with it
        self._looks_since = 0
        self._offset = 0  # growth by first uses, which the levels of windows leave out
        self._sizes: dict[int | None, int] = {}  # looks by size of Zend's heap
        self._grown: dict[Hashable, tuple[int, int]] = {}  # by key: bytes by which it grew the worker, and how often
        self._anchor: Hashable = NOBODY  # the key with the most of these bytes
        self._spare = 0  # bytes that a peak may have left free: growth does not show until they are used up
        self._open: _Open | None = None
        self._chains = 0
        self._walk: int | None = None
        self._walked: dict[Hashable, int] = {}  # requests since the walk
        self._walked_young = False  # that window has first uses, or the worker's first requests

    def begin(self, key: Hashable, count: int = 1) -> None:
        """Take the key of the next request, or of `count` requests that nobody looked at."""
        self._served += count
        self._key = key
        if self._walk is not None:
            self._walked[key] = self._walked.get(key, 0) + count
        self._first_used = count == 1 and key not in self._used and len(self._used) < _KEYS
        self._walked_young |= self._first_used or self._served <= WARM_UP
        if self._first_used:
            self._used.add(key)
        if self._open is None:
            return
        if self._first_used and self._before_first_use is None:
            self._before_first_use = self._previous
        if self._before_first_use is None:
            self._open.rest[key] = self._open.rest.get(key, 0) + count
            self._open.requests += count

    def walk(self, used: int) -> Window | None:
        """Take the bytes in use in malloc's heap before the next request. Return the window since the walk before."""
        window = None
        if self._walk is not None and self._walked:
            growth, young = used - self._walk, self._walked_young
            window = Window((self.number, 0), self._walked, growth, _COUNTED**2, walked=True, young=young)
        self._walk, self._walked, self._walked_young = used, {}, False
        return window

    def look(self, level: int, size: int | None, length: int) -> Window | None:
        """Take the level before the next request. Return a window that ended, if it has gone on for `length` requests.

        `size` is that of Zend's heap; None if it is not known.
        """
        after_first_use = self._before_first_use is not None
        if after_first_use and not self._first_use_over(level, size):
            return None
        look = _Look(level - self._offset, size)
        self._count_size(size)
        displaced = not after_first_use and self._displaced(look)
        self._previous = look
        if self._open is None:
            self._begin_chain(look, displaced)
            return None
        self._consider(self._open, look, displaced)
        return self._finished(self._open, length) if self._open.requests >= length else None

    def unfinished(self) -> Window | None:
        """The window that has not ended, as far as it can be compared."""
        window = self._open
        if window is None or window.end is None or not window.counts:
            return None
        return Window(
            (self.number, self._chains),
            window.counts,
            window.end.level - window.start.level,
            ROUNDING**2,
            window.anchor,
            window.end_anchor,
            max(self._hidden(), window.spare, self._spare),
            young=window.served < WARM_UP,
        )

    def _first_use_over(self, level: int, size: int | None) -> bool:
        """True if this look can be compared with the one before the first use, whose growth is then left out."""
        before = self._before_first_use
        assert before is not None
        if size == before.size:
            growth = level - self._offset - before.level
            self._offset += growth
            self._note_jump(growth)
        else:
            self._looks_since += 1
            if self._looks_since < _FIRST_USE_LOOKS:
                return False
            self._open = None
        self._before_first_use = None
        self._looks_since = 0
        return True

    def _count_size(self, size: int | None) -> None:
        self._sizes[size] = self._sizes.get(size, 0) + 1
        if len(self._sizes) > _SIZES:
            del self._sizes[min(self._sizes, key=lambda known: self._sizes[known])]

    def _smallest_usual_size(self) -> int | None:
        least = min(sum(self._sizes.values()) / _USUAL, max(self._sizes.values()))
        return min((size for size, looks in self._sizes.items() if looks >= least), key=lambda size: size or 0)

    def _displaced(self, look: _Look) -> bool:
        """True if the request before this look grew the worker."""
        previous = self._previous
        if previous is None or previous.size != look.size or look.level - previous.level < PAGE:
            return False
        growth = look.level - previous.level
        self._note_jump(growth)
        if not self._first_used and (self._key in self._grown or len(self._grown) < _KEYS):
            grown, times = self._grown.get(self._key, (0, 0))
            self._grown[self._key] = grown + growth, times + 1
            if self._key != self._anchor and self._grown[self._key] > self._grown.get(self._anchor, (0, 0)):
                self._anchor = self._key
        return True

    def _note_jump(self, growth: int) -> None:
        if growth >= PAGE:
            self._spare = growth if growth > _PEAK else 0

    def _hidden(self) -> float:
        """Bytes that a worker keeps unseen, on average, from one growth by the anchor to the next; 0 if it has none."""
        grown, times = self._grown.get(self._anchor, (0, 1))
        return grown / times

    def _begin_chain(self, look: _Look, displaced: bool) -> None:
        """Begin a window that does not follow on another one, if this look is good for that."""
        anchored = displaced and self._key == self._anchor
        if self._served < (_SOONEST if anchored else WARM_UP) or look.size != self._smallest_usual_size():
            return
        self._chains += 1
        self._open = _Open(look, self._key if anchored else NOBODY, self._spare, self._served)

    def _consider(self, window: _Open, look: _Look, displaced: bool) -> None:
        """Let the window end here, if this end is as good as the best before."""
        if look.size != window.start.size:
            return
        quality = _End.SAME_ZEND
        if displaced and self._key == window.anchor:
            quality = _End.AS_BEGUN
        elif displaced and window.anchor is NOBODY and self._key == self._anchor:
            quality = _End.ANCHOR
        if quality >= window.quality:
            window.end, window.quality = look, quality
            anchored = displaced and self._key in (self._anchor, window.anchor)
            window.end_anchor = self._key if anchored else NOBODY
            add_counts(window.counts, window.rest)
            window.rest = {}

    def _finished(self, window: _Open, length: int) -> Window | None:
        """The window, if it is good enough for its length; the next one then begins where it ends."""
        if window.end is not None and window.quality >= self._least_quality(window, length):
            finished = self.unfinished()
            requests = sum(window.rest.values())
            self._open = _Open(
                window.end, window.end_anchor, self._spare, self._served - requests, rest=window.rest, requests=requests
            )
            return finished
        if window.end is None and window.requests >= 2 * _PATIENCE * length:
            self._open = None  # Zend's heap no longer has that size
            self._sizes.clear()
        return None

    def _least_quality(self, window: _Open, length: int) -> _End:
        """The quality an end needs to have for the window to end now."""
        if self._anchor is NOBODY:
            return _End.SAME_ZEND
        patience = _PATIENCE * length
        if window.anchor is not NOBODY:
            patience *= 2
            if self._hidden() > _FEW_PAGES:
                _, times = self._grown[self._anchor]
                patience = max(patience, _PATIENCE * window.served // times)
        if window.requests >= patience:
            return _End.SAME_ZEND
        return _End.ANCHOR if window.anchor is NOBODY else _End.AS_BEGUN
