"""The doctor's findings, for people and as JSON."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Protocol, TextIO

from tracer.units import printable


class Finding(Protocol):
    """A need, whether it is met, and what mends it."""

    @property
    def name(self) -> str: ...
    @property
    def ok(self) -> bool: ...
    @property
    def found(self) -> str: ...
    @property
    def mend(self) -> str | None: ...
    @property
    def needed(self) -> bool: ...


def render(findings: Sequence[Finding], out: TextIO) -> None:
    """A line a need; beneath what is missing, what mends it; at the end, the verdict."""
    width = max(len(printable(finding.name)) for finding in findings)
    for finding in findings:
        mark = "ok  " if finding.ok else "FAIL" if finding.needed else "less"
        out.write(f"{mark}  {printable(finding.name):<{width}}  {printable(finding.found)}\n")
        if not finding.ok and finding.mend:
            out.write(f"      {'':<{width}}  mend: {finding.mend}\n")
    failed = [finding for finding in findings if finding.needed and not finding.ok]
    if failed:
        out.write(f"\nCannot trace: {len(failed)} thing(s) to mend, from the top.\n")
    else:
        out.write("\nCan trace, with backend bpf.\n")


def render_json(findings: Sequence[Finding], out: TextIO) -> None:
    """{"can_trace", "checks": [{"name", "ok", "found", "mend", "needed"}]}; `mend` only for what is missing."""
    rows = [
        {"name": f.name, "ok": f.ok, "found": f.found, "mend": None if f.ok else f.mend, "needed": f.needed}
        for f in findings
    ]
    can = all(finding.ok or not finding.needed for finding in findings)
    json.dump({"can_trace": can, "checks": rows}, out, indent=2)
    out.write("\n")
