"""PHP's state, read from a worker's memory. The content is untrusted, and changes while a worker that is not stopped
runs: every read is bounded.
"""

from __future__ import annotations

import functools
import mmap
import struct
from collections.abc import Callable
from typing import NamedTuple

from tracer.targets.layouts import FCGI_ENV
from tracer.targets.php import Php
from tracer.targets.remote_memory import read_memory

_PAGE = mmap.PAGESIZE
_BUCKET = struct.Struct("<IIQI4xQQ")  # hash, length of the name, name, length of the value, value, next
_STACK_PAGE = 256 << 10  # ZEND_VM_STACK_PAGE_SIZE, Zend/zend_execute.c
_MAX_CHAIN = 16  # buckets read: a client may make its headers collide
# E_ERROR, E_PARSE, E_CORE_ERROR, E_COMPILE_ERROR, E_USER_ERROR, E_RECOVERABLE_ERROR: Zend/zend_errors.h
_FATAL_ERRORS = 1 | 4 | 16 | 64 | 256 | 4096

FATAL_STATUS = 255  # of EG(exit_status): php_error_cb(), main/main.c, PHP 8.2


class HeapFigures(NamedTuple):
    """Fields of zend_mm_heap, in bytes; signed, since the memory may hold any value."""

    size: int
    peak: int
    real_size: int
    real_peak: int


class LastError(NamedTuple):
    """How PHP code ended, as far as PHP's globals say: php_error_cb(), main/main.c, PHP 8.2.

    None of it is reset between requests but the message, which php_request_shutdown() frees, and the status, which
    php-fpm sets to 0 when it runs a script.
    """

    status: int  # EG(exit_status): 255 after a fatal error, and after exit(255)
    fatal: bool  # the last error was a fatal one
    message: bool  # the last error is one of the running request


