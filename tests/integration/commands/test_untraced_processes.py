"""Processes that the best backend cannot trace: traced by the other one, or named with the reason and the fix."""

from __future__ import annotations

import contextlib
import os
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import php_builds
import pytest
from command import CHECKOUT, attached_to, finish, phptrace, run
from fpm import ONE_WORKER, SCRIPTS, Fpm
from machine import require
from phps import executable, php_data, php_elf, running
from waiting import wait_for

from tracer.facts import Request
from tracer.recording.reader import Reader

pytestmark = [pytest.mark.needs_bpf, pytest.mark.needs_ptrace]

StartBuild = Callable[[str, str], Fpm]
COST = "each system call of a worker stops it twice"
WITHOUT_SYSFS = ("unshare", "-m", "sh", "-c", 'mount -t tmpfs none /sys && exec "$@"', "sh")
# It has PHP's functions and not its version, so no backend traces it.
NAMELESS = php_elf(data={name: data for name, data in php_data().items() if name != "texts"})


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("builds")


@pytest.fixture(scope="module")
def start(folder: Path, start_fpm: Callable[..., Fpm], php_fpm: str) -> StartBuild:
    """Start a master of some build with one worker in a pool of that name."""
    makers: dict[str, Callable[[str, Path], str]] = {
        "static": php_builds.static, "zts": php_builds.thread_safe, "dynamic": lambda php, _: php,
    }  # fmt: skip

    def started(build: str, pool: str) -> Fpm:
        return start_fpm(binary=makers[build](php_fpm, folder / f"php-fpm-{build}-{pool}"), **{pool: ONE_WORKER})

    return started


@pytest.fixture
def no_bcc(tmp_path: Path) -> dict[str, str]:
    """The environment of a Python in which bcc is not installed."""
    (tmp_path / "bcc.py").write_text("raise ImportError('none here')\n")
    return {**os.environ, "PYTHONPATH": f"{tmp_path}:{CHECKOUT}"}


@contextlib.contextmanager
def program(*command: str, until: Callable[[int], bool]) -> Iterator[int]:
    """A running program, which gets no input; its pid once `until` is true of it."""
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        wait_for(lambda: until(process.pid), f"{command[0]} to be ready")
        yield process.pid
    finally:
        process.kill()
        process.communicate()


def waits(pid: int) -> bool:
    return Path(f"/proc/{pid}/wchan").read_text() not in ("", "0")


def requests_of(path: Path) -> list[Request]:
    with Reader(str(path)) as recording:
        return list(recording.requests())


def recorded(path: Path, fpms: list[Fpm], *arguments: str) -> str:
    """Record three requests of each master; return what is written to stderr."""
    process = phptrace("record", *arguments, "-o", str(path))
    printed = attached_to(process, until="recording to")  # the file is there
    for fpm in fpms:
        for _ in range(3):
            fpm.get("leak.php", QUERY_STRING="1000003")
    wait_for(lambda: len(requests_of(path)) >= 3 * len(fpms), "the requests to be on disk")
    code, _, rest = finish(process)
    assert code == 0, printed + rest
    return printed + rest


def test_masters_of_several_builds_are_each_traced_by_the_best_backend(start: StartBuild, tmp_path: Path) -> None:
    fpms = [start("dynamic", "mixed"), start("static", "mixed"), start("zts", "mixed")]
    path = tmp_path / "r.phptrace"

    printed = recorded(path, fpms, "php-fpm:mixed")

    dynamic, static, zts = [fpm.workers()[0] for fpm in fpms]
    requests = requests_of(path)
    assert Counter(request.pid for request in requests) == {dynamic: 3, static: 3, zts: 3}
    assert {request.script for request in requests} == {f"{fpm.folder}/leak.php" for fpm in fpms}
    by_pid = {request.pid: request for request in requests}
    assert (by_pid[dynamic].zend_peak is None, by_pid[static].zend_peak, by_pid[zts].zend_peak) == (False, None, None)
    for pid in (dynamic, static):  # the third one has no extension that leaks
        growth = by_pid[pid].growth
        assert growth is not None
        assert abs(growth - 1_000_003) <= 8 * 1024
    assert (by_pid[dynamic].native_kept is None, by_pid[static].native_kept) == (False, None)
    # Before anything is attached.
    places = [printed.index(text) for text in ("using bpf and ptrace (", COST, "3 workers, backend bpf+ptrace")]
    assert places == sorted(places)
    assert f"ptrace for master {min(fpms[1].master, fpms[2].master)}, master" in printed


def test_a_static_php_fpm_gives_no_request_that_nobody_sent(start: StartBuild, tmp_path: Path) -> None:
    fpm = start("static", "alone")
    path = tmp_path / "r.phptrace"

    printed = recorded(path, [fpm], str(fpm.master))

    assert [(request.nth, request.ending) for request in requests_of(path)] == [(n, "unknown") for n in (1, 2, 3)]
    assert "it is a static build without dynamic symbols" in printed


