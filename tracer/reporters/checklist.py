"""The doctor's checks, as text and as JSON."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Protocol, TextIO

from tracer.units import counted, printable


class Backend(Protocol):
    """A tracer.doctor.RequiredBy: `bpf`, `ptrace` or `both`."""

    @property
    def value(self) -> str:
        """The name."""
        ...


class Finding(Protocol):
    """A requirement, whether it is met, and how to fix it."""

    @property
    def name(self) -> str:
        """What is checked."""
        ...

    @property
    def ok(self) -> bool:
        """True if the requirement is met."""
        ...

    @property
    def found(self) -> str:
        """What was found, in words."""
        ...

    @property
    def fix(self) -> str | None:
        """What to do if it is not met; None if nothing can be done."""
        ...

    @property
    def needed(self) -> bool:
        """False if tracing works without it."""
        ...

    @property
    def by(self) -> Backend:
        """The backend that does not work without it."""
        ...


def render(findings: Sequence[Finding], out: TextIO, backend: str | None) -> None:
    """Write a line per check, the fix below each failed one, and the verdict. `backend` works; None if none does."""
    width = max(len(printable(finding.name)) for finding in findings)
    for finding in findings:
        matters = finding.needed and not (backend == "bpf" and finding.by.value == "ptrace")
        mark = "ok  " if finding.ok else "FAIL" if matters else "warn"
        out.write(f"{mark}  {printable(finding.name):<{width}}  {printable(finding.found)}\n")
        if not finding.ok and finding.fix:
            out.write(f"      {'':<{width}}  fix: {finding.fix}\n")
    failed = [finding for finding in findings if finding.needed and not finding.ok]
    if backend is None:
        out.write(f"\nCannot trace. Fix {counted(len(failed), 'problem')} (listed above).\n")
    elif backend == "bpf":
        out.write("\nCan trace, with backend bpf.\n")
    else:
        checks = "failed check above" if len(failed) == 1 else f"{len(failed)} failed checks above, first one first"
        out.write(f"\nCan trace, with backend {backend}, which slows requests down. To use bpf, fix the {checks}.\n")


def render_json(findings: Sequence[Finding], out: TextIO, backend: str | None) -> None:
    """Write {"can_trace", "backend", "checks": [{"name", "ok", "found", "fix", "needed", "by"}]}.

    `fix` is null for a check that is ok.
    """
    rows = [
        {
            "name": finding.name,
            "ok": finding.ok,
            "found": finding.found,
            "fix": None if finding.ok else finding.fix,
            "needed": finding.needed,
            "by": finding.by.value,
        }
        for finding in findings
    ]
    json.dump({"can_trace": backend is not None, "backend": backend, "checks": rows}, out, indent=2)
    out.write("\n")
