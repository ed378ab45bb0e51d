"""A named target outlives its master: php-fpm is stopped and started anew, and the new master is traced.

From the end of the one to the beginning of the other nobody was looking. That gap is reported, with its times.
"""

from __future__ import annotations

import dataclasses
import datetime
import math
import time
from collections.abc import Callable, Collection, Sequence
from typing import Protocol

from tracer.backends import Backend
from tracer.backends.several import Several
from tracer.errors import PhptraceError
from tracer.facts import Fact, Loss
from tracer.targets.resolve import Target, is_pid

# So often masters are looked for: while one is gone, at first and later; and for others that were started.
_SOON_S, _LATER_S, _OTHERS_S = 0.2, 1.0, 5.0
_SOON_FOR_S = 10.0
# So long a master that cannot be traced, or is not meant, is left alone.
_LEFT_ALONE_S = 30.0
_GAPS_SHOWN = 100
_LACKS_KEPT = 100


class Attached(Protocol):
    """A backend that was attached to targets that were found later."""

    @property
    def backend(self) -> Backend | None:
        """It is attached. None: the first backend watches the targets, too."""

    @property
    def targets(self) -> Sequence[Target]:
        """The targets of the backend."""

    @property
    def holds_files(self) -> bool:
        """True if close() closes any file."""

    def close(self) -> None:
        """Close the targets' files, after the backend."""


@dataclasses.dataclass(slots=True)
class _Gap:
    """The time from the end of a master, in which requests were possibly not seen."""

    named: str
    master: int
    since: float  # time.time()
    refused: str | None = None  # why a master that was started since cannot be traced

    def until(self, now: float | None) -> str:
        """The reason of a Loss."""
        times = [datetime.datetime.fromtimestamp(at, datetime.UTC) for at in (self.since, now) if at is not None]
        shown = [f"{at:%Y-%m-%dT%H:%M:%S}.{at.microsecond // 100_000}Z" for at in times]
        if now is None and self.refused is not None:
            return (
                f"gaps in tracing: master {self.master} of {self.named} ended at {shown[0]}, and one that was started"
                f" since is not traced ({self.refused})"
            )
        if now is None:
            return (
                f"gaps in tracing: master {self.master} of {self.named} ended at {shown[0]}, and no new master was"
                " started"
            )
        return (
            f"gaps in tracing: master {self.master} of {self.named} ended at {shown[0]}, and its successor has been"
            f" traced since {shown[1]}"
        )


