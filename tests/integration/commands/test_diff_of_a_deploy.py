"""A real pool, recorded before and after a deploy that adds a native leak to one script, and the difference."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from command import attached_to, finish, phptrace, run
from fpm import Fpm
from waiting import wait_for

from tracer.recording.reader import Reader

pytestmark = [pytest.mark.needs_bpf, pytest.mark.needs_php]

_WORKERS = 3
_POOL = f"pm = static\npm.max_children = {_WORKERS}"
# URI: requests. The deploy changes /report alone: it then is a page that keeps 64 KiB.
_SITE = {"/page": 120, "/hello": 150, "/report": 120, "/patterns": 150, "/some-rows": 60}
_KEPT = 65_552  # a block of 64 KiB with its header
_REPORT = """<?php
if ($_SERVER['REQUEST_URI'] === '/report') {
    $libc = FFI::cdef('void *malloc(size_t); void *memset(void *, int, size_t);');
    $libc->memset($libc->malloc(65_536), 1, 65_536);
}
require __DIR__ . '/planted.php';
"""


def _visits(seed: int) -> list[str]:
    visits = [uri for uri, count in _SITE.items() for _ in range(count)]
    random.Random(seed).shuffle(visits)
    return visits


def _requests_in(path: Path) -> int:
    if not path.exists() or path.stat().st_size == 0:
        return 0
    with Reader(str(path)) as recording:
        return recording.totals().requests


def _recorded(fpm: Fpm, path: Path, visits: Sequence[str]) -> Path:
    process = phptrace("record", "--native", "on", "-o", str(path), str(fpm.master))
    attached_to(process)

    def visit(uri: str) -> None:
        number = "40000" if uri == "/some-rows" else "0"
        assert fpm.get("front.php", REQUEST_URI=uri, QUERY_STRING=number).ended

    with ThreadPoolExecutor(_WORKERS) as pool:
        list(pool.map(visit, visits))
    wait_for(lambda: _requests_in(path) >= len(visits), "the requests to be on disk")
    code, _, said = finish(process)
    assert code == 0, said
    return path


def _site(start_fpm: Callable[..., Fpm], front: str) -> Fpm:
    fpm = start_fpm(www=_POOL)
    (fpm.folder / "front.php").write_text(front)
    return fpm


def test_a_leak_of_64_kib_that_a_deploy_adds_is_found_and_no_other_route_is_accused(
    start_fpm: Callable[..., Fpm], tmp_path: Path
) -> None:
    old = _site(start_fpm, "<?php require __DIR__ . '/planted.php';\n")
    before = _recorded(old, tmp_path / "before.phptrace", _visits(1))
    again = _recorded(old, tmp_path / "again.phptrace", _visits(2))
    old.stop()
    new = _site(start_fpm, _REPORT)  # another folder, and other workers, as a deploy has
    after = _recorded(new, tmp_path / "after.phptrace", _visits(3))

    answer = run("diff", "--fail-over", "60K", "--format", "json", str(before), str(after))

    assert answer.returncode == 1, answer.stderr
    assert (
        "kept surely rose by more than 60.0 KiB a request in 1 route, the first of which is /report." in answer.stderr
    )
    document = json.loads(answer.stdout)
    groups = {group["key"]: group for group in document["groups"]}
    assert document["group_by"] == "route"
    assert groups.keys() == _SITE.keys()
    assert groups["/report"]["kept"]["shift"] == pytest.approx(_KEPT, rel=0.02)
    assert groups["/report"]["kept"]["low"] > 60 << 10
    assert [key for key, group in groups.items() if group["kept"]["change"] == "rose"] == ["/report"]
    assert [key for key, group in groups.items() if group["zend"]["change"] in ("rose", "fell")] == []
    assert document["findings"][0]["sentence"].startswith("/report keeps 64.0 KiB more a request: 0 B before, 64.")

    same = run("diff", "--fail-over", "4K", "--format", "json", str(before), str(again))
    assert same.returncode == 0, same.stderr
    found = {group["key"]: group["kept"]["change"] for group in json.loads(same.stdout)["groups"]}
    assert found.keys() == _SITE.keys()
    assert "rose" not in found.values()
    better = json.loads(run("diff", "--format", "json", str(after), str(before)).stdout)
    assert {group["key"] for group in better["groups"] if group["kept"]["change"] == "fell"} == {"/report"}
