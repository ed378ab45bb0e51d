"""From records, as the kernel's programs or the tracing process send them, to facts. Both backends' way in."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from tracer.backends.records.request_decoder import RequestDecoder
from tracer.backends.records.request_structs import HEAD, PROCESS_EVENT, EventKind
from tracer.backends.records.worker_table import WorkerTable
from tracer.facts import Fact


def _nothing(pid: int) -> None:
    """For who need not know."""


class EventDecoder:
    """Decodes records, and keeps the roster of workers by what they say."""

    def __init__(
        self,
        roster: WorkerTable,
        decoder: RequestDecoder,
        *,
        replaced: Callable[[int], None] = _nothing,
        unwanted: Callable[[int], None] = _nothing,
        died: Callable[[int], None] = _nothing,
    ) -> None:
        """Called with a pid: `replaced` of a master that ran itself, or another program, anew; `unwanted` of a
        worker that turned out to be of a pool nobody asked for; `died` of whoever died.
        """
        self._table = roster
        self._decoder = decoder
        self._replaced = replaced
        self._unwanted = unwanted
        self._died = died

    def facts(self, records: Iterable[bytes]) -> list[Fact]:
        found: list[Fact] = []
        workers, head = self._table.workers, HEAD.unpack_from
        request, add, of_request = self._decoder.request, found.append, int(EventKind.REQUEST)
        for record in records:
            kind, pid = head(record)
            if kind == of_request:
                watched = workers.get(pid) or self._table.adopt_unknown(pid)
                if watched is None:
                    add(request(record, None))
                elif watched.wanted:
                    add(request(record, watched.fact.pool))
            else:
                fact = self._process_event(record[: PROCESS_EVENT.size])
                if fact is not None:
                    add(fact)
        return found

    def _process_event(self, record: bytes) -> Fact | None:
        kind, pid = PROCESS_EVENT.unpack(record)[:2]
        if kind == EventKind.BORN:
            return self._table.born(record)
        if kind == EventKind.DIED:
            self._died(pid)
            return self._table.died(record)
        if kind == EventKind.EXECED:
            self._replaced(pid)
            return None
        fact = self._table.titled(record)
        watched = self._table.workers.get(pid)
        if watched is not None and not watched.wanted:
            self._unwanted(pid)
        return fact
