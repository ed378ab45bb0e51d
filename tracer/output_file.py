"""New files, made as root in places that others may write to."""

from __future__ import annotations

import contextlib
import os

from tracer.errors import UsageError


def create(path: str) -> int:
    """Makes a file that was not there, mode 0600, never through a symlink; its descriptor, to read and write.

    Under sudo it belongs to the user who called it, who will want to read it. FileExistsError if there
    is one of that name; UsageError if it cannot be made.
    """
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    except FileExistsError:
        raise
    except OSError as exc:
        raise UsageError(f"cannot write {path}: {exc.strerror}") from exc
    owner = os.environ.get("SUDO_UID", ""), os.environ.get("SUDO_GID", "")
    if os.geteuid() == 0 and all(part.isdecimal() for part in owner):
        # Where it cannot be given away, as on a file system without owners, it stays ours.
        with contextlib.suppress(OSError, OverflowError):
            os.fchown(descriptor, int(owner[0]), int(owner[1]))
    return descriptor
