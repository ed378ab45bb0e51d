"""Looks at real workers, and the balance of their growth."""

from __future__ import annotations

import json
import os
import random
import signal
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fastcgi
import pytest
from command import attached_to, finish, phptrace, run
from fpm import ONE_WORKER, TWO_WORKERS, Fpm
from load import Load
from proc_status import rollup_bytes, state, waits_for_a_request
from waiting import wait_for
from warm_recorder import WarmRecorder

from tracer.errors import RecordingError
from tracer.facts import Look, Request, Worker
from tracer.looks import Looks, masters, subjects
from tracer.recording.reader import Reader
from tracer.targets import processes
from tracer.targets.resolve import targets

pytestmark = [pytest.mark.needs_php, pytest.mark.usefixtures("programs_loaded")]

# Pages that a breakpoint copied, until the kernel drops the copy some time after an earlier tracer has ended.
PROBED = 2 * 10 * 4096
LEAK = 32 * (1040 + 32)
COUNTING = ("--backend", "bpf", "--native", "on")
BPF = pytest.param(COUNTING, marks=pytest.mark.needs_bpf, id="bpf")
PTRACE = pytest.param(("--backend", "ptrace"), marks=pytest.mark.needs_ptrace, id="ptrace")


@pytest.fixture
def warm(start_fpm: Callable[..., Fpm]) -> Fpm:
    """Two workers that have served the script."""
    fpm = start_fpm(www=TWO_WORKERS)
    served: set[str] = set()
    while len(served) < 2:
        served.add(fpm.get("pid.php").text)
        fpm.get("native_leak.php")
    for _ in range(8):
        fpm.get("native_leak.php")
    at_rest(fpm)
    return fpm


def at_rest(fpm: Fpm) -> None:
    wait_for(lambda: all(waits_for_a_request(worker) for worker in fpm.workers()), "the workers to rest")


def leak(fpm: Fpm, requests: int) -> None:
    for _ in range(requests):
        fpm.get("native_leak.php")


def looked_at(path: Path, workers: int = 2) -> bool:
    """True if the recording, which is being written, has the first look at so many workers."""
    try:
        with Reader(str(path)) as recording:
            return len(recording.looks()) >= workers
    except RecordingError:  # it is just being made
        return False


def recorded(fpm: Fpm, path: Path, options: tuple[str, ...], requests: Callable[[], None], workers: int = 2) -> None:
    """Record these requests, from a first look at each worker to a last one."""
    process = WarmRecorder(*options, "-o", str(path), str(fpm.master))
    attached_to(process)
    wait_for(lambda: looked_at(path, workers), "the first looks")
    requests()
    at_rest(fpm)
    code, _, err = finish(process)
    assert code == 0, err


class Growth:
    """Growth of the workers while these requests run. Probes that are set before give them pages of their own."""

    def __init__(self, fpm: Fpm, requests: Callable[[], None]) -> None:
        self._fpm = fpm
        self._requests = requests
        self.bytes = 0

    def __call__(self) -> None:
        self.bytes -= sum(rollup_bytes(worker, "Anonymous") for worker in self._fpm.workers())
        self._requests()
        at_rest(self._fpm)
        self.bytes += sum(rollup_bytes(worker, "Anonymous") for worker in self._fpm.workers())


def balance_of(path: Path) -> dict[str, Any]:
    answer = run("report", "--format", "json", str(path))
    assert answer.returncode == 0, answer.stderr
    found: dict[str, Any] = json.loads(answer.stdout)["balance"]
    return found


def looks_of(path: Path) -> list[Look]:
    with Reader(str(path)) as recording:
        return recording.looks()


@pytest.mark.needs_bpf
def test_what_the_workers_grew_by_is_what_the_leak_kept(warm: Fpm, tmp_path: Path) -> None:
    path = tmp_path / "r.phptrace"
    grew = Growth(warm, lambda: leak(warm, 50))

    recorded(warm, path, COUNTING, grew)

    found = balance_of(path)
    assert (found["workers"], found["looked_at"], found["requests"], found["counted"]) == (2, 2, 50, 50)
    assert found["why"] is None
    assert found["native_kept"] == 50 * LEAK
    assert abs(found["workers_grew"] - grew.bytes) <= PROBED
    assert found["workers_grew"] == sum(
        found[name] for name in ("native_kept", "zend", "between_requests", "unexplained")
    )
    assert found["heap_check"] == 0
    assert abs(found["unexplained"]) < 64 << 10
    assert abs(found["between_requests"]) < 64 << 10