class PhpMemory:
    """PHP's globals in one process; a value is None if its offset is unknown or it cannot be read."""

    def __init__(self, pid: int, php: Php, bias: int, *, read: Callable[[int, int], bytes] | None = None) -> None:
        """`bias`: running address minus link address of the binary. `read` returns up to so many bytes from an address,
        or raises OSError; None: read_memory(), which is fast and waits for the pages: for a process that is stopped.
        """
        self._php = php
        self._bias = bias
        self._read = functools.partial(read_memory, pid) if read is None else read
        self._heap_at = 0

    def heap(self) -> HeapFigures | None:
        """Return Zend's heap figures; None if its address is unknown, or it cannot be read (yet)."""
        offsets = self._php.heap
        if offsets is None:
            return None
        if not self._heap_at:
            self._heap_at = self._u64(self._bias + offsets.slot) or 0
        if not self._heap_at:
            return None
        places = (offsets.size, offsets.peak, offsets.real_size, offsets.real_peak)
        first, last = min(places), max(places) + 8
        try:
            content = self._read(self._heap_at + first, last - first)
            return HeapFigures(*(struct.unpack_from("<q", content, place - first)[0] for place in places))
        except (OSError, struct.error):
            return None

    def in_request(self) -> bool | None:
        """True if a request runs, or has not been shut down; None if Zend's heap cannot be read.

        zend_vm_stack_init() allocates the first page of the stack when a request begins (Zend/zend_execute.c);
        zend_mm_shutdown(), the last of php_request_shutdown(), sets the peak to 0 (Zend/zend_alloc.c, PHP 7.4 to 8.5).
        A worker that has served no request yet may have a peak of some bytes from PHP's startup.
        """
        heap = self.heap()
        return None if heap is None else heap.peak >= _STACK_PAGE

    def runs_script(self) -> bool | None:
        """True if a PHP function is being executed, EG(current_execute_data); None if that cannot be read."""
        layout, globals_at = self._php.stack, self._php.executor_globals
        if layout is None or globals_at is None:
            return None
        current = self._u64(self._bias + globals_at + layout.eg_current_execute_data)
        return None if current is None else current != 0

    @property
    def knows_globals(self) -> bool:
        """True if the offsets of PHP's globals are known; otherwise every value read from them is None."""
        return self._php.layout is not None and self._php.sapi_globals is not None

    def script(self, limit: int) -> bytes | None:
        """Return the path of the script PHP found, SG(request_info).path_translated; None if it found none (yet).

        Cut at `limit` bytes, or earlier at memory that cannot be read.
        """
        layout, globals_at = self._php.layout, self._php.sapi_globals
        if layout is None or globals_at is None:
            return None
        pointer = self._u64(self._bias + globals_at + layout.sg_path_translated)
        if not pointer:
            return None
        # Do not read across a page boundary at once: the next page may be unmapped.
        room = _PAGE - pointer % _PAGE
        try:
            text = self._read(pointer, min(limit, room))
            if b"\0" not in text and len(text) < limit:
                text += self._read(pointer + len(text), limit - len(text))
        except OSError:
            return None
        return text.split(b"\0", 1)[0] or None

    def parameter(self, name: bytes, limit: int) -> tuple[bytes, int] | None:
        """Return a FastCGI parameter as PHP stores it, cut at `limit`, and its length; None if it is absent.

        PHP shortens a value in place, with a NUL, and leaves its length in the bucket (init_request_info(),
        sapi/fpm/fpm/fpm_main.c, PHP 8.2).
        SG(server_context) is the first member of sapi_globals, and the fcgi_request under php-fpm and php-cgi;
        fcgi_hash: main/fastcgi.c, PHP 7.4 to 8.2.
        """
        if self._php.sapi_globals is None:
            return None
        request = self._u64(self._bias + self._php.sapi_globals)
        wanted = ((name[3] << 2) + (name[-2] << 4) + (name[-1] << 2) + len(name)) & 0xFFFF_FFFF
        at = self._u64(request + FCGI_ENV + 8 * (wanted & 127)) if request else None
        for _ in range(_MAX_CHAIN):
            if not at:
                break
            try:
                hashed, name_size, name_at, size, value_at, at = _BUCKET.unpack(self._read(at, _BUCKET.size))
                if hashed == wanted and name_size == len(name) and self._read(name_at, name_size) == name:
                    kept = min(size, limit + 1)
                    text, ended, _ = (self._read(value_at, kept) if kept else b"").partition(b"\0")
                    return text[:limit], len(text) if ended else size
            except (OSError, struct.error):
                break
        return None

    def status(self) -> int | None:
        """Return the HTTP status that was, or will be, sent; None if none was set."""
        layout, globals_at = self._php.layout, self._php.sapi_globals
        if layout is None or globals_at is None:
            return None
        return self._s32(self._bias + globals_at + layout.sg_response_code) or None

    def last_error(self) -> LastError | None:
        """Return how PHP code ended, now or in an earlier request; None if that cannot be read."""
        layout, executor, core = self._php.layout, self._php.executor_globals, self._php.core_globals
        if layout is None or executor is None or core is None:
            return None
        status = self._s32(self._bias + executor + layout.eg_exit_status)
        kind = self._s32(self._bias + core + layout.pg_last_error_type)
        message = self._u64(self._bias + core + layout.pg_last_error_message)
        if status is None or kind is None or message is None:
            return None
        return LastError(status, bool(kind & _FATAL_ERRORS), bool(message))

    def memory_limit(self) -> int | None:
        """Return the setting in force, in bytes; -1 is unlimited; None if it cannot be read."""
        layout, core = self._php.layout, self._php.core_globals
        if layout is None or core is None:
            return None
        return self._number(self._bias + core + layout.pg_memory_limit, "<q")

    def _u64(self, address: int) -> int | None:
        return self._number(address, "<Q")

    def _s32(self, address: int) -> int | None:
        return self._number(address, "<i")

    def _number(self, address: int, form: str) -> int | None:
        try:
            (value,) = struct.unpack(form, self._read(address, struct.calcsize(form)))
        except (OSError, struct.error):
            return None
        return int(value)
