"""Another process's memory, read without stopping it, and which of its pages are resident.

Through /proc/PID/mem and /proc/PID/pagemap, opened once: a descriptor stays with the memory that it was opened for, so
that a later process with the same PID, or another program after exec(), is never read by mistake. Everything read
here is untrusted, and every read is bounded. Only resident pages are read: nothing becomes resident by it, and a page
that its owner provides (userfaultfd, a file of FUSE) cannot make the reader wait for that owner.
"""

from __future__ import annotations

import array
import ctypes
import dataclasses
import enum
import functools
import mmap
import os
import struct
import time
from collections.abc import Iterator
from pathlib import Path

from tracer.targets.allocator import substitute_named
from tracer.targets.processes import GRANTS, MAPS_BYTES, is_libc

PAGE = mmap.PAGESIZE
_STAT_BYTES = 4096
_STATUS_BYTES = 1 << 20
# Bits of a pagemap entry, here of its highest byte: Documentation/admin-guide/mm/pagemap.rst, Linux 6.18.
_PRESENT, _SWAPPED, _FILE = 0x80, 0x40, 0x20
_NOT_ANON = bytes(bits for bits in range(256) if not bits & _PRESENT or bits & _FILE)
_NOT_SWAPPED = bytes(bits for bits in range(256) if not bits & _SWAPPED)
_TO_PRESENT = bytes(1 if bits & _PRESENT else 0 for bits in range(256))
_TO_BACKED = bytes(1 if bits & (_PRESENT | _SWAPPED) else 0 for bits in range(256))
_PFN = (1 << 55) - 1
_SOFT_DIRTY = 1 << 55


class Reason(enum.Enum):
    """Why a heap cannot be known."""

    GONE = "gone"  # the process has ended, or runs another program now
    NOT_PERMITTED = "not permitted"
    NO_HEAP = "no heap"  # there is none, or not yet
    OTHER_ALLOCATOR = "other allocator"  # not glibc's malloc
    NOT_USED = "not used"  # PHP uses malloc instead of Zend's allocator
    INTERRUPTED = "interrupted"  # memory of others lies in the middle of it
    TOO_LARGE = "too large"
    TOO_LONG = "too long"  # the time limit for the look was reached
    SWAPPED = "swapped"  # reading it would bring it back into memory
    MALFORMED = "malformed"  # corrupt, not what it seems, or changed too fast


class HeapUnknownError(Exception):
    """A heap cannot be known. `reason` is the kind; the text is for people."""

    def __init__(self, reason: Reason, text: str) -> None:
        super().__init__(text)
        self.reason = reason


@dataclasses.dataclass(frozen=True, slots=True)
class Maps:
    """One reading of /proc/PID/maps, as far as allocators matter. Ranges are (start, end)."""

    first_break: int  # where the memory of brk() begins
    heap: tuple[int, int] | None  # what brk() has made; None: nothing
    libc_data: tuple[tuple[int, int], ...]  # writable parts of the C library, or of a static executable
    hugetlb: tuple[tuple[int, int], ...]  # of pages that RssAnon leaves out
    allocator: str | None  # a substitute for glibc's malloc; None: no library with such a name is mapped


