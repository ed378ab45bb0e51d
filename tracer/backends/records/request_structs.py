"""The structs of bpf/request_events.h, as Python reads and writes them. A unit test compiles the header and
compares every offset.
"""

from __future__ import annotations

import enum
import struct
from collections.abc import Sequence

SCRIPT_MAX = 1024
URI_MAX = 2048
CPUS_MAX = 512
PHP_BINARIES_MAX = 16
REPLACED = -1
TEXT_BYTES = 512
STRINGS_BYTES = SCRIPT_MAX + URI_MAX + 8  # of a worker: script, then uri, without gap; a NUL; padding


class EventKind(enum.IntEnum):
    """The subject of a record of the ring."""

    REQUEST = 1
    BORN = 2
    TITLED = 3
    DIED = 4
    EXECED = 5
    RELEASED = 6
    FORKED = 7
    OOM_DIED = 8


class Role(enum.IntFlag):
    """The roles of a watched process: the parent of `php -S` has both."""

    MASTER = 1 << 0
    WORKER = 1 << 1


class Calls(enum.IntEnum):
    """Where a worker's mmap, munmap, mremap and brk are counted."""

    IN_LIBC = 1
    IN_KERNEL = 2


class Lost(enum.IntEnum):
    """Index into the map `lost`."""

    REQUESTS = 0
    PROCESS_EVENTS = 1
    WORKERS = 2
    RELEASES = 3


class NativeSite(enum.IntEnum):
    """The cookie of each probe on the allocator."""

    MALLOC = 1
    FREE = 2
    CALLOC = 3
    REALLOC = 4
    MEMALIGN = 5


class Flag(enum.IntFlag):
    """enum request_flag."""

    START_NOT_SEEN = 1 << 0
    END_NOT_SEEN = 1 << 1
    ZEND_HEAP_UNKNOWN = 1 << 2
    TEARDOWN_NOT_SEEN = 1 << 3
    URI_IS_SCRIPT_NAME = 1 << 4
    URI_UNKNOWN = 1 << 5
    SCRIPT_IS_PATH_TRANSLATED = 1 << 6
    NO_SCRIPT = 1 << 7
    METHOD_FROM_SAPI = 1 << 8
    METHOD_UNKNOWN = 1 << 9
    EXITED = 1 << 10
    FATAL = 1 << 11
    SCRIPT_END_NOT_SEEN = 1 << 12
    PHP_LAYOUT_UNKNOWN = 1 << 13
    DETACHED = 1 << 14
    NATIVE_NOT_COUNTED = 1 << 15
    MAPPINGS_NOT_READ = 1 << 16
    CALLS_NOT_SEEN = 1 << 17
    USAGE_NOT_READ = 1 << 18
    ENDING_UNKNOWN = 1 << 19
    NATIVE_BETWEEN_NOT_COUNTED = 1 << 20
    OOM_VICTIM = 1 << 21


