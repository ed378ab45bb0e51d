"""The target is sacred: whatever becomes of phptrace, workers go on, and nothing of it is left behind."""

from __future__ import annotations

import contextlib
import ctypes
import itertools
import os
import random
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

import pytest
from backend_kinds import BPF, make_backend
from code_text import allocator_code, php_code
from command import Running, attached_to, finish, phptrace
from fpm import TWO_WORKERS, Fpm
from kernel_objects import PERF_EVENT, PROGRAM, UPROBE_LINK, kernel_objects
from load import Load
from tracing import Tracer
from waiting import wait_for
from warm_recorder import WarmRecorder

from tracer.backends import StackOptions
from tracer.recording.reader import Reader

pytestmark = pytest.mark.needs_bpf
PLAIN: tuple[str, ...] = ()
STACKS = ("--stacks", "--every", "1")
NATIVE_PAGE = "native_page.php"


class Moment(Protocol):
    """Waits until the process has come there. Its name is that of the moment."""

    __name__: str

    def __call__(self, process: Running, /) -> None: ...


@pytest.fixture(scope="module")
def pool(start_fpm: Callable[..., Fpm], php_fpm: str, tmp_path_factory: pytest.TempPathFactory) -> Fpm:
    """Runs a copy of php-fpm: what another phptrace on this machine traces has its probes in a file of its own."""
    copy = shutil.copy(php_fpm, tmp_path_factory.mktemp("php") / "php-fpm")
    return start_fpm(binary=str(copy), www=TWO_WORKERS)


def _programs() -> set[int]:
    """The ids of the BPF programs that the kernel holds, as bpftool walks them."""
    from bcc.libbcc import lib

    found, last = set(), 0
    following = ctypes.c_uint32()
    while lib.bpf_prog_get_next_id(ctypes.c_uint32(last), ctypes.byref(following)) == 0:
        last = following.value
        found.add(last)
    return found


def _programs_of(pid: int) -> set[int]:
    """The ids of the BPF programs that a process has descriptors of."""
    found = set()
    for path in Path(f"/proc/{pid}/fdinfo").iterdir():
        with contextlib.suppress(FileNotFoundError):  # it is just being closed
            found |= {int(program) for program in re.findall(r"^prog_id:\t(\d+)$", path.read_text(), re.MULTILINE)}
    return found


def _starts(process: Running) -> None:
    """Nothing to wait for."""


def _compiles(process: Running) -> None:
    """Wait until the process has loaded bcc: attaching has begun."""
    wait_for(lambda: "libbcc" in Path(f"/proc/{process.pid}/maps").read_text(), "phptrace to load bcc")


def _loads(process: Running) -> None:
    wait_for(lambda: kernel_objects(process.pid)[PROGRAM], "the first program")


def _sets_probes(process: Running) -> None:
    def any_probe() -> bool:
        objects = kernel_objects(process.pid)
        return objects[UPROBE_LINK] + objects[PERF_EVENT] > 0

    wait_for(any_probe, "the first probe")


def _records(process: Running) -> None:
    attached_to(process, "recording to")


def _ends(process: Running) -> None:
    attached_to(process, "recording to")
    process.send_signal(signal.SIGINT)


ATTACHING: tuple[Moment, ...] = (_compiles, _loads, _sets_probes)
EVERY_MOMENT: tuple[Moment, ...] = (_starts, *ATTACHING, _records, _ends)


def _killed(pool: Fpm, process: Running, requests: int, script: str = "hello.php", body: bytes = b"hello") -> None:
    """Kill it after so many more requests; no request fails."""
    with Load(pool, script, body) as load:  # not while it compiles, for which it would leave no CPU
        load.wait_for_more(requests)
        process.kill()
        process.communicate()
        load.wait_for_more(50)

    assert load.failed == 0


def _code(pool: Fpm) -> dict[int, tuple[bytes, dict[str, bytes]]]:
    """The code of PHP and of malloc as each worker has it: a probe that is left would show in it."""
    return {pid: (php_code(pid), allocator_code(pid)) for pid in pool.workers()}


def _assert_no_probe_is_left(pool: Fpm, untouched: object, reached: Moment) -> None:
    """Wait until the workers' code is what it was; where the kernel may have left a probe, with the help of a tracer.

    The kernel cannot set or remove a breakpoint for a task that has a SIGKILL pending: uprobe_unregister_nosync(),
    kernel/events/uprobes.c, 6.18, then warns of "leaking uprobe". It does nothing, and the next tracer removes it.
    """
    if reached is not _records and _code(pool) != untouched:
        Tracer(make_backend(BPF, stacks=StackOptions()), str(pool.master)).close()
    wait_for(lambda: _code(pool) == untouched, "the probes to be gone")


def _assert_nothing_lost(path: Path) -> None:
    with Reader(str(path)) as recording:
        assert recording.totals().lost == 0


