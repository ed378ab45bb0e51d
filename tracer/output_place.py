"""Root writes no file where another user could replace it, or a folder above it, meanwhile.

As sshd does with the folders of its keys (OpenSSH, misc.c: safe_path), every folder up to the root is looked at. Root
is trusted, and so is the user who called sudo.
"""

from __future__ import annotations

import os
import pwd
import stat

from tracer.errors import UsageError


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
    folder = os.path.realpath(os.path.dirname(path) or ".")
    while True:
        who = _who_may_replace(os.stat(folder), users, groups)
        if who is not None:
            raise UsageError(
                f"cannot write {path}: {who} may replace files in {folder}, so root could be made"
                " to write elsewhere. Choose a directory of root's with -o, or write there all the same with -f."
            )
        if folder == "/":
            return
        folder = os.path.dirname(folder)


def _who_may_replace(found: os.stat_result, users: set[int], groups: set[int]) -> str | None:
    """Name somebody else who may give names in that folder to other files; None if nobody may."""
    if found.st_uid not in users:
        try:
            return f"user {pwd.getpwuid(found.st_uid).pw_name}"
        except KeyError:
            return f"user {found.st_uid}"
    if found.st_mode & stat.S_ISVTX:  # only the owner of a file may rename it, or remove it
        return None
    if found.st_mode & stat.S_IWOTH:
        return "every user"
    return "its group" if found.st_mode & stat.S_IWGRP and found.st_gid not in groups else None
