"""The container of a process, from its cgroups: Docker, podman, CRI-O, containerd, systemd-nspawn, LXC, Kubernetes.

No daemon is asked: names come from the files that daemons keep. A container may choose its host name, and the names of
cgroups inside its own, and any of the files may be damaged: all of them are untrusted, and read up to a limit.
"""

from __future__ import annotations

import contextlib
import ctypes
import dataclasses
import errno
import json
import os
import re
import stat
import threading
from collections.abc import Callable, Iterator
from typing import Any

_CGROUP_BYTES = 256 << 10  # /proc/PID/cgroup: a line for each hierarchy, each path at most 4096 bytes
_FILE_BYTES = 1 << 20  # what a runtime keeps of one container
_LIST_BYTES = 8 << 20  # what podman and CRI-O keep of all
_NAME_CHARS = 253  # a name that is longer is none
_CLONE_NEWUTS = 0x04000000  # include/uapi/linux/sched.h
SHORT_ID = 12  # characters, as `docker ps` prints

_ID = r"[0-9a-f]{64}"
# One component of a path: `docker-ID.scope` (systemd), `libpod-ID` (cgroupfs), ID alone below `docker`, or in
# Kubernetes; `kubepods-podUID.slice:cri-containerd:ID`. A `conmon` watches a container and is not in it.
_WITH_ID = re.compile(rf"(?:.*:)?(?:(docker|libpod|crio|cri-containerd|nerdctl)[-:])?({_ID})(?:\.scope)?")
# Amazon's ECS, Fargate: `ecs/TASK/TASK-NUMBER`.
_OF_A_TASK = re.compile(r"[0-9a-f]{32}-[0-9]+")
_LXC = re.compile(r"lxc\.payload\.(.+)")
_MACHINE = re.compile(r"(?:systemd-nspawn@(.+)\.service|machine-(.+)\.scope)")
_SERVICE = ".service"
# Hierarchies, the most telling first: version 2, systemd's own, and one that runtimes always use.
_PREFERRED = ("", "name=systemd", "pids")


@dataclasses.dataclass(frozen=True, slots=True)
class Surroundings:
    """Where a process runs, as far as its cgroups and namespaces show. Texts are untrusted."""

    cgroup: str | None = None  # the one that names the container, or the most telling; None: it could not be read
    cgroups: frozenset[str] = frozenset()  # in every hierarchy
    container_id: str | None = None  # None: LXC and systemd-nspawn have names only, or there is no container
    name: str | None = None  # of the container
    is_host_name: bool = False  # True: `name` is the host name that the container has, which it may choose
    namespaces: str | None = None  # other than phptrace's own, where no container or service is known
    why: str | None = None  # why the container has no name; None: it has one, or there is no container

    @property
    def in_container(self) -> bool:
        """True if the process is in a container that is known."""
        return self.container_id is not None or self.name is not None

    @property
    def shown(self) -> str:
        """`shop (3f2a91b04c77)`, `3f2a91b04c77`, `shop`; else the cgroup, or the namespaces. Not escaped."""
        short = self.container_id and self.container_id[:SHORT_ID]
        if self.name is not None:
            return f"{self.name} ({short})" if short else self.name
        return short or self.namespaces or self.cgroup or "unknown"

    def is_container(self, wanted: str) -> bool:
        """True if that is its name, or its id, or the beginning of its id that `docker ps` prints, or more of it."""
        return wanted == self.name or self.is_container_id(wanted)

    def is_container_id(self, wanted: str) -> bool:
        """True if that is its id, or so much of its beginning."""
        known = self.container_id
        return known is not None and (wanted == known or (len(wanted) >= SHORT_ID and known.startswith(wanted)))

    def is_in_cgroup(self, path: str) -> bool:
        """True if it is in the cgroup of that path, or in one below, in any hierarchy."""
        below = path.rstrip("/") + "/"
        return any((cgroup.rstrip("/") + "/").startswith(below) for cgroup in self.cgroups)


@dataclasses.dataclass(frozen=True, slots=True)
class _Found:
    """A container as a cgroup names it."""

    runtime: str | None = None  # by the prefix of the id, or its folder
    container_id: str | None = None
    name: str | None = None


def surroundings(pid: int, top: str = "/") -> Surroundings:
    """Return the surroundings of a process; nothing is known of one that has ended.

    `top`: the root directory of the runtimes' files.
    """
    try:
        paths = _cgroups(pid)
    except OSError as exc:
        return Surroundings(why=f"its cgroups cannot be read ({exc.strerror})", namespaces=_namespaces(pid))
    for path in paths:
        found = _container(path)
        if found is not None:
            return _named(pid, path, frozenset(paths), found, top)
    cgroup = next((path for path in paths if path != "/"), paths[0] if paths else None)
    # Of a service, the cgroup is the same after a restart, while its namespaces (PrivateTmp=) are new ones.
    of_a_service = cgroup is not None and cgroup.endswith(_SERVICE)
    return Surroundings(cgroup, frozenset(paths), namespaces=None if of_a_service else _namespaces(pid))


