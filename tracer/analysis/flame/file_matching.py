"""Which file of one recording is which of another, though a release moved it and an edit moved its lines."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Iterable

# `/srv/a.php(12) : eval()'d code` (zend_make_compiled_string_description, Zend/zend.c, 8.2).
_EVALUATED = re.compile(r"\(\d+\) : (?=[^/]*$)")
_MOST_NAMESAKES = 50  # files of one name that are compared with each other


class FileMapping:
    """Says what a file of the recording before is called in the one after."""

    def __init__(self, before: Iterable[str], after: Iterable[str]) -> None:
        """Of the files that are gone, as many as can be are taken for new ones in one other folder."""
        was, self._after = ({without_line(file) for file in files} for files in (before, after))
        self.folders = _folders(was - self._after, self._after - was)

    def file(self, before: str) -> str:
        """The name after, without the line of what was evaluated."""
        file = without_line(before)
        if self.folders is None or file in self._after:
            return file
        old, new = self.folders
        return new + file[len(old) :] if file.startswith(old + "/") else file


def without_line(file: str) -> str:
    return _EVALUATED.sub(" : ", file)


def _folders(gone: set[str], new: set[str]) -> tuple[str, str] | None:
    """The folder that most of what is gone was in, and the one that it is in; None if nothing new is like it."""
    namesakes: dict[str, list[str]] = {}
    for file in sorted(new):
        namesakes.setdefault(os.path.basename(file), []).append(file)
    votes: Counter[tuple[str, str]] = Counter()
    compared: Counter[str] = Counter()
    for file in sorted(gone):
        name = os.path.basename(file)
        compared[name] += 1
        if compared[name] <= _MOST_NAMESAKES:
            votes.update(_differing(file, other) for other in namesakes.get(name, [])[:_MOST_NAMESAKES])
    if not votes:
        return None
    return min(votes, key=lambda pair: (-votes[pair], len(pair[0]) + len(pair[1]), pair))


def _differing(file: str, other: str) -> tuple[str, str]:
    """The folders without the folders at their end that are alike: `/srv/1` and `/srv/2` of `/srv/1/src/a.php`."""
    left, right = file.split("/")[:-1], other.split("/")[:-1]
    while left and right and left[-1] == right[-1]:
        left.pop()
        right.pop()
    return "/".join(left), "/".join(right)
