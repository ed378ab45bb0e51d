"""The balance as a line, and its warning."""

from __future__ import annotations

import dataclasses

from tracer.analysis.balance import Balance
from tracer.analysis.between import Between
from tracer.analysis.start import Parts
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


SEEN = Between(
    workers=3, grew=5 << 20, in_requests=-(3 << 20), between_requests=8 << 20, workers_between=2, not_known=0,
    shared_memory=-(2 << 20), workers_shared=1,
)  # fmt: skip


def test_growth_between_requests_is_a_line_that_says_what_it_is():
    assert balance_text.between_line(SEEN) == (
        "between requests: +8.0 MiB (2 of 3 workers), in requests -3.0 MiB. PHP reads a request's parameters before the"
        " request begins: large cookies or headers show here."
    )


def test_growth_between_requests_that_is_not_known_has_a_reason():
    partly = dataclasses.replace(SEEN, why="7 of 9 times requests in between were lost")

    assert "(2 of 3 workers; 7 of 9 times requests in between were lost)" in balance_text.between_line(partly)
    assert balance_text.between_line(Between(1, why="no worker served two requests")) == (
        "between requests: not known (no worker served two requests)"
    )


def test_shared_memory_is_a_line_that_says_what_it_is():
    assert balance_text.shared_line(SEEN) == (
        "shared memory: -2.0 MiB (1 of 3 workers). It is mostly OPcache's, which all workers share: a page counts in"
        " each that has used it."
    )
    assert balance_text.shared_line(Between(1)) == "shared memory: not known (no worker has two samples)"


def test_only_parts_that_are_large_are_shown_unasked():
    assert balance_text.large_parts(SEEN) == [balance_text.between_line(SEEN), balance_text.shared_line(SEEN)]
    assert balance_text.large_parts(dataclasses.replace(SEEN, between_requests=4096)) == [
        balance_text.shared_line(SEEN)
    ]
    assert balance_text.large_parts(Between(1)) == []


GREW = Parts(workers=44, start=12 << 20, kept=15 << 20, grew=31 << 20, between_requests=1 << 20, rest=3 << 20)


def test_the_growth_of_all_workers_is_a_line_whose_parts_add_up():
    assert balance_text.parts_line(GREW) == (
        "44 workers grew 31.0 MiB: kept 15.0 MiB, start 12.0 MiB, between requests 1.0 MiB, the rest 3.0 MiB (Zend's"
        " chunks, free memory that malloc keeps, and what was not counted)"
    )


def test_parts_that_are_not_known_are_in_the_rest():
    unknown = Parts(workers=1, start=None, kept=None, grew=-4096, between_requests=None, rest=-4096)

    assert balance_text.parts_line(unknown) == "1 worker grew -4.0 KiB: the rest -4.0 KiB"
    assert balance_text.start_line(unknown) == "start of 1 worker: not known (native memory was not counted)"
    assert balance_text.parts_line(Parts(0, None, None, None, None, None)) == (
        "growth of all workers: not known (no worker has two samples)"
    )


def test_the_start_and_the_sum_are_shown_where_they_are_large():
    assert balance_text.large_growth(GREW) == [balance_text.start_line(GREW), balance_text.parts_line(GREW)]
    assert balance_text.large_growth(dataclasses.replace(GREW, start=65_535, grew=1_048_575)) == []
    assert balance_text.large_growth(dataclasses.replace(GREW, start=65_536, grew=-1_048_576)) == [
        "start of 44 workers: 64.0 KiB, 1.5 KiB each, kept once, in caches. It is not a leak.",
        balance_text.parts_line(dataclasses.replace(GREW, start=65_536, grew=-1_048_576)),
    ]