@pytest.mark.parametrize(
    ("options", "moments", "turns"),
    [
        (PLAIN, EVERY_MOMENT, 1),
        (STACKS, (_loads, _records), 1),
        pytest.param(PLAIN, EVERY_MOMENT, 20, marks=pytest.mark.slow),
        pytest.param(STACKS, EVERY_MOMENT, 6, marks=pytest.mark.slow),
    ],
)
def test_sigkill_under_load_harms_no_worker_and_leaves_nothing(
    pool: Fpm, tmp_path: Path, options: tuple[str, ...], moments: tuple[Moment, ...], turns: int
) -> None:
    untouched = _code(pool)
    programs: set[int] = set()
    rng = random.Random(20)

    for turn in range(turns):
        for reached in moments:
            path = tmp_path / f"{turn}.{reached.__name__}.phptrace"
            process = phptrace("record", *options, "-o", str(path), str(pool.master))
            reached(process)
            if reached is _records:
                loaded = _programs_of(process.pid)
                assert loaded <= _programs()
                programs |= loaded
            _killed(pool, process, rng.randrange(400))

            if reached in (_records, _ends):
                _assert_nothing_lost(path)
            _assert_no_probe_is_left(pool, untouched, reached)

    assert len(programs) >= 10
    wait_for(lambda: not programs & _programs(), "the kernel to drop the programs")
    events = Path("/sys/kernel/tracing/uprobe_events")
    assert not events.exists() or events.read_text() == ""


@pytest.mark.usefixtures("programs_loaded")
@pytest.mark.parametrize("turns", [20, pytest.param(200, marks=pytest.mark.slow)])
def test_sigkill_at_many_moments_leaves_no_probe_in_php_and_none_in_malloc(
    pool: Fpm, tmp_path: Path, turns: int
) -> None:
    page = pool.get(NATIVE_PAGE).body
    untouched = _code(pool)
    rng = random.Random(23)
    moments = itertools.cycle((_starts, _sets_probes, _records, _ends))

    for turn, reached in zip(range(turns), moments, strict=False):
        path = tmp_path / f"{turn}.phptrace"
        process = WarmRecorder(*STACKS, "--native", "on", "-o", str(path), str(pool.master), block_bytes=64)
        reached(process)
        if reached is _records:
            assert all(code != allocator_code(pid) for pid, (_, code) in untouched.items())
        _killed(pool, process, rng.randrange(400), NATIVE_PAGE, page)

        if reached in (_records, _ends):
            _assert_nothing_lost(path)
        _assert_no_probe_is_left(pool, untouched, reached)


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


@pytest.mark.parametrize(
    ("options", "moments", "turns"),
    [
        (PLAIN, ATTACHING, 1),
        (STACKS, (_loads,), 1),
        pytest.param(PLAIN, ATTACHING, 14, marks=pytest.mark.slow),
        pytest.param(STACKS, ATTACHING, 4, marks=pytest.mark.slow),
    ],
)
def test_ctrl_c_while_attaching_leaves_a_whole_recording(
    pool: Fpm, tmp_path: Path, options: tuple[str, ...], moments: tuple[Moment, ...], turns: int
) -> None:
    untouched = php_code(min(pool.workers()))
    rng = random.Random(5)

    for turn in range(turns):
        for reached in moments:
            path = tmp_path / f"{turn}.{reached.__name__}.phptrace"
            process = phptrace("record", *options, "-o", str(path), str(pool.master))
            reached(process)
            _ended_under_load(pool, process, path, rng.randrange(100))
    wait_for(lambda: php_code(min(pool.workers())) == untouched, "the probes to be gone")


@pytest.mark.usefixtures("programs_loaded")
@pytest.mark.parametrize("turns", [4, pytest.param(40, marks=pytest.mark.slow)])
def test_ctrl_c_while_probes_are_set_leaves_a_whole_recording(pool: Fpm, tmp_path: Path, turns: int) -> None:
    untouched = php_code(min(pool.workers()))
    rng = random.Random(5)

    for turn in range(turns):
        path = tmp_path / f"{turn}.phptrace"
        process = WarmRecorder(*STACKS, "-o", str(path), str(pool.master))
        _sets_probes(process)
        _ended_under_load(pool, process, path, rng.randrange(200))
    wait_for(lambda: php_code(min(pool.workers())) == untouched, "the probes to be gone")


def _ended_under_load(pool: Fpm, process: Running, path: Path, requests: int) -> None:
    """End it by Ctrl-C after so many more requests; no request fails, and the recording is whole."""
    with Load(pool) as load:
        load.wait_for_more(requests)
        code, _, said = finish(process)

    assert load.failed == 0
    assert "Traceback" not in said
    assert code == 0, said
    assert f"{path}" in said
    with Reader(str(path)) as recording:
        assert recording.ended
        assert recording.totals().lost == 0


def test_probes_are_gone_after_a_clean_end(pool: Fpm, tmp_path: Path) -> None:
    worker = min(pool.workers())
    pool.get("hello.php")
    untouched = php_code(worker)
    process = phptrace("record", "-o", str(tmp_path / "r.phptrace"), str(pool.master))
    attached_to(process)
    probed = php_code(worker)
    finish(process)

    assert probed != untouched
    assert php_code(worker) == untouched


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
