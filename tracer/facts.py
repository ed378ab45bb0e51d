"""The facts of a recording, such as Request, Growth, Worker, Look and Loss. Imports nothing of ours.

Facts are named tuples, not dataclasses: one is made for every request a site serves, a tuple is
made in a third of the time, and it is already the row that the recording stores.
"""

from __future__ import annotations

import enum
from collections.abc import Callable
from operator import itemgetter
from typing import NamedTuple


class Ending(enum.Enum):
    """How a request came to its end."""

    FINISHED = "finished"
    EXITED = "exited"  # the script called exit() or die(); the request then ended in order
    FATAL = "fatal"  # a fatal error: memory_limit, max_execution_time, uncaught exception, parse error
    KILLED = "killed"  # by a signal, in mid-request: stored as `killed:SEGV`
    UNKNOWN = "unknown"  # it came to its end; whether by exit() or a fatal error could not be measured, see notes
    CUT_OFF = "cut_off"  # only a part was seen: tracing began or ended in mid-request, or the worker left


class Note(enum.Enum):
    """Why a field of a request is absent or unusual. Stored joined by commas."""

    START_NOT_SEEN = "start_not_seen"  # it was running when tracing began
    END_NOT_SEEN = "end_not_seen"  # it was running when tracing ended, or its worker left
    WORKER_EXITED = "worker_exited"  # the worker called _exit(), or ran another program, in mid-request
    ZEND_HEAP_UNKNOWN = "zend_heap_unknown"  # this PHP's heap could not be located
    SCRIPT_END_NOT_SEEN = "script_end_not_seen"
    TEARDOWN_NOT_SEEN = "teardown_not_seen"
    PHP_LAYOUT_UNKNOWN = "php_layout_unknown"  # this PHP's globals are unknown: no status, no fatal
    ENDING_UNKNOWN = "ending_unknown"  # it may have ended by a fatal error: what shows that was not seen
    NATIVE_NOT_COUNTED = "native_not_counted"  # malloc and free calls of this request were not counted, or not all
    NATIVE_BETWEEN_NOT_COUNTED = "native_between_not_counted"  # nor those between it and the request before
    CALLS_NOT_HOOKED = "calls_not_hooked"  # mmap and brk calls of this worker cannot be counted
    URI_IS_SCRIPT_NAME = "uri_is_script_name"  # REQUEST_URI was not sent, or not found
    URI_UNKNOWN = "uri_unknown"
    URI_CUT = "uri_cut"
    SCRIPT_IS_PATH_TRANSLATED = "script_is_path_translated"
    NO_SCRIPT = "no_script"  # PHP ran no file: a 404
    SCRIPT_CUT = "script_cut"
    METHOD_FROM_SAPI = "method_from_sapi"
    METHOD_UNKNOWN = "method_unknown"
    MAPPED_ELSEWHERE = "mapped_elsewhere"  # address space changed by other means than the counted calls


class Place(NamedTuple):
    """Where a worker runs: what tells its pool and its paths from those of the same name elsewhere. None: not known.

    Texts are untrusted, as those of a Request, which has the same fields.
    """

    container: str | None = None  # its name
    container_id: str | None = None
    cgroup: str | None = None
    namespaces: str | None = None  # `mnt:4026532768 pid:4026532770`, where neither container nor service is known
    root: str | None = None  # the directory that is `/` to it: that of its pool's chroot, if it has one


