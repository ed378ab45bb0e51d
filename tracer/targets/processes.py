"""Processes as /proc shows them: masters, workers, their titles and their executables.

Titles and file names are untrusted, since the process's owner chooses them; only the executable shows
whether a process is PHP.
"""

from __future__ import annotations

import dataclasses
import errno
import os
import re
import struct
from collections.abc import Iterator
from pathlib import Path

from tracer.errors import UnsupportedError
from tracer.targets.elf import Elf, Image, open_image
from tracer.targets.php import Php

MASTER_TITLE = "php-fpm: master process"
POOL_TITLE = "php-fpm: pool "
_TITLE_BYTES = 4096
# How to get the right to read and trace another user's process, or one that is not dumpable.
GRANTS = (
    "Run with sudo. In Docker, use docker run --cap-add=SYS_PTRACE --pid=container:NAME …. In Kubernetes, set"
    " securityContext: {capabilities: {add: [SYS_PTRACE]}} and shareProcessNamespace: true. As php-fpm's own user, set"
    " process.dumpable = yes in the pool's configuration."
)
_SAPI_BYTES = 16
# Of a list of mappings: 65,530 of them, the kernel's default limit, are some 7 MB, but their names may be long.
MAPS_BYTES = 16 << 20


@dataclasses.dataclass(frozen=True, slots=True)
class Process:
    """A process at one moment. `start_ticks` (clock ticks since boot) tells it from a later one with its pid."""

    pid: int
    parent_pid: int
    start_ticks: int
    title: str
    executable: tuple[int, int] | None  # (device, inode) of /proc/PID/exe; None if it may not be read

    @property
    def pool(self) -> str | None:
        """The php-fpm pool that its title names; None if it names none."""
        return pool_of(self.title)


def pool_of(title: str) -> str | None:
    """Return `www` for the title `php-fpm: pool www`; None for any other title."""
    return title[len(POOL_TITLE) :].strip() or None if title.startswith(POOL_TITLE) else None


