"""Root, CAP_SYS_PTRACE alone and php-fpm's own user may trace with ptrace; others get an error with the fix."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path

import fastcgi
import pytest
from backend_kinds import SYSCALLS, make_backend
from command import CHECKOUT
from fpm import ONE_WORKER, SCRIPTS, Fpm
from machine import require
from tracing import Tracer
from visits import KeptConnection
from waiting import wait_for

from tracer.errors import UnsupportedError
from tracer.targets import php as php_binary
from tracer.targets.resolve import targets

pytestmark = pytest.mark.needs_ptrace

ONE_CAPABILITY = (
    "--reuid=65534", "--regid=65534", "--clear-groups",
    "--bounding-set=-all,+sys_ptrace", "--inh-caps=-all,+sys_ptrace", "--ambient-caps=-all,+sys_ptrace",
)  # fmt: skip
PHP_FPMS_USER = ("--reuid=www-data", "--regid=www-data", "--clear-groups")
ROOT_WITHOUT_CAPABILITIES = ("--bounding-set=-all", "--inh-caps=-all")


@pytest.fixture(scope="module")
def readable(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with a copy of the program that every user may read, like an installed one; removed at the end."""
    require("setpriv")
    folder = Path("/tmp") / f"phptrace-installed.{os.getpid()}"
    shutil.copytree(CHECKOUT / "tracer", folder / "tracer")
    folder.chmod(0o755)
    yield folder
    shutil.rmtree(folder)


