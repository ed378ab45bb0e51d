"""The memory of this host, and of cgroups of both versions in folders of the tests' own."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tracer.targets import host_memory
from tracer.targets.host_memory import Cgroup, cgroup, host, snapshot

# Of Linux 6.18.
STAT_2 = """anon 7688192
file 10006528
kernel 4771840
kernel_stack 344064
pagetables 1548288
sec_pagetables 0
percpu 5760
sock 4096
vmalloc 20480
shmem 9170944
zswap 0
file_mapped 7749632
file_dirty 12288
file_writeback 0
unevictable 15327232
slab_reclaimable 1032192
slab_unreclaimable 1101824
slab 2134016
workingset_refault_anon 0
"""
FIGURES_2 = {
    "anon": 7_688_192, "file": 10_006_528, "shmem": 9_170_944, "file_mapped": 7_749_632, "file_dirty": 12_288,
    "unevictable": 15_327_232, "kernel": 4_771_840, "slab_reclaimable": 1_032_192, "slab_unreclaimable": 1_101_824,
    "kernel_stack": 344_064, "pagetables": 1_548_288, "percpu": 5760, "sock": 4096,
}  # fmt: skip
STAT_1 = """cache 131072
rss 7688192
rss_huge 0
shmem 65536
mapped_file 4096
dirty 12288
hierarchical_memory_limit 536870912
total_cache 10006528
total_rss 7692288
total_rss_huge 2097152
total_shmem 9170944
total_mapped_file 7749632
total_dirty 163840
total_unevictable 0
"""
FIGURES_1 = {"anon": 7_692_288, "file": 10_006_528, "shmem": 9_170_944, "file_mapped": 7_749_632, "file_dirty": 163_840,
             "unevictable": 0, "kernel": 2_134_016}  # fmt: skip


class Tree:
    """A folder of processes and a mounted hierarchy of cgroups."""

    def __init__(self, folder: Path, version: int, root: str = "/") -> None:
        self.proc, self.top, self.version = folder / "proc", folder / "a b", version
        (self.proc / "self").mkdir(parents=True)
        (self.proc / "7").mkdir()
        kind = "cgroup2 cgroup2 rw,nsdelegate" if version == 2 else "cgroup cgroup rw,memory"
        (self.proc / "self/mountinfo").write_text(
            f"30 23 0:26 / /sys rw - sysfs sysfs rw\n31 30 0:27 {root} {folder}/a\\040b rw shared:9 - {kind}\nshort\n"
        )

    def process(self, path: str) -> None:
        line = f"0::{path}" if self.version == 2 else f"9:name=systemd:/x\n4:cpu,memory:{path}\n0::/"
        (self.proc / "7/cgroup").write_text(line + "\n")

    def add(self, path: str, limit: str, *, high: str = "max", stat: str | None = None) -> Path:
        folder = self.top / path.strip("/")
        folder.mkdir(parents=True, exist_ok=True)
        if self.version == 2:
            files = {
                "memory.max": limit,
                "memory.high": high,
                "memory.current": "24576000",
                "memory.stat": stat or STAT_2,
            }
        else:
            files = {"memory.limit_in_bytes": limit, "memory.usage_in_bytes": "24576000",
                     "memory.kmem.usage_in_bytes": "2134016", "memory.stat": stat or STAT_1}  # fmt: skip
        for name, text in files.items():
            (folder / name).write_text(text + "\n")
        return folder

    def found(self) -> Cgroup | None:
        return cgroup(7, str(self.proc))


def test_the_memory_of_this_host_is_read_in_bytes():
    found = host()

    assert 0 < found["MemFree"] < found["MemTotal"] == os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    assert set(found) <= set(host_memory.HOST)
    assert {"MemAvailable", "Cached", "SReclaimable", "SUnreclaim", "AnonPages", "Shmem"} <= found.keys()


def test_a_cgroup_of_version_2_is_read(tmp_path):
    tree = Tree(tmp_path, 2)
    tree.process("/system.slice/fpm.service")
    tree.add("/system.slice", "max")
    tree.add("/system.slice/fpm.service", "536870912")

    assert tree.found() == Cgroup("/system.slice/fpm.service", 2, 536_870_912, 24_576_000, FIGURES_2)


def test_a_cgroup_of_version_1_is_read_with_those_below_it(tmp_path):
    tree = Tree(tmp_path, 1)
    tree.process("/fpm")
    tree.add("/", "9223372036854771712")
    tree.add("/fpm", "536870912")

    assert tree.found() == Cgroup("/fpm", 1, 536_870_912, 24_576_000, FIGURES_1)


def test_the_tightest_of_the_cgroups_above_is_the_one_that_counts(tmp_path):
    tree = Tree(tmp_path, 2)
    tree.process("/pod/fpm/worker")
    tree.add("/pod", "268435456")
    tree.add("/pod/fpm", "max", high="134217728")
    tree.add("/pod/fpm/worker", "max")

    found = tree.found()

    assert found is not None
    assert (found.path, found.limit) == ("/pod/fpm", 134_217_728)


@pytest.mark.parametrize(("version", "limit"), [(1, "9223372036854771712"), (2, "max")])
def test_without_any_limit_the_cgroup_of_the_process_is_named(tmp_path, version, limit):
    tree = Tree(tmp_path, version)
    tree.process("/pod/fpm")
    tree.add("/pod", limit)
    tree.add("/pod/fpm", limit)

    found = tree.found()

    assert found is not None
    assert (found.path, found.limit) == ("/pod/fpm", None)


def test_a_container_sees_its_own_part_of_the_hierarchy(tmp_path):
    tree = Tree(tmp_path, 1, root="/docker/5a")
    tree.process("/docker/5a")
    tree.add("/", "536870912")

    found = tree.found()

    assert found is not None
    assert (found.path, found.limit) == ("/docker/5a", 536_870_912)


@pytest.mark.parametrize("path", ["/../other", "/docker/5a/../../x", "/docker", "elsewhere"])
def test_a_cgroup_outside_of_what_is_mounted_is_not_known(tmp_path, path):
    tree = Tree(tmp_path, 2, root="/docker/5a")
    tree.process(path)
    tree.add("/", "536870912")

    assert tree.found() is None


def test_kernels_before_5_18_have_their_kernel_memory_in_parts(tmp_path):
    tree = Tree(tmp_path, 2)
    tree.process("/fpm")
    tree.add("/fpm", "max", stat="\n".join(line for line in STAT_2.splitlines() if not line.startswith("kernel ")))

    found = tree.found()

    assert found is not None
    assert found.stat["kernel"] == 344_064 + 1_548_288 + 5760 + 1_032_192 + 1_101_824


def test_a_cgroup_of_version_1_without_kernel_accounting_lacks_that(tmp_path):
    tree = Tree(tmp_path, 1)
    tree.process("/fpm")
    (tree.add("/fpm", "536870912") / "memory.kmem.usage_in_bytes").unlink()

    found = tree.found()

    assert found is not None
    assert "kernel" not in found.stat


@pytest.mark.parametrize("broken", ["memory.stat", "memory.max", "memory.current"])
def test_a_damaged_cgroup_is_not_known(tmp_path, broken):
    tree = Tree(tmp_path, 2)
    tree.process("/fpm")
    (tree.add("/fpm", "536870912") / broken).write_text("anon x\n")

    assert tree.found() is None


def test_a_process_that_has_ended_has_no_cgroup(tmp_path):
    assert Tree(tmp_path, 2).found() is None
    assert cgroup(1 << 22) is None


def test_a_snapshot_names_each_cgroup_once_with_the_processes_that_were_asked_for(monkeypatch):
    both = Cgroup("/fpm", 2, None, 7, {"anon": 5})
    monkeypatch.setattr(host_memory, "cgroup", {11: both, 13: both, 17: None}.get)

    found = snapshot([11, 13, 11, 17])

    expected = {"path": "/fpm", "version": 2, "limit": None, "usage": 7, "stat": {"anon": 5}, "pids": [11, 13]}
    assert found["cgroups"] == [expected]
    assert found["cpus"] == os.cpu_count()
    assert found["host"].keys() == host().keys()