# (field, struct format), in the order of the header. A field of the same name in facts.Request is copied from it.
REQUEST_FIELDS = (
    ("kind", "I"),
    ("pid", "I"),
    ("nth", "I"),
    ("flags", "I"),
    ("started_ns", "Q"),
    ("ended_ns", "Q"),
    ("cpu_ns", "Q"),
    ("anon_before", "q"),
    ("anon_end", "q"),
    ("anon_after", "q"),
    ("file_before", "q"),
    ("file_after", "q"),
    ("shmem_before", "q"),
    ("shmem_after", "q"),
    ("anon_peak", "q"),
    ("zend_used_end", "q"),
    ("zend_peak", "q"),
    ("zend_real_before", "q"),
    ("zend_real_peak", "q"),
    ("zend_real_end", "q"),
    ("zend_real_after", "q"),
    ("memory_limit", "q"),
    ("vm_before", "q"),
    ("vm_after", "q"),
    ("map_bytes", "q"),
    ("map_calls", "q"),
    ("unmap_bytes", "q"),
    ("unmap_calls", "q"),
    ("brk_bytes", "q"),
    ("brk_calls", "q"),
    ("native_alloc_bytes", "q"),
    ("native_alloc_calls", "q"),
    ("native_free_bytes", "q"),
    ("native_free_calls", "q"),
    ("native_freed_earlier", "q"),
    ("native_mapped_bytes", "q"),
    ("native_between_bytes", "q"),
    ("minor_faults", "q"),
    ("major_faults", "q"),
    ("status", "i"),
    ("exit_code", "i"),
    ("script_bytes", "I"),
    ("uri_bytes", "I"),
    ("script_stored", "H"),
    ("uri_stored", "H"),
    ("pad", "I"),
    ("method", "16s"),
)
NATIVE_SUMS_FIELDS = (
    ("alloc_bytes", "q"),
    ("alloc_calls", "q"),
    ("free_bytes", "q"),
    ("free_calls", "q"),
    ("mapped_bytes", "q"),
    ("arena_bytes", "q"),
    ("freed_earlier", "q"),
    ("unsure", "q"),
    ("arena_freed_earlier", "q"),
    ("between_bytes", "q"),
)
NATIVE_BOOK_FIELDS = (
    ("sums", "80s"),
    ("link", "Q"),
    ("since_ns", "Q"),
    ("request", "Q"),
    ("ended", "Q"),
    ("hits", "Q"),
    ("owners_before", "Q"),
    ("released_owner", "Q"),
    ("released_bytes", "q"),
    ("released_blocks", "q"),
    ("released_resized", "Q"),
    ("resized_block", "Q"),
    ("resized_header", "Q"),
    ("thread", "I"),
    ("resizing", "H"),
    ("aligning", "H"),
    ("gap", "q"),
)
RELEASE_EVENT_FIELDS = (
    ("kind", "I"),
    ("pid", "I"),
    ("owner_started_ns", "Q"),
    ("freed_by_started_ns", "Q"),
    ("bytes", "q"),
    ("blocks", "q"),
    ("idle", "I"),
    ("resized", "I"),
)
FORK_EVENT_FIELDS = (
    ("kind", "I"),
    ("pid", "I"),
    ("parent_pid", "I"),
    ("pad", "I"),
    ("request_started_ns", "Q"),
    ("ended_ns", "Q"),
)
PROCESS_EVENT_FIELDS = (
    ("kind", "I"),
    ("pid", "I"),
    ("parent_pid", "I"),
    ("exit_code", "i"),
    ("at_ns", "Q"),
    ("born_boot_ns", "Q"),
    ("title", "64s"),
)
WORKER_FIELDS = (
    ("role", "I"),
    ("binary", "I"),
    ("in_request", "I"),
    ("titled", "I"),
    ("requests", "I"),
    ("calls", "I"),
    ("forked_by", "I"),
    ("stale_error", "I"),
    ("oom_victim", "I"),
    ("pad", "I"),
    ("heap", "Q"),
    ("bias", "Q"),
    ("cpu_before_ns", "Q"),
    ("minor_before", "Q"),
    ("major_before", "Q"),
    ("brk_before", "Q"),
    ("data_before", "Q"),
    ("native_link", "Q"),
    ("native_before", "80s"),
)  # then struct request, then the strings
PHP_BINARY_FIELDS = (
    ("startup_site", "Q"),
    ("heap_slot", "Q"),
    ("sapi_globals", "Q"),
    ("core_globals", "Q"),
    ("executor_globals", "Q"),
    ("heap_size", "I"),
    ("heap_peak", "I"),
    ("heap_real_size", "I"),
    ("heap_real_peak", "I"),
    ("sg_method", "I"),
    ("sg_path_translated", "I"),
    ("sg_request_uri", "I"),
    ("sg_response_code", "I"),
    ("pg_memory_limit", "I"),
    ("pg_last_error_type", "I"),
    ("pg_last_error_message", "I"),
    ("eg_exit_status", "I"),
    ("fcgi_env", "I"),
    ("known", "I"),
)
KERNEL_FIELDS = (
    ("task_mm", "I"),
    ("task_tgid", "I"),
    ("task_pid", "I"),
    ("task_exit_code", "I"),
    ("task_min_flt", "I"),
    ("task_maj_flt", "I"),
    ("task_sum_exec_runtime", "I"),
    ("task_start_time", "I"),
    ("task_start_boottime", "I"),
    ("task_rss_stat", "I"),
    ("mm_rss_stat", "I"),
    ("mm_total_vm", "I"),
    ("mm_brk", "I"),
    ("mm_arg_start", "I"),
    ("mm_data_vm", "I"),
    ("counter_size", "I"),
    ("counter_count", "I"),
    ("counter_counters", "I"),
    ("rss_kind", "I"),
    ("pad", "I"),
    ("page_size", "Q"),
    ("percpu_offset", f"{CPUS_MAX}Q"),
)
SELF_CHECK_FIELDS = (
    ("text_from", "Q"),
    ("pid", "I"),
    ("seen", "I"),
    ("vm", "Q"),
    ("anon", "q"),
    ("file", "q"),
    ("shmem", "q"),
    ("text", f"{TEXT_BYTES}s"),
)


def _struct(fields: Sequence[tuple[str, str]]) -> struct.Struct:
    return struct.Struct("<" + "".join(form for _, form in fields))


REQUEST = _struct(REQUEST_FIELDS)
RELEASE_EVENT = _struct(RELEASE_EVENT_FIELDS)
FORK_EVENT = _struct(FORK_EVENT_FIELDS)
PROCESS_EVENT = _struct(PROCESS_EVENT_FIELDS)
WORKER = _struct(WORKER_FIELDS)
NATIVE_BOOK = _struct(NATIVE_BOOK_FIELDS)
WORKER_BYTES = WORKER.size + REQUEST.size + STRINGS_BYTES
PHP_BINARY = _struct(PHP_BINARY_FIELDS)
KERNEL = _struct(KERNEL_FIELDS)
SELF_CHECK = _struct(SELF_CHECK_FIELDS)
HEAD = struct.Struct("<II")  # what every record begins with: kind and pid


def worker_entry(**known: int) -> bytes:
    """Return a `struct worker` with those fields and no request; all else is 0."""
    values = {name: b"" if form.endswith("s") else 0 for name, form in WORKER_FIELDS}
    return WORKER.pack(*{**values, **known}.values()).ljust(WORKER_BYTES, b"\0")
