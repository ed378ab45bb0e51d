"""New files, made as root in places that others may write to.

Nothing here follows a symlink, or leaves half a file behind: an output has its name once it is complete.
"""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import signal
import stat
import sys
from collections.abc import Iterator, Sequence
from types import FrameType
from typing import TextIO

from tracer.errors import IncompleteError, UsageError
from tracer.output_place import refuse_foreign_place, sudo_owner

# Names of it, under which nothing must be made.
STDOUT = ("/dev/stdout", "/dev/fd/1", "/proc/self/fd/1")
_ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_ELSEWHERE = "Name a file in another place with -o."
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO)


def create(path: str) -> int:
    """Create a file, mode 0600, never through a symlink. Returns its descriptor, to read and write; the caller closes.

    Under sudo the file belongs to the user who called sudo. FileExistsError if the name is taken;
    UsageError if the file cannot be created.
    """
    try:
        return _create(path)
    except FileExistsError:
        raise
    except OSError as exc:
        raise UsageError(f"cannot write {path}: {exc.strerror}. {_ELSEWHERE}") from exc


def is_taken(name: str, path: str, *, force: bool) -> bool:
    """True if there is a file of that name, which `force` allows to replace; False if there is none.

    UsageError, naming the output `path`, if it must not be replaced: without `force`, or if it is not a regular file of
    root, of the user, or of the one who called sudo. Root would replace /dev/null, or what a link of others points to.
    """
    try:
        found = os.lstat(name)
    except OSError:
        return False
    the_output = "it" if name == path else name
    if not stat.S_ISREG(found.st_mode):
        kinds = ((stat.S_ISDIR, "is a directory"), (stat.S_ISLNK, "is a symbolic link"))
        kind = next((text for is_kind, text in kinds if is_kind(found.st_mode)), "is not a file")
        raise UsageError(f"cannot write {path}: {the_output} {kind}. {_ELSEWHERE}")
    if not force:
        raise UsageError(f"cannot write {path}: {the_output} exists. Choose another name, or overwrite it with -f.")
    owner = sudo_owner()
    if found.st_uid not in {0, os.geteuid(), *(owner or ())[:1]}:
        raise UsageError(f"cannot write {path}: {the_output} belongs to another user. {_ELSEWHERE}")
    return True


def check_folder(folder: str, path: str) -> None:
    """UsageError, naming `path`, if no file can be created in that folder. It is tried, and leaves nothing behind."""
    try:
        with contextlib.suppress(IsADirectoryError):  # this file system has no files without a name
            os.close(os.open(folder, os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, 0o600))
            return
    except OSError as exc:
        if exc.errno != errno.EOPNOTSUPP:
            raise UsageError(f"cannot write {path}: {exc.strerror}. {_ELSEWHERE}") from exc
    trial = os.path.join(folder, f".phptrace-{secrets.token_hex(8)}")
    try:
        os.close(_create(trial))
    except OSError as exc:
        raise UsageError(f"cannot write {path}: {exc.strerror}. {_ELSEWHERE}") from exc
    with contextlib.suppress(OSError):
        os.unlink(trial)


def refuse_own_input(output: str, files: Sequence[str]) -> None:
    """UsageError if the output file is one of the input files, under whatever name."""
    if os.path.exists(output) and any(os.path.exists(path) and os.path.samefile(output, path) for path in files):
        raise UsageError(f"cannot write {output}: it is also an input file. Choose another name with -o.")


@contextlib.contextmanager
def opened(path: str, *, force: bool) -> Iterator[TextIO]:
    """Open a text file for writing, mode 0600; `-` is stdout. The file appears under its name on a clean exit only.

    So is /dev/stdout. It is written under a temporary name in the same folder. If the block raises, or SIGINT, SIGTERM
    or SIGHUP ends the process, it is removed, and a file that it would have replaced is unchanged.

    UsageError if the name is taken and `force` is not given, or the file cannot be written.
    IncompleteError if the disk is full.
    """
    if path == "-" or path in STDOUT:
        yield sys.stdout
        return
    taken = is_taken(path, path, force=force)
    if not force and os.path.isdir(os.path.dirname(path) or "."):
        refuse_foreign_place(path)
    temporary = os.path.join(os.path.dirname(path), f".phptrace-{secrets.token_hex(8)}")
    with _removed_in_the_end(temporary):
        try:
            descriptor = _create(temporary)
        except OSError as exc:
            verb = "overwrite" if taken else "write"
            raise UsageError(f"cannot {verb} {path}: {exc.strerror}. {_ELSEWHERE}") from exc
        try:
            with open(descriptor, "w", encoding="utf-8", newline="") as out:
                yield out
        except OSError as exc:
            if exc.errno not in _FULL:
                raise
            raise IncompleteError(f"cannot write {path}: {exc.strerror}. No file was written. {_ELSEWHERE}") from exc
        _rename(temporary, path, force=force)


def _create(path: str) -> int:
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    owner = sudo_owner()
    with contextlib.suppress(OSError):
        os.fchmod(descriptor, 0o600)  # whatever the umask
    if owner is not None:
        # Where it cannot be given away, as on a file system without owners, it stays ours.
        with contextlib.suppress(OSError, OverflowError):
            os.fchown(descriptor, *owner)
    return descriptor


def _rename(temporary: str, path: str, *, force: bool) -> None:
    """Give the complete file its name. Without `force`, a file that was made meanwhile keeps it: UsageError."""
    try:
        if not force:
            try:
                os.link(temporary, path, follow_symlinks=False)
            except FileExistsError as exc:
                raise _exists(path) from exc
            except OSError:  # no hard links on this file system
                if os.path.lexists(path):
                    raise _exists(path) from None
            else:
                return
        os.replace(temporary, path)
    except OSError as exc:
        verb = "overwrite" if force else "write"
        raise UsageError(f"cannot {verb} {path}: {exc.strerror}. {_ELSEWHERE}") from exc


def _exists(path: str) -> UsageError:
    return UsageError(f"cannot write {path}: it exists. Choose another name, or overwrite it with -f.")


@contextlib.contextmanager
def _removed_in_the_end(path: str) -> Iterator[None]:
    """Remove the file, if it is still there, at the end or when a signal ends the process."""

    def end(number: int, _: FrameType | None) -> None:
        with contextlib.suppress(OSError):
            os.unlink(path)
        signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)

    ending = [number for number in _ENDING if signal.getsignal(number) is signal.SIG_DFL]
    for number in ending:
        signal.signal(number, end)
    try:
        yield
    finally:
        with contextlib.suppress(OSError):  # it was never made, or has its name
            os.unlink(path)
        for number in ending:
            signal.signal(number, signal.SIG_DFL)
