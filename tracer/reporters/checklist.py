"""The doctor's checks, as text and as JSON."""

from __future__ import annotations

import dataclasses
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


@dataclasses.dataclass(frozen=True, slots=True)
class Traced:
    """The processes that one backend would trace."""

    backend: str
    pids: tuple[int, ...]  # a master's means its workers
    caveat: str = ""  # on the backend, as a clause that begins with a comma


@dataclasses.dataclass(frozen=True, slots=True)
class Outcome:
    """The outcome of an `attach`."""

    traced: tuple[Traced, ...]  # the preferred backend first; empty: nothing can be traced
    left_out: tuple[tuple[int, str], ...] = ()  # pid of each process that was meant and would not be traced, and why
    error: str | None = None  # of `attach` where nothing can be traced

    @property
    def backend(self) -> str | None:
        """The best of its backends; None if nothing can be traced."""
        return self.traced[0].backend if self.traced else None


def render(findings: Sequence[Finding], out: TextIO, outcome: Outcome, *, preferred: str) -> None:
    """Write a line per check, the fix below each failed one, and the verdict.

    `preferred` is the backend to fix the checks for.
    """
    backend = outcome.backend
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
        if outcome.error is not None:
            out.write(f"attach would end with: {printable(outcome.error)}\n")
    elif len(outcome.traced) > 1:
        out.write("\nCan trace:\n")
        for traced in outcome.traced:
            pids = ", ".join(map(str, traced.pids))
            out.write(f"  with backend {traced.backend}{traced.caveat}: process {pids}\n")
    elif backend == preferred:
        out.write(f"\nCan trace, with backend {backend}{outcome.traced[0].caveat}.\n")
    else:
        count = sum(preferred in finding.by for finding in failed)
        checks = "failed check above" if count == 1 else f"{count} failed checks above, first one first"
        caveat = outcome.traced[0].caveat
        out.write(f"\nCan trace, with backend {backend}{caveat}. To use {preferred}, fix the {checks}.\n")
    for pid, why in outcome.left_out:
        out.write(f"Not traced: process {pid}: {printable(why)}\n")


def render_json(findings: Sequence[Finding], out: TextIO, outcome: Outcome) -> None:
    """Write {"can_trace", "backend", "traced", "not_traced", "error", "checks": [{"name", "ok", "found", "fix",
    "needed", "by"}]}.

    `backend` is the best of those in `traced`, [{"backend", "pids"}]; `not_traced` is [{"pid", "why"}]. `fix` is null
    for a check that is ok; `by` is the backend that needs it, or "both".
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
    document = {
        "can_trace": bool(outcome.traced),
        "backend": outcome.backend,
        "traced": [{"backend": traced.backend, "pids": traced.pids} for traced in outcome.traced],
        "not_traced": [{"pid": pid, "why": why} for pid, why in outcome.left_out],
        "error": outcome.error,
        "checks": rows,
    }
    json.dump(document, out, indent=2)
    out.write("\n")
