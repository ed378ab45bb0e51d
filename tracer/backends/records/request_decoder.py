"""From a record of the ring to a Request: what is not known becomes None, and its notes say why.

A record may hold anything a stranger sent; decoding never fails on content.
"""

from __future__ import annotations

import signal
from typing import Any

from tracer.backends.records.request_structs import (
    FIGURES,
    REPLACED,
    REQUEST,
    REQUEST_FIELDS,
    WORKER,
    WORKER_FIELDS,
    Flag,
)
from tracer.facts import Ending, Note, Request

_FIGURES_FROM = [name for name, _ in REQUEST_FIELDS].index(FIGURES[0])
_FIGURES_TO = _FIGURES_FROM + len(FIGURES)
_VM_BEFORE, _VM_AFTER, _MAP_BYTES, _UNMAP_BYTES, _BRK_BYTES = map(
    FIGURES.index, ("vm_before", "vm_after", "map_bytes", "unmap_bytes", "brk_bytes")
)
# What most requests have: nothing to be said.
_PLAIN = 0
_METHODS = {name.encode().ljust(16, b"\0"): name for name in ("GET", "POST", "HEAD", "PUT", "DELETE", "OPTIONS")}
_NOTES = (
    (Flag.START_NOT_SEEN, Note.START_NOT_SEEN),
    (Flag.ZEND_HEAP_UNKNOWN, Note.ZEND_HEAP_UNKNOWN),
    (Flag.PHP_LAYOUT_UNKNOWN, Note.PHP_LAYOUT_UNKNOWN),
    (Flag.URI_IS_SCRIPT_NAME, Note.URI_IS_SCRIPT_NAME),
    (Flag.URI_UNKNOWN, Note.URI_UNKNOWN),
    (Flag.SCRIPT_IS_PATH_TRANSLATED, Note.SCRIPT_IS_PATH_TRANSLATED),
    (Flag.NO_SCRIPT, Note.NO_SCRIPT),
    (Flag.METHOD_FROM_SAPI, Note.METHOD_FROM_SAPI),
    (Flag.METHOD_UNKNOWN, Note.METHOD_UNKNOWN),
)