@pytest.mark.needs_bpf
def test_the_first_requests_of_workers_are_in_the_balance_too(start_fpm: Callable[..., Fpm], tmp_path: Path) -> None:
    fpm = start_fpm(www=TWO_WORKERS)
    at_rest(fpm)
    path = tmp_path / "r.phptrace"

    recorded(fpm, path, COUNTING, lambda: leak(fpm, 50))

    found = balance_of(path)
    assert found["why"] is None
    assert 0 <= found["native_kept"] - 50 * LEAK < 4 << 10
    assert found["heap_check"] == 0
    assert abs(found["unexplained"]) < 256 << 10


@pytest.mark.needs_bpf
@pytest.mark.parametrize("cookie", [1 << 10, 6 << 10, 60 << 10])
def test_a_balance_with_large_cookies_is_true(start_fpm: Callable[..., Fpm], tmp_path: Path, cookie: int) -> None:
    fpm = start_fpm(www=TWO_WORKERS)
    path = tmp_path / "r.phptrace"

    def requests() -> None:
        for _ in range(10):
            fpm.get("native_leak.php", HTTP_COOKIE="c" * cookie)
        for _ in range(290):
            fpm.get("hello.php", HTTP_COOKIE="c" * cookie)

    recorded(fpm, path, COUNTING, requests)

    found = balance_of(path)
    assert (found["requests"], found["counted"], found["why"]) == (300, 300, None)
    assert 0 <= found["native_kept"] - 10 * LEAK < 4 << 10
    assert found["heap_check"] == 0
    assert abs(found["unexplained"]) < 256 << 10
    assert "warning" not in run("report", str(path)).stderr


@pytest.mark.parametrize("options", [BPF, PTRACE])
def test_parameters_that_a_worker_reads_between_requests_are_a_line_of_the_report(
    start_fpm: Callable[..., Fpm], tmp_path: Path, options: tuple[str, ...]
) -> None:
    fpm = start_fpm(www=ONE_WORKER)
    path = tmp_path / "r.phptrace"
    headers = {f"HTTP_X_{number}": "h" * 60_000 for number in range(30)}

    def requests() -> None:
        for _ in range(7):
            fpm.get("hello.php", **headers)

    for _ in range(2):
        requests()
    recorded(fpm, path, options, requests, workers=1)

    answer = run("report", str(path))
    assert "between requests: +9.9 MiB (1 of 1 worker), in requests -11." in " ".join(answer.stdout.split())
    assert "warning" not in answer.stderr
    found = balance_of(path)["from_requests"]
    # malloc keeps up to 128 KiB at the end of its heap.
    assert 0 <= 6 * 30 * 60_000 - found["between_requests"] < 6 * 128 << 10
    assert found["grew"] == found["in_requests"] + found["between_requests"]


@pytest.mark.needs_bpf
def test_requests_that_a_filter_drops_are_missing_in_the_balance(start_fpm: Callable[..., Fpm], tmp_path: Path) -> None:
    fpm = start_fpm(www=ONE_WORKER)
    path = tmp_path / "r.phptrace"

    def requests() -> None:
        for _ in range(20):
            fpm.get("native_leak.php")
            fpm.get("hello.php")

    recorded(fpm, path, (*COUNTING, "--script", "*leak.php"), requests, workers=1)

    found = balance_of(path)
    assert (found["native_kept"], found["unexplained"]) == (None, None)
    assert found["workers_grew"] is not None
    assert found["why"] == "1 worker: 20 of 40 requests counted"