class Request(NamedTuple):
    """One request of one worker. Bytes unless the name says else; None = not measured, see notes.

    The fields are the public schema in SQL, JSON and CSV, in this order. `uri`, `script` and `pool` come from clients
    and scripts and are untrusted: bytes that are not UTF-8 are lone surrogates (PEP 383), nothing is escaped.
    """

    host: str
    pid: int
    pool: str | None
    nth: int  # this worker's n-th request seen, from 1
    started_ns: int | None  # Unix time
    duration_ns: int | None
    cpu_ns: int | None  # accounted by the kernel at ticks and switches: exact in sums only
    method: str | None
    uri: str | None
    script: str | None
    status: int | None
    ending: str  # an Ending's value; `killed:SEGV` names the signal
    anon_before: int | None
    anon_end: int | None  # when the script is over, and before Zend gives back what it gives back
    anon_after: int | None
    file_before: int | None
    file_after: int | None
    shmem_before: int | None
    shmem_after: int | None
    anon_peak: int | None  # a lower bound: the highest of the exact samples taken
    zend_used_end: int | None
    zend_peak: int | None
    zend_real_before: int | None
    zend_real_peak: int | None
    zend_real_end: int | None  # as anon_end
    zend_real_after: int | None
    memory_limit: int | None  # -1 = unlimited
    vm_before: int | None
    vm_after: int | None
    map_bytes: int | None
    map_calls: int | None
    unmap_bytes: int | None
    unmap_calls: int | None
    brk_bytes: int | None  # signed
    brk_calls: int | None
    native_alloc_bytes: int | None  # chunks of malloc and its like, headers included
    native_alloc_calls: int | None
    native_free_bytes: int | None  # without blocks that were allocated between requests
    native_free_calls: int | None
    native_freed_earlier: int | None  # of the bytes freed: blocks from before this request
    native_mapped_bytes: int | None  # signed: other private writable mappings, neither Zend's nor malloc's
    # Signed: allocated less freed by malloc and its like since the request before ended, or counting began; less what
    # this request freed of blocks from between requests. PHP allocates parameters there, which the request then frees.
    native_between_bytes: int | None
    native_kept: int | None  # signed: allocated and mapped by this request, and not freed by its end
    native_released: int | None  # of native_kept: freed later, as far as is known when a recording is read
    minor_faults: int | None
    major_faults: int | None
    notes: str | None  # Note values, joined by commas
    start_ticks: int | None = None  # of the worker, since boot, as in Worker
    master_pid: int | None = None
    container: str | None = None  # this and what follows: as in Place
    container_id: str | None = None
    cgroup: str | None = None
    namespaces: str | None = None
    root: str | None = None

    @property
    def place(self) -> Place:
        """Where its worker runs."""
        return Place._make(self[_PLACE_AT:])

    @property
    def worker(self) -> WorkerId:
        """The worker that served it."""
        return _WORKER(self)

    @property
    def growth(self) -> int | None:
        """Bytes of anonymous memory the worker kept (negative: returned); None if not measured."""
        if self.anon_after is None or self.anon_before is None:
            return None
        return self.anon_after - self.anon_before

    @property
    def native_retained(self) -> int | None:
        """Native bytes that the request kept and that nobody freed later, as far as is known; None if not counted."""
        kept = self.native_kept
        return kept if kept is None or not self.native_released else retained(kept, self.native_released)

    @property
    def native_net(self) -> int | None:
        """Growth of malloc's memory in use by the request and before it; None if its calls were not counted."""
        if self.native_kept is None or self.native_alloc_bytes is None or self.native_free_bytes is None:
            return None
        return self.native_alloc_bytes - self.native_free_bytes + (self.native_between_bytes or 0)

    @property
    def complete(self) -> bool:
        """True if both ends were seen. A request that tracing cut off has samples of its memory then and there."""
        return self.anon_before is not None and self.anon_after is not None and self.ending != Ending.CUT_OFF.value


WorkerId = tuple[object, ...]  # the values of WORKER_FIELDS
# The fields of a Request that tell its worker from every other one, on any host.
WORKER_FIELDS = ("host", *Place._fields, "master_pid", "pool", "pid", "start_ticks")
_WORKER: Callable[[Request], WorkerId] = itemgetter(*map(Request._fields.index, WORKER_FIELDS))
_PLACE_AT = Request._fields.index("container")  # the fields of Place are the last of a Request


def retained(kept: int, released: int) -> int:
    """Native bytes that are left of those that a request kept.

    Both may be a hostile worker's word: the difference saturates at 64 bits.
    """
    return max(-(1 << 63), min(kept - released, (1 << 63) - 1))


class Metric(enum.Enum):
    """How the growth of a call stack is measured."""

    RSS = "rss"  # page faults: memory the worker got; what it gave back is not seen
    MAPPED = "mapped"  # address space added by mmap, mremap and brk, minus what was unmapped
    ZEND = "zend"  # change of Zend's heap between two samples
    NATIVE = "native"  # page faults outside Zend's chunks: the part of RSS that is not Zend's
    RETAINED = "retained"  # native blocks that outlived their request by some others


class FrameKind(enum.Enum):
    """The kind of a frame of a call stack."""

    USER = "user"  # PHP code
    INTERNAL = "internal"  # a function of PHP or of an extension
    MARK = "mark"  # not a function: in brackets, why there is none, such as `[no php]`


class Frame(NamedTuple):
    """A function that was running. Its texts are untrusted, as those of a Request."""

    kind: str  # a FrameKind's value
    name: str  # `Repo::hydrate`; `<main>`, `require` and `eval` are a file's own code
    file: str | None  # None: an internal function, or a mark
    line: int | None  # the line it had come to; None: the same, or not known


Stack = tuple[Frame, ...]  # a call stack, the outermost frame first

