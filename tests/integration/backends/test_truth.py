"""Figures against known truths: /proc, what PHP says of itself, and leaks of a prime number of KiB."""

from __future__ import annotations

import itertools
import mmap
import time

import pytest
from backend_kinds import CANNOT_SEE, NOTES, kept, notes
from fpm import Fpm
from proc_status import cpu_time_ns, rollup_bytes, status_bytes
from tracing import Tracer

from tracer.facts import Place
from tracer.targets.kernel import RssKind, kernel_layout

KIB = 1024
_TIMED = 200  # requests: CPU time is accounted at ticks, and exact in sums only
_TICK_NS = 10_000_000  # of 100 Hz, the slowest there is
_CLOCKS_NS = 1_000_000  # the wall clock is read a little after the monotonic one, once
SCRIPTS = (
    ("hello.php", ""),
    ("leak.php", "1000003"),
    ("huge.php", "30000001"),
    ("grow.php", ""),
    ("gd.php", ""),
    ("hold.php", "40"),
    ("brk.php", ""),
)


def test_columns_are_none_where_a_backend_cannot_see_them(fpm: Fpm, traced: Tracer, backend: str) -> None:
    fpm.get("leak.php", QUERY_STRING="1000003")
    (request,) = traced.next()

    # In a container or not: that is the host's.
    unseen = {name for name, value in request._asdict().items() if value is None} - set(Place._fields)
    assert unseen == CANNOT_SEE[backend] | (set() if NOTES[backend] else {"notes"})
    assert notes(request) == NOTES[backend]


def _warm(fpm: Fpm, traced: Tracer, script: str, query: str, times: int = 3) -> None:
    for _ in range(times):
        fpm.get(script, QUERY_STRING=query)
    traced.next(times)


@pytest.mark.parametrize("leaked_kib", [131, 257, 521, 1031, 4099])
def test_a_native_leak_shows_within_8_kib(fpm: Fpm, traced: Tracer, leaked_kib: int) -> None:
    leaked = leaked_kib * KIB
    _warm(fpm, traced, "leak.php", str(leaked))

    fpm.get("leak.php", QUERY_STRING=str(leaked))
    (request,) = traced.next()

    for figure in (request.growth, kept(request)):
        assert figure is not None
        assert abs(figure - leaked) <= 8 * KIB


def test_small_leaks_add_up_to_what_was_leaked(fpm: Fpm, traced: Tracer) -> None:
    leaked, times = 13 * KIB, 101
    _warm(fpm, traced, "leak.php", str(leaked), times=20)

    for _ in range(times):
        fpm.get("leak.php", QUERY_STRING=str(leaked))
    growth = sum(kept(request) or 0 for request in traced.next(times))

    assert abs(growth - leaked * times) <= 140 * KIB  # malloc grows its arena in steps of 132 KiB


@pytest.mark.parametrize("elements", [1009, 40_009, 300_007])
def test_zends_peaks_equal_what_the_script_says_to_the_byte(fpm: Fpm, traced: Tracer, elements: int) -> None:
    answer = fpm.get("peak.php", QUERY_STRING=str(elements))
    (request,) = traced.next()

    peak, real_peak = map(int, answer.text.split())
    assert request.zend_real_peak == real_peak
    # Compiling comes before the script, its shutdown after; neither reaches a peak of many elements.
    if elements > 10_000:
        assert request.zend_peak == peak
    else:
        assert request.zend_peak is not None
        assert request.zend_peak >= peak


def test_usage_at_the_end_of_a_script_is_what_it_still_holds(fpm: Fpm, traced: Tracer, backend: str) -> None:
    answer = fpm.get("hold.php", QUERY_STRING="10")
    (request,) = traced.next()

    if "zend_used_end" in CANNOT_SEE[backend]:
        assert request.zend_used_end is None
        return
    assert request.zend_used_end is not None
    assert abs(request.zend_used_end - int(answer.text)) < 16 * KIB


