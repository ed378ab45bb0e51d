"""Where verbs that make a text file write it: stdout, or a new file that only its owner may read."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator, Sequence
from typing import TextIO

from tracer.errors import UsageError
from tracer.output_file import create


def refuse_own_input(output: str, files: Sequence[str]) -> None:
    """UsageError if the output is one of the files that are to be read."""
    if os.path.exists(output) and any(os.path.exists(path) and os.path.samefile(output, path) for path in files):
        raise UsageError(f"{output} is what is to be read: choose another name")


@contextlib.contextmanager
def opened(path: str, *, force: bool) -> Iterator[TextIO]:
    """A text file to write to, mode 0600, never through a symlink; UsageError if it exists and `force` is not given."""
    if path == "-":
        yield sys.stdout
        return
    if os.path.lexists(path) and not (os.path.isfile(path) or os.path.islink(path)):
        raise UsageError(f"cannot write {path}: it is not a file")
    if force:
        try:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(path)
        except OSError as exc:
            raise UsageError(f"cannot overwrite {path}: {exc.strerror}") from exc
    try:
        descriptor = create(path)
    except FileExistsError as exc:
        raise UsageError(f"{path} exists. Choose another name, or overwrite it with -f.") from exc
    with open(descriptor, "w", encoding="utf-8", newline="") as out:
        yield out