def traced_by(who: tuple[str, ...], readable: Path, pid: int, *options: str) -> tuple[subprocess.Popen[str], str]:
    """Start `phptrace attach` with those rights; return it once it is attached or has ended, and its stderr so far."""
    command = ["setpriv", *who, "--", "/usr/bin/python3", "-m", "tracer", "attach", *options, str(pid)]
    env = {**os.environ, "PYTHONPATH": str(readable), "PYTHONDONTWRITEBYTECODE": "1"}
    process = subprocess.Popen(
        command, cwd=readable, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stderr is not None
    printed = ""
    for line in process.stderr:
        printed += line
        if ", backend " in line:
            break
    return process, printed


def lines_of(process: subprocess.Popen[str], request: Callable[[], object], times: int) -> str:
    for _ in range(times):
        request()
    out, err = process.communicate(timeout=30)
    assert process.returncode == 0, err
    return out


def test_one_capability_is_enough(start_fpm: Callable[..., Fpm], readable: Path) -> None:
    fpm = start_fpm(www=ONE_WORKER)
    process, printed = traced_by(ONE_CAPABILITY, readable, fpm.master, "--backend", "ptrace", "-c", "3")

    seen = lines_of(process, lambda: fpm.get("leak.php", QUERY_STRING="1000003"), 3)

    assert "1 worker, backend ptrace (asked for)" in printed
    assert seen.count("\t/leak.php\t") == 3


def test_without_the_rights_for_bpf_auto_falls_back_and_prints_the_reason(
    start_fpm: Callable[..., Fpm], readable: Path
) -> None:
    fpm = start_fpm(www=ONE_WORKER)
    process, printed = traced_by(ONE_CAPABILITY, readable, fpm.master, "-c", "1")

    seen = lines_of(process, lambda: fpm.get("hello.php"), 1)

    assert "backend ptrace (since phptrace cannot trace with BPF: this process lacks CAP_" in printed
    assert seen.count("\t/hello.php\t") == 1


def test_one_capability_is_enough_for_requests_on_a_connection_kept_from_before(
    start_fpm: Callable[..., Fpm], readable: Path
) -> None:
    fpm = start_fpm(www=ONE_WORKER)
    connection = KeptConnection(fpm)
    connection.get("/before")
    process, _ = traced_by(ONE_CAPABILITY, readable, fpm.master, "--backend", "ptrace", "-c", "2")

    seen = lines_of(process, lambda: connection.get("/kept"), 2)

    connection.close()
    assert seen.count("\t/kept\t") == 2


def test_php_fpms_own_user_needs_no_capability(php_fpm: str, readable: Path) -> None:
    folder = Path("/tmp") / f"phptrace-own.{os.getpid()}"
    folder.mkdir(mode=0o777)
    folder.chmod(0o777)
    try:
        for script in SCRIPTS.iterdir():
            shutil.copy(script, folder)
        (folder / "fpm.conf").write_text(
            f"[global]\nerror_log = {folder}/error.log\n[own]\nlisten = {folder}/own.sock\n"
            "pm = static\npm.max_children = 1\n"
        )
        command = ["setpriv", *PHP_FPMS_USER, "--", php_fpm, "-F", "-y", f"{folder}/fpm.conf"]
        master = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            wait_for((folder / "own.sock").exists, "php-fpm to listen")
            stopped, why = traced_by(PHP_FPMS_USER, readable, master.pid)
            stopped.communicate()
            process, printed = traced_by(PHP_FPMS_USER, readable, master.pid, "--backend", "ptrace", "-c", "2")
            params = {
                "SCRIPT_FILENAME": f"{folder}/hello.php", "REQUEST_METHOD": "GET", "REQUEST_URI": "/own",
            }  # fmt: skip
            seen = lines_of(process, lambda: fastcgi.request(folder / "own.sock", params), 2)
        finally:
            master.send_signal(signal.SIGTERM)
            master.wait()
    finally:
        shutil.rmtree(folder)

    # Without being asked, phptrace does not slow requests down for want of sudo.
    assert stopped.returncode == 4
    assert "Run with sudo. Or use --backend ptrace, which slows requests down" in why
    assert "backend ptrace" in printed
    assert seen.count("\t/own\t") == 2


@pytest.mark.parametrize("who", [PHP_FPMS_USER, ROOT_WITHOUT_CAPABILITIES])
def test_the_error_for_a_user_without_the_rights_names_how_to_get_them(
    start_fpm: Callable[..., Fpm], readable: Path, who: tuple[str, ...]
) -> None:
    fpm = start_fpm(www=ONE_WORKER)
    process, printed = traced_by(who, readable, fpm.workers()[0], "--backend", "ptrace", "-c", "1")
    process.communicate()

    assert process.returncode == 4
    assert "CAP_SYS_PTRACE" in printed
    assert "docker run --cap-add=SYS_PTRACE" in printed
    assert "process.dumpable = yes" in printed


def test_a_worker_that_is_already_traced_is_refused_with_exit_code_5(
    start_fpm: Callable[..., Fpm], readable: Path
) -> None:
    fpm = start_fpm(www=ONE_WORKER)
    first, _ = traced_by((), readable, fpm.master, "--backend", "ptrace")
    second, printed = traced_by((), readable, fpm.master, "--backend", "ptrace")
    second.communicate()
    first.send_signal(signal.SIGINT)
    first.communicate()

    assert second.returncode == 5
    assert "already traced, by process" in printed


def test_a_php_without_symbols_is_traced(start_fpm: Callable[..., Fpm], monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(image: object) -> None:
        raise UnsupportedError("it is a static build without dynamic symbols")

    monkeypatch.setattr(php_binary, "inspect", refused)
    fpm = start_fpm(www=ONE_WORKER)
    with pytest.raises(UnsupportedError):
        targets([str(fpm.master)])
    tracer = Tracer(make_backend(SYSCALLS), str(fpm.master), symbols=False)
    for _ in range(5):
        fpm.get("leak.php", QUERY_STRING="1000003", REQUEST_URI="/static")
    *_, request = tracer.next(5)
    tracer.close()

    assert (request.uri, request.method, request.zend_peak, request.status) == ("/static", "GET", None, None)
    assert request.growth is not None
    assert abs(request.growth - 1_000_003) <= 8 * 1024
    assert request.script == f"{fpm.folder}/leak.php"
