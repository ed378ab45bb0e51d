"""Matches the files of two recordings, between which a release moved folders and an edit moved lines."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Iterable

# `/srv/a.php(12) : eval()'d code` (zend_make_compiled_string_description, Zend/zend.c, 8.2).
_EVALUATED = re.compile(r"\(\d+\) : (?=[^/]*$)")
_MAX_NAMESAKES = 50  # files of one base name that are compared with each other


class FileMapping:
    """Maps the file names of the recording before to those of the recording after.

    `folders` is the folder whose files moved, and the folder they moved to; None if no move was found.
    """

    def __init__(self, before: Iterable[str], after: Iterable[str]) -> None:
        """Find the one move of a folder that explains most of the files that are gone by files that are new."""
        was, self._after = ({without_line(file) for file in files} for files in (before, after))
        self.folders = _folders(was - self._after, self._after - was)

    def new_name(self, before: str) -> str:
        """The file's name after; that of evaluated code is without the line of eval()."""
        file = without_line(before)
        if self.folders is None or file in self._after:
            return file
        old, new = self.folders
        return new + file[len(old) :] if file.startswith(old + "/") else file


def without_line(file: str) -> str:
    """The file name of evaluated code without the line of eval(); any other name unchanged."""
    return _EVALUATED.sub(" : ", file)


def _folders(gone: set[str], new: set[str]) -> tuple[str, str] | None:
    """The folder that most gone files were in, and the folder they are in now; None if no new file has such a name."""
    namesakes: dict[str, list[str]] = {}
    for file in sorted(new):
        namesakes.setdefault(os.path.basename(file), []).append(file)
    votes: Counter[tuple[str, str]] = Counter()
    compared: Counter[str] = Counter()
    for file in sorted(gone):
        name = os.path.basename(file)
        compared[name] += 1
        if compared[name] <= _MAX_NAMESAKES:
            votes.update(_differing(file, other) for other in namesakes.get(name, [])[:_MAX_NAMESAKES])
    if not votes:
        return None
    return min(votes, key=lambda pair: (-votes[pair], len(pair[0]) + len(pair[1]), pair))


def _differing(file: str, other: str) -> tuple[str, str]:
    """Both folders without the common end: `/srv/1`, `/srv/2` for `/srv/1/src/a.php`, `/srv/2/src/a.php`."""
    left, right = file.split("/")[:-1], other.split("/")[:-1]
    while left and right and left[-1] == right[-1]:
        left.pop()
        right.pop()
    return "/".join(left), "/".join(right)
