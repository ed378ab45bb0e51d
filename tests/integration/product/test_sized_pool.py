"""A pool that runs with the settings that phptrace recommends fits into its memory, and fills it."""

from __future__ import annotations

import json
import random
import shutil
import tempfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from command import attached_to, finish, phptrace, run
from fpm import SCRIPTS, Fpm
from memory_cgroups import memory_cgroup
from proc_status import rollup_bytes, waits_for_a_request
from waiting import wait_for

from tracer.analysis.memory_split import snapshot
from tracer.recording.reader import Reader
from tracer.targets import host_memory

pytestmark = [pytest.mark.needs_php]

MIB = 1 << 20
BUDGET = 384 * MIB
BPF = pytest.param("bpf", marks=pytest.mark.needs_bpf)
PTRACE = pytest.param("ptrace", marks=pytest.mark.needs_ptrace)


def visits(count: int, seed: int) -> list[str]:
    """Query strings of peak_for.php: one of twenty requests needs 8 MiB, the others 7, for 100 ms each."""
    chance = random.Random(seed)
    return [f"{8 if chance.random() < 0.05 else 7},100" for _ in range(count)]


def visit_all(fpm: Fpm, wanted: list[str], clients: int) -> None:
    def visit(query: str) -> None:
        answer = fpm.get("peak_for.php", REQUEST_URI=f"/need/{query[0]}mib", QUERY_STRING=query)
        assert answer.text == query[0]

    with ThreadPoolExecutor(clients) as pool:
        list(pool.map(visit, wanted))


def recorded(fpm: Fpm, path: Path, backend: str, wanted: list[str]) -> None:
    process = phptrace("record", "--backend", backend, "-o", str(path), str(fpm.master))
    attached_to(process)
    visit_all(fpm, wanted, 4)
    wait_for(lambda: all(map(waits_for_a_request, fpm.workers())), "the workers to rest")

    def sampled() -> bool:
        with Reader(str(path)) as recording:
            at_rest = {one.pid for one in recording.footprints() if one.idle and one.at_ns > recording.span()[1]}  # type: ignore[index]
        return at_rest >= set(fpm.workers())

    wait_for(sampled, "a sample of each worker after its last request")
    code, _, said = finish(process)
    assert code == 0, said


def sizing(path: Path, *options: str) -> dict[str, Any]:
    answer = run("sizing", str(path), "--format", "json", *options)
    assert answer.returncode == 0, answer.stdout + answer.stderr
    found: dict[str, Any] = json.loads(answer.stdout)
    return found


@pytest.mark.parametrize("backend", [BPF, PTRACE])
def test_a_pool_of_the_recommended_size_fills_its_cgroup_and_nobody_is_killed(
    start_fpm: Callable[..., Fpm], php_fpm: str, tmp_path: Path, backend: str
) -> None:
    path = tmp_path / "r.phptrace"
    few = start_fpm(www="pm = static\npm.max_children = 4")
    recorded(few, path, backend, visits(200, seed=1))
    few.stop()
    found = sizing(path, "--budget", "384M")
    _, settings = found["www_conf"].split("[www]\n")
    workers = found["children"]["most"]

    most = 0
    folder = Path(tempfile.mkdtemp(prefix="phptrace-test."))
    folder.chmod(0o755)
    shutil.copy(SCRIPTS / "peak_for.php", folder)
    with memory_cgroup(BUDGET) as cgroup:
        fpm = Fpm(php_fpm, folder, {"www": f"pm = static\n{settings}"}, prefix=cgroup.enter)
        try:
            with ThreadPoolExecutor(1) as background:
                load = background.submit(visit_all, fpm, visits(30 * workers, seed=2), workers)
                while not load.done():
                    (one,) = snapshot(host_memory.snapshot([fpm.master])).cgroups
                    assert one.split.total == BUDGET
                    most = max(most, one.split.eaten)
                load.result()
        finally:
            fpm.stop()
        killed = cgroup.oom_kills
    shutil.rmtree(folder)

    assert killed == 0
    assert most >= 0.85 * BUDGET, f"{most / BUDGET:.1%} of the budget with {workers} workers, {found}"


@pytest.mark.parametrize("backend", [BPF, PTRACE])
def test_the_samples_of_a_recording_are_those_of_its_workers_and_their_master(
    start_fpm: Callable[..., Fpm], tmp_path: Path, backend: str
) -> None:
    path = tmp_path / "r.phptrace"
    fpm = start_fpm(www="pm = static\npm.max_children = 2")
    recorded(fpm, path, backend, visits(20, seed=1))
    with Reader(str(path)) as recording:
        last = {one.pid: one for one in recording.footprints()}
        began, ended = recording.meta["memory"], recording.meta["memory_ended"]

    assert last.keys() == {fpm.master, *fpm.workers()}
    for pid in fpm.workers():
        assert last[pid].anonymous == pytest.approx(rollup_bytes(pid, "Anonymous"), abs=512 << 10)
        assert last[pid].private_dirty == pytest.approx(rollup_bytes(pid, "Private_Dirty"), abs=512 << 10)
    assert not last[fpm.master].idle
    for entry in (began, ended):
        assert 0 < entry["host"]["MemAvailable"] < entry["host"]["MemTotal"]
    fpm.stop()