class Restarts(Several):
    """See the Watch protocol. Attaches new backends to masters that are started, and closes those that watch none."""

    def __init__(
        self,
        first: Backend,
        targets: Sequence[Target],
        *,
        masters: Callable[[], Collection[int]],
        attach_to: Callable[[Collection[int]], Attached | None],
        report: Callable[[str], None],
        known: set[str] | None = None,
    ) -> None:
        """`first` is attached to the targets.

        `masters` returns the pids of all php-fpm masters. `attach_to` attaches to those of the given ones that are
        meant: None if none is; it raises PhptraceError, or OSError where the host is short of files. `report` prints a
        sentence. `known` are errors that were reported already; it gets those that are reported here.
        """
        super().__init__()
        self._first = first
        self._masters = masters
        self._attach_to = attach_to
        self._report = report
        self._known = set() if known is None else known
        self._later: list[Attached] = []
        self._lacked: dict[str, None] = {}  # what the backends lacked that were attached later, in order
        self._named = {target.master.pid: target.named for target in targets if target.master is not None}
        self._gaps: list[_Gap] = []
        self._gaps_shown = 0
        self._left_alone: dict[int, float] = {}  # by pid, until when
        self._search_at = 0.0

    @property
    def masters(self) -> frozenset[int]:
        """See the Watch protocol. Those that have ended are among them, while their successors are waited for."""
        return self._alive | {gap.master for gap in self._gaps}

    @property
    def lacking(self) -> Sequence[str]:
        """See the Watch protocol. Also what backends lacked whose masters have ended."""
        return tuple(dict.fromkeys([*(lack for backend in self._backends for lack in backend.lacking), *self._lacked]))

    @property
    def _backends(self) -> list[Backend]:
        return [self._first, *(attached.backend for attached in self._later if attached.backend is not None)]

    @property
    def _alive(self) -> frozenset[int]:
        return frozenset(pid for backend in self._backends for pid in backend.masters)

    def _more(self) -> list[Fact]:
        return self._look(time.monotonic())

    def close(self) -> list[Fact]:
        """See the Watch protocol."""
        facts = super().close()
        for attached in self._later:
            self._close(attached)
        self._later.clear()
        facts += [self._loss(gap, None) for gap in self._gaps]
        self._gaps.clear()
        return facts

    def _look(self, now: float) -> list[Fact]:
        """Note which masters have ended, and from time to time look for others."""
        alive = self._alive
        gone = [pid for pid in self._named if pid not in alive]
        for pid in gone:
            named = self._named.pop(pid)
            fresh = [other for other in alive if other not in self._named]
            if fresh:
                self._named[fresh[0]] = named  # its own child: it has daemonized itself
                continue
            if is_pid(named):
                continue  # the next one has another PID
            self._gaps.append(_Gap(named, pid, time.time()))
            self._report(f"master {pid} of {named} has ended; waiting for php-fpm to be started again")
            self._search_at = now
        if now < self._search_at:
            return []
        facts = self._search(now, alive)
        waits = min((time.time() - gap.since for gap in self._gaps), default=math.inf)
        self._search_at = now + (_SOON_S if waits < _SOON_FOR_S else _LATER_S if self._gaps else _OTHERS_S)
        return facts

    def _search(self, now: float, alive: Collection[int]) -> list[Fact]:
        self._left_alone = {pid: until for pid, until in self._left_alone.items() if until > now}
        fresh = {pid for pid in self._masters() if pid not in alive and pid not in self._left_alone}
        if not fresh:
            return []
        # One that is waited for may not have got so far.
        wait = _LATER_S if self._gaps else _LEFT_ALONE_S
        try:
            attached = self._attach_to(fresh)
        except (PhptraceError, OSError) as exc:
            if str(exc) not in self._known:
                self._known.add(str(exc))
                self._report(f"not traced: {exc}")
                for waiting in self._gaps:
                    waiting.refused = str(exc)
            attached, wait = None, _LEFT_ALONE_S
        self._left_alone.update(dict.fromkeys(fresh, now + wait))
        if attached is None:
            return []
        facts: list[Fact] = []
        for target in attached.targets:
            assert target.master is not None
            self._left_alone.pop(target.master.pid, None)
            self._named[target.master.pid] = target.named
            gap = next((gap for gap in self._gaps if gap.named == target.named), None)
            after = "" if gap is None else f", started after master {gap.master} ended"
            self._report(f"now tracing master {target.master.pid} of {target.named}{after}")
            if gap is not None:
                self._gaps.remove(gap)
                facts.append(self._loss(gap, time.time()))
        facts += self._close_unused()
        if attached.backend is not None or attached.holds_files:
            self._later.append(attached)
        return facts

    def _close_unused(self) -> list[Fact]:
        """Close the later backends that watch nothing any more. The first one stays: it is asked for what it lacks."""
        facts: list[Fact] = []
        for attached in list(self._later):
            backend = attached.backend
            if backend is not None and not backend.masters and not backend.watched:
                facts += backend.close()
                self._close(attached)
                self._later.remove(attached)
        return facts

    def _close(self, attached: Attached) -> None:
        """Close the files of a backend that is closed, and keep what it lacked."""
        for lack in attached.backend.lacking if attached.backend is not None else ():
            if len(self._lacked) < _LACKS_KEPT:
                self._lacked[lack] = None
        attached.close()

    def _loss(self, gap: _Gap, until: float | None) -> Loss:
        self._gaps_shown += 1
        why = gap.until(until) if self._gaps_shown <= _GAPS_SHOWN else "gaps in tracing: further restarts of php-fpm"
        return Loss(time.time_ns(), 1, why)
