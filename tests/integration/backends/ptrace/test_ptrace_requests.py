"""ptrace leaves busy workers, and the settings they made themselves, unchanged."""

from __future__ import annotations

import mmap
import os
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from backend_kinds import BREAKPOINTS, make_backend
from command import CHECKOUT, attached_to, phptrace
from fpm import ONE_WORKER, Fpm
from machine import require
from proc_status import catches_traps, is_asleep, state
from tracing import Tracer
from visits import KeptConnection, Visit
from waiting import wait_for

from tracer.errors import UnsupportedError

pytestmark = pytest.mark.needs_ptrace


def sleep_through(fpm: Fpm, worker: int, before: Callable[[], None], while_asleep: Callable[[], None]) -> str:
    """Return the answer of sleep.php, which must still sleep after `while_asleep`.

    On a busy machine `while_asleep` may take longer than a short sleep: then everything is repeated with a longer one.
    """
    for seconds in (2, 20):
        before()
        started = time.monotonic()
        visit = Visit(fpm, "sleep.php", QUERY_STRING=str(seconds))
        wait_for(lambda visit=visit: is_asleep(worker) or visit.answer, "the script to sleep")
        while_asleep()
        wait_for(lambda visit=visit: is_asleep(worker) or visit.answer, "the script to sleep on")
        asleep, in_time = is_asleep(worker), time.monotonic() < started + seconds
        text = visit.text()
        if in_time:
            assert asleep
            return text
    pytest.fail("attaching or detaching took longer than the longest sleep")


def test_a_sleeping_script_sleeps_on_through_attaching_and_detaching(
    start_fpm: Callable[..., Fpm], backend: str
) -> None:
    fpm = start_fpm(www=ONE_WORKER)
    [worker] = fpm.workers()

    def attach_and_detach() -> None:
        Tracer(make_backend(backend), str(fpm.master)).close()
        assert state(worker)[1] == 0

    assert sleep_through(fpm, worker, lambda: None, attach_and_detach) == "0"


def test_a_sleeping_worker_with_breakpoints_is_detached_asleep(start_fpm: Callable[..., Fpm]) -> None:
    fpm = start_fpm(www=ONE_WORKER)
    [worker] = fpm.workers()
    tracers: list[Tracer] = []

    def attach() -> None:
        tracers.append(Tracer(make_backend(BREAKPOINTS), str(fpm.master)))

    def detach() -> None:
        tracers[-1].close()
        assert state(worker)[1] == 0

    def has_no_handler_after_another_tracer() -> bool:
        attach()
        detach()
        return not catches_traps(worker)

    assert sleep_through(fpm, worker, attach, detach) == "0"
    assert [(request.uri, request.ending) for request in tracers[-1].requests] == [("/sleep.php", "cut_off")]
    # The handler left in a sleeping worker does nothing, and the next tracer removes it.
    assert catches_traps(worker)
    wait_for(has_no_handler_after_another_tracer, "the handler to be removed")


def test_a_computing_worker_is_detached_before_it_has_finished(start_fpm: Callable[..., Fpm], backend: str) -> None:
    flag = Path(f"/tmp/phptrace-busy.{os.getpid()}")
    fpm = start_fpm(www=ONE_WORKER)
    [worker] = fpm.workers()
    flag.write_bytes(bytes(mmap.PAGESIZE))
    flag.chmod(0o644)
    try:
        tracer = Tracer(make_backend(backend), str(fpm.master))
        visit = Visit(fpm, "busy.php", QUERY_STRING=str(flag))
        wait_for(lambda: flag.name in Path(f"/proc/{worker}/maps").read_text(), "the script to compute")
        tracer.close()

        assert state(worker) == ("R", 0)
        assert [(request.uri, request.ending) for request in tracer.requests] == [("/busy.php", "cut_off")]
        with open(flag, "r+b") as file:
            file.write(b"\1")
        assert visit.text() == "computed"
    finally:
        flag.unlink()


