"""From records, as the BPF programs or the ptrace process send them, to facts. Both backends use it."""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable

from tracer.backends.records.in_flight import InFlight
from tracer.backends.records.request_decoder import RequestDecoder
from tracer.backends.records.request_structs import (
    FORK_EVENT,
    HEAD,
    PROCESS_EVENT,
    RELEASE_EVENT,
    REQUEST_FIELDS,
    EventKind,
)
from tracer.backends.records.worker_table import WorkerTable
from tracer.facts import Fact, Fork, Release
from tracer.targets.processes import anonymous_bytes

# Where `struct request` says when it ended.
_BEFORE_ENDED = [form for _, form in REQUEST_FIELDS[: [name for name, _ in REQUEST_FIELDS].index("ended_ns")]]
_ENDED_NS = struct.Struct(f"<{struct.calcsize('<' + ''.join(_BEFORE_ENDED))}xQ")


def _nothing(*pids: int) -> None:
    """Default callback: do nothing."""


class EventDecoder:
    """Decodes records, and keeps the table of workers up to date with them."""

    def __init__(
        self,
        table: WorkerTable,
        decoder: RequestDecoder,
        *,
        replaced: Callable[[int], None] = _nothing,
        unwanted: Callable[[int], None] = _nothing,
        died: Callable[[int], None] = _nothing,
        became_master: Callable[[int, int], None] = _nothing,
        in_flight: InFlight | None = None,
    ) -> None:
        """The callbacks get a pid; `became_master` also that of the master whose worker it was taken for.

        `replaced`: a master executed a program, itself or another. `unwanted`: a worker turned out to be of a pool that
        was not asked for. `died`: a master or worker ended. `became_master`: a worker turned out to be a master.
        `in_flight` knows the requests that ran when tracing began.
        """
        self._table = table
        self._decoder = decoder
        self._replaced = replaced
        self._unwanted = unwanted
        self._died = died
        self._became_master = became_master
        self._in_flight = in_flight or InFlight(decoder)
        # By pid, then by the start of the owner: what was freed while no request ran.
        self._idle_releases: dict[int, dict[int, Release]] = {}

    def facts(self, records: Iterable[bytes]) -> list[Fact]:
        """Return the facts of these records, in order, without those of workers that are not wanted."""
        found: list[Fact] = []
        workers, head = self._table.workers, HEAD.unpack_from
        request, add, of_request = self._decoder.request, found.append, int(EventKind.REQUEST)
        of_release = int(EventKind.RELEASED)
        seen, ended_ns = self._in_flight.seen, _ENDED_NS.unpack_from
        for record in records:
            kind, pid = head(record)
            if kind == of_request:
                if self._idle_releases:
                    found += self._goes_on(pid)
                tracked = workers.get(pid) or self._table.adopt_unknown(pid)
                if tracked is None:
                    add(request(record, None))
                elif tracked.wanted:
                    add(seen(request(record, tracked.fact.pool, tracked.origin), *ended_ns(record)))
            elif kind == of_release:
                found += self._releases(record, pid)
            else:
                fact = self._process_event(record[: PROCESS_EVENT.size])
                if fact is not None:
                    add(fact)
        return found

    def _releases(self, record: bytes, pid: int) -> list[Release]:
        """Return the releases that are certain now that this record has come.

        A worker that ends frees what PHP and its extensions hold: that says nothing about who held it. So what was
        freed between two requests waits for a sign that the worker goes on.
        """
        _, _, started, by, size, blocks, idle, resized = RELEASE_EVENT.unpack(record[: RELEASE_EVENT.size])
        if (tracked := self._table.workers.get(pid)) is not None and not tracked.wanted:
            return []
        unix_ns = self._decoder.unix_ns
        owner = unix_ns(started) if started else 0
        release = Release(pid, owner, size, blocks, unix_ns(by) if by else None, bool(resized))
        if not idle:
            return [*self._goes_on(pid), release]
        waiting = self._idle_releases.setdefault(pid, {})
        if (same := waiting.get(started)) is not None:
            release = release._replace(bytes=same.bytes + size, blocks=same.blocks + blocks)
        waiting[started] = release
        return []

    def _goes_on(self, pid: int) -> Iterable[Release]:
        return self._idle_releases.pop(pid, {}).values()

    def remaining(self) -> list[Release]:
        """Return the releases of workers that have neither ended nor begun another request since."""
        return [release for pid in list(self._idle_releases) for release in self._goes_on(pid)]

    def _born(self, record: bytes) -> Fact | None:
        parent = PROCESS_EVENT.unpack(record)[2]
        was = self._table.workers.get(parent)
        fact = self._table.born(record)
        if was is not None and was.target.master is not None and parent in self._table.masters:
            self._became_master(parent, was.target.master.pid)
        return fact

    def _fork(self, record: bytes) -> Fork | None:
        """Return the fact of a process that a worker forked; None if that worker is not wanted."""
        _, pid, parent, _, started, ended = FORK_EVENT.unpack(record[: FORK_EVENT.size])
        tracked = self._table.workers.get(parent)
        if tracked is not None and not tracked.wanted:
            return None
        return Fork(
            pid,
            parent,
            self._decoder.unix_ns(started) if started else None,
            self._decoder.unix_ns(ended) if ended else None,
            None if ended else anonymous_bytes(pid),
        )

    def _process_event(self, record: bytes) -> Fact | None:
        kind, pid = HEAD.unpack_from(record)
        if kind == EventKind.FORKED:
            return self._fork(record)
        if kind == EventKind.BORN:
            return self._born(record)
        if kind in (EventKind.DIED, EventKind.OOM_DIED):
            self._idle_releases.pop(pid, None)
            self._in_flight.gone(pid)
            self._died(pid)
            return self._table.died(record)
        if kind == EventKind.EXECED:
            self._in_flight.replaced(pid)
            self._replaced(pid)
            return None
        fact = self._table.titled(record)
        tracked = self._table.workers.get(pid)
        if tracked is not None and not tracked.wanted:
            self._unwanted(pid)
        return fact
