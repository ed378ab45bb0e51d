"""Messages to the user on stderr, beside the result on stdout."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

import click

from tracer.stderr import say
from tracer.units import printable_message

log = logging.getLogger(__name__)

# What the remarks of Backend.lacking begin with that are about phptrace's own work, not about the figures.
_INTERNAL = "speed: "
_MOST_NOT_TRACED = 10


def is_internal(lack: str) -> bool:
    """True if this remark of Backend.lacking is of no use to an operator: it is shown with -v only."""
    return lack.startswith(_INTERNAL)


def notice(text: str) -> None:
    """Print a message of one line or several to stderr, unless the user gave -q."""
    context = click.get_current_context(silent=True)
    if context is None or not context.find_root().params.get("quiet"):
        say("\n".join(map(printable_message, text.split("\n"))))


def is_verbose() -> bool:
    """True if the user gave -v."""
    context = click.get_current_context(silent=True)
    return context is not None and bool(context.find_root().params.get("verbose"))


def not_traced(meta: Mapping[str, Any]) -> list[str]:
    """Sentences on the processes that were meant and not traced, from a recording's `meta` table; only a few."""
    found = meta.get("not_traced")
    texts = [text for text in found if isinstance(text, str)] if isinstance(found, list) else []
    more = len(texts) - _MOST_NOT_TRACED
    return texts[:_MOST_NOT_TRACED] + ([f"and {more:,} more"] if more > 0 else [])


def note_limits(lacking: Sequence[str]) -> None:
    """Print what a backend cannot measure, a line each; remarks on internals only with -v."""
    for lack in lacking:
        if is_internal(lack):
            log.info("note: %s", lack)
        else:
            notice(f"note: {lack}")