@pytest.mark.needs_ptrace
def test_without_counting_growth_and_zend_s_part_are_known(warm: Fpm, tmp_path: Path) -> None:
    path = tmp_path / "r.phptrace"
    grew = Growth(warm, lambda: leak(warm, 20))

    recorded(warm, path, ("--backend", "ptrace"), grew)

    found = balance_of(path)
    assert abs(found["workers_grew"] - grew.bytes) <= PROBED
    assert (found["native_kept"], found["unexplained"]) == (None, None)
    assert found["zend"] % 4096 == 0
    assert found["why"].endswith(": 0 of 20 requests counted")  # one worker may have served them all
    # malloc's heap tells the leak to the byte, also where no call was counted.
    looks = looks_of(path)
    first, last = (
        {look.pid: look.malloc_in_use or 0 for look in looks if (look.requests is None) is one} for one in (True, False)
    )
    assert sum(last.values()) - sum(first.values()) == 20 * LEAK
    assert sum(look.requests or 0 for look in looks) == 20


@pytest.mark.parametrize("options", [BPF, PTRACE])
def test_attach_with_an_output_file_has_looks(warm: Fpm, tmp_path: Path, options: tuple[str, ...]) -> None:
    path = tmp_path / "r.phptrace"
    process = phptrace("attach", *options, "-o", str(path), str(warm.master))
    attached_to(process)
    wait_for(lambda: looked_at(path), "the first looks")
    warm.get("hello.php")
    at_rest(warm)
    code, _, err = finish(process)

    assert code == 0, err
    looks = looks_of(path)
    assert all(look.bookable for look in looks)
    assert {look.pid for look in looks if look.requests is not None} == set(warm.workers())


@pytest.mark.parametrize("options", [BPF, PTRACE])
def test_looks_at_workers_under_load_are_right_or_absent(warm: Fpm, tmp_path: Path, options: tuple[str, ...]) -> None:
    path = tmp_path / "r.phptrace"
    with Load(warm) as load:
        process = phptrace("record", *options, "-o", str(path), str(warm.master))
        attached_to(process)
        load.wait_for_more(200)
        code, _, err = finish(process)
        failed = load.failed

    assert (code, failed) == (0, 0), err
    for look in looks_of(path):
        assert look.bookable or (look.anon is None and look.why)
    found = balance_of(path)
    if found["unexplained"] is not None:
        assert found["workers_grew"] == sum(
            found[name] for name in ("native_kept", "zend", "between_requests", "unexplained")
        )


@pytest.mark.parametrize("options", [BPF, PTRACE])
def test_a_worker_that_ends_has_no_second_look(warm: Fpm, tmp_path: Path, options: tuple[str, ...]) -> None:
    path = tmp_path / "r.phptrace"
    (victim, other) = warm.workers()

    def kill() -> None:
        os.kill(victim, signal.SIGKILL)
        wait_for(lambda: victim not in warm.workers() and len(warm.workers()) == 2, "another worker")

    recorded(warm, path, options, kill)

    last = {look.pid: look for look in looks_of(path) if look.requests is not None}
    assert (last[victim].anon, last[victim].why) == (None, "it has ended")
    assert last[other].bookable
    assert balance_of(path)["why"] == "1 worker: it has ended"


def test_looks_that_are_killed_harm_no_worker(start_fpm: Callable[..., Fpm]) -> None:
    fpm = start_fpm(www=TWO_WORKERS)
    workers = fpm.workers()
    for delay_ms in range(20):
        killed_while_looking(fpm, delay_ms / 1000)

    assert fpm.workers() == workers
    for worker in workers:
        letter, tracer = state(worker)
        assert (letter, tracer) == ("S", 0)
    assert [fpm.get("hello.php").ended for _ in range(20)] == [True] * 20


def killed_while_looking(fpm: Fpm, delay_s: float) -> None:
    """Look at the workers again and again in a process of its own, which is killed after a while."""
    ready, tell = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            found = targets([str(fpm.master)])
            os.write(tell, b".")
            while True:
                looks = Looks(subjects(found))
                looks.begin()
                while looks.busy:
                    pass
                looks.close()
        finally:
            os._exit(1)
    os.read(ready, 1)
    os.close(ready)
    os.close(tell)
    time.sleep(delay_s)  # a moment at random, not a condition
    os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    assert os.WTERMSIG(status) == signal.SIGKILL


