"""Routes that the user names: patterns such as `/shop/{category}/*`, one in a line of a file."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence

MOST_BYTES = 256 * 1024  # of a file
_MOST_PATTERNS = 1000
_LONGEST_LINE = 1000
_VARIABLE = re.compile(r"([^{}*]*)\{[A-Za-z_][A-Za-z0-9_-]*\}([^{}*]*)")
_SPECIAL = re.compile(r"[{}*]")


@dataclasses.dataclass(frozen=True, slots=True)
class _Pattern:
    text: str
    parts: tuple[str | tuple[str, str], ...]  # a name, or what a value begins and ends with
    with_rest: bool  # further parts may follow

    @property
    def first(self) -> str | None:
        """The name that a path begins with; None: it may begin with others."""
        first = self.parts[0] if self.parts else None
        return first if isinstance(first, str) else None

    def matches(self, parts: Sequence[str]) -> bool:
        if len(parts) < len(self.parts) or (len(parts) > len(self.parts) and not self.with_rest):
            return False
        for wanted, part in zip(self.parts, parts, strict=False):
            if isinstance(wanted, str):
                if part != wanted:
                    return False
            else:
                before, after = wanted
                least = len(before) + len(after) + 1
                if len(part) < least or not part.startswith(before) or not part.endswith(after):
                    return False
        return True


class RoutePatterns:
    """The user's patterns; the first in the file that matches wins."""

    def __init__(self, patterns: Sequence[_Pattern] = ()) -> None:
        """Made by parse_patterns()."""
        self._all = tuple(patterns)
        # By the first part of a path, which most patterns name: a path is compared with few of them.
        self._unnamed = [pattern for pattern in patterns if pattern.first is None]
        self._by_name = {
            name: [pattern for pattern in patterns if pattern.first in (None, name)]
            for name in {pattern.first for pattern in patterns}
        }

    def __bool__(self) -> bool:
        return bool(self._all)

    def match(self, path: str) -> str | None:
        """The pattern that the path matches; None if there is none."""
        parts = _split(path)
        candidates = self._by_name.get(parts[0], self._unnamed) if parts else self._all
        for pattern in candidates:
            if pattern.matches(parts):
                return pattern.text
        return None


def _split(path: str) -> list[str]:
    """The parts of a path, of which a slash at the end makes none."""
    path = path.removeprefix("/").removesuffix("/")
    return path.split("/") if path else []


def parse_patterns(text: str) -> RoutePatterns:
    """The patterns of a file's text. ValueError names the line that is not one: `line 7: …`.

    A line is a path. `{name}` stands for one part of a path, or for the rest of one (`{title}.html`); `*`, at the end
    only, for any further parts, or none. Empty lines, and those that begin with #, are comments.
    """
    found = []
    for number, line in enumerate(text.removeprefix("\ufeff").split("\n"), 1):
        line = line.strip()
        if not line or line.startswith("#"):
            continue
        try:
            found.append(_parsed(line))
        except ValueError as exc:
            raise ValueError(f"line {number}: {exc}") from None
        if len(found) > _MOST_PATTERNS:
            raise ValueError(f"line {number}: more than {_MOST_PATTERNS:,} patterns")
    return RoutePatterns(found)


def _parsed(line: str) -> _Pattern:
    if len(line) > _LONGEST_LINE:
        raise ValueError(f"more than {_LONGEST_LINE:,} characters")
    if not line.startswith("/"):
        raise ValueError(f"{line!r} does not begin with a slash")
    if any(char.isspace() for char in line):
        raise ValueError(f"{line!r} has a space in it")
    if "?" in line:
        raise ValueError(f"{line!r} has a query string, for which there is --route-query")
    parts = _split(line)
    with_rest = bool(parts) and parts[-1] == "*"
    return _Pattern(line, tuple(_part(part, line) for part in parts[: len(parts) - with_rest]), with_rest)


def _part(part: str, line: str) -> str | tuple[str, str]:
    if not _SPECIAL.search(part):
        return part
    match = _VARIABLE.fullmatch(part)
    if match is not None:
        return match[1], match[2]
    if "*" in part:
        raise ValueError(f"{line!r} has a * that is not its last part")
    raise ValueError(f"{line!r} has braces that are not one {{name}} in a part")
