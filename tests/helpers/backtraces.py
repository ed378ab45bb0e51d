"""The truth about call stacks: what debug_backtrace() says in the situations of tests/php/stacks.php."""

from __future__ import annotations

from typing import Any

SITUATIONS = 45  # of stacks.php
_INCLUDES = ("require", "require_once", "include", "include_once")


def expected(backtrace: list[dict[str, Any]]) -> list[tuple[str, int | None]]:
    """(name, line) of each frame, the innermost first, from what debug_backtrace() said in probe().

    An entry names a function and says where it was called, which is the line of the next.
    """
    frames: list[tuple[str, int | None]] = []
    line: int | None = None  # of the innermost, probe(): it is not in there
    for entry in backtrace:
        name = "require" if entry["function"] in _INCLUDES else entry["function"]
        if "class" in entry:
            name = f"{entry['class'].split(chr(0))[0]}::{name}"
        frames.append((name, line))
        line = entry.get("line")
    if line is not None:
        frames.append(("<main>", line))
    return frames
