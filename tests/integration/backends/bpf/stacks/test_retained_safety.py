"""Probes on the returns of malloc are gone when tracing ends. test_bpf_safety.py kills it."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from code_text import allocator_code
from fpm import TWO_WORKERS, Fpm
from load import Load
from tracing import Tracer

from tracer.backends import NativeOptions, StackOptions

pytestmark = pytest.mark.needs_bpf
PAGE = "native_page.php"


@pytest.fixture(scope="module")
def pool(start_fpm: Callable[..., Fpm]) -> Fpm:
    return start_fpm(www=TWO_WORKERS)


def test_when_tracing_ends_under_load_malloc_is_as_it_was(pool: Fpm, trace: Callable[..., Tracer]) -> None:
    workers = set(pool.workers())
    body = pool.get(PAGE).body
    untouched = {pid: allocator_code(pid) for pid in workers}
    tracer = trace(str(pool.master), stacks=StackOptions(block_bytes=64), native=NativeOptions(100.0))

    with Load(pool, PAGE, body) as load:
        load.wait_for_more(50)
        tracer.close()
        load.wait_for_more(50)

    assert load.failed == 0
    assert {pid: allocator_code(pid) for pid in workers} == untouched
    assert set(pool.workers()) == workers