def root_of(pid: int) -> str | None:
    """The directory that is `/` to the process, by its path in the process's mounts; None if it cannot be read."""
    try:
        return os.readlink(f"/proc/{pid}/root")
    except OSError:
        return None


def cgroup_path(text: str) -> str:
    """Return the path of a cgroup as /proc has it, of one that was written as a folder below /sys/fs/cgroup."""
    path = "/" + text.strip("/")
    match = re.fullmatch(r"/sys/fs/cgroup(/.*)?", path)
    if match is None:
        return path
    inside = match[1] or "/"
    first, _, rest = inside[1:].partition("/")
    # Version 1 and the hybrid form have a folder for each hierarchy, which version 2 has not.
    is_hierarchy = os.path.exists(f"/sys/fs/cgroup/{first}/cgroup.procs") and not os.path.exists(
        "/sys/fs/cgroup/cgroup.procs"
    )
    return "/" + rest if first and is_hierarchy else inside


def _cgroups(pid: int) -> list[str]:
    """The paths of its cgroups, in the order of _PREFERRED, then those of other hierarchies. OSError."""
    with open(f"/proc/{pid}/cgroup", "rb") as file:
        content = file.read(_CGROUP_BYTES + 1)
    if len(content) > _CGROUP_BYTES:
        raise OSError(errno.EFBIG, f"more than {_CGROUP_BYTES:,} bytes")
    found: list[tuple[int, str]] = []
    for line in content.splitlines():
        # `hierarchy:controllers:path`, cgroups(7); a path may have colons.
        parts = line.decode("utf-8", "surrogateescape").split(":", 2)
        if len(parts) == 3 and parts[2].startswith("/"):
            ranks = [_PREFERRED.index(name) for name in parts[1].split(",") if name in _PREFERRED]
            found.append((min(ranks, default=len(_PREFERRED)), parts[2]))
    return [path for _, path in sorted(found, key=lambda one: one[0])]


def _container(path: str) -> _Found | None:
    """The container that a cgroup is in; None if it shows none.

    The outermost one: a process in a container may name cgroups below its own as it likes.
    """
    parts = path.split("/")
    for at, part in enumerate(parts):
        above = parts[at - 1] if at else ""
        if (match := _WITH_ID.fullmatch(part)) is not None:
            return _Found(match[1] or above or None, match[2])
        if part and above in ("lxc", "lxc.payload"):
            return _Found("lxc", name=part)
        if (match := _LXC.fullmatch(part)) is not None:
            return _Found("lxc", name=match[1])
        if (match := _MACHINE.fullmatch(part)) is not None:
            return _Found("machine", name=_unescaped(match[1] or match[2]))
        if _OF_A_TASK.fullmatch(part) is not None and "ecs" in parts[:at]:
            return _Found("ecs", part)
    return None


def _unescaped(name: str) -> str:
    """The text of a unit's name, in which systemd writes `\\x2d` for a dash."""
    return re.sub(r"\\x([0-9a-f]{2})", lambda match: chr(int(match[1], 16)), name)


def _named(pid: int, path: str, paths: frozenset[str], found: _Found, top: str) -> Surroundings:
    """The surroundings in a container, with its name: from its cgroup, from the runtime's files, or its host name."""
    if found.container_id is None:
        return Surroundings(path, paths, name=found.name)
    name, why = _name_in_files(found.container_id, top)
    if name is not None:
        return Surroundings(path, paths, found.container_id, name)
    host = _host_name(pid)
    # Docker makes the beginning of the id the host name: that says nothing new.
    if host is not None and not found.container_id.startswith(host):
        return Surroundings(path, paths, found.container_id, host, is_host_name=True)
    return Surroundings(path, paths, found.container_id, why=why)


def _docker(content: dict[str, Any]) -> object:
    """The name in Docker's config.v2.json: `/shop`."""
    name = content.get("Name")
    return name.removeprefix("/") if isinstance(name, str) else None


def _listed(entry: dict[str, Any]) -> object:
    """The name in an entry of containers.json, which podman and CRI-O keep: {"id": …, "names": ["shop"]}."""
    names = entry.get("names")
    return names[0] if isinstance(names, list) and names else None


# Annotations of an OCI specification that name a container; of Kubernetes, with its namespace and pod.
_ANNOTATIONS = (
    ("io.kubernetes.cri.sandbox-namespace", "io.kubernetes.cri.sandbox-name", "io.kubernetes.cri.container-name"),
    ("io.kubernetes.pod.namespace", "io.kubernetes.pod.name", "io.kubernetes.container.name"),
    ("nerdctl/name",),
)


def _annotated(content: dict[str, Any]) -> object:
    """The name in the annotations of config.json, the OCI specification: `default/shop-7d9f/php`."""
    annotations = content.get("annotations")
    if not isinstance(annotations, dict):
        return None
    for keys in _ANNOTATIONS:
        values = [annotations.get(key) for key in keys]
        if values[-1] and all(isinstance(value, str) for value in values):
            return "/".join(str(value) for value in values)
    return None


