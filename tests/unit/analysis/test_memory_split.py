"""Memory is split into what is eaten, what is borrowed and what is free, and the parts add up."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from samples import PROPERTY

from tracer.analysis.memory_split import Snapshot, Split, recorded, snapshot

# In kB, of a host that had copied large files.
HOST = {name: value * 1024 for name, value in {
    "MemTotal": 8_000_000, "MemFree": 500_000, "MemAvailable": 5_600_000, "Buffers": 40_000, "Cached": 5_060_000,
    "AnonPages": 1_900_000, "Mapped": 160_000, "Shmem": 60_000, "Dirty": 3000, "Writeback": 1000,
    "SReclaimable": 220_000, "SUnreclaim": 90_000, "KernelStack": 5000, "PageTables": 14_000, "Percpu": 1000,
    "Hugetlb": 2048,
}.items()}  # fmt: skip
CGROUP = {
    "path": "/fpm", "version": 2, "limit": 100_000, "usage": 60_000, "pids": [4001, "x", True],
    "stat": {"anon": 20_000, "file": 25_000, "shmem": 5000, "kernel": 9000, "slab_reclaimable": 4000, "sock": 500,
             "file_mapped": 7000, "file_dirty": 300},
}  # fmt: skip


def host(**changed: object) -> Split:
    found = snapshot({"host": {**HOST, **changed}}).host
    assert found is not None
    return found


def cgroup(**changed: object) -> Split:
    return snapshot({"cgroups": [{**CGROUP, **changed}]}).cgroups[0].split


def test_the_memory_of_a_host_adds_up():
    found = host()
    eaten = (1_900_000 + 60_000 + 90_000 + 5000 + 14_000 + 1000 + 2048) * 1024

    assert (found.anon, found.shmem, found.page_cache) == (1_900_000 * 1024, 60_000 * 1024, 5_040_000 * 1024)
    assert (found.kernel, found.huge, found.slab) == (110_000 * 1024, 2048 * 1024, 220_000 * 1024)
    assert found.other == 8_000_000 * 1024 - 500_000 * 1024 - found.borrowed - eaten
    assert found.eaten + found.borrowed + (found.free or 0) == found.total
    assert found.droppable == (5_040_000 - 100_000 - 4000 + 220_000) * 1024


def test_a_cgroup_of_version_2_adds_up():
    found = cgroup()

    assert (found.anon, found.shmem, found.page_cache, found.slab) == (20_000, 5000, 20_000, 4000)
    assert (found.kernel, found.other) == (9000 - 4000 + 500, 60_000 - 20_000 - 25_000 - 9000 - 500)
    assert found.eaten + found.borrowed + (found.free or 0) == 100_000
    assert (found.free, found.available, found.eaten_share) == (40_000, 64_000, 0.36)


def test_version_1_does_not_tell_reclaimable_slab_apart():
    found = cgroup(version=1, stat={"anon": 20_000, "file": 25_000, "shmem": 5000, "kernel": 9000})

    assert (found.slab, found.kernel, found.borrowed) == (None, 9000, 20_000)


def test_a_cgroup_without_a_limit_has_nothing_free():
    found = cgroup(limit=None)

    assert (found.total, found.free, found.available, found.eaten_share) == (None, None, None, None)


def test_the_processes_that_were_asked_for_are_known_by_their_pids():
    (found,) = snapshot({"cgroups": [CGROUP]}).cgroups

    assert (found.path, found.version, found.pids) == ("/fpm", 2, (4001,))


@pytest.mark.parametrize(
    "entry",
    [
        None, 7, "x", [], {}, {"host": 7, "cgroups": 7}, {"host": {"MemTotal": 7}},
        {"host": {"MemTotal": "7", "MemFree": 7}}, {"host": {"MemTotal": -7, "MemFree": 7}, "cpus": 0},
        {"cgroups": [7, {}, {**CGROUP, "path": 7}, {**CGROUP, "usage": 1 << 63}, {**CGROUP, "stat": []}], "cpus": "2"},
    ],
)  # fmt: skip
def test_malformed_figures_are_left_out(entry):
    assert snapshot(entry) == Snapshot(None, None, ())


@PROPERTY
@given(st.dictionaries(st.sampled_from([*HOST]), st.integers(0, (1 << 63) - 1)))
def test_no_figures_give_a_negative_part(changed):
    found = host(**changed)

    assert min(found.page_cache, found.other, found.eaten, found.borrowed, found.droppable) >= 0


def test_a_recording_has_two_snapshots():
    began, ended = recorded({"memory": {"host": HOST, "cpus": 2}, "memory_ended": {"cgroups": [CGROUP]}})

    assert (began.cpus, began.host, len(ended.cgroups)) == (2, host(), 1)
    assert recorded({}) == (Snapshot(None, None, ()), Snapshot(None, None, ()))
