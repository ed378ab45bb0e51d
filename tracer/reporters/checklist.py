"""The doctor's findings, for people and as JSON."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Protocol, TextIO

from tracer.units import printable


class Backend(Protocol):
    """An enum member that names what a requirement is of: `bpf`, `ptrace` or `both`."""

    @property
    def value(self) -> str: ...


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
    @property
    def by(self) -> Backend: ...


def render(findings: Sequence[Finding], out: TextIO, backend: str | None) -> None:
    """A line a need; beneath what is missing, what mends it; at the end, the verdict: the `backend` that works."""
    width = max(len(printable(finding.name)) for finding in findings)
    for finding in findings:
        matters = finding.needed and not (backend == "bpf" and finding.by.value == "ptrace")
        mark = "ok  " if finding.ok else "FAIL" if matters else "less"
        out.write(f"{mark}  {printable(finding.name):<{width}}  {printable(finding.found)}\n")
        if not finding.ok and finding.mend:
            out.write(f"      {'':<{width}}  mend: {finding.mend}\n")
    failed = [finding for finding in findings if finding.needed and not finding.ok]
    if backend is None:
        out.write(f"\nCannot trace: {len(failed)} thing(s) to mend, from the top.\n")
    elif backend == "bpf":
        out.write("\nCan trace, with backend bpf.\n")
    else:
        out.write(
            f"\nCan trace, with backend {backend}, which slows requests down. With bpf once {len(failed)} thing(s) are"
            " mended, from the top.\n"
        )


def render_json(findings: Sequence[Finding], out: TextIO, backend: str | None) -> None:
    """{"can_trace", "backend", "checks": [{"name", "ok", "found", "mend", "needed", "by"}]}; `mend` only for what is
    missing.
    """
    rows = [
        {
            "name": finding.name,
            "ok": finding.ok,
            "found": finding.found,
            "mend": None if finding.ok else finding.mend,
            "needed": finding.needed,
            "by": finding.by.value,
        }
        for finding in findings
    ]
    json.dump({"can_trace": backend is not None, "backend": backend, "checks": rows}, out, indent=2)
    out.write("\n")
