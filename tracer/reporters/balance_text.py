"""The growth of the workers, and what explains it, as lines for people."""

from __future__ import annotations

from tracer.analysis.balance import Balance
from tracer.analysis.between import Between
from tracer.analysis.start import Parts
from tracer.units import counted, printable, show_bytes

_LEAST_START = 64 << 10
_LEAST_GROWTH = 1 << 20


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


def start_line(parts: Parts) -> str:
    """The memory that each worker keeps once, or that it is not known."""
    workers = counted(parts.workers, "worker")
    if parts.start is None:
        one = parts.workers == 1
        first = f"{'its' if one else 'their'} first requests cannot be distinguished from the others"
        return f"start of {workers}: not known ({'native memory was not counted' if parts.kept is None else first})"
    each = f", {show_bytes(parts.start / parts.workers)} each" if parts.workers > 1 else ""
    return f"start of {workers}: {show_bytes(parts.start)}{each}, kept once, in caches. It is not a leak."


def parts_line(parts: Parts) -> str:
    """The growth of all workers as a sum."""
    if parts.grew is None or parts.rest is None:
        return "growth of all workers: not known (no worker has two samples)"
    named = (("kept", parts.kept), ("start", parts.start), ("between requests", parts.between_requests))
    known = "".join(f"{name} {show_bytes(value)}, " for name, value in named if value is not None)
    is_large = abs(parts.rest) >= _LEAST_GROWTH
    about = " (Zend's chunks, free memory that malloc keeps, and what was not counted)" if is_large else ""
    return (
        f"{counted(parts.workers, 'worker')} grew {show_bytes(parts.grew)}: {known}the rest {show_bytes(parts.rest)}"
        f"{about}"
    )


def large_growth(parts: Parts) -> list[str]:
    """The lines on the start of the workers, and on all their growth, where these are large."""
    lines = [start_line(parts)] if (parts.start or 0) >= _LEAST_START else []
    return lines + ([parts_line(parts)] if abs(parts.grew or 0) >= _LEAST_GROWTH else [])


def _kept_free(balance: Balance) -> str:
    """How much of the unexplained growth malloc keeps for later; empty if it keeps no more than before."""
    if balance.malloc_free is None or balance.malloc_free <= 0:
        return ""
    return f" (malloc keeps {show_bytes(balance.malloc_free)} more of free memory)"


def _shown(value: int | None) -> str:
    return "not known" if value is None else show_bytes(value)
