"""mmap, munmap, mremap and brk of each request, counted exactly; breakpoints see no system calls."""

from __future__ import annotations

import pytest
from backend_kinds import BPF_PARAM, SYSCALLS_PARAM
from fpm import Fpm
from proc_status import status_bytes
from tracing import Tracer

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


@pytest.fixture(scope="module", params=[BPF_PARAM, SYSCALLS_PARAM])
def backend(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def _warm(fpm: Fpm, traced: Tracer, script: str, query: str, times: int = 3) -> None:
    for _ in range(times):
        fpm.get(script, QUERY_STRING=query)
    traced.next(times)


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


def test_a_file_mapped_for_a_while_is_not_taken_for_anonymous_memory(fpm: Fpm, traced: Tracer) -> None:
    (fpm.folder / "mapped").write_bytes(bytes(100 * KIB * KIB))
    fpm.get("map.php", QUERY_STRING=f"{fpm.folder}/mapped")
    (request,) = traced.next()

    assert request.unmap_bytes is not None
    assert request.unmap_bytes >= 100 * KIB * KIB
    assert request.anon_peak is not None
    assert request.anon_before is not None
    assert request.anon_peak - request.anon_before < 1024 * KIB