def process(pid: int) -> Process | None:
    """The process with that pid; None if there is none, or it is a zombie."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_bytes()
        with open(f"/proc/{pid}/cmdline", "rb") as cmdline:
            title = cmdline.read(_TITLE_BYTES)
    except OSError:
        return None
    fields = stat[stat.rindex(b")") + 2 :].split()  # proc(5): comm may hold spaces and brackets
    if fields[0] in (b"Z", b"X"):
        return None
    try:
        exe = os.stat(f"/proc/{pid}/exe")
        executable = (exe.st_dev, exe.st_ino)
    except OSError:
        executable = None
    return Process(
        pid=pid,
        parent_pid=int(fields[1]),
        start_ticks=int(fields[19]),
        title=title.replace(b"\0", b" ").strip().decode("utf-8", "surrogateescape"),
        executable=executable,
    )


def status(pid: int | str) -> dict[str, str]:
    """The lines of /proc/PID/status by name; `self` is this process. OSError if it has ended."""
    lines = Path(f"/proc/{pid}/status").read_text(errors="replace").splitlines()
    return {name: value.strip() for name, _, value in (line.partition(":") for line in lines)}


def anonymous_bytes(pid: int) -> int | None:
    """RssAnon of the process; None if it has ended."""
    try:
        anon = status(pid).get("RssAnon")
    except OSError:
        return None
    return int(anon.removesuffix(" kB")) * 1024 if anon is not None else None


def processes() -> Iterator[Process]:
    """Every visible process, in order of pid."""
    for pid in sorted(int(name) for name in os.listdir("/proc") if name.isdigit()):
        found = process(pid)
        if found is not None:
            yield found


def children(parent: Process) -> list[Process]:
    """The children that run their parent's executable: a master's workers, not other programs it started."""
    return [p for p in processes() if p.parent_pid == parent.pid and p.executable == parent.executable]


def open_executable(pid: int) -> Image:
    """The file the process runs, also if it was deleted or is in another mount namespace. The caller closes it.

    OSError if it cannot be opened.
    """
    return open_image(f"/proc/{pid}/exe")


def call_waited_in(pid: int) -> tuple[int, int] | None:
    """(number, first argument) of the system call in which the process sleeps; None if it runs, or is not known.

    The first line of /proc/PID/syscall, proc(5): `running`, `-1 …` outside of a system call, or its registers.
    """
    try:
        fields = Path(f"/proc/{pid}/syscall").read_bytes().split()
    except OSError:
        return None
    return (int(fields[0]), int(fields[1], 16)) if len(fields) == 9 else None


_MAPPING = re.compile(rb"^([0-9a-f]+)-([0-9a-f]+) (\S+) ([0-9a-f]+) (\S+) (\d+) *(.*)$")


@dataclasses.dataclass(frozen=True, slots=True)
class Mapping:
    """A file mapped into a process: one line of /proc/PID/maps."""

    start: int
    end: int
    executable: bool
    offset: int
    inode: int
    path: str


def file_mappings(pid: int) -> list[Mapping]:
    """The files mapped into the process, by address.

    OSError if it is gone, may not be read, or has so many that it would take long.
    """
    listed = f"/proc/{pid}/maps"
    with open(listed, "rb") as maps:
        content = maps.read(MAPS_BYTES + 1)
    if len(content) > MAPS_BYTES:
        raise OSError(errno.EFBIG, f"its list of mappings has more than {MAPS_BYTES:,} bytes", listed)
    found = []
    for line in content.splitlines():
        match = _MAPPING.match(line)
        if match is None or match[6] == b"0":
            continue
        path = os.fsdecode(match[7])
        found.append(
            Mapping(int(match[1], 16), int(match[2], 16), b"x" in match[3], int(match[4], 16), int(match[6]), path)
        )
    return found


_LIBC = re.compile(r"libc(?:-\d[\d.]*\.so|\.so\.6)(?: \(deleted\))?")


def is_libc(path: str) -> bool:
    """True if a mapped file has the name of a C library."""
    return _LIBC.fullmatch(os.path.basename(path)) is not None


def open_libc(pid: int) -> Image | None:
    """The C library of the process, opened by its mapping; None if it has none (static, musl).

    The caller closes it. OSError if it cannot be opened, or the process is gone.
    """
    for mapping in file_mappings(pid):
        if mapping.executable and is_libc(mapping.path):
            return open_image(f"/proc/{pid}/map_files/{mapping.start:x}-{mapping.end:x}", mapping.path)
    return None


_PHP_LIBRARY = re.compile(r"(?:lib|mod_)php[\w.-]*\.so[\d.]*(?: \(deleted\))?", re.ASCII)


def php_library(pid: int) -> str | None:
    """Path of the shared library that is PHP, as in Apache's mod_php, to be printed; None if none is seen.

    Debian: libphp8.2.so; others: libphp.so, libphp7.so, mod_php.so.
    """
    try:
        mappings = file_mappings(pid)
    except OSError:
        return None
    for mapping in mappings:
        if mapping.executable and _PHP_LIBRARY.fullmatch(os.path.basename(mapping.path)):
            return ascii(mapping.path)[1:-1]
    return None


def has_seccomp_filter(pid: int) -> bool:
    """True if a filter decides which system calls that process may make; False also if it has ended."""
    try:
        return status(pid).get("Seccomp") == "2"  # SECCOMP_MODE_FILTER
    except (FileNotFoundError, ProcessLookupError):
        return False


def sapi_name(pid: int, php: Php) -> str | None:
    """The SAPI (`fpm-fcgi`, `cgi-fcgi`, `cli`, …), from sapi_module.name in the live process; None if unreadable.

    sapi_module_struct begins with `char *name`: main/SAPI.h, PHP 7.4 to 8.2.
    """
    if php.sapi_module is None:
        return None
    try:
        bias = load_bias(pid, php.image)
        with open(f"/proc/{pid}/mem", "rb", buffering=0) as memory:
            memory.seek(bias + php.sapi_module)
            (name,) = struct.unpack("<Q", memory.read(8))
            memory.seek(name)
            text = memory.read(_SAPI_BYTES).split(b"\0")[0]
    except (OSError, OverflowError, struct.error, UnsupportedError):
        return None
    return text.decode("ascii", "replace")


def load_bias(pid: int, image: Image) -> int:
    """Running address minus link address of the executable in that process.

    OSError if the process is gone or may not be read; UnsupportedError if it does not map the file.
    """
    elf = Elf(image)
    for mapping in file_mappings(pid):
        if mapping.inode == image.inode:
            linked = elf.link_address(mapping.offset)
            if linked is not None:
                return mapping.start - linked
    raise UnsupportedError(f"cannot find {image.shown} in process {pid}: it is not mapped there. Run phptrace again.")
