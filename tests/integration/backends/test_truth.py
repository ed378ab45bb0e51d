"""Figures against known truths: /proc, what PHP says of itself, and leaks of a prime number of KiB."""

from __future__ import annotations

import pytest
from conftest import Fpm, Tracer, rollup_bytes, status_bytes

from tracer.targets.kernel import RssKind, kernel_layout

KIB = 1024
SCRIPTS = (
    ("hello.php", ""),
    ("leak.php", "1000003"),
    ("huge.php", "30000001"),
    ("grow.php", ""),
    ("gd.php", ""),
    ("hold.php", "40"),
    ("brk.php", ""),
)


def _warm(fpm: Fpm, traced: Tracer, script: str, query: str, times: int = 3) -> None:
    for _ in range(times):
        fpm.get(script, QUERY_STRING=query)
    traced.next(times)


@pytest.mark.parametrize("leaked_kib", [131, 257, 521, 1031, 4099])
def test_a_native_leak_shows_as_native_growth_within_8_kib(fpm: Fpm, traced: Tracer, leaked_kib: int) -> None:
    leaked = leaked_kib * KIB
    _warm(fpm, traced, "leak.php", str(leaked))

    fpm.get("leak.php", QUERY_STRING=str(leaked))
    (request,) = traced.next()

    assert request.native_growth is not None
    assert abs(request.native_growth - leaked) <= 8 * KIB
    assert request.growth == request.native_growth


def test_small_leaks_add_up_to_what_was_leaked(fpm: Fpm, traced: Tracer) -> None:
    leaked, times = 13 * KIB, 101
    _warm(fpm, traced, "leak.php", str(leaked), times=20)

    for _ in range(times):
        fpm.get("leak.php", QUERY_STRING=str(leaked))
    growth = sum(request.native_growth or 0 for request in traced.next(times))

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


def test_usage_at_the_end_of_a_script_is_what_it_still_holds(fpm: Fpm, traced: Tracer) -> None:
    answer = fpm.get("hold.php", QUERY_STRING="10")
    (request,) = traced.next()

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


@pytest.mark.parametrize(("script", "query"), SCRIPTS)
def test_net_mapped_bytes_are_the_change_of_the_address_space(
    fpm: Fpm, traced: Tracer, script: str, query: str
) -> None:
    fpm.get(script, QUERY_STRING=query)
    traced.next()
    (worker,) = fpm.workers()
    (before,) = status_bytes(worker, "VmSize")

    fpm.get(script, QUERY_STRING=query)
    (request,) = traced.next()

    (after,) = status_bytes(worker, "VmSize")
    assert (request.vm_before, request.vm_after) == (before, after)
    assert None not in (request.map_bytes, request.unmap_bytes, request.brk_bytes)
    assert request.map_bytes - request.unmap_bytes + request.brk_bytes == after - before  # type: ignore[operator]


def test_memory_calls_are_counted_by_kind(fpm: Fpm, traced: Tracer) -> None:
    fpm.get("huge.php", QUERY_STRING="30000001")
    fpm.get("brk.php")
    huge, brk = traced.next(2)

    assert huge.map_calls is not None
    assert huge.map_calls >= 1
    assert huge.map_bytes is not None
    assert huge.map_bytes >= 30_000_001
    assert huge.unmap_calls is not None
    assert huge.unmap_calls >= 1
    assert brk.brk_calls is not None
    assert brk.brk_calls >= 10
    assert brk.brk_bytes is not None
    assert brk.brk_bytes >= 500 * 4001 - 264 * KIB


def test_mremap_counts_as_one_of_each(fpm: Fpm, traced: Tracer) -> None:
    _warm(fpm, traced, "hello.php", "", times=10)  # until Zend has no cached chunk left to unmap
    fpm.get("brk.php")
    (request,) = traced.next()

    # One malloc of a block of its own, and five realloc() that let it grow by mremap.
    assert request.map_calls == 6
    assert request.unmap_calls == 5


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


def test_a_file_mapped_for_a_while_is_not_taken_for_anonymous_memory(fpm: Fpm, traced: Tracer) -> None:
    (fpm.folder / "mapped").write_bytes(bytes(100 * KIB * KIB))
    fpm.get("map.php", QUERY_STRING=f"{fpm.folder}/mapped")
    (request,) = traced.next()

    assert request.unmap_bytes is not None
    assert request.unmap_bytes >= 100 * KIB * KIB
    assert request.anon_peak is not None
    assert request.anon_before is not None
    assert request.anon_peak - request.anon_before < 1024 * KIB


def test_an_innocent_request_is_not_credited_with_the_chunks_another_left(fpm: Fpm, traced: Tracer) -> None:
    fpm.get("hold.php", QUERY_STRING="40")
    fpm.get("hello.php")
    _, innocent = traced.next(2)

    assert innocent.growth is not None
    assert innocent.growth < -1024 * KIB  # Zend trimmed its cache at the end of this one
    assert innocent.native_growth is not None
    assert abs(innocent.native_growth) <= 64 * KIB


def test_what_a_request_does_after_its_answer_still_belongs_to_it(fpm: Fpm, traced: Tracer) -> None:
    answer = fpm.get("finish.php")
    (request,) = traced.next()

    assert answer.body == b"answered"
    assert request.native_growth is not None
    assert request.native_growth >= 3_000_017


def test_faults_and_times_are_plausible(fpm: Fpm, traced: Tracer) -> None:
    fpm.get("leak.php", QUERY_STRING="4096000")
    (request,) = traced.next()

    assert request.minor_faults is not None
    assert request.minor_faults >= 1000
    assert request.duration_ns is not None
    assert request.cpu_ns is not None
    assert 0 < request.cpu_ns <= request.duration_ns + 4_000_000  # accounted at ticks of 4 ms
