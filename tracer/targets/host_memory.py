"""Memory of this host, and of the cgroup that limits a process: /proc/meminfo, and memory.stat of version 1 or 2.

No root is needed: all of these files may be read by every user. A container may see other paths than the host does: a
cgroup that is not found is None.
"""

from __future__ import annotations

import contextlib
import os
import posixpath
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

from tracer.targets.rollup import kilobytes

_BYTES = 256 << 10  # of any of the files
_MOST_LEVELS = 64  # of nested cgroups
_MOST_PROCESSES = 64
# Without a limit, version 1 has the largest multiple of a page that fits, version 2 the word `max`: mm/memcontrol.c.
_NO_LIMIT = 1 << 62
# Lines of /proc/meminfo that are kept: fs/proc/meminfo.c, Linux 6.18.
HOST = (
    "MemTotal", "MemFree", "MemAvailable", "Buffers", "Cached", "SwapCached", "AnonPages", "Mapped", "Shmem", "Dirty",
    "Writeback", "Unevictable", "SReclaimable", "SUnreclaim", "KernelStack", "PageTables", "SecPageTables", "Percpu",
    "Hugetlb", "SwapTotal", "SwapFree",
)  # fmt: skip
# Figures of a cgroup: its line in memory.stat of version 2 (Documentation/admin-guide/cgroup-v2.rst) and of version 1
# (cgroup-v1/memory.rst), where total_* are those with the cgroups below; both of Linux 6.18.
_STAT = {
    "anon": ("anon", "total_rss"),
    "file": ("file", "total_cache"),  # with shared memory
    "shmem": ("shmem", "total_shmem"),
    "file_mapped": ("file_mapped", "total_mapped_file"),
    "file_dirty": ("file_dirty", "total_dirty"),
    "unevictable": ("unevictable", "total_unevictable"),
    "kernel": ("kernel", ""),  # since 5.18; version 1: memory.kmem.usage_in_bytes
    "slab_reclaimable": ("slab_reclaimable", ""),
    "slab_unreclaimable": ("slab_unreclaimable", ""),
    "kernel_stack": ("kernel_stack", ""),
    "pagetables": ("pagetables", ""),
    "percpu": ("percpu", ""),
    "sock": ("sock", ""),
}
_OLD_KERNEL = ("slab_reclaimable", "slab_unreclaimable", "kernel_stack", "percpu")  # what `kernel` has, before 5.18


class Cgroup(NamedTuple):
    """The memory of a cgroup and of those below it, in bytes."""

    path: str  # as in /proc/PID/cgroup; untrusted
    version: int
    limit: int | None  # None: nothing limits it
    usage: int
    stat: dict[str, int]  # by the names of _STAT; those that this version does not have are absent


class _Mount(NamedTuple):
    version: int
    root: str  # the cgroup that is mounted there
    folder: str


def host() -> dict[str, int]:
    """The lines HOST of /proc/meminfo, in bytes, as far as this kernel has them; {} if it cannot be read."""
    try:
        with open("/proc/meminfo", "rb") as file:
            found = kilobytes(file.read(_BYTES))
    except OSError:
        return {}
    return {name: found[name] for name in HOST if name in found}


def cgroup(pid: int, proc: str = "/proc") -> Cgroup | None:
    """Return the cgroup that limits the memory of a process the most: its own or one above. Its own if none is limited.

    None if there is none, or it cannot be seen from here. `proc` is the folder with the files of processes.
    """
    with contextlib.suppress(OSError, ValueError, IndexError):
        for mount in _mounts(proc):
            path = _path(f"{proc}/{pid}/cgroup", mount.version)
            if path is not None:
                return _tightest(mount, path)
    return None


def snapshot(pids: Iterable[int]) -> dict[str, Any]:
    """The memory of this host, and of the cgroups of these processes, as an entry of a recording's `meta` table."""
    cgroups: dict[str, dict[str, Any]] = {}
    for pid, _ in zip(dict.fromkeys(pids), range(_MOST_PROCESSES), strict=False):
        found = cgroup(pid)
        if found is not None:
            cgroups.setdefault(found.path, {**found._asdict(), "pids": []})["pids"].append(pid)
    return {"host": host(), "cpus": os.cpu_count(), "cgroups": list(cgroups.values())}


