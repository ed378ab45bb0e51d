"""The memory of a pool by default: of its cgroup or its host, without what others have eaten."""

from __future__ import annotations

from tracer.analysis.budget import Budget, BudgetFrom, budget_of
from tracer.analysis.memory_split import Snapshot, snapshot

MIB = 1 << 20
HOST = {"MemTotal": 8192 * MIB, "MemFree": 1024 * MIB, "MemAvailable": 6144 * MIB}
CGROUP = {"path": "/fpm.service", "version": 2, "limit": 512 * MIB, "usage": 500 * MIB, "pids": [4001],
          "stat": {"anon": 300 * MIB, "file": 180 * MIB, "shmem": 40 * MIB, "kernel": 20 * MIB}}  # fmt: skip
NOTHING = snapshot(None)


def of(*cgroups: object, host: object = HOST) -> Snapshot:
    return snapshot({"host": host, "cgroups": list(cgroups)})


def test_the_default_budget_is_the_limit_of_the_cgroup_without_what_others_have_eaten():
    found = budget_of(330 * MIB, (4001,), NOTHING, of(CGROUP))

    assert found == Budget(BudgetFrom.CGROUP, 512 * MIB, 300 * MIB + 40 * MIB + 20 * MIB - 330 * MIB, "/fpm.service")
    assert found.usable == 512 * MIB - 30 * MIB - int(512 * MIB * 0.05)


def test_the_default_budget_without_a_limit_is_the_memory_of_the_host():
    expected = Budget(BudgetFrom.HOST, 8192 * MIB, 2048 * MIB - 330 * MIB)

    assert budget_of(330 * MIB, (4001,), of(), NOTHING) == expected
    assert budget_of(330 * MIB, (4001,), NOTHING, of({**CGROUP, "limit": None})) == expected


def test_a_host_that_has_less_than_the_limit_is_the_budget():
    small = {"MemTotal": 600 * MIB, "MemFree": 10 * MIB, "MemAvailable": 60 * MIB}
    found = budget_of(330 * MIB, (4001,), NOTHING, of(CGROUP, host=small))

    assert found == Budget(BudgetFrom.HOST, 600 * MIB, 540 * MIB - 330 * MIB)


def test_the_cgroup_of_another_master_is_not_the_budget():
    other = {**CGROUP, "limit": 64 * MIB, "pids": [5003]}
    found = budget_of(330 * MIB, (4001,), NOTHING, of(other, CGROUP))

    assert found is not None
    assert found.total == 512 * MIB


def test_no_snapshot_gives_no_budget():
    assert budget_of(330 * MIB, (4001,), NOTHING, snapshot({"host": {"MemTotal": "x"}, "cgroups": 7})) is None


def test_the_limit_counts_though_the_master_had_ended_before_the_recording_did():
    found = budget_of(330 * MIB, (4001,), of(CGROUP), of())

    assert found == Budget(BudgetFrom.CGROUP, 512 * MIB, 300 * MIB + 40 * MIB + 20 * MIB - 330 * MIB, "/fpm.service")
