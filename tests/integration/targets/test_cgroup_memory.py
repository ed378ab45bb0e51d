"""A real memory cgroup: what a process allocates is eaten, and what it copies is only borrowed."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from memory_cgroups import MemoryCgroup, memory_cgroup
from waiting import wait_for

from tracer.analysis.memory_split import Split, snapshot
from tracer.targets import host_memory

MIB = 1 << 20
LIMIT = 192 * MIB
ALLOCATES = "held = b'x' * (64 << 20)"
SHARES = "import mmap; held = mmap.mmap(-1, 64 << 20); held.write(b'x' * (64 << 20))"
COPIES = "open(sys.argv[1], 'wb').write(bytes(1 << 20) * 64); held = None"


@pytest.fixture
def cgroup() -> Iterator[MemoryCgroup]:
    with memory_cgroup(LIMIT) as found:
        yield found


def split(cgroup: MemoryCgroup, does: str, path: Path) -> Split:
    """The memory of the cgroup while a process in it, which has done that, waits."""
    program = f"import os, sys\n{does}\nprint('done', flush=True)\nsys.stdin.read()"
    command = [*cgroup.enter, sys.executable, "-c", program, str(path)]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == b"done\n"
        (found,) = snapshot(host_memory.snapshot([process.pid])).cgroups
        assert found.path.endswith(f"/phptrace-test-{os.getpid()}")
    finally:
        process.communicate()
    return found.split


@pytest.mark.parametrize(("does", "name"), [(ALLOCATES, "anon"), (SHARES, "shmem"), (COPIES, "page_cache")])
def test_memory_is_in_the_part_that_it_belongs_to(cgroup, tmp_path, does, name):
    found = split(cgroup, does, tmp_path / "large")

    parts = {part: getattr(found, part) for part in ("anon", "shmem", "page_cache")}
    assert 64 * MIB <= parts.pop(name) < 80 * MIB
    assert all(size < 24 * MIB for size in parts.values())
    assert (found.eaten >= 64 * MIB) is (name != "page_cache")
    assert found.total == LIMIT
    assert found.available == pytest.approx(LIMIT - found.eaten, abs=MIB)


def test_a_copied_file_takes_no_memory_from_a_process_that_needs_it(cgroup, tmp_path):
    does = COPIES.replace("* 64", "* 160") + "\nheld = b'x' * (100 << 20)"
    found = split(cgroup, does, tmp_path / "large")

    assert found.anon >= 100 * MIB
    assert cgroup.oom_kills == 0
    wait_for(cgroup.empty, "the process to end")
