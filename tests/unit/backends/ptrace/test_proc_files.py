"""WorkerFiles of this process and, if time passes between two reads, of a process that does nothing else."""

from __future__ import annotations

import mmap
import os
import resource
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from waiting import wait_for

from tracer.backends.ptrace.proc_files import WorkerFiles

PAGES = 1021
NO_PID = 1 << 30  # above any pid_max
# Before Linux 6.16 the kernel sums pages late, and Python itself uses some meanwhile.
SLACK_BYTES = 512 * mmap.PAGESIZE
# Each input line holds a number of pages to map, and 1 to touch them. The program prints a line when it is done.
QUIET_PROGRAM = """
import mmap, sys
held = []
while line := sys.stdin.readline():
    pages, touch = map(int, line.split())
    memory = mmap.mmap(-1, pages * mmap.PAGESIZE, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    for page in range(pages * touch):
        memory[page * mmap.PAGESIZE] = 1
    held.append(memory)
    print(flush=True)
"""


class QuietProcess:
    """A process whose memory changes only on request. In the test process, garbage of other tests may be freed at any
    moment: once, 2 MiB of it hid the pages that a test had touched.
    """

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-c", QUIET_PROGRAM], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self.pid = self._process.pid
        self.map_pages(1, touch=True)  # its buffers exist from now on

    def map_pages(self, pages: int, *, touch: bool) -> None:
        """Map pages, and return when the process waits for its next line."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(f"{pages} {int(touch)}\n")
        self._process.stdin.flush()
        assert self._process.stdout.readline() == "\n"
        read = "0"  # x86-64
        wait_for(lambda: Path(f"/proc/{self.pid}/syscall").read_text().split()[0] == read, "the process to read")

    def close(self) -> None:
        self._process.communicate()


@pytest.fixture
def quiet() -> Iterator[QuietProcess]:
    process = QuietProcess()
    yield process
    process.close()


@pytest.fixture
def quiet_files(quiet: QuietProcess) -> Iterator[WorkerFiles]:
    opened = WorkerFiles(quiet.pid)
    yield opened
    opened.close()


@pytest.fixture
def files() -> Iterator[WorkerFiles]:
    opened = WorkerFiles(os.getpid())
    yield opened
    opened.close()


def open_files() -> set[str]:
    return set(os.listdir("/proc/self/fd"))


def status_bytes(name: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    [line] = [line for line in lines if line.startswith(f"{name}:")]
    return int(line.split()[1]) * 1024


def test_memory_is_that_of_the_status_file(files):
    memory = files.memory()
    expected = [status_bytes(name) for name in ("RssAnon", "RssFile", "RssShmem", "VmSize")]

    assert all(abs(ours - theirs) <= SLACK_BYTES for ours, theirs in zip(memory, expected, strict=True))
    assert memory.vm > memory.anon > 0
    assert memory.file > 0


def test_every_size_is_in_whole_pages(files):
    assert [size % mmap.PAGESIZE for size in files.memory()] == [0, 0, 0, 0]


def test_anonymous_memory_is_the_same_from_either_file(files):
    assert abs(files.anon() - files.memory().anon) <= SLACK_BYTES


def test_address_space_is_the_same_from_either_file(files):
    assert abs(files.vm() - files.memory().vm) <= SLACK_BYTES


def test_the_files_are_read_anew_each_time(quiet, quiet_files):
    anon, (minor, _) = quiet_files.anon(), quiet_files.faults()
    quiet.map_pages(PAGES, touch=True)

    assert abs(quiet_files.anon() - anon - PAGES * mmap.PAGESIZE) <= SLACK_BYTES
    assert quiet_files.faults()[0] - minor >= 1  # one suffices where the kernel takes huge pages


def test_a_new_mapping_is_address_space_without_being_touched(quiet, quiet_files):
    size = PAGES * mmap.PAGESIZE
    before = quiet_files.memory()
    quiet.map_pages(PAGES, touch=False)
    after = quiet_files.memory()

    assert size <= after.vm - before.vm <= size + SLACK_BYTES
    assert after.anon - before.anon <= SLACK_BYTES


def test_faults_are_those_of_getrusage(files):
    usage = resource.getrusage(resource.RUSAGE_SELF)
    minor, major = files.faults()

    assert 0 <= minor - usage.ru_minflt <= 128
    assert 0 <= major - usage.ru_majflt <= 128


def test_cpu_time_grows_while_the_process_works(files):
    before = files.cpu_ns()
    start = time.thread_time_ns()
    while time.thread_time_ns() - start < 20_000_000:
        pass

    assert files.cpu_ns() - before >= 10_000_000


def test_a_title_with_spaces_and_brackets_is_skipped(tmp_path):
    program = tmp_path / "a) R 1 (b"
    os.symlink("/bin/sleep", program)
    with subprocess.Popen([program, "600"], stdin=subprocess.DEVNULL) as started:
        try:
            opened = WorkerFiles(started.pid)
            minor, major = opened.faults()
            opened.close()
        finally:
            started.kill()

    assert 0 < minor < 100_000
    assert 0 <= major < 1_000


def test_a_missing_process_leaves_no_file_open():
    before = open_files()

    with pytest.raises(FileNotFoundError):
        WorkerFiles(NO_PID)
    assert open_files() == before


def test_reading_a_dead_process_is_an_error():
    with subprocess.Popen(["sleep", "600"]) as started:
        opened = WorkerFiles(started.pid)
        started.kill()

    with pytest.raises(ProcessLookupError):
        opened.memory()
    opened.close()


def test_close_closes_every_file_and_is_idempotent():
    before = open_files()
    opened = WorkerFiles(os.getpid())
    during = open_files()
    opened.close()
    opened.close()

    assert len(during) - len(before) == 4
    assert open_files() == before


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can be in as many groups as it likes")
def test_the_memory_of_a_process_in_thousands_of_groups_is_read():
    groups = list(range(100_000, 110_000))
    command = ["import os, signal", f"os.setgroups({groups!r})", "print(flush=True)", "signal.pause()"]
    with subprocess.Popen([sys.executable, "-c", "; ".join(command)], stdout=subprocess.PIPE) as started:
        assert started.stdout is not None
        started.stdout.readline()
        opened = WorkerFiles(started.pid)
        try:
            memory = opened.memory()
        finally:
            opened.close()
            started.kill()

    assert memory.anon > 1 << 20
    assert memory.vm > memory.anon
