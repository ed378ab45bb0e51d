"""Planted behaviours in real workers, all of them in one pool at a time, and the verdicts on them.

The same in thousands of simulated requests, in many orders: tests/unit/analysis/verdict/test_planted.py.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from command import attached_to, finish, phptrace, run
from fpm import Fpm
from waiting import wait_for

from tracer.recording.reader import Reader

pytestmark = [pytest.mark.needs_bpf, pytest.mark.needs_php]

_WORKERS = 3
_GENERATED = 90  # files that opcache has never seen
_STEADY = ("steady", "warm-up", "churn", "cache/shared")
# URI: requests, and the verdicts that are right. None of an innocent is `leak`.
_PLANTED = {
    "/leak": (150, ("leak",)),
    "/large-leak": (90, ("leak",)),
    "/rare-leak": (800, ("leak",)),  # one in 20 keeps
    "/rows-and-leak": (120, ("leak",)),
    "/page": (150, _STEADY),  # frees natively next to the leaks
    "/static-cache": (120, ("warm-up",)),
    "/patterns": (450, ("warm-up",)),
    "/export": (24, ("churn",)),
    "/month": (90, ("high-water",)),
    "/shared": (_GENERATED, ("cache/shared", "warm-up")),
    "/file": (80, ("steady",)),
    "/some-rows": (150, ("steady", "churn")),  # 12 MB or nothing: chunks that Zend keeps for later
    "/dies": (24, ("churn", "steady")),
    "/hello": (200, ("steady",)),
}
_RECYCLED = {"/leak": (150, ("leak",)), "/page": (150, _STEADY), "/hello": (150, ("steady", "warm-up"))}


def _order(planted: dict[str, tuple[int, tuple[str, ...]]], seed: int) -> list[tuple[str, int]]:
    """URIs and query strings of the requests, shuffled."""
    chance = random.Random(seed)
    visits: list[tuple[str, int]] = []
    for uri, (count, _) in planted.items():
        for nth in range(count):
            number = {"/leak": 32, "/shared": nth, "/rare-leak": 32 * (nth % 20 == 0)}.get(uri, 0)
            number = 40_000 * (nth % 3 == 0) if uri == "/some-rows" else number
            visits.append((uri, number))
    chance.shuffle(visits)
    return visits


def _prepared(fpm: Fpm) -> None:
    once, generated = fpm.folder / "once", fpm.folder / "generated"
    once.mkdir()
    once.chmod(0o777)
    generated.mkdir()
    with (fpm.folder / "big.dat").open("wb") as file:
        file.truncate(20 << 20)
    for number in range(_GENERATED):
        rows = ",".join(f"'{number}-{row}-{'x' * 40}'" for row in range(1_500))
        (generated / f"{number}.php").write_text(f"<?php return [{rows}];")


def _visit_all(fpm: Fpm, visits: Sequence[tuple[str, int]], clients: int) -> None:
    def visit(wanted: tuple[str, int]) -> None:
        uri, number = wanted
        assert fpm.get("planted.php", REQUEST_URI=f"{uri}?{number}", QUERY_STRING=str(number)).ended

    with ThreadPoolExecutor(clients) as pool:
        list(pool.map(visit, visits))


def _requests_in(path: Path) -> int:
    if not path.exists() or path.stat().st_size == 0:
        return 0
    with Reader(str(path)) as recording:
        return recording.totals().requests


def _judged(fpm: Fpm, visits: Sequence[tuple[str, int]], path: Path, clients: int) -> dict[str, dict[str, Any]]:
    process = phptrace("record", "--native", "on", "-o", str(path), str(fpm.master))
    attached_to(process)
    _visit_all(fpm, visits, clients)
    wait_for(lambda: _requests_in(path) >= len(visits), "the requests to be on disk")
    code, _, said = finish(process)
    assert code == 0, said
    document = json.loads(run("report", "--group-by", "uri", "-n", "0", "--format", "json", str(path)).stdout)
    assert document["lost"] == 0
    return {group["key"]: group for group in document["groups"]}


def _check(
    found: dict[str, dict[str, Any]], planted: dict[str, tuple[int, tuple[str, ...]]], *, most_unclear: int
) -> None:
    """No verdict is wrong; so many may be `unclear`: how many requests are counted depends on the machine."""
    assert found.keys() == planted.keys()
    wrong = [
        f"{uri}: {found[uri]['verdict']}, {found[uri]['evidence']}"
        for uri, (_, right) in planted.items()
        if found[uri]["verdict"] not in right
    ]
    assert len(wrong) <= most_unclear, wrong
    assert all(": unclear, " in one for one in wrong), wrong


@pytest.mark.parametrize("seed", [1, *[pytest.param(seed, marks=pytest.mark.slow) for seed in range(2, 6)]])
def test_each_planted_behaviour_of_one_pool_has_its_verdict(
    start_fpm: Callable[..., Fpm], tmp_path: Path, seed: int
) -> None:
    fpm = start_fpm(
        "opcache.enable=1", "opcache.validate_timestamps=0",
        www=f"pm = static\npm.max_children = {_WORKERS}\nphp_admin_value[memory_limit] = 128M",
    )  # fmt: skip
    _prepared(fpm)

    found = _judged(fpm, _order(_PLANTED, seed), tmp_path / "r.phptrace", _WORKERS)

    _check(found, _PLANTED, most_unclear=2)
    fpm.stop()


def test_workers_of_fifteen_requests_are_judged_together(start_fpm: Callable[..., Fpm], tmp_path: Path) -> None:
    fpm = start_fpm(www="pm = static\npm.max_children = 2\npm.max_requests = 15")
    _prepared(fpm)

    found = _judged(fpm, _order(_RECYCLED, 1), tmp_path / "r.phptrace", 2)

    # A worker that is born while the one before it dies may serve its first requests uncounted.
    _check(found, _RECYCLED, most_unclear=3)
    assert found["/leak"]["kept_per_request"] == pytest.approx(34_304, rel=0.02)
