"""The target is sacred: whatever becomes of phptrace, workers go on, and nothing of it is left behind."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from conftest import Fpm, attached_to, finish, lacking, phptrace, wait_for

from tracer.recording.reader import Reader


class Load:
    """Requests without end from a thread; `failed` counts those that were not answered in full."""

    def __init__(self, fpm: Fpm) -> None:
        self._fpm = fpm
        self._stop = threading.Event()
        self.done = 0
        self.failed = 0
        self._threads = [threading.Thread(target=self._run) for _ in range(2)]

    def _run(self) -> None:
        while not self._stop.is_set():
            try:
                answer = self._fpm.get("hello.php")
                self.failed += answer.body != b"hello"
            except OSError:
                self.failed += 1
            self.done += 1

    def __enter__(self) -> Load:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()


@pytest.fixture(scope="module")
def pool(start_fpm: Callable[..., Fpm]) -> Iterator[Fpm]:
    return start_fpm(www="pm = static\npm.max_children = 2")


def _text_of(pid: int) -> bytes:
    """The PHP binary's code as the worker has it in memory: a probe that is left would show in it."""
    found = b""
    with open(f"/proc/{pid}/maps") as maps, open(f"/proc/{pid}/mem", "rb", buffering=0) as memory:
        for line in maps:
            if "php-fpm" in line and " r-xp " in line:
                start, end = (int(part, 16) for part in line.split()[0].split("-"))
                memory.seek(start)
                found += memory.read(end - start)
    return found


def _programs() -> int:
    """How many BPF programs the kernel holds, by walking their ids as bpftool does."""
    if os.geteuid() != 0:
        lacking("counting BPF programs needs root")
    from bcc.libbcc import lib

    count, last = 0, 0
    import ctypes

    following = ctypes.c_uint32()
    while lib.bpf_prog_get_next_id(ctypes.c_uint32(last), ctypes.byref(following)) == 0:
        count, last = count + 1, following.value
    return count


@pytest.mark.parametrize(("options", "turns"), [((), 20), (("--stacks", "--every", "1"), 8)])
def test_sigkill_under_load_harms_no_worker_and_leaves_nothing(
    pool: Fpm, tmp_path: Path, options: tuple[str, ...], turns: int
) -> None:
    workers = set(pool.workers())
    untouched = _text_of(min(workers))
    rng = random.Random(20)

    with Load(pool) as load:
        for turn in range(turns):
            path = tmp_path / f"{turn}.phptrace"
            process = phptrace("record", *options, "-o", str(path), str(pool.master))
            attached_to(process, "recording to")
            before = load.done
            wait_for(lambda before=before: load.done > before + rng.randrange(400), "some load")
            process.kill()
            process.communicate()
            with Reader(str(path)) as recording:
                assert recording.totals().lost == 0

    assert load.failed == 0
    assert set(pool.workers()) == workers
    wait_for(lambda: _text_of(min(workers)) == untouched, "the probes to be gone")
    events = Path("/sys/kernel/tracing/uprobe_events")
    assert not events.exists() or events.read_text() == ""


@pytest.mark.parametrize("options", [(), ("--stacks",)])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_ends_a_recording_cleanly(
    pool: Fpm, tmp_path: Path, number: signal.Signals, options: tuple[str, ...]
) -> None:
    path = tmp_path / "r.phptrace"
    process = phptrace("record", *options, "-o", str(path), str(pool.master))
    attached_to(process)
    with Load(pool) as load:
        wait_for(lambda: load.done > 200, "some load")
        code, _, said = finish(process, number)

    assert code == 0, said
    assert load.failed == 0
    assert sorted(p.name for p in tmp_path.iterdir()) == ["r.phptrace"]
    with Reader(str(path)) as recording:
        assert recording.totals().requests > 100
        assert recording.meta["ended"]["why"] == "asked to stop"


