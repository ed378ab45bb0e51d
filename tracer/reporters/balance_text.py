"""The growth of the workers, and what explains it, as a line for people."""

from __future__ import annotations

from tracer.analysis.balance import Balance
from tracer.units import counted, printable, show_bytes


def line(balance: Balance) -> str:
    """The balance as one line: `workers grew 112 KiB: native 96 KiB, …`; or why it is not known."""
    if balance.workers_grew is None:
        return f"growth of the workers: not known ({printable(balance.why or '')})"
    parts = [
        f"native {_shown(balance.native_kept)}",
        f"Zend's chunks {_shown(balance.zend)}",
        f"between requests {_shown(balance.between_requests)}",
        f"unexplained {_shown(balance.unexplained)}{_kept_free(balance)}",
    ]
    covered = f"{balance.workers:,} of {counted(balance.looked_at, 'worker')}, {counted(balance.requests, 'request')}"
    why = f"; {printable(balance.why)}" if balance.why else ""
    return f"workers grew {show_bytes(balance.workers_grew)}: {', '.join(parts)} ({covered}{why})"


def warning(balance: Balance) -> str:
    """A sentence for a balance of which too much is unexplained."""
    return (
        f"warning: {show_bytes(balance.unexplained)} of the {show_bytes(balance.workers_grew)} that"
        f" {counted(balance.workers, 'worker')} grew by is not explained by what the requests kept"
        f"{_kept_free(balance)}. See `phptrace heap PID`."
    )


def _kept_free(balance: Balance) -> str:
    """How much of the unexplained growth malloc keeps for later; empty if it keeps no more than before."""
    if balance.malloc_free is None or balance.malloc_free <= 0:
        return ""
    return f" (malloc keeps {show_bytes(balance.malloc_free)} more of free memory)"


def _shown(value: int | None) -> str:
    return "not known" if value is None else show_bytes(value)