def _mounts(proc: str) -> list[_Mount]:
    """Where the hierarchies are mounted that may account for memory, version 1 first: with both, that one does."""
    found = []
    with open(f"{proc}/self/mountinfo", encoding="utf-8", errors="surrogateescape") as file:
        lines = file.read(_BYTES).splitlines()
    for line in lines:
        # proc_pid_mountinfo(5): id parent device root mount-point options … - type source options
        before, _, after = line.partition(" - ")
        kind, _, options = after.split()[:3] if len(after.split()) >= 3 else ("", "", "")
        version = 2 if kind == "cgroup2" else 1 if kind == "cgroup" and "memory" in options.split(",") else 0
        fields = before.split()
        if version and len(fields) > 4:
            found.append(_Mount(version, _unescaped(fields[3]), _unescaped(fields[4])))
    return sorted(found, key=lambda mount: mount.version)


def _unescaped(text: str) -> str:
    """The path of a line of mountinfo, in which spaces and the like are octal."""
    for char in " \t\n\\":
        text = text.replace(f"\\{ord(char):03o}", char)
    return text


def _path(file: str, version: int) -> str | None:
    """The path of the cgroup that a line of /proc/PID/cgroup has for that version."""
    for line in _text(file).splitlines():
        number, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        unified = number == "0" and not controllers
        if unified if version == 2 else "memory" in controllers.split(","):
            return path
    return None


def _tightest(mount: _Mount, path: str) -> Cgroup | None:
    """Of the cgroup and those above it, the innermost with the smallest limit."""
    best: Cgroup | None = None
    for level in _levels(mount.root, path):
        folder = posixpath.join(mount.folder, posixpath.relpath(level, mount.root))
        found = _read(folder, level, mount.version)
        if found is not None and (best is None or (found.limit or _NO_LIMIT) < (best.limit or _NO_LIMIT)):
            best = found
    return best


def _levels(root: str, path: str) -> Iterator[str]:
    """The path and those above it, down to the root of the mount."""
    path = posixpath.normpath(path)
    above = root.rstrip("/") + "/"
    for _ in range(_MOST_LEVELS):
        if not (path + "/").startswith(above) or ".." in path.split("/"):
            return
        yield path
        if path in (root, "/"):
            return
        path = posixpath.dirname(path)


def _read(folder: str, path: str, version: int) -> Cgroup | None:
    """The figures in a cgroup's folder; None if it does not account for memory, as the root of version 2."""
    try:
        lines = (line.split() for line in _text(f"{folder}/memory.stat").splitlines())
        found = {words[0]: int(words[1]) for words in lines if len(words) == 2}
        stat = {name: found[lines[version == 1]] for name, lines in _STAT.items() if lines[version == 1] in found}
        if version == 2:
            limits = [_limit(f"{folder}/{name}") for name in ("memory.max", "memory.high")]
            usage = int(_text(f"{folder}/memory.current"))
            stat.setdefault("kernel", sum(stat.get(name, 0) for name in _OLD_KERNEL) + found.get("pagetables", 0))
        else:
            limits = [_limit(f"{folder}/memory.limit_in_bytes")]
            usage = int(_text(f"{folder}/memory.usage_in_bytes"))
            with contextlib.suppress(OSError):  # not there with cgroup.memory=nokmem
                stat["kernel"] = int(_text(f"{folder}/memory.kmem.usage_in_bytes"))
    except (OSError, ValueError):
        return None
    known = [limit for limit in limits if limit is not None]
    return Cgroup(path, version, min(known, default=None), usage, stat)


def _limit(file: str) -> int | None:
    """The limit in a file; None if it is none."""
    text = _text(file).strip()
    return None if text == "max" or int(text) >= _NO_LIMIT else int(text)


def _text(path: str) -> str:
    with open(path, encoding="utf-8", errors="surrogateescape") as file:
        return file.read(_BYTES)
