"""From a record of the ring to a Request: a field that is not known becomes None, and the notes say why.

A record may hold anything a client sent; decoding never fails on content.
"""

from __future__ import annotations

import enum
import functools
import mmap
import signal
from operator import itemgetter
from typing import Any, NamedTuple

from tracer.backends.records.request_structs import (
    FORK_EVENT,
    REPLACED,
    REQUEST,
    REQUEST_FIELDS,
    WORKER,
    WORKER_FIELDS,
    EventKind,
    Flag,
)
from tracer.facts import Ending, Note, Place, Request

_FIELDS = tuple(name for name, _ in REQUEST_FIELDS)
# What request() works out. Every other field of a Request is the field of that name in the record.
_WORKED_OUT = (
    "host", "pool", "started_ns", "duration_ns", "method", "uri", "script", "status", "ending", "native_kept",
    "native_released", "notes",
)  # fmt: skip
# The last fields of a Request: what is known of its worker, in this order, and where it runs.
ORIGIN = ("start_ticks", "master_pid", *Place._fields)
Origin = tuple[int | str | None, ...]
NO_ORIGIN: Origin = (None,) * len(ORIGIN)
# The fields of a Request, in its order, from those in the record's order and behind them those worked out.
_IN_ORDER = itemgetter(
    *(
        len(_FIELDS) + _WORKED_OUT.index(name) if name in _WORKED_OUT else _FIELDS.index(name)
        for name in Request._fields[: -len(ORIGIN)]
    )
)
_HEAD_OF_RECORD = itemgetter(*map(_FIELDS.index, ("flags", "started_ns", "ended_ns", "status", "method")))
_STRINGS = itemgetter(*map(_FIELDS.index, ("script_bytes", "uri_bytes", "script_stored", "uri_stored")))
_ADDRESS_SPACE = itemgetter(*map(_FIELDS.index, ("vm_before", "vm_after", "map_bytes", "unmap_bytes", "brk_bytes")))
_NATIVE = itemgetter(
    *map(
        _FIELDS.index,
        ("native_alloc_bytes", "native_free_bytes", "native_freed_earlier", "native_mapped_bytes"),
    )
)
# The first probe on a return that a worker passes maps a page of its own: [uprobes], kernel/events/uprobes.c.
_OF_THE_PROBES = (0, mmap.PAGESIZE)
_MOST = (1 << 63) - 1  # what a recording can hold
_ENDING, _NOTES = Request._fields.index("ending"), Request._fields.index("notes")
_EXIT_CODE = _FIELDS.index("exit_code")
_METHODS = {name.encode().ljust(16, b"\0"): name for name in ("GET", "POST", "HEAD", "PUT", "DELETE", "OPTIONS")}


class _Found(enum.IntFlag):
    """Conditions that the decoder finds out itself, beside the bits of Flag."""

    KILLED = 1 << 32  # the worker died of a signal in mid-request
    WORKER_EXITED = 1 << 33  # the worker left in mid-request, and neither was killed nor did tracing end
    CALLS_NOT_HOOKED = 1 << 34
    MAPPED_ELSEWHERE = 1 << 35
    URI_CUT = 1 << 36
    SCRIPT_CUT = 1 << 37
    OOM_KILLED = 1 << 38


class _Rule(NamedTuple):
    """The meaning of a condition for a request: which fields are not known, a note, and how it ended."""

    condition: Flag | _Found
    absent: tuple[str, ...] = ()
    note: Note | None = None
    ending: Ending | None = None  # of several, the last in the table