class ProcessMemory:
    """Reads one process. Use it as a context manager.

    Every method raises HeapUnknownError if the process has ended or may not be read.
    """

    def __init__(
        self, pid: int, start_ticks: int | None = None, *, swap_in: bool = False, until: float | None = None
    ) -> None:
        """`start_ticks`: refuse a process that began at another time (processes.Process); None takes any.

        `swap_in`: also read pages that are swapped out, which brings them back into memory. `until`
        (time.monotonic()): from then on every read raises HeapUnknownError, as check_time() does; None: never.
        """
        self.pid = pid
        self._until = until
        self._readable = _TO_BACKED if swap_in else _TO_PRESENT
        self._files: list[int] = []
        self._pages: int | None = None  # /proc/PID/pagemap
        try:
            self._memory = self._open("mem")
            self._stat = self._open("stat")
            if os.path.exists("/proc/self/pagemap"):
                self._pages = self._open("pagemap")
            self._identity = self._read_identity()
            if start_ticks is not None and self._identity[0] != start_ticks:
                raise self._gone()
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> ProcessMemory:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the files; idempotent."""
        while self._files:
            os.close(self._files.pop())

    def check(self) -> None:
        """HeapUnknownError if the process has ended since, or runs another program."""
        if self._read_identity() != self._identity:
            raise self._gone()

    def check_time(self) -> None:
        """HeapUnknownError if the time limit is reached: for loops that read nothing for a while."""
        if self._until is not None and time.monotonic() >= self._until:
            raise HeapUnknownError(Reason.TOO_LONG, "the time limit for looks was reached")

    def read_into(self, view: memoryview, address: int) -> int:
        """Fill the view with memory from that address, up to the first page that is not resident.

        Return the bytes read; 0 if there are none. HeapUnknownError if the first page is swapped out.
        """
        self.check_time()
        size = len(view)
        if self.paged:
            pages = self._pagemap(address, address + size)[7::8]
            if pages and pages[0] & (_PRESENT | _SWAPPED) == _SWAPPED and self._readable is _TO_PRESENT:
                raise HeapUnknownError(Reason.SWAPPED, "a part of it that must be read is swapped out")
            hole = (pages.translate(self._readable) + b"\0").index(0)
            size = max(0, min(size, (address // PAGE + hole) * PAGE - address))
        if not size:
            return 0
        try:
            return os.preadv(self._memory, [view[:size]], address)
        except PermissionError as exc:
            raise self._not_permitted(exc) from exc
        except (OSError, OverflowError):
            return 0

    def read(self, address: int, size: int) -> bytes | None:
        """`size` bytes from that address; None if not all of them are resident."""
        content = bytearray(size)
        got = self.read_into(memoryview(content), address)
        return bytes(content) if got == size else None

    def read_resident(self, address: int, size: int) -> bytes:
        """`size` bytes from that address, with zeros for pages that are not resident."""
        content = bytearray(size)
        view, at = memoryview(content), 0
        while at < size:
            got = self.read_into(view[at:], address + at)
            at += got or PAGE - (address + at) % PAGE
        return bytes(content)

    def words(self, address: int, count: int) -> tuple[int, ...] | None:
        """`count` unsigned 64-bit words from that address; None if not all of them are resident."""
        content = self.read(address, 8 * count)
        return None if content is None else struct.unpack(f"<{count}Q", content)

    def anon_bytes(self) -> int:
        """Resident anonymous memory, RssAnon."""
        return self._status(b"RssAnon")

    def exact_anon_bytes(self) -> int:
        """Resident anonymous memory, counted page by page in the page tables: 1 to 3 ms of a php-fpm worker.

        Before Linux 6.18, RssAnon of a process may be some hundred kilobytes off, and more with many CPUs.
        """
        for line in self._proc_file("smaps_rollup", _STATUS_BYTES).splitlines():
            if line.startswith(b"Anonymous:"):
                return int(line.split()[1]) * 1024
        raise self._gone()

    def hugetlb_bytes(self) -> int:
        """Memory in huge pages of hugetlbfs, which RssAnon leaves out."""
        return self._status(b"HugetlbPages", 0)

    @property
    def paged(self) -> bool:
        """False on a kernel that does not tell which pages are resident (CONFIG_PROC_PAGE_MONITOR)."""
        return self._pages is not None

    def swapped_bytes(self, start: int, end: int) -> int:
        """Bytes of that range that are swapped out."""
        if not self._status(b"VmSwap", 0):
            return 0
        return PAGE * len(self._pagemap(start, end)[7::8].translate(None, _NOT_SWAPPED))

    def anon_resident_bytes(self, start: int, end: int) -> int:
        """Bytes of that range that RssAnon counts: resident, not a file's, and not the zero page."""
        entries = self._pagemap(start, end)
        pages = len(entries[7::8].translate(None, _NOT_ANON))
        zero = _zero_page()
        if pages and zero is not None:
            found = array.array("Q", entries)
            pages -= found.count(zero) + found.count(zero | _SOFT_DIRTY)
        return PAGE * pages

    def maps(self) -> Maps:
        """The mappings that matter here. Costs some 0.5 ms of a php-fpm worker."""
        heap: tuple[int, int] | None = None
        found: dict[str, list[tuple[int, int]]] = {"libc": [], "static": [], "hugetlb": []}
        executable = self._executable()
        allocator = None
        kinds: dict[bytes, str] = {}
        for start, end, writable, name in self._mappings():
            kind = kinds.get(name)
            if kind is None:
                kind = kinds[name] = _kind(name, executable)
            if kind == "heap":
                # One range in several lines where parts of it were advised or protected differently.
                if heap is not None and heap[1] != start:
                    raise HeapUnknownError(Reason.INTERRUPTED, "its heap has holes")
                heap = (heap[0] if heap else start, end)
            elif kind in found:
                if writable or kind == "hugetlb":
                    found[kind].append((start, end))
            elif kind:
                allocator = allocator or kind
        data = found["libc"] if "libc" in kinds.values() else found["static"]
        return Maps(self._identity[1], heap, tuple(data), tuple(found["hugetlb"]), allocator)

    def _mappings(self) -> Iterator[tuple[int, int, bool, bytes]]:
        """(start, end, writable and private, name) of each named mapping, by address."""
        content = self._proc_file("maps", MAPS_BYTES)
        if len(content) >= MAPS_BYTES:
            raise HeapUnknownError(Reason.TOO_LARGE, "it has too many mappings")
        if not content:
            raise self._gone()
        for line in content.splitlines():
            fields = line.split(None, 5)
            if len(fields) == 6:
                start, _, end = fields[0].partition(b"-")
                yield int(start, 16), int(end, 16), fields[1].startswith(b"rw") and fields[1].endswith(b"p"), fields[5]

    def _executable(self) -> bytes:
        try:
            return os.readlink(os.fsencode(f"/proc/{self.pid}/exe"))
        except OSError:
            return b""

    def _pagemap(self, start: int, end: int) -> bytes:
        """The range's entries, 8 bytes a page, as far as there are any."""
        if self._pages is None:
            return b""
        first, last = start // PAGE, -(-end // PAGE)
        size, parts, got = 8 * (last - first), [], 0
        while got < size:
            self.check_time()
            try:
                part = os.pread(self._pages, size - got, 8 * first + got)
            except (OSError, OverflowError):
                break
            part = part[: len(part) & ~7]
            if not part:
                break
            parts.append(part)
            got += len(part)
        return b"".join(parts)

    def _status(self, name: bytes, default: int | None = None) -> int:
        for line in self._proc_file("status", _STATUS_BYTES).splitlines():
            key, _, value = line.partition(b":")
            if key == name:
                return int(value.split()[0]) * 1024
        if default is not None:
            return default
        raise self._gone()

    def _proc_file(self, name: str, limit: int) -> bytes:
        self.check_time()
        try:
            with Path(f"/proc/{self.pid}/{name}").open("rb") as file:
                return file.read(limit)
        except PermissionError as exc:
            raise self._not_permitted(exc) from exc
        except OSError as exc:
            raise self._gone() from exc

    def _open(self, name: str) -> int:
        try:
            fd = os.open(f"/proc/{self.pid}/{name}", os.O_RDONLY | os.O_CLOEXEC)
        except PermissionError as exc:
            raise self._not_permitted(exc) from exc
        except (OSError, OverflowError) as exc:
            raise self._gone() from exc
        self._files.append(fd)
        return fd

    def _read_identity(self) -> tuple[int, int]:
        """(start time, first break): exec() changes the second. The fields 22 and 47 of proc(5)'s stat."""
        try:
            stat = os.pread(self._stat, _STAT_BYTES, 0)
        except OSError as exc:
            raise self._gone() from exc
        fields = stat[stat.rfind(b")") + 2 :].split()
        if len(fields) < 45 or fields[0] in (b"Z", b"X"):
            raise self._gone()
        return int(fields[19]), int(fields[44])

    def _gone(self) -> HeapUnknownError:
        return HeapUnknownError(Reason.GONE, "it has ended")

    def _not_permitted(self, exc: OSError) -> HeapUnknownError:
        return HeapUnknownError(
            Reason.NOT_PERMITTED,
            f"reading its memory is not permitted ({exc.strerror}) and requires CAP_SYS_PTRACE. {GRANTS}",
        )


