"""Reading another process's memory: the mappings that matter, and the end of the process."""

from __future__ import annotations

import ctypes
import mmap
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from subprocesses import as_nobody
from waiting import wait_for

from tracer.targets.process_memory import PAGE, HeapUnknownError, ProcessMemory, Reason
from tracer.targets.processes import process


@pytest.fixture
def sleeper() -> Iterator[subprocess.Popen[bytes]]:
    started = subprocess.Popen(["sleep", "1000"])
    yield started
    started.kill()
    started.wait()


@pytest.fixture
def own() -> Iterator[ProcessMemory]:
    with ProcessMemory(os.getpid()) as memory:
        yield memory


def refusal(reader: object, *arguments: object) -> Reason:
    with pytest.raises(HeapUnknownError) as refused:
        reader(*arguments)  # type: ignore[operator]
    return refused.value.reason


def test_memory_is_read_and_unmapped_memory_is_none(own):
    text = ctypes.create_string_buffer(b"forty-two")
    at = ctypes.addressof(text)

    assert own.read(at, 9) == b"forty-two"
    assert own.words(at, 1) == (int.from_bytes(b"forty-tw", "little"),)
    assert [own.read(address, 8) for address in (0, 1 << 46, 1 << 62, 1 << 63, (1 << 64) - 8, 1 << 70)] == [None] * 6


def test_only_pages_that_were_used_are_resident(own):
    with mmap.mmap(-1, 16 * PAGE, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as memory:
        memory.madvise(mmap.MADV_NOHUGEPAGE)
        view = ctypes.c_char.from_buffer(memory)
        at = ctypes.addressof(view)
        memory[3 * PAGE] = memory[5 * PAGE] = 1
        del view

        assert [own.read(at + PAGE * number, PAGE) is not None for number in range(16)] == [
            n in (3, 5) for n in range(16)
        ]
        assert own.read_resident(at + 8, 16 * PAGE - 8) == memory[8:]
        assert own.anon_resident_bytes(at, at + 16 * PAGE) == 2 * PAGE
        assert own.swapped_bytes(at, at + 16 * PAGE) == 0


def test_pages_of_files_are_not_anonymous(own, tmp_path):
    (tmp_path / "file").write_bytes(bytes(4 * PAGE))
    with (tmp_path / "file").open("r+b") as file, mmap.mmap(file.fileno(), 4 * PAGE) as memory:
        view = ctypes.c_char.from_buffer(memory)
        at = ctypes.addressof(view)
        memory[0] = 1
        del view

        assert own.read(at, 1) == b"\1"
        assert own.anon_resident_bytes(at, at + 4 * PAGE) == 0


def test_the_heap_and_the_c_library_are_found(own):
    maps = own.maps()

    lines = Path("/proc/self/maps").read_text().splitlines()
    heap = [line for line in lines if line.endswith("[heap]")]
    assert maps.heap is not None
    assert heap[0].startswith(f"{maps.heap[0]:08x}-")
    assert maps.heap[0] <= maps.first_break < maps.heap[1]
    assert len(maps.libc_data) >= 1
    assert (maps.allocator, maps.hugetlb) == (None, ())


@pytest.mark.parametrize(
    ("name", "allocator"),
    [
        ("libjemalloc.so.2", "jemalloc"),
        ("libtcmalloc_minimal.so.4", "tcmalloc"),
        ("libmimalloc.so.2.0", "mimalloc"),
        ("ld-musl-x86_64.so.1", "musl"),
        ("libjem.so", None),
    ],
)
def test_another_allocator_is_known_by_the_name_of_its_file(own, tmp_path, name, allocator):
    shutil.copy("/proc/self/exe", tmp_path / name)
    with (tmp_path / name).open("rb") as file, mmap.mmap(file.fileno(), PAGE, prot=mmap.PROT_READ):
        assert own.maps().allocator == allocator


def test_a_process_that_ends_is_gone_and_its_memory_is_nothing(sleeper):
    with ProcessMemory(sleeper.pid) as memory:
        maps = memory.maps()
        sleeper.kill()
        sleeper.wait()

        assert memory.read(maps.first_break, 8) is None
        assert {refusal(call) for call in (memory.check, memory.maps, memory.anon_bytes)} == {Reason.GONE}


def test_a_zombie_is_gone():
    pid = os.fork()
    if pid == 0:
        os._exit(0)
    os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)

    try:
        assert refusal(ProcessMemory, pid) is Reason.GONE
    finally:
        os.waitpid(pid, 0)


def test_a_process_that_executes_another_program_is_gone():
    started = subprocess.Popen(["sh", "-c", "read line; exec sleep 1000"], stdin=subprocess.PIPE)
    assert started.stdin is not None
    with ProcessMemory(started.pid) as memory:
        maps = memory.maps()
        started.stdin.close()
        wait_for(lambda: Path(f"/proc/{started.pid}/comm").read_text() == "sleep\n", "the other program")

        assert memory.read(maps.first_break, 8) is None
        assert refusal(memory.check) is Reason.GONE
    started.kill()
    started.wait()


def test_a_process_is_known_by_its_start_time(sleeper):
    found = process(sleeper.pid)
    assert found is not None

    with ProcessMemory(sleeper.pid, found.start_ticks) as memory:
        memory.check()
    assert refusal(ProcessMemory, sleeper.pid, found.start_ticks + 1) is Reason.GONE


def test_descriptors_are_closed_however_it_ends(sleeper):
    before = os.listdir("/proc/self/fd")

    for start_ticks in (None, 1):
        try:
            with ProcessMemory(sleeper.pid, start_ticks) as memory:
                memory.swapped_bytes(memory.maps().first_break, memory.maps().first_break + 1)
        except HeapUnknownError:
            pass

    assert os.listdir("/proc/self/fd") == before


@pytest.mark.skipif(os.geteuid() != 0, reason="needs a process of another user")
def test_a_process_of_another_user_is_not_permitted(sleeper):
    def refused() -> bool:
        return refusal(ProcessMemory, sleeper.pid) is Reason.NOT_PERMITTED

    assert as_nobody(refused) == 0
