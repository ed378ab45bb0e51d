"""Walks of real heaps against malloc's own books, mallinfo2()."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from c_programs import Program, compiled, running
from proc_status import rollup_bytes, status_bytes

from tracer.targets.malloc_heap import walk
from tracer.targets.process_memory import HeapUnknownError, Reason

ROOT = Path(__file__).resolve().parents[3]

# Prints mallinfo2()'s uordblks, fordblks, fsmblks, hblkhd and keepcost, without a buffer of its own, before each step.
_PROGRAM = """
#define _GNU_SOURCE
#include <malloc.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static char line[256];

static void report(void)
{
    struct mallinfo2 m = mallinfo2();
    int n = snprintf(line, sizeof line, "%zu %zu %zu %zu %zu\\n",
                     m.uordblks, m.fordblks, m.fsmblks, m.hblkhd, m.keepcost);
    char wait;
    if (write(1, line, n) != n || read(0, &wait, 1) != 1)
        _exit(1);
}

static void *in_thread(void *kept) { return malloc(100); }

static void *kept[1 << 16];

int main(int argc, char **argv)
{
    const char *what = argv[1];
    kept[(1 << 16) - 1] = malloc(2000);
    report();
    if (!strcmp(what, "sizes")) {
        unsigned random = 7;
        for (int i = 0; i < 1 << 16; i++) {
            random = random * 1103515245 + 12345;
            size_t size = (random >> 16) % 700;
            kept[i] = memset(malloc(size), 1, size);
            if (i % 3 == 2)
                free(kept[i - 1]);
        }
        report();
        for (int i = 0; i < 1 << 16; i += 3)
            free(kept[i]);
        report();
    } else if (!strcmp(what, "fastbins")) {
        for (int i = 0; i < 1000; i++)
            kept[i] = malloc(i % 2 ? 24 : 88);
        for (int i = 0; i < 900; i++)
            free(kept[i]);
        report();
    } else if (!strcmp(what, "mapped")) {
        kept[0] = malloc(300000), kept[1] = malloc(5000000), kept[2] = malloc(1000);
        report();
        free(kept[0]);
        report();
    } else if (!strcmp(what, "large")) {
        for (int i = 0; i < 400; i++)
            kept[i] = malloc(100000);
        for (int i = 0; i < 400; i += 2)
            free(kept[i]);
        report();
    } else if (!strcmp(what, "sbrk")) {
        kept[0] = malloc(1000);
        sbrk(8192);
        report();
        for (int i = 1; i < 3000; i++)
            kept[i] = malloc(1000);
        report();
    } else if (!strcmp(what, "thread")) {
        pthread_t thread;
        pthread_create(&thread, NULL, in_thread, NULL);
        pthread_join(thread, NULL);
        report();
    } else if (!strcmp(what, "busy")) {
        for (unsigned i = 0;; i++) {
            free(kept[i % 4096]);
            kept[i % 4096] = malloc(i % 5000);
        }
    }
    pause();
}
"""


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return compiled(_PROGRAM, tmp_path_factory.mktemp("malloc") / "program", "-pthread")


def heap_is_as_in_malloc_s_books(program: Program, books: list[int]) -> bool:
    """malloc's own figures count what the thread cache keeps as in use, and what fastbins keep as free."""
    used, free, fast, mapped, top = books
    found = walk(program.pid)
    assert (found.settled, found.lacking, found.uncertain_bytes) == (True, (), 0)
    return (
        found.in_use_bytes + found.cached_bytes - fast == used
        and found.free_bytes + found.top_bytes - found.cached_bytes + fast == free
        and (found.mapped_bytes, found.top_bytes) == (mapped, top)
        and found.in_use_bytes == sum(size * count for size, count in found.sizes.items())
    )


@pytest.mark.parametrize(("what", "steps"), [("sizes", 2), ("fastbins", 1), ("mapped", 2), ("large", 1)])
def test_a_walk_finds_to_the_byte_what_malloc_s_books_say(program, what, steps):
    with running(program, what) as started:
        assert started.answer() != []
        for _ in range(steps):
            books = started.step()

            assert heap_is_as_in_malloc_s_books(started, books)


@pytest.mark.parametrize("tunables", ["glibc.malloc.tcache_count=0", "glibc.malloc.tcache_count=1000"])
def test_the_thread_cache_may_be_off_or_large(program, tunables):
    with running(program, "sizes", env={**os.environ, "GLIBC_TUNABLES": tunables}) as started:
        started.answer()
        books = started.step()

        assert heap_is_as_in_malloc_s_books(started, books)
        if tunables.endswith("=0"):
            assert walk(started.pid).in_use_bytes == books[0]


def test_the_change_between_two_looks_is_what_was_allocated(program):
    with running(program, "mapped") as started:
        started.answer()
        before = walk(started.pid)
        started.step()
        after = walk(started.pid)

        grown = {size: count - before.sizes.get(size, 0) for size, count in after.sizes.items()}
        assert {size: count for size, count in grown.items() if count} == {1008: 1}
        assert (after.in_use_bytes - before.in_use_bytes, after.mapped_bytes) == (1008, 303_104 + 5_001_216)


