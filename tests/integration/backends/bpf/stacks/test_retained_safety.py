"""Probes on the returns of malloc are gone with phptrace, however it ends, and harm no worker."""

from __future__ import annotations

import random
import signal
import subprocess
import sys
from collections.abc import Callable

import pytest
from code_text import allocator_code
from fpm import TWO_WORKERS, Fpm
from load import Load
from tracing import Tracer
from waiting import wait_for

from tracer.backends import NativeOptions, StackOptions

pytestmark = pytest.mark.needs_bpf
PAGE = "native_page.php"
# A tracer that samples every block, until it is killed.
TRACER = """
import sys
from tracer.backends import NativeOptions, StackOptions
from tracer.backends.bpf.backend import BpfBackend
from tracer.targets.resolve import targets

backend = BpfBackend(stacks=StackOptions(block_bytes=64), native=NativeOptions(100.0))
backend.attach(targets([sys.argv[1]], symbols=True))
print(*backend.lacking or ["attached"], flush=True)
while True:
    backend.poll(0.05)
"""


@pytest.fixture(scope="module")
def pool(start_fpm: Callable[..., Fpm]) -> Fpm:
    return start_fpm(www=TWO_WORKERS)


@pytest.mark.parametrize("turns", [4, pytest.param(20, marks=pytest.mark.slow)])
def test_sigkill_under_load_leaves_no_probe_in_malloc_and_harms_no_worker(pool: Fpm, turns: int) -> None:
    workers = set(pool.workers())
    body = pool.get(PAGE).body
    untouched = {pid: allocator_code(pid) for pid in workers}
    rng = random.Random(23)

    for _ in range(turns):
        process = subprocess.Popen(
            [sys.executable, "-c", TRACER, str(pool.master)], stdout=subprocess.PIPE, text=True
        )  # fmt: skip
        assert process.stdout is not None
        assert process.stdout.readline() == "attached\n"
        assert all(allocator_code(pid) != untouched[pid] for pid in workers)
        with Load(pool, PAGE, body) as load:
            load.wait_for_more(rng.randrange(400))
            process.send_signal(signal.SIGKILL)
            process.communicate()
            load.wait_for_more(50)

        assert load.failed == 0
        wait_for(lambda: {pid: allocator_code(pid) for pid in workers} == untouched, "the probes to be gone")
    assert set(pool.workers()) == workers


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