def test_a_look_brings_no_page_of_a_worker_into_memory(warm: Fpm) -> None:
    (target,) = targets([str(warm.master)])
    before = [rollup_bytes(worker, "Rss") for worker in warm.workers()]

    looks = Looks(subjects([target]))
    looks.begin()
    wait_for(lambda: not looks.busy, "the looks")
    target.close()

    assert [look.bookable for look in looks.close()] == [True, True]
    assert [rollup_bytes(worker, "Rss") for worker in warm.workers()] == before


@pytest.mark.needs_bpf
def test_a_worker_on_a_connection_that_is_kept_is_looked_at(start_fpm: Callable[..., Fpm], tmp_path: Path) -> None:
    fpm = start_fpm(www=ONE_WORKER)
    for _ in range(3):
        fpm.get("native_leak.php")
    path = tmp_path / "r.phptrace"
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(str(fpm.socket()))

        def get() -> None:
            connection.sendall(fastcgi.message(fpm.params("native_leak.php"), keep=True))
            while b"leak" not in connection.recv(1 << 16):
                pass

        get()
        process = phptrace("record", *COUNTING, "-o", str(path), str(fpm.master))
        attached_to(process)
        wait_for(lambda: looked_at(path, 1), "the first look")
        for _ in range(10):
            get()
        wait_for(lambda: len(requests_of(path)) == 10, "the requests")
        code, _, err = finish(process)

    assert code == 0, err
    looks = looks_of(path)
    assert len(looks) >= 2
    assert {(look.bookable, look.in_accept) for look in looks} == {(True, False)}
    assert balance_of(path)["native_kept"] == 10 * LEAK


def requests_of(path: Path) -> list[Request]:
    with Reader(str(path)) as recording:
        return list(recording.requests())


def test_a_worker_that_is_born_while_tracing_goes_on_is_looked_at(start_fpm: Callable[..., Fpm]) -> None:
    fpm = start_fpm(www=ONE_WORKER)
    found = targets([str(fpm.master)])
    looks = Looks(subjects(found), masters(found))
    looks.begin()
    (first,) = fpm.workers()
    os.kill(first, signal.SIGKILL)
    wait_for(lambda: fpm.workers() not in ([], [first]), "another worker")
    (second,) = fpm.workers()
    born = processes.process(second)
    assert born is not None
    told = Worker(second, born.start_ticks, "www", None, time.time_ns(), None, None)
    seen: list[Look] = []

    looks.follow(told)
    wait_for(lambda: seen.extend(looks.take()) or any(look.pid == second for look in seen), "a look at it")
    looks.close()
    for target in found:
        target.close()

    (look,) = (look for look in seen if look.pid == second)
    assert look.bookable, look.why
    assert look.malloc_in_use


@pytest.mark.slow
@pytest.mark.needs_ptrace
def test_looks_while_a_recording_goes_on_make_the_estimate_exact(start_fpm: Callable[..., Fpm], tmp_path: Path) -> None:
    fpm = start_fpm(www=ONE_WORKER)
    path = tmp_path / "r.phptrace"
    scripts = ("hello.php", "native_page.php", "native_leak.php")
    chance = random.Random(9)
    process = phptrace("record", "--backend", "ptrace", "-o", str(path), str(fpm.master))
    attached_to(process)
    for looks in range(1, 16):
        for _ in range(40):
            fpm.get(chance.choice(scripts))
        at_rest(fpm)
        wait_for(lambda: looked_at(path, looks), "another look", timeout_s=60)  # noqa: B023
    code, _, err = finish(process)
    assert code == 0, err

    groups = {
        os.path.basename(group["key"]): group
        for group in json.loads(run("report", "--format", "json", str(path)).stdout)["groups"]
    }
    leak = groups["native_leak.php"]
    assert leak["kept_how"] == "estimated"
    assert leak["kept_low"] <= LEAK <= leak["kept_high"]
    assert leak["kept_per_request"] == pytest.approx(LEAK, rel=0.02)
    for name in ("hello.php", "native_page.php"):
        assert (groups[name]["kept_per_request"] or 0) < 1024