_Parser = Callable[[dict[str, Any]], object]
_STORAGE = ("var/lib/containers/storage/overlay-containers", "run/containers/storage/overlay-containers")
_TASKS = ("run/containerd/io.containerd.runtime.v2.task", "run/k3s/containerd/io.containerd.runtime.v2.task")
# Where runtimes keep a container: the folder of the runtime, what is inside, the limit, and how to find the name.
_FILES: tuple[tuple[str, tuple[str, ...], int, _Parser], ...] = (
    ("var/lib/docker/containers", ("{id}", "config.v2.json"), _FILE_BYTES, _docker),
    *((folder, (space, "{id}", "config.json"), _FILE_BYTES, _annotated)
      for folder in _TASKS for space in ("k8s.io", "default")),
    *((folder, ("{id}", "userdata", "config.json"), _FILE_BYTES, _annotated) for folder in _STORAGE),
    (_STORAGE[0], ("containers.json",), _LIST_BYTES, _listed),
    (_STORAGE[1], ("volatile-containers.json",), _LIST_BYTES, _listed),
)  # fmt: skip


def _name_in_files(container_id: str, top: str) -> tuple[str | None, str]:
    """(name, "") from the first file that has one; (None, why) if no file has."""
    reasons = []
    for folder, inside, limit, parse in _FILES:
        parts = [part.format(id=container_id) for part in inside]
        shown = os.path.join("/", folder, *parts)
        try:
            content = json.loads(_read(os.path.join(top, folder), parts, limit))
            if isinstance(content, list):
                entries = (entry for entry in content if isinstance(entry, dict) and entry.get("id") == container_id)
                content = next(entries, None)
            name = parse(content) if isinstance(content, dict) else None
        except FileNotFoundError:
            continue
        except OSError as exc:
            reasons.append(f"{shown} cannot be read ({exc.strerror})")
            continue
        except (ValueError, RecursionError):
            reasons.append(f"{shown} is malformed")
            continue
        if isinstance(name, str) and 0 < len(name) <= _NAME_CHARS:
            # JSON may have half a surrogate pair, which is no text.
            return name.encode("utf-8", "replace").decode(), ""
    return None, "; ".join(reasons) or "no file of Docker, podman, CRI-O or containerd has its name"


def _read(folder: str, inside: list[str], limit: int) -> bytes:
    """The content of a regular file of root's, or of phptrace's own user, below that folder, through no symbolic link.

    OSError. The folder itself may be a link: administrators move Docker's to another disk.
    """
    with contextlib.ExitStack() as undo:

        def opened(name: str, flags: int, below: int | None) -> int:
            descriptor = os.open(name, os.O_PATH | os.O_CLOEXEC | flags, dir_fd=below)
            undo.callback(os.close, descriptor)
            return descriptor

        place = opened(folder, os.O_DIRECTORY, None)
        for name in inside[:-1]:
            place = opened(name, os.O_DIRECTORY | os.O_NOFOLLOW, place)
        place = opened(inside[-1], os.O_NOFOLLOW, place)
        found = os.fstat(place)
        if not stat.S_ISREG(found.st_mode):
            raise OSError(errno.EINVAL, "it is not a regular file")
        if found.st_uid not in (0, os.geteuid()):
            raise OSError(errno.EPERM, "it belongs to another user")
        with open(f"/proc/self/fd/{place}", "rb") as file:
            content = file.read(limit + 1)
        if len(content) > limit:
            raise OSError(errno.EFBIG, f"it has more than {limit:,} bytes")
        return content


def _namespaces(pid: int) -> str | None:
    """`mnt:4026532768 pid:4026532770`, those that are not phptrace's own; None if both are, or cannot be read."""
    other = [f"{kind}:{inode}" for kind, inode in _other_namespaces(pid)]
    return " ".join(other) or None


def _other_namespaces(pid: int) -> Iterator[tuple[str, int]]:
    for kind in ("mnt", "pid"):
        with contextlib.suppress(OSError):
            inode = os.stat(f"/proc/{pid}/ns/{kind}").st_ino
            if inode != os.stat(f"/proc/self/ns/{kind}").st_ino:
                yield kind, inode


def _host_name(pid: int) -> str | None:
    """The host name in the process's UTS namespace; None if it is phptrace's own namespace, or may not be entered.

    A thread enters it, and ends: the namespace is a thread's own.
    """
    found: list[str] = []

    def look() -> None:
        with contextlib.suppress(OSError):
            place = os.open(f"/proc/{pid}/ns/uts", os.O_RDONLY | os.O_CLOEXEC)
            try:
                if ctypes.CDLL(None).setns(place, _CLONE_NEWUTS) == 0:
                    found.append(os.uname().nodename)
            finally:
                os.close(place)

    try:
        if os.stat(f"/proc/{pid}/ns/uts").st_ino == os.stat("/proc/self/ns/uts").st_ino:
            return None
    except OSError:
        return None
    thread = threading.Thread(target=look)
    thread.start()
    thread.join()
    return next((name for name in found if name not in ("", "(none)")), None)