def test_a_thread_s_own_heap_is_noticed(program):
    with running(program, "thread") as started:
        started.answer()
        alone = walk(started.pid).other_arenas
        started.step()

        assert (alone, walk(started.pid).other_arenas) == (False, True)


def test_memory_of_others_behind_the_heap_is_left_out_and_in_its_middle_refused(program):
    with running(program, "sbrk") as started:
        started.answer()
        started.step()
        behind = walk(started.pid)
        started.step()

        assert behind.sizes[1008] == 1
        with pytest.raises(HeapUnknownError) as refused:
            walk(started.pid)
        assert refused.value.reason is Reason.INTERRUPTED


def memory_of(pid: int) -> list[int]:
    return [rollup_bytes(pid, "Anonymous"), *status_bytes(pid, "VmSize", "VmPTE")]


def test_a_look_does_not_make_memory_resident_or_stop_the_process(program):
    with running(program, "large") as started:
        started.answer()
        started.step()
        before = memory_of(started.pid)

        for _ in range(20):
            walk(started.pid)

        assert memory_of(started.pid) == before


def test_a_heap_that_never_rests_is_refused_or_said_not_to_be_settled(program):
    with running(program, "busy") as started:
        started.answer()
        started.go()
        looks, reasons = [], set()
        for _ in range(30):
            try:
                looks.append(walk(started.pid))
            except HeapUnknownError as exc:
                reasons.add(exc.reason)

        assert reasons <= {Reason.MALFORMED, Reason.INTERRUPTED}
        # 4,096 blocks of up to 5,000 bytes.
        assert all(found.in_use_bytes > 0 and found.free_bytes >= 0 for found in looks)
        assert all(found.in_use_bytes + found.free_bytes + found.top_bytes < 32 << 20 for found in looks)
        assert all(found.in_use_bytes < 4096 * 5016 + 4096 for found in looks if found.settled)


@pytest.fixture
def other_malloc(tmp_path: Path) -> Iterator[Path]:
    """A library with the name of jemalloc, loaded before the C library."""
    return compiled("int of_jemalloc;", tmp_path / "libjemalloc.so.2", "-shared", "-fPIC")


def test_another_allocator_is_refused_by_name(program, other_malloc):
    with running(program, "large", env={**os.environ, "LD_PRELOAD": str(other_malloc)}) as started:
        started.answer()

        with pytest.raises(HeapUnknownError, match="its malloc is jemalloc, not glibc's") as refused:
            walk(started.pid)
        assert refused.value.reason is Reason.OTHER_ALLOCATOR


def test_a_program_that_has_glibc_in_itself_is_read_as_well(tmp_path):
    static = compiled(_PROGRAM, tmp_path / "static", "-static", "-pthread")
    with running(static, "sizes") as started:
        started.answer()
        books = started.step()

        assert heap_is_as_in_malloc_s_books(started, books)


def test_a_process_without_a_heap_is_refused(tmp_path):
    source = '#include <unistd.h>\nint main(void) { write(1, "1\\n", 2); pause(); }'
    with running(compiled(source, tmp_path / "heapless")) as started:
        started.answer()

        with pytest.raises(HeapUnknownError) as refused:
            walk(started.pid)
        assert refused.value.reason is Reason.NO_HEAP


# A heap by sbrk() alone, whose first chunk leads to a page that this program has promised the kernel to provide, and
# never does. Prints 0 if it may not use userfaultfd for the kernel's own accesses.
_PROMISE = """
#define _GNU_SOURCE
#include <fcntl.h>
#include <linux/userfaultfd.h>
#include <stdint.h>
#include <sys/ioctl.h>
#include <sys/syscall.h>
#include <unistd.h>

int main(void)
{
    uint64_t *heap = sbrk(1 << 20);
    heap[1] = (64 << 10) | 1;
    int fd = syscall(SYS_userfaultfd, O_CLOEXEC);
    struct uffdio_api api = { .api = UFFD_API };
    struct uffdio_register area = {
        .range = { (uint64_t)heap + (32 << 10), 512 << 10 }, .mode = UFFDIO_REGISTER_MODE_MISSING
    };
    int ok = fd >= 0 && !ioctl(fd, UFFDIO_API, &api) && !ioctl(fd, UFFDIO_REGISTER, &area);
    write(1, ok ? "1\\n" : "0\\n", 2);
    pause();
}
"""


def test_a_page_that_its_owner_never_provides_is_not_waited_for(tmp_path):
    with running(compiled(_PROMISE, tmp_path / "promise")) as started:
        if started.answer() != [1]:
            pytest.skip("this kernel has no userfaultfd")
        program = (
            "from tracer.targets.malloc_heap import walk\n"
            "from tracer.targets.process_memory import HeapUnknownError\n"
            f"try: walk({started.pid})\n"
            "except HeapUnknownError as exc: print(exc.reason.value)"
        )

        # In a process of its own, which can be killed where it waits.
        ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=ROOT, timeout=60)

        assert ended.stdout == "malformed\n"