def _kind(name: bytes, executable: bytes) -> str:
    """The kind of a mapping by its name, for Maps: an allocator's own name; empty if it does not matter."""
    if name == b"[heap]":
        return "heap"
    if not name.startswith(b"/"):
        return ""
    base = name.rsplit(b"/", 1)[-1]
    substitute = substitute_named(os.fsdecode(base))
    if substitute is not None:
        return substitute
    if name.startswith(b"/anon_hugepage"):
        return "hugetlb"
    if is_libc(os.fsdecode(name)):
        return "libc"
    return "static" if name == executable else ""


@functools.cache
def _zero_page() -> int | None:
    """pagemap's entry of the kernel's zero page; None if page numbers are hidden (without CAP_SYS_ADMIN).

    The kernel maps it where a process reads memory that it never wrote, and RssAnon leaves it out.
    """
    with mmap.mmap(-1, PAGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as page:
        first = ctypes.c_char.from_buffer(page)
        _ = first.value  # reading maps the zero page
        address = ctypes.addressof(first)
        try:
            with Path("/proc/self/pagemap").open("rb", buffering=0) as pagemap:
                entry = int.from_bytes(os.pread(pagemap.fileno(), 8, address // PAGE * 8), "little")
        except OSError:
            entry = 0
        del first
    return 1 << 63 | entry & _PFN if entry >> 63 and entry & _PFN else None
