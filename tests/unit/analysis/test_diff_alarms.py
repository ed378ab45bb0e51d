"""How often a comparison of the same site finds a change, and how often it finds a leak of 64 KiB a request."""

from __future__ import annotations

import pytest
from deploys import SITE, recorded, rows, with_leak
from planted import KIB

from tracer.analysis.diff_change import Figure, Kind

SEEDS = 50
CHANGED = (Kind.ROSE, Kind.FELL)


def test_of_fifty_comparisons_of_a_site_with_itself_at_most_two_find_a_change():
    alarms = []
    for seed in range(SEEDS):
        found = rows(recorded(seed=seed), recorded(seed=1_000 + seed, first_pid=900))
        alarms += [(seed, key, one.figure, one.shift, one.low, one.high) for key, row in found.items()
                   for one in row.changes.values() if one.kind in CHANGED]  # fmt: skip

    assert len({seed for seed, *_ in alarms}) <= 0.05 * SEEDS, alarms


def test_long_running_workers_and_new_ones_are_alike():
    alarms = []
    for seed in range(SEEDS // 2):
        found = rows(recorded(seed=seed, requests=4_500)[3_000:], recorded(seed=1_000 + seed, first_pid=900))
        alarms += [(seed, key, one.figure, one.shift, one.low, one.high) for key, row in found.items()
                   for one in row.changes.values() if one.kind in CHANGED]  # fmt: skip

    assert len({seed for seed, *_ in alarms}) <= 1, alarms


@pytest.mark.parametrize("script", ["/hello.php", "/page.php", "/leak.php", "/search.php"])
def test_of_fifty_deploys_that_leak_64_kib_a_request_at_least_48_are_found_and_nobody_else_is_accused(script):
    found = accused = 0
    for seed in range(SEEDS):
        after = recorded(with_leak(script), seed=1_000 + seed, first_pid=900)
        kinds = {key: row.changes[Figure.KEPT] for key, row in rows(recorded(seed=seed), after).items()}
        change = kinds[script]
        found += change.kind is Kind.ROSE and abs(change.shift - 64 * KIB) < 8 * KIB
        accused += any(kinds[key].kind in CHANGED for key in SITE if key != script)

    assert found >= 0.95 * SEEDS
    assert accused <= 0.05 * SEEDS