_COUNTED = (
    "native_alloc_bytes", "native_alloc_calls", "native_free_bytes", "native_free_calls", "native_freed_earlier",
    "native_between_bytes", "native_kept", "native_released",
)  # fmt: skip
_RULES = (
    _Rule(
        Flag.ZEND_HEAP_UNKNOWN,
        (
            "zend_used_end",
            "zend_peak",
            "zend_real_before",
            "zend_real_peak",
            "zend_real_end",
            "zend_real_after",
            "native_mapped_bytes",
            "native_kept",
            "native_released",
        ),
        Note.ZEND_HEAP_UNKNOWN,
    ),
    _Rule(Flag.PHP_LAYOUT_UNKNOWN, ("status", "memory_limit"), Note.PHP_LAYOUT_UNKNOWN, Ending.UNKNOWN),
    _Rule(Flag.ENDING_UNKNOWN, (), Note.ENDING_UNKNOWN, Ending.UNKNOWN),
    _Rule(Flag.URI_IS_SCRIPT_NAME, (), Note.URI_IS_SCRIPT_NAME),
    _Rule(Flag.URI_UNKNOWN, ("uri",), Note.URI_UNKNOWN),
    _Rule(Flag.SCRIPT_IS_PATH_TRANSLATED, (), Note.SCRIPT_IS_PATH_TRANSLATED),
    _Rule(Flag.NO_SCRIPT, ("script",), Note.NO_SCRIPT),
    _Rule(Flag.METHOD_FROM_SAPI, (), Note.METHOD_FROM_SAPI),
    _Rule(Flag.METHOD_UNKNOWN, ("method",), Note.METHOD_UNKNOWN),
    _Rule(Flag.EXITED, ending=Ending.EXITED),
    _Rule(Flag.FATAL, ending=Ending.FATAL),
    _Rule(Flag.NATIVE_NOT_COUNTED, _COUNTED, Note.NATIVE_NOT_COUNTED),
    _Rule(Flag.NATIVE_BETWEEN_NOT_COUNTED, ("native_between_bytes",), Note.NATIVE_BETWEEN_NOT_COUNTED),
    _Rule(Flag.MAPPINGS_NOT_READ, ("native_mapped_bytes", "native_kept", "native_released")),
    _Rule(
        Flag.END_NOT_SEEN,
        (
            *_COUNTED,
            "native_mapped_bytes",
            "anon_after",
            "file_after",
            "shmem_after",
            "zend_real_after",
            "vm_after",
            "brk_bytes",
            "status",
        ),
        Note.END_NOT_SEEN,
        Ending.CUT_OFF,
    ),
    _Rule(_Found.KILLED, ending=Ending.KILLED),
    _Rule(_Found.OOM_KILLED, (), Note.OOM),
    _Rule(Flag.DETACHED, ("cpu_ns", "minor_faults", "major_faults")),
    _Rule(Flag.USAGE_NOT_READ, ("cpu_ns", "minor_faults", "major_faults")),
    _Rule(Flag.CALLS_NOT_SEEN, ("map_bytes", "map_calls", "unmap_bytes", "unmap_calls", "brk_bytes", "brk_calls")),
    _Rule(_Found.WORKER_EXITED, (), Note.WORKER_EXITED),
    _Rule(Flag.SCRIPT_END_NOT_SEEN, ("zend_used_end", "memory_limit"), Note.SCRIPT_END_NOT_SEEN),
    _Rule(
        Flag.TEARDOWN_NOT_SEEN,
        ("anon_end", "zend_peak", "zend_real_peak", "zend_real_end", "status"),
        Note.TEARDOWN_NOT_SEEN,
    ),
    _Rule(
        _Found.CALLS_NOT_HOOKED,
        ("map_bytes", "map_calls", "unmap_bytes", "unmap_calls", "brk_calls"),
        Note.CALLS_NOT_HOOKED,
    ),
    _Rule(_Found.MAPPED_ELSEWHERE, (), Note.MAPPED_ELSEWHERE),
    _Rule(_Found.URI_CUT, (), Note.URI_CUT),
    _Rule(_Found.SCRIPT_CUT, (), Note.SCRIPT_CUT),
)
# Notes that say nothing more once the end of the request was not seen.
_SAID_BY_THE_MISSING_END = frozenset(
    {
        Note.NATIVE_NOT_COUNTED,
        Note.NATIVE_BETWEEN_NOT_COUNTED,
        Note.SCRIPT_END_NOT_SEEN,
        Note.TEARDOWN_NOT_SEEN,
        Note.MAPPED_ELSEWHERE,
    }
)
_KNOWN_WITHOUT_A_START = frozenset({
    "host", "pid", "pool", "nth", "ending", "notes", "anon_after", "file_after", "shmem_after", "vm_after", *ORIGIN,
})  # fmt: skip


class _Changes(NamedTuple):
    """The changes that a set of conditions makes to a request."""

    absent: tuple[int, ...]  # indices of the fields of Request that are not known
    notes: str | None
    ending: Ending


@functools.lru_cache(maxsize=1024)
def _changes(conditions: int) -> _Changes:
    """Return the changes that these bits of Flag and _Found make together, by _RULES."""
    if conditions & Flag.START_NOT_SEEN:
        nothing_else = tuple(at for at, name in enumerate(Request._fields) if name not in _KNOWN_WITHOUT_A_START)
        return _Changes(nothing_else, Note.START_NOT_SEEN.value, Ending.CUT_OFF)
    rules = [rule for rule in _RULES if conditions & rule.condition]
    silent = _SAID_BY_THE_MISSING_END if conditions & Flag.END_NOT_SEEN else frozenset()
    notes = [rule.note.value for rule in rules if rule.note and rule.note not in silent]
    endings = [rule.ending for rule in rules if rule.ending]
    absent = tuple({Request._fields.index(name) for rule in rules for name in rule.absent})
    return _Changes(absent, ",".join(notes) or None, (Ending.FINISHED, *endings)[-1])


