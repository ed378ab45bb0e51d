"""The growth of the workers, and what explains it, as lines for people."""

from __future__ import annotations

from tracer.analysis.balance import Balance
from tracer.analysis.between import Between
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


def between_line(between: Between) -> str:
    """The growth between requests, with what it is; or why it is not known."""
    if between.between_requests is None:
        return f"between requests: not known ({printable(between.why or '')})"
    but = f"; {printable(between.why)}" if between.why else ""
    return (
        f"between requests: {show_bytes(between.between_requests, signed=True)}"
        f" ({between.workers_between:,} of {counted(between.workers, 'worker')}{but}), in requests"
        f" {show_bytes(between.in_requests, signed=True)}. PHP reads a request's parameters before the request begins:"
        " large cookies or headers show here."
    )


def shared_line(between: Between) -> str:
    """The growth of shared memory, with what it is."""
    if between.shared_memory is None:
        return "shared memory: not known (no worker has two samples)"
    return (
        f"shared memory: {show_bytes(between.shared_memory, signed=True)}"
        f" ({between.workers_shared:,} of {counted(between.workers, 'worker')}). It is mostly OPcache's, which all"
        " workers share: a page counts in each that has used it."
    )


def large_parts(between: Between) -> list[str]:
    """The lines of those that are more than 5 % of the growth and 1 MiB."""
    lines = [(between.much_between, between_line), (between.much_shared, shared_line)]
    return [line(between) for much, line in lines if much]


def _kept_free(balance: Balance) -> str:
    """How much of the unexplained growth malloc keeps for later; empty if it keeps no more than before."""
    if balance.malloc_free is None or balance.malloc_free <= 0:
        return ""
    return f" (malloc keeps {show_bytes(balance.malloc_free)} more of free memory)"


def _shown(value: int | None) -> str:
    return "not known" if value is None else show_bytes(value)