def test_a_recording_in_the_background_of_a_script_ends_at_sigint_and_nohup_keeps_it_from_sighup(
    pool: Fpm, tmp_path: Path
) -> None:
    path = tmp_path / "r.phptrace"
    command = f"nohup {sys.executable} -m tracer record -o {path} {pool.master} >/dev/null 2>{tmp_path}/said & echo $!"
    pid = int(subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=True).stdout)
    wait_for(lambda: "recording to" in (tmp_path / "said").read_text(), "the recording")
    os.kill(pid, signal.SIGHUP)
    pool.get("hello.php", REQUEST_URI="/after-hup")
    wait_for(lambda: path.stat().st_size > 4096 and _uris(path) == ["/after-hup"], "the request on disk")
    os.kill(pid, signal.SIGINT)
    wait_for(lambda: not Path(f"/proc/{pid}").exists(), "the end")

    with Reader(str(path)) as recording:
        assert recording.ended


def _uris(path: Path) -> list[str | None]:
    with Reader(str(path)) as recording:
        return [request.uri for request in recording.requests()]


@pytest.mark.parametrize(("options", "longest_s"), [((), 1.2), (("--stacks",), 3.0)])
def test_ctrl_c_while_attaching_leaves_a_whole_recording_or_none(
    pool: Fpm, tmp_path: Path, options: tuple[str, ...], longest_s: float
) -> None:
    rng = random.Random(5)
    with Load(pool) as load:
        for turn in range(8):
            path = tmp_path / f"{turn}.phptrace"
            process = phptrace("record", *options, "-o", str(path), str(pool.master))
            time.sleep(rng.uniform(0.05, longest_s))
            code, _, said = finish(process)

            assert "Traceback" not in said
            assert code in (0, 130, -signal.SIGINT)
            if path.exists():
                with Reader(str(path)):
                    pass

    assert load.failed == 0


def test_probes_are_gone_after_a_clean_end(pool: Fpm, tmp_path: Path) -> None:
    worker = min(pool.workers())
    pool.get("hello.php")
    untouched = _text_of(worker)
    process = phptrace("record", "-o", str(tmp_path / "r.phptrace"), str(pool.master))
    attached_to(process)
    probed = _text_of(worker)
    finish(process)

    assert probed != untouched
    assert _text_of(worker) == untouched


def test_a_stopped_worker_stays_stopped_and_then_goes_on(pool: Fpm, tmp_path: Path) -> None:
    worker = min(pool.workers())
    os.kill(worker, signal.SIGSTOP)
    try:
        process = phptrace("record", "-o", str(tmp_path / "r.phptrace"), str(pool.master))
        attached_to(process)
        code, _, _ = finish(process)
        state = Path(f"/proc/{worker}/stat").read_text().split()[2]
    finally:
        os.kill(worker, signal.SIGCONT)

    assert (code, state) == (0, "T")
    assert all(pool.get("hello.php").body == b"hello" for _ in range(20))


@pytest.mark.parametrize("options", [(), ("--stacks",)])
def test_no_bpf_program_outlives_the_tracer(pool: Fpm, tmp_path: Path, options: tuple[str, ...]) -> None:
    before = _programs()
    process = phptrace("record", *options, "-o", str(tmp_path / "r.phptrace"), str(pool.master))
    attached_to(process)
    during = _programs()
    process.kill()
    process.communicate()

    assert during >= before + 10
    wait_for(lambda: _programs() <= before, "the kernel to drop the programs")


def test_a_second_tracer_does_not_disturb_the_first(pool: Fpm, tmp_path: Path) -> None:
    recorders = [phptrace("record", "-o", str(tmp_path / f"{n}.phptrace"), str(pool.master)) for n in range(2)]
    for process in recorders:
        attached_to(process)
    for number in range(101):
        pool.get("hello.php", REQUEST_URI=f"/{number}")
    for process in recorders:
        assert finish(process)[0] == 0

    for n in range(2):
        with Reader(str(tmp_path / f"{n}.phptrace")) as recording:
            uris = [request.uri for request in recording.requests()]
        assert sorted(uris, key=str) == sorted(f"/{number}" for number in range(101))


def test_the_command_runs_from_anywhere(tmp_path: Path) -> None:
    answer = subprocess.run(["phptrace", "--version"], cwd=tmp_path, capture_output=True, text=True, check=True)

    assert answer.stdout.startswith("phptrace, version ")