class RequestDecoder:
    """Turns a record of the ring into a Request.

    `host` and `clock_offset_ns` (Unix time minus CLOCK_MONOTONIC) are the same for all; `calls` is False where mmap
    and brk are not counted at all.
    """

    def __init__(self, host: str, clock_offset_ns: int, *, keep_query: bool, calls: bool) -> None:
        self.host = host
        self._offset = clock_offset_ns
        self._keep_query = keep_query
        self.calls = calls

    def unix_ns(self, monotonic_ns: int) -> int:
        """The Unix time of that reading of CLOCK_MONOTONIC, as requests have it."""
        return monotonic_ns + self._offset

    def kept_uri(self, uri: str | None) -> str | None:
        """The URI as it is recorded."""
        return uri if uri is None or self._keep_query else uri.partition("?")[0]

    def request(self, record: bytes, pool: str | None, origin: Origin = NO_ORIGIN) -> Request:
        """Return the Request of a `struct request` and the strings behind it. `origin`: the values of ORIGIN."""
        values = REQUEST.unpack_from(record)
        flags, started, ended, status, method = _HEAD_OF_RECORD(values)
        script_bytes, uri_bytes, script_stored, uri_stored = _STRINGS(values)
        at = REQUEST.size
        script = record[at : at + script_stored].decode("utf-8", "surrogateescape")
        uri = record[at + script_stored : at + script_stored + uri_stored]
        uri_cut = uri_bytes > uri_stored
        if not self._keep_query:
            query = uri.find(b"?")
            if query >= 0:
                uri, uri_cut = uri[:query], False
        allocated, freed, freed_earlier, native_mapped = _NATIVE(values)
        kept = allocated - freed + freed_earlier + native_mapped
        if not -_MOST <= kept <= _MOST:  # block sizes are the worker's word
            kept = max(-_MOST, min(kept, _MOST))
        row = Request._make(
            _IN_ORDER((
                *values,
                self.host, pool, started + self._offset, ended - started,
                _METHODS.get(method) or method.split(b"\0", 1)[0].decode("utf-8", "surrogateescape"),
                uri.decode("utf-8", "surrogateescape"), script, status or None, "finished",
                kept, 0, None,
            ))
            + origin
        )  # fmt: skip
        vm_before, vm_after, mapped, unmapped, brk = _ADDRESS_SPACE(values)
        uncounted = vm_after - vm_before - (mapped - unmapped + brk) not in _OF_THE_PROBES
        if flags == 0 and self.calls and not uncounted and not uri_cut and script_bytes == script_stored:
            return row  # as most are: nothing to add
        return self._qualified(row, flags, values[_EXIT_CODE], uri_cut, script_bytes > script_stored, uncounted)

    def _qualified(
        self, row: Request, flags: int, exit_code: int, uri_cut: bool, script_cut: bool, uncounted: bool
    ) -> Request:
        """The row with what is not known set to None, and the reasons in its notes."""
        found = flags
        killed_by = exit_code & 0x7F if flags & Flag.END_NOT_SEEN else 0
        if not flags & Flag.END_NOT_SEEN or killed_by:
            found &= ~Flag.DETACHED
        elif not flags & Flag.DETACHED:
            found |= _Found.WORKER_EXITED
        if not self.calls:
            found |= _Found.CALLS_NOT_HOOKED
        elif uncounted:
            found |= _Found.MAPPED_ELSEWHERE
        for holds, condition in (
            (killed_by, _Found.KILLED),
            (killed_by == signal.SIGKILL and flags & Flag.OOM_VICTIM, _Found.OOM_KILLED),
            (uri_cut, _Found.URI_CUT),
            (script_cut, _Found.SCRIPT_CUT),
        ):
            if holds:
                found |= condition
        absent, notes, ending = _changes(found)
        changed: list[Any] = list(row)
        for at in absent:
            changed[at] = None
        changed[_ENDING] = f"{ending.value}:{_signal(killed_by)}" if ending is Ending.KILLED else ending.value
        changed[_NOTES] = notes
        return Request._make(changed)


def unfinished_request(worker: bytes, now_ns: int) -> bytes | None:
    """The record of the request that a `struct worker` is in the middle of; None if it is in none.

    `now_ns` (CLOCK_MONOTONIC) becomes the time until which it was watched.
    """
    fields = dict(zip((name for name, _ in WORKER_FIELDS), WORKER.unpack_from(worker), strict=True))
    if not fields["in_request"]:
        return None
    request = dict(zip(_FIELDS, REQUEST.unpack_from(worker, WORKER.size), strict=True))
    request["flags"] |= Flag.END_NOT_SEEN | Flag.DETACHED
    request["ended_ns"] = now_ns
    return REQUEST.pack(*request.values()) + worker[WORKER.size + REQUEST.size :]


def unfinished_fork(pid: int, worker: bytes) -> bytes | None:
    """The record of a process that a worker forked and that runs on; None if this `struct worker` is of no such."""
    fields = dict(zip((name for name, _ in WORKER_FIELDS), WORKER.unpack_from(worker), strict=True))
    if not fields["forked_by"]:
        return None
    request = dict(zip(_FIELDS, REQUEST.unpack_from(worker, WORKER.size), strict=True))
    return FORK_EVENT.pack(EventKind.FORKED, pid, fields["forked_by"], 0, request["started_ns"], 0)


def exit_text(exit_code: int) -> str:
    """`exited:0` or `killed:TERM` of a wait status; `replaced` of a worker that ran another program."""
    if exit_code == REPLACED:
        return "replaced"
    number = exit_code & 0x7F
    return f"killed:{_signal(number)}" if number else f"exited:{exit_code >> 8 & 0xFF}"


def _signal(number: int) -> str:
    try:
        return signal.Signals(number).name.removeprefix("SIG")
    except ValueError:
        return str(number)