@pytest.mark.parametrize(("script", "query"), SCRIPTS)
def test_rss_after_a_request_is_what_proc_says_of_the_idle_worker(
    fpm: Fpm, traced: Tracer, script: str, query: str
) -> None:
    fpm.get(script, QUERY_STRING=query)
    (request,) = traced.next()

    assert request.anon_after == rollup_bytes(request.pid, "Anonymous")
    # Before 6.2, `status` lacks what the kernel still holds back a task: up to 64 pages.
    if kernel_layout().rss_kind is RssKind.PERCPU:
        anon, file, shmem = status_bytes(request.pid, "RssAnon", "RssFile", "RssShmem")
        assert (request.anon_after, request.shmem_after) == (anon, shmem)
        assert request.file_after is not None
        assert abs(request.file_after - file) <= 16 * KIB  # the way back to accept() may touch a page of code


def test_the_peak_of_a_request_that_gave_everything_back_is_seen(fpm: Fpm, traced: Tracer) -> None:
    _warm(fpm, traced, "hello.php", "", times=10)
    fpm.get("hold.php", QUERY_STRING="40")
    (request,) = traced.next()

    assert request.anon_peak is not None
    assert request.anon_before is not None
    # A lower bound, by what the chunks held before: the worker's own, and what follows the last mmap.
    assert request.anon_peak - request.anon_before >= 40 * 16 * 65000 - 2 * 2048 * KIB
    assert request.zend_peak is not None
    assert request.zend_peak >= 40 * 16 * 65000


def test_an_innocent_request_is_not_credited_with_the_chunks_another_left(fpm: Fpm, traced: Tracer) -> None:
    fpm.get("hold.php", QUERY_STRING="40")
    fpm.get("hello.php")
    _, innocent = traced.next(2)

    assert innocent.growth is not None
    assert innocent.growth < -1024 * KIB  # Zend trimmed its cache at the end of this one
    assert innocent.native_kept in (0, None)


def test_what_a_request_does_after_its_answer_still_belongs_to_it(fpm: Fpm, traced: Tracer) -> None:
    answer = fpm.get("finish.php")
    (request,) = traced.next()

    assert answer.body == b"answered"
    assert request.anon_end is not None
    assert request.anon_before is not None
    # Zend gives back more than that afterwards, of what earlier requests left.
    assert request.anon_end - request.anon_before >= 3_000_017
    assert request.native_kept is None or request.native_kept >= 3_000_017


def test_each_page_that_a_request_touches_is_a_fault(fpm: Fpm, traced: Tracer) -> None:
    pages = 4_096_000 // mmap.PAGESIZE
    _warm(fpm, traced, "leak.php", "4096000")

    fpm.get("leak.php", QUERY_STRING="4096000")
    (request,) = traced.next()

    assert request.minor_faults is not None
    assert pages <= request.minor_faults <= pages + 64  # some of the worker's own
    assert request.major_faults == 0


def test_duration_and_cpu_time_are_within_what_a_client_and_proc_see(fpm: Fpm, traced: Tracer) -> None:
    (worker,) = fpm.workers()
    began_ns, cpu_before_ns = time.time_ns(), cpu_time_ns(worker)
    for _ in range(_TIMED):
        fpm.get("leak.php", QUERY_STRING="4096000")
    requests = traced.next(_TIMED)
    ended_ns, used_ns = time.time_ns(), cpu_time_ns(worker) - cpu_before_ns

    spans = [(request.started_ns or 0, request.duration_ns or 0) for request in requests]
    assert all(duration > 0 for _, duration in spans)
    assert began_ns - _CLOCKS_NS <= spans[0][0]
    assert spans[-1][0] + spans[-1][1] <= ended_ns + _CLOCKS_NS
    # One worker: a request begins when the one before is over.
    assert all(start + duration <= following for (start, duration), (following, _) in itertools.pairwise(spans))
    cpu_ns = sum(request.cpu_ns or 0 for request in requests)
    assert 0 < cpu_ns <= used_ns + _TICK_NS
