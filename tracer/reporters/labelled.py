"""Sentences with a label in front, as lines for people: the label stands alone in its column."""

from __future__ import annotations

import datetime

from rich.console import Console
from rich.text import Text

_WIDTH = 12


def write(console: Console, label: str, sentence: str, style: str = "bold") -> None:
    """Write the sentence in as many lines as it needs. It has to be printable."""
    start = Text(f"{label:{_WIDTH}}", style=style)
    for line in Text(sentence).wrap(console, console.width - _WIDTH, overflow="fold"):
        line.rstrip()
        console.print(start + line)
        start = Text(" " * _WIDTH)


def moment(unix_ns: int) -> str:
    """`2023-11-14 22:13:20`, in UTC."""
    return f"{datetime.datetime.fromtimestamp(unix_ns // 1_000_000_000, datetime.UTC):%Y-%m-%d %H:%M:%S}"
