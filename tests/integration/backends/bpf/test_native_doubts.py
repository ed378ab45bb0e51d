"""Blocks whose size, owner or thread is in doubt: they are attributed rightly, or the request is not counted."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from c_programs import compiled
from fpm import ONE_WORKER, Fpm
from machine import lacking
from tracing import Tracer
from waiting import wait_for

from tracer.backends.bpf import native_probes
from tracer.facts import Note, Release, Worker

BLOCK = 100_016  # bytes of the block that malloc makes of 100,003
PATTERNS = 20
# Allocates 1,000 blocks, one a millisecond, and keeps them; then it ends.
BACKGROUND = """
#include <pthread.h>
#include <stdlib.h>
#include <unistd.h>
static void *run(void *unused) { for (int i = 0; i < 1000; i++) { malloc(10000); usleep(1000); } return unused; }
void background(void) { pthread_t thread; pthread_create(&thread, 0, run, 0); pthread_detach(thread); }
"""


@pytest.fixture
def swap(tmp_path: Path) -> Iterator[None]:
    """The machine has swap."""
    if len(Path("/proc/swaps").read_text().splitlines()) > 1:
        yield
        return
    file = tmp_path / "swap"
    file.touch(0o600)
    file.write_bytes(bytes(16 << 20))
    if any(subprocess.run([command, file], capture_output=True).returncode for command in ("mkswap", "swapon")):
        lacking("there is no swap. Make some: swapon FILE.")
    yield
    subprocess.run(["swapoff", file], check=True)


def releases(tracer: Tracer) -> list[tuple[int, int]]:
    """The start of the owner and the bytes of each release."""
    return [(fact.started_ns, fact.bytes) for fact in tracer.facts if isinstance(fact, Release)]


@pytest.mark.usefixtures("swap")
def test_a_block_whose_page_is_not_in_memory_when_it_is_freed_has_the_size_it_was_allocated_with(
    start_fpm: Callable[..., Fpm], trace: Callable[..., Tracer]
) -> None:
    fpm = start_fpm(www=f"{ONE_WORKER}\nprocess.dumpable = yes")  # so that it may read its own pagemap
    held = fpm.folder / "held"
    held.touch()
    held.chmod(0o666)
    fpm.get("native_paged_out.php", QUERY_STRING="both")
    tracer = trace(str(fpm.master))

    fpm.get("native_paged_out.php", QUERY_STRING="keep")
    texts = [fpm.get("native_paged_out.php", QUERY_STRING=what).text for what in ("free", "both")]

    keeps, frees, does_both = tracer.next(3)
    assert texts == ["paged out", "paged out"]
    assert [one.native_kept for one in (keeps, frees, does_both)] == [BLOCK, 0, 0]
    assert releases(tracer) == [(keeps.started_ns, BLOCK)]


def test_a_request_with_more_blocks_than_owners_are_remembered_is_not_counted(
    start_fpm: Callable[..., Fpm], trace: Callable[..., Tracer], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(native_probes, "_OWNED_MAX", 4096)
    fpm = start_fpm(www=ONE_WORKER)
    fpm.get("native_many.php", QUERY_STRING="1")
    tracer = trace(str(fpm.master))

    for blocks in (100, 10_000, 100, 10_000, 1000):
        fpm.get("native_many.php", QUERY_STRING=str(blocks))

    found = tracer.next(5)
    assert [one.native_kept for one in found] == [0, None, 0, None, 0]
    assert [one.notes for one in found] == [None, Note.NATIVE_NOT_COUNTED.value] * 2 + [None]


def test_a_worker_that_ends_gives_nothing_back_to_those_who_kept_it(
    start_fpm: Callable[..., Fpm], trace: Callable[..., Tracer]
) -> None:
    fpm = start_fpm(www=f"{ONE_WORKER}\npm.max_requests = 12")
    fpm.get("native_patterns.php", QUERY_STRING=str(PATTERNS))
    tracer = trace(str(fpm.master))
    (first,) = fpm.workers()

    for _ in range(11):
        fpm.get("native_patterns.php", QUERY_STRING=str(PATTERNS))
    found = tracer.next(11)
    wait_for(lambda: tracer.poll() or first in _ended(tracer), "the worker to end")

    # Counted from the first or second on: the worker may be at its first when it is linked.
    kept = [one.native_kept or 0 for one in found[1:]]
    assert all(value > PATTERNS * 100 for value in kept)
    # The table of PCRE's cache grows, and the one before it is freed.
    assert sum(size for _, size in releases(tracer)) < 0.05 * sum(kept)


def _ended(tracer: Tracer) -> set[int]:
    return {fact.pid for fact in tracer.facts if isinstance(fact, Worker) and fact.died_ns is not None}


def test_a_thread_that_outlives_its_request_allocates_for_no_request(
    start_fpm: Callable[..., Fpm], trace: Callable[..., Tracer], tmp_path: Path
) -> None:
    fpm = start_fpm(www=ONE_WORKER)
    library = fpm.folder / "background.so"
    # PHP closes the library when the request is over, and the thread goes on.
    compiler = ["gcc", "-w", "-shared", "-fPIC", "-Wl,-z,nodelete", "-x", "c", "-"]
    subprocess.run([*compiler, "-o", library], input=BACKGROUND, text=True, check=True)
    fpm.get("hello.php")
    tracer = trace(str(fpm.master))

    fpm.get("native_background.php", QUERY_STRING=str(library))
    for _ in range(20):
        fpm.get("hello.php")
        fpm.get("native_phases.php", QUERY_STRING="10-5000-10")

    # FFI keeps what it has parsed of the declarations in the first.
    found = [one.native_kept for one in tracer.next(41)[3:]]
    # Where the thread was in the middle of malloc() when a request began or ended, that may have mapped a few pages.
    assert sum(kept != 0 for kept in found) <= 4
    assert all(kept is not None and abs(kept) <= 4 * 4096 for kept in found)


def test_a_thread_that_a_request_starts_and_waits_for_allocates_for_it(fpm: Fpm, trace: Callable[..., Tracer]) -> None:
    tracer = trace(str(fpm.master))

    for _ in range(3):
        fpm.get("native_thread.php")

    found = tracer.next(3)
    # glibc gives the thread an arena of its own, and each thread a stack and a table, which are used again.
    assert [abs((one.native_kept or 0) - BLOCK) < 1024 for one in found[1:]] == [True, True]


THREADS = """
#include <pthread.h>
#include <stdlib.h>
static void *work(void *taken)
{
	for (int i = 0; i < 300; i++) {
		void *block = malloc(1000 + i * 10);
		block = realloc(block, 200000 + i);
		block = realloc(block, 50);
		free(block);
	}
	free(taken);
	return malloc(5000);
}
void run(void)
{
	pthread_t threads[4];
	void *kept;
	for (int i = 0; i < 4; i++)
		pthread_create(&threads[i], 0, work, malloc(70000));
	for (int i = 0; i < 4; i++)
		pthread_join(threads[i], &kept);
}
"""


def test_blocks_of_several_threads_are_counted_once_though_their_arenas_grow(
    start_fpm: Callable[..., Fpm], trace: Callable[..., Tracer]
) -> None:
    fpm = start_fpm(www=ONE_WORKER)
    library = compiled(THREADS, fpm.folder / "threads.so", "-shared", "-fPIC", "-pthread")
    for _ in range(5):  # so that each thread's arena and stack are there
        fpm.get("native_threads.php", QUERY_STRING=str(library))
    tracer = trace(str(fpm.master))

    for _ in range(100):
        fpm.get("native_threads.php", QUERY_STRING=str(library))

    kept = [one.native_kept or 0 for one in tracer.next(100)]
    # A thread that begins while another one ends may get a new stack, which is kept for the next.
    assert sorted(kept)[75] == pytest.approx(4 * 5008, abs=512)
    assert sorted(kept)[25] == pytest.approx(4 * 5008, abs=512)