def test_workers_of_other_pools_stay_untraced(
    start_fpm: Callable[..., Fpm], trace: Callable[..., Tracer], backend: str
) -> None:
    fpm = start_fpm(asked=ONE_WORKER, spared=f"{ONE_WORKER}\npm.max_requests = 2")
    connection = KeptConnection(fpm, "spared")
    spared = int(connection.get("/spared"))
    tracer = trace("php-fpm:asked")

    assert state(spared)[1] == 0
    connection.get("/spared")
    connection.close()
    wait_for(lambda: spared not in fpm.workers() and len(fpm.workers()) == 2, "the spared worker to be replaced")
    for number in range(4):
        fpm.get("hello.php", pool="spared", REQUEST_URI=f"/spared/{number}")
        fpm.get("hello.php", pool="asked", REQUEST_URI=f"/asked/{number}")
    requests = tracer.next(4)
    tracer.close()
    assert [request.uri for request in requests] == [f"/asked/{number}" for number in range(4)]
    assert tracer.requests == requests
    assert {worker.pool for worker in tracer.workers} == {"asked"}
    assert not any(catches_traps(pid) for pid in fpm.workers())


def test_the_rounding_mode_of_the_processor_is_not_changed(start_fpm: Callable[..., Fpm]) -> None:
    fpm = start_fpm(www=ONE_WORKER)
    upwards = "2048"  # FE_UPWARD
    assert fpm.get("rounding.php", QUERY_STRING=upwards).text == upwards
    assert fpm.get("rounding.php").text == upwards
    tracer = Tracer(make_backend(BREAKPOINTS), str(fpm.master))
    while_traced = fpm.get("rounding.php").text
    tracer.next()
    tracer.close()

    assert (while_traced, fpm.get("rounding.php").text) == (upwards, upwards)


def test_phptrace_detaches_from_workers_and_reports_it_when_descriptors_run_out(
    start_fpm: Callable[..., Fpm], tmp_path: Path
) -> None:
    fpm = start_fpm(www="pm = static\npm.max_children = 30")
    process = subprocess.Popen(
        ["prlimit", "--nofile=72:72", "/usr/bin/python3", "-m", "tracer", "record", "--backend", "ptrace",
         "-o", str(tmp_path / "r.phptrace"), str(fpm.master)],
        stderr=subprocess.PIPE, text=True, cwd=CHECKOUT,
    )  # fmt: skip
    attached_to(process)
    answers = [fpm.get("hello.php").text for _ in range(60)]
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=30)

    assert answers == ["hello"] * 60
    assert process.returncode == 8
    assert "workers no longer traced: OSError: [Errno 24] Too many open files" in stderr
    assert {state(pid)[1] for pid in fpm.workers()} == {0}


def test_phptrace_raises_its_limit_of_descriptors_up_to_the_hard_limit(
    start_fpm: Callable[..., Fpm], tmp_path: Path
) -> None:
    fpm = start_fpm(www="pm = static\npm.max_children = 30")
    process = phptrace("record", "--backend", "ptrace", "-o", str(tmp_path / "r.phptrace"), str(fpm.master),
                       preexec_fn=lambda: __import__("resource").setrlimit(7, (72, 4096)))  # fmt: skip
    printed = attached_to(process)
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=30)

    assert "30 workers, backend ptrace" in printed
    assert process.returncode == 0


def test_php_without_fastcgi_is_refused(backend: str) -> None:
    require("/usr/bin/php8.2")
    process = subprocess.Popen(["/usr/bin/php8.2", "-r", "echo 'x'; fgets(STDIN);"], stdin=subprocess.PIPE,
                               stdout=subprocess.PIPE)  # fmt: skip
    try:
        assert process.stdout is not None
        process.stdout.read(1)
        with pytest.raises(UnsupportedError, match=r"is PHP's cli, .*FastCGI.*--backend bpf"):
            Tracer(make_backend(backend), str(process.pid))
    finally:
        process.kill()
        process.communicate()
