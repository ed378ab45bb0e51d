"""The doctor's checks, as text and as JSON."""

from __future__ import annotations

import json
from collections.abc import Collection, Sequence
from typing import Protocol, TextIO

from tracer.units import counted, printable


class Finding(Protocol):
    """A requirement, whether it is met, and how to fix it."""

    @property
    def name(self) -> str:
        """Name of the requirement."""
        ...

    @property
    def ok(self) -> bool:
        """True if the requirement is met."""
        ...

    @property
    def found(self) -> str:
        """The state of the host or the target, in words."""
        ...

    @property
    def fix(self) -> str | None:
        """The action that helps if it is not met; None if nothing can be done."""
        ...

    @property
    def needed(self) -> bool:
        """False if tracing works without it."""
        ...

    @property
    def by(self) -> Collection[str]:
        """Names of the backends that do not work without it."""
        ...


def render(findings: Sequence[Finding], out: TextIO, backend: str | None, *, preferred: str, caveat: str = "") -> None:
    """Write a line per check, the fix below each failed one, and the verdict.

    `backend` is the one that would be used, None if none works; `caveat`, a clause on it for the verdict. `preferred`
    is the backend to fix the checks for.
    """
    width = max(len(printable(finding.name)) for finding in findings)
    for finding in findings:
        matters = finding.needed and (backend is None or preferred in finding.by)
        mark = "ok  " if finding.ok else "FAIL" if matters else "warn"
        out.write(f"{mark}  {printable(finding.name):<{width}}  {printable(finding.found)}\n")
        if not finding.ok and finding.fix:
            out.write(f"      {'':<{width}}  fix: {finding.fix}\n")
    failed = [finding for finding in findings if finding.needed and not finding.ok]
    if backend is None:
        out.write(f"\nCannot trace. Fix {counted(len(failed), 'problem')} (listed above).\n")
    elif backend == preferred:
        out.write(f"\nCan trace, with backend {backend}{caveat}.\n")
    else:
        count = sum(preferred in finding.by for finding in failed)
        checks = "failed check above" if count == 1 else f"{count} failed checks above, first one first"
        out.write(f"\nCan trace, with backend {backend}{caveat}. To use {preferred}, fix the {checks}.\n")


def render_json(findings: Sequence[Finding], out: TextIO, backend: str | None) -> None:
    """Write {"can_trace", "backend", "checks": [{"name", "ok", "found", "fix", "needed", "by"}]}.

    `fix` is null for a check that is ok; `by` is the backend that needs it, or "both".
    """
    rows = [
        {
            "name": finding.name,
            "ok": finding.ok,
            "found": finding.found,
            "fix": None if finding.ok else finding.fix,
            "needed": finding.needed,
            "by": next(iter(finding.by)) if len(finding.by) == 1 else "both",
        }
        for finding in findings
    ]
    json.dump({"can_trace": backend is not None, "backend": backend, "checks": rows}, out, indent=2)
    out.write("\n")
