"""The heaviest call stacks as text. As in PHP's own traces, the innermost function comes first."""

from __future__ import annotations

from typing import TextIO

from tracer.analysis.flame.heaviest import Heaviest
from tracer.units import counted, printable, show_bytes

_ROUTES = 3


def render(heaviest: Heaviest, out: TextIO) -> None:
    """Write the stacks, at most three routes each, then the notes."""
    out.write(f"\n{printable(heaviest.title)}: {show_bytes(heaviest.total)}\n")
    for stack in heaviest.stacks:
        share = stack.bytes / heaviest.total if heaviest.total else 0.0
        sampled = f", {counted(stack.samples, 'sample')}" if stack.samples else ""
        where = "" if stack.container is None else f"{printable(stack.container)}: "
        out.write(f"\n{show_bytes(stack.bytes)} ({share:.1%}{sampled}) {where}{printable(stack.script)}\n")
        routes = ", ".join(map(printable, stack.routes[:_ROUTES]))
        more = len(stack.routes) - _ROUTES
        out.write(f"    for {routes}" + (f" and {more} more" if more > 0 else "") + "\n")
        for number, frame in enumerate(stack.frames):
            out.write(f"    #{number} {printable(frame, code=True)}\n")
    if heaviest.hidden:
        out.write(f"\n… and {heaviest.hidden} more: -n 0 shows all\n")
    for note in heaviest.notes:
        out.write(f"{printable(note)}\n")