# Of a stack that is not one of PHP.
NO_PHP = Frame(FrameKind.MARK.value, "[no php]", None, None)  # PHP was running, but no script was
THREAD = Frame(FrameKind.MARK.value, "[another thread]", None, None)
STACK_LOST = Frame(FrameKind.MARK.value, "[stack lost]", None, None)
GIVEN_BACK = Frame(FrameKind.MARK.value, "[given back]", None, None)  # of earlier requests, or at the end
TRUNCATED = Frame(FrameKind.MARK.value, "[truncated]", None, None)  # callers beyond --max-depth
UNREADABLE = Frame(FrameKind.MARK.value, "[unreadable]", None, None)  # callers that could not be parsed


class Growth(NamedTuple):
    """Growth of one request in one call stack. Comes right after its Request."""

    pid: int
    nth: int  # the request's
    metric: str  # a Metric's value
    stack: Stack
    bytes: int  # negative: given back
    samples: int  # how many events: faults, calls, looks


class Retained(NamedTuple):
    """Native blocks of one request and one call stack that outlived it. Comes some requests after its Request."""

    pid: int
    nth: int  # the request's
    stack: Stack
    bytes: int  # estimated from samples
    samples: int  # how many blocks


class Worker(NamedTuple):
    """A worker as far as it is known by now. A later fact of the same pid and start replaces it."""

    pid: int
    start_ticks: int | None  # since boot, as in /proc/PID/stat; with pid it names a process for good
    pool: str | None
    php_version: str | None
    born_ns: int | None  # Unix time; None: it was there before tracing began
    died_ns: int | None  # Unix time; None: it is alive
    exit: str | None  # `exited:0`, `killed:TERM`, `replaced` (exec); None: it is alive


class Fork(NamedTuple):
    """A process that a worker forked: it served no request of its own, but may work for its parent's."""

    pid: int
    parent_pid: int  # the worker
    started_ns: int | None  # of the worker's request, Unix time; None: it was between requests
    ended_ns: int | None  # Unix time; None: it is alive when tracing ends
    anon: int | None  # its resident anonymous memory then, shared with the worker or not; None: it has ended


class Release(NamedTuple):
    """Native memory that an earlier request kept and that has been freed now."""

    pid: int
    started_ns: int  # of the request that allocated it; 0: one that was not counted, which only `resized` ones have
    bytes: int
    blocks: int
    freed_by_ns: int | None = None  # when the request started that freed it; None: no request ran
    resized: bool = False  # by realloc(): it lives on, in blocks of the request that freed it


class Look(NamedTuple):
    """The memory of one worker, read from outside at one moment. Bytes unless the name says else; None = unknown.

    Taken after tracing has begun, and before it ends. A worker that was left out has a Look of which nothing is
    known but the reason.
    """

    pid: int
    start_ticks: int  # as in Worker
    at_ns: int  # Unix time at which the look began
    took_ns: int
    anon: int | None  # resident anonymous memory, counted page by page
    malloc_in_use: int | None  # chunks of glibc's main heap in use, and blocks mapped apart
    malloc_uncertain: int | None  # in use may be up to this much less
    malloc_resident: int | None  # resident memory of that heap, and blocks mapped apart
    zend_resident: int | None  # resident memory of Zend's chunks and huge blocks
    settled: bool  # True: the worker waited for a request, and nothing changed during the look
    in_accept: bool  # it waited in accept(): surely in no request. False: maybe it reads a connection that it keeps
    requests: int | None  # of this worker since the look before, those not recorded included; None: it is the first
    why: str | None  # why something is None, or not settled

    @property
    def bookable(self) -> bool:
        """True if its figures can be compared with those of another look."""
        return self.settled and self.anon is not None and self.zend_resident is not None


class Footprint(NamedTuple):
    """The memory of one worker, or of a master, as /proc/PID/smaps_rollup and status have it. Bytes; None = unknown."""

    pid: int
    start_ticks: int  # as in Worker
    at_ns: int  # Unix time
    took_ns: int  # CPU time of phptrace
    idle: bool  # True: it waited for a request, before and after
    rss: int
    pss: int  # its part of it: what several processes share is divided among them
    pss_shmem: int | None  # the same of shared memory alone; Linux >= 5.3
    private_clean: int  # that no other process maps: mostly pages of files
    private_dirty: int
    anonymous: int  # shared with the master or not
    shmem: int | None  # resident shared memory
    swap_pss: int | None
    page_tables: int | None


class Loss(NamedTuple):
    """Facts that happened and could not be delivered."""

    at_ns: int  # Unix time at which it was noticed
    lost: int
    why: str


Fact = Request | Growth | Retained | Release | Worker | Fork | Look | Footprint | Loss
