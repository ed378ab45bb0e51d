"""Root writes no file where another user could replace it, or a folder above it, meanwhile.

As sshd does with the folders of its keys (OpenSSH, misc.c: safe_path), every folder up to the root is looked at, and
also those in which a link on the way is. Root is trusted, and so is the user who called sudo.
"""

from __future__ import annotations

import errno
import os
import pwd
import stat
from collections.abc import Iterator

from tracer.errors import UsageError

_MOST_LINKS = 40  # as the kernel: MAXSYMLINKS, include/linux/namei.h, Linux 6.18


def sudo_owner() -> tuple[int, int] | None:
    """The user and the group of the user who called sudo; None without sudo, or if the process is not root."""
    owner = os.environ.get("SUDO_UID", ""), os.environ.get("SUDO_GID", "")
    if os.geteuid() != 0 or not all(part.isascii() and part.isdecimal() and len(part) < 12 for part in owner):
        return None
    return int(owner[0]), int(owner[1])


def refuse_foreign_place(path: str) -> None:
    """UsageError if root is to write `path` where another user could replace it. In other hands, all is allowed."""
    if os.geteuid() != 0:
        return
    users, groups = {0}, {0}
    owner = sudo_owner()
    if owner is not None:
        users.add(owner[0])
        groups.add(owner[1])
    for folder in _passed(os.path.dirname(path) or "."):
        who = _who_may_replace(os.lstat(folder), users, groups)
        if who is not None:
            raise UsageError(
                f"cannot write {path}: {who} may replace files in {folder}, so root could be made"
                " to write elsewhere. Choose a directory of root's with -o, or write there all the same with -f."
            )


def _passed(path: str) -> Iterator[str]:
    """Yield the folders and the links that are passed on the way to that folder, by names with no link above the end.

    UsageError if there are too many links.
    """
    place, links = "/", 0
    parts = [*reversed(os.path.join(os.getcwd(), path).split("/"))]
    yield place
    while parts:
        part = parts.pop()
        if part == "..":
            place = os.path.dirname(place)
        if part in ("", ".", ".."):
            continue
        name = os.path.join(place, part)
        yield name
        if not os.path.islink(name):
            place = name
            continue
        links += 1
        if links > _MOST_LINKS:
            raise UsageError(f"cannot write to {path}: {os.strerror(errno.ELOOP)}. Choose another directory with -o.")
        target = os.readlink(name)
        place = "/" if target.startswith("/") else place
        parts += reversed(target.split("/"))


def _who_may_replace(found: os.stat_result, users: set[int], groups: set[int]) -> str | None:
    """Name somebody else who may give names in that folder to other files; None if nobody may."""
    if found.st_uid not in users:
        try:
            return f"user {pwd.getpwuid(found.st_uid).pw_name}"
        except KeyError:
            return f"user {found.st_uid}"
    if stat.S_ISLNK(found.st_mode):  # whose mode means nothing
        return None
    if found.st_mode & stat.S_ISVTX:  # only the owner of a file may rename it, or remove it
        return None
    if found.st_mode & stat.S_IWOTH:
        return "every user"
    return "its group" if found.st_mode & stat.S_IWGRP and found.st_gid not in groups else None