class RequestDecoder:
    """Turns a record of the ring into a Request.

    `host` and `clock_offset_ns` (Unix time minus CLOCK_MONOTONIC) are the same for all; `calls`
    says whether mmap and brk are counted at all.
    """

    def __init__(self, host: str, clock_offset_ns: int, *, keep_query: bool, calls: bool) -> None:
        self._host = host
        self._offset = clock_offset_ns
        self._keep_query = keep_query
        self.calls = calls

    def request(self, record: bytes, pool: str | None) -> Request:
        values = REQUEST.unpack_from(record)
        _, pid, nth, flags, started, ended, cpu = values[:_FIGURES_FROM]
        figures = values[_FIGURES_FROM:_FIGURES_TO]
        status, exit_code, script_bytes, uri_bytes, script_stored, uri_stored, _, method = values[_FIGURES_TO:]
        strings = REQUEST.size
        script = record[strings : strings + script_stored].decode("utf-8", "surrogateescape")
        uri = record[strings + script_stored : strings + script_stored + uri_stored]
        uri_cut = uri_bytes > uri_stored
        if not self._keep_query:
            query = uri.find(b"?")
            if query >= 0:
                uri, uri_cut = uri[:query], False
        row = Request._make((
            self._host, pid, pool, nth, started + self._offset, ended - started, cpu,
            _METHODS.get(method) or method.split(b"\0", 1)[0].decode("utf-8", "surrogateescape"),
            uri.decode("utf-8", "surrogateescape"), script, status or None, "finished",
            *figures, None,
        ))  # fmt: skip
        mapped = figures[_MAP_BYTES] - figures[_UNMAP_BYTES] + figures[_BRK_BYTES]
        uncounted = figures[_VM_AFTER] - figures[_VM_BEFORE] != mapped
        if flags == _PLAIN and self.calls and not uncounted and not uri_cut and script_bytes == script_stored:
            return row
        return self._qualified(row, flags, exit_code, uri_cut, script_bytes > script_stored, uncounted)

    def _qualified(
        self, row: Request, flags: int, exit_code: int, uri_cut: bool, script_cut: bool, uncounted: bool
    ) -> Request:
        """The row with what is not known set to None, and the reasons in its notes."""
        absent: dict[str, Any] = {}
        notes = [note for flag, note in _NOTES if flags & flag]
        ending = Ending.FINISHED.value
        if flags & Flag.START_NOT_SEEN:
            absent |= dict.fromkeys(set(Request._fields) - {"host", "pid", "pool", "nth"})
            return row._replace(**{**absent, "ending": Ending.CUT_OFF.value, "notes": Note.START_NOT_SEEN.value})
        if flags & Flag.FATAL:
            ending = Ending.FATAL.value
        elif flags & Flag.EXITED:
            ending = Ending.EXITED.value
        if flags & Flag.END_NOT_SEEN:
            absent |= dict.fromkeys(
                ("anon_after", "file_after", "shmem_after", "zend_real_after", "vm_after", "brk_bytes", "status")
            )
            notes.append(Note.END_NOT_SEEN)
            ending = Ending.CUT_OFF.value
            if exit_code & 0x7F:
                ending = f"{Ending.KILLED.value}:{_signal(exit_code & 0x7F)}"
            elif flags & Flag.DETACHED:
                absent |= dict.fromkeys(("cpu_ns", "minor_faults", "major_faults"))
            else:
                notes.append(Note.WORKER_EXITED)
        if flags & Flag.ZEND_HEAP_UNKNOWN:
            absent |= dict.fromkeys(
                ("zend_used_end", "zend_peak", "zend_real_before", "zend_real_peak", "zend_real_end", "zend_real_after")
            )
        if flags & Flag.SCRIPT_END_NOT_SEEN:
            absent |= dict.fromkeys(("zend_used_end", "memory_limit"))
            if not flags & Flag.END_NOT_SEEN:
                notes.append(Note.SCRIPT_END_NOT_SEEN)
        if flags & Flag.TEARDOWN_NOT_SEEN:
            absent |= dict.fromkeys(("anon_end", "zend_peak", "zend_real_peak", "zend_real_end", "status"))
            if not flags & Flag.END_NOT_SEEN:
                notes.append(Note.TEARDOWN_NOT_SEEN)
        if flags & Flag.PHP_LAYOUT_UNKNOWN:
            absent |= dict.fromkeys(("status", "memory_limit"))
        for flag, name in ((Flag.URI_UNKNOWN, "uri"), (Flag.NO_SCRIPT, "script"), (Flag.METHOD_UNKNOWN, "method")):
            if flags & flag:
                absent[name] = None
        if not self.calls:
            absent |= dict.fromkeys(("map_bytes", "map_calls", "unmap_bytes", "unmap_calls", "brk_calls"))
            notes.append(Note.CALLS_NOT_HOOKED)
        elif uncounted and not flags & Flag.END_NOT_SEEN:
            notes.append(Note.MAPPED_ELSEWHERE)
        if uri_cut:
            notes.append(Note.URI_CUT)
        if script_cut:
            notes.append(Note.SCRIPT_CUT)
        return row._replace(**absent, ending=ending, notes=",".join(note.value for note in notes) or None)


def unfinished_request(worker: bytes, now_ns: int) -> bytes | None:
    """The record of the request that a `struct worker` is in the middle of; None if it is in none.

    `now_ns` (CLOCK_MONOTONIC) becomes the time until which it was watched.
    """
    fields = dict(zip((name for name, _ in WORKER_FIELDS), WORKER.unpack_from(worker), strict=True))
    if not fields["in_request"]:
        return None
    values = list(REQUEST.unpack_from(worker, WORKER.size))
    values[3] |= Flag.END_NOT_SEEN | Flag.DETACHED
    values[5] = now_ns
    return REQUEST.pack(*values) + worker[WORKER.size + REQUEST.size :]


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