def test_a_master_that_nobody_can_trace_is_named_on_stderr_in_the_recording_and_by_doctor(
    start: StartBuild, tmp_path: Path
) -> None:
    fpm = start("dynamic", "beside")
    path = tmp_path / "r.phptrace"
    odd = executable(tmp_path / "odd", NAMELESS)
    with running(odd, "php-fpm: master process (x)", ("php-fpm: pool beside",)) as other:
        printed = recorded(path, [fpm], "php-fpm:beside")
        examined = run("doctor", "php-fpm:beside")

    sentence = f"process {other.pid} is not traced: cannot trace {odd}: it has no X-Powered-By text"
    assert printed.index(f"phptrace: {sentence}") < printed.index(", backend bpf (")
    assert f"LEFT OUT: {sentence}" in printed
    assert printed.count("has no X-Powered-By text") == 2
    assert f"LEFT OUT: {sentence}" in " ".join(run("report", str(path)).stdout.split())
    assert f"LEFT OUT: {sentence}" in run("export", str(path)).stderr
    assert examined.returncode == 0
    assert re.search(rf"^warn  php-fpm:beside +{sentence}", examined.stdout, re.MULTILINE)
    assert f"Not traced: process {other.pid}: cannot trace {odd}" in examined.stdout


def test_without_bcc_attach_and_doctor_stop_with_the_package_to_install(
    start: StartBuild, no_bcc: dict[str, str], tmp_path: Path
) -> None:
    fpm = start("dynamic", "package")

    stopped = run("record", "-o", str(tmp_path / "r.phptrace"), str(fpm.master), env=no_bcc)
    examined = run("doctor", str(fpm.master), env=no_bcc)

    assert (stopped.returncode, examined.returncode) == (5, 5)
    assert "apt install python3-bpfcc" in stopped.stderr
    assert f"Or use --backend ptrace, which slows requests down: {COST}" in stopped.stderr
    assert not (tmp_path / "r.phptrace").exists()
    assert stopped.stderr.removeprefix("phptrace: ") in examined.stdout


def test_without_bcc_ptrace_is_taken_if_it_is_asked_for_or_nothing_else_would_do(
    start: StartBuild, no_bcc: dict[str, str]
) -> None:
    dynamic, static = start("dynamic", "asked"), start("static", "asked")
    for arguments in (["--backend", "ptrace", str(dynamic.master)], [str(static.master)]):
        process = phptrace("attach", *arguments, env=no_bcc)
        attached_to(process, "1 worker, backend ptrace (")

        assert finish(process)[0] == 0
    assert run("doctor", str(static.master), env=no_bcc).returncode == 0


def test_without_sysfs_attach_and_doctor_stop_with_the_command_that_mounts_it(start: StartBuild) -> None:
    require("unshare")
    fpm = start("dynamic", "sysfs")
    ended = [
        subprocess.run(
            [*WITHOUT_SYSFS, sys.executable, "-m", "tracer", verb, str(fpm.master)],
            capture_output=True, text=True, cwd=CHECKOUT,
        )
        for verb in ("attach", "doctor")
    ]  # fmt: skip

    assert [one.returncode for one in ended] == [5, 5]
    assert "Run mount -t sysfs sysfs /sys. Or use --backend ptrace" in ended[0].stderr
    assert re.search(r"^FAIL  sysfs .*\n +fix: mount -t sysfs sysfs /sys$", ended[1].stdout, re.MULTILINE)


@pytest.mark.parametrize("arguments", [["attach"], ["attach", "--backend", "bpf"], ["doctor"]])
def test_a_script_on_the_command_line_is_refused_with_the_verb_that_shows_what_it_holds(arguments: list[str]) -> None:
    require("/usr/bin/php8.2")
    with program("/usr/bin/php8.2", "-r", "fgets(STDIN);", until=waits) as pid:
        refused = run(*arguments, str(pid))
        shown = run("heap", str(pid))

    assert refused.returncode == 5
    assert f"it is PHP's cli, whose one request began when it started and ends with it. Use `phptrace heap {pid}" in (
        refused.stderr + refused.stdout
    )
    assert "curl" not in refused.stderr
    assert (shown.returncode, str(pid) in shown.stdout) == (0, True)


@pytest.mark.parametrize("backend", ["auto", "bpf", "ptrace"])
def test_a_static_php_s_web_server_is_refused(folder: Path, backend: str, tmp_path: Path) -> None:
    require("/usr/bin/php8.2")
    php = php_builds.static("/usr/bin/php8.2", folder / f"php-static-{backend}")
    with program(php, "-S", "127.0.0.1:0", "-t", str(SCRIPTS), until=waits) as pid:
        refused = run("record", "--backend", backend, "-o", str(tmp_path / "r.phptrace"), str(pid))
        examined = run("doctor", str(pid))

    assert (refused.returncode, examined.returncode) == (5, 5)
    if backend != "bpf":
        assert f"{php} has no symbols that BPF could use, and is neither php-fpm nor php-cgi" in refused.stderr
    assert "not PHP" not in refused.stderr + examined.stdout
    assert not (tmp_path / "r.phptrace").exists()
