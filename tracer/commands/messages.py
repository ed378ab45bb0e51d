"""Messages to the user on stderr, beside the result on stdout."""

from __future__ import annotations

import logging
from collections.abc import Sequence

import click

log = logging.getLogger(__name__)

# What the remarks of Backend.lacking begin with that are about phptrace's own work, not about the figures.
_INTERNAL = "speed: "


def is_internal(lack: str) -> bool:
    """True if this remark of Backend.lacking is of no use to an operator: it is shown with -v only."""
    return lack.startswith(_INTERNAL)


def notice(text: str) -> None:
    """Print a message to stderr, unless the user gave -q."""
    context = click.get_current_context(silent=True)
    if context is None or not context.find_root().params.get("quiet"):
        click.echo(f"phptrace: {text}", err=True)


def note_limits(lacking: Sequence[str]) -> None:
    """Print what a backend cannot measure, a line each; remarks on internals only with -v."""
    for lack in lacking:
        if is_internal(lack):
            log.info("note: %s", lack)
        else:
            notice(f"note: {lack}")
