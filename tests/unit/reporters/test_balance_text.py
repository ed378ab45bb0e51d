"""The balance as a line, and its warning."""

from __future__ import annotations

from tracer.analysis.balance import Balance
from tracer.reporters import balance_text

KNOWN = Balance(
    workers=2, looked_at=2, requests=50, counted=50, workers_grew=112 << 10, native_kept=96 << 10, zend=0,
    between_requests=12 << 10, unexplained=4 << 10, malloc_free=3 << 10, heap_check=0,
)  # fmt: skip


def test_a_balance_is_one_line():
    assert balance_text.line(KNOWN) == (
        "workers grew 112 KiB: native 96.0 KiB, Zend's chunks 0 B, between requests 12.0 KiB, unexplained 4.0 KiB"
        " (malloc keeps 3.0 KiB more of free memory) (2 of 2 workers, 50 requests)"
    )


def test_parts_that_are_not_known_are_named_with_the_reason():
    found = Balance(1, 2, 1, 0, workers_grew=-4096, zend=-4096, why="1 worker: it said \x1b[31m")

    assert balance_text.line(found) == (
        "workers grew -4.0 KiB: native not known, Zend's chunks -4.0 KiB, between requests not known, unexplained not"
        " known (1 of 2 workers, 1 request; 1 worker: it said \\x1b[31m)"
    )


def test_a_balance_of_which_nothing_is_known_is_its_reason():
    found = Balance(0, 0, 0, 0, why="no worker was looked at")

    assert balance_text.line(found) == "growth of the workers: not known (no worker was looked at)"


def test_the_warning_names_unexplained_bytes_and_bytes_that_malloc_keeps_free():
    found = Balance(1, 1, 9, 9, workers_grew=20 << 20, unexplained=18 << 20, malloc_free=5 << 20)

    assert balance_text.warning(found) == (
        "warning: 18.0 MiB of the 20.0 MiB that 1 worker grew by is not explained by what the requests kept"
        " (malloc keeps 5.0 MiB more of free memory). See `phptrace heap PID`."
    )
