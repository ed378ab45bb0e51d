"""Real php-fpm, a real kernel: pools of the tests' own on unix sockets, and a backend attached to them."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import fastcgi
import pytest

from tracer.backends import Backend
from tracer.backends.bpf.backend import BpfBackend
from tracer.backends.bpf.requirements import unmet_requirements
from tracer.backends.ptrace.permissions import obstacle
from tracer.facts import Fact, Growth, Loss, Request, Worker
from tracer.targets.resolve import targets

SCRIPTS = Path(__file__).resolve().parent.parent / "php"
PHP_FPM = "/usr/sbin/php-fpm8.2"


def lacking(reason: str) -> None:
    """Skips with the reason; under PHPTRACE_REQUIRE=1, fails: CI must not pass by testing nothing."""
    if os.environ.get("PHPTRACE_REQUIRE") == "1":
        pytest.fail(f"PHPTRACE_REQUIRE is set, and {reason}")
    pytest.skip(reason)


@pytest.fixture(autouse=True, scope="module")
def _machine(request: pytest.FixtureRequest) -> None:
    if not Path(PHP_FPM).exists():
        lacking(f"there is no {PHP_FPM}: run vagrant/provision.sh")
    if request.path.name.startswith("test_ptrace"):
        refused = obstacle()
        if refused is not None:
            lacking(refused)
        return
    for missing in unmet_requirements():
        lacking(str(missing))


def wait_for(condition: Callable[[], object], what: str, timeout_s: float = 20.0) -> None:
    """Polls until the condition holds; fails the test after the time-out."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > deadline:
            pytest.fail(f"waited {timeout_s} s for {what}")
        time.sleep(0.01)


def status_bytes(pid: int, *names: str) -> list[int]:
    """Values of /proc/PID/status that are in kB, as bytes."""
    lines = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
    return [int(lines[name].split()[0]) * 1024 for name in names]


def rollup_bytes(pid: int, name: str) -> int:
    """A value of /proc/PID/smaps_rollup, which walks the page tables and is exact on every kernel."""
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) * 1024
    raise KeyError(name)


class Fpm:
    """A php-fpm master of the tests' own, with one pool on a unix socket unless told otherwise."""

    def __init__(self, folder: Path, pools: dict[str, str], ini: tuple[str, ...] = ()) -> None:
        self.folder = folder
        self._config = folder / "php-fpm.conf"
        sections = [f"[global]\nerror_log = {folder}/error.log\n"]
        for name, settings in pools.items():
            sections.append(
                f"[{name}]\nuser = www-data\ngroup = www-data\nlisten = {folder}/{name}.sock\n"
                f"php_admin_value[ffi.enable] = true\n{settings.replace('{folder}', str(folder))}\n"
            )
        self._config.write_text("\n".join(sections))
        self.pools = tuple(pools)
        defines = [word for setting in ini for word in ("-d", setting)]
        command = [PHP_FPM, "--nodaemonize", "--fpm-config", str(self._config), *defines]
        self.process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        wait_for(lambda: all(self.socket(pool).exists() for pool in pools), "php-fpm to listen")
        static = re.findall(r"pm = static\s+pm\.max_children = (\d+)", "\n".join(pools.values()))
        wait_for(lambda: len(self.workers()) >= sum(map(int, static)), "the static workers")

    @property
    def master(self) -> int:
        return self.process.pid

    def socket(self, pool: str | None = None) -> Path:
        return self.folder / f"{pool or self.pools[0]}.sock"

    def workers(self) -> list[int]:
        return [int(pid) for pid in Path(f"/proc/{self.master}/task/{self.master}/children").read_text().split()]

    def get(self, script: str, *, pool: str | None = None, **params: str | bytes | None) -> fastcgi.Response:
        """One request for tests/php/SCRIPT; parameters override the FastCGI ones made up here, None leaves one out."""
        every: dict[str, str | bytes | None] = {
            "SCRIPT_FILENAME": f"{self.folder}/{script}",
            "SCRIPT_NAME": f"/{script}",
            "REQUEST_URI": f"/{script}",
            "REQUEST_METHOD": "GET",
            "QUERY_STRING": "",
            **params,
        }
        sent = {name: value for name, value in every.items() if value is not None}
        return fastcgi.request(self.socket(pool), sent)

    def stop(self) -> None:
        self.process.terminate()
        try:
            self.process.wait(10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


@pytest.fixture(scope="module")
def start_fpm() -> Iterator[Callable[..., Fpm]]:
    """Starts masters: start_fpm(www="pm = static\\npm.max_children = 2"), with `ini` settings for all pools."""
    with contextlib.ExitStack() as stack:

        def start(*ini: str, **pools: str) -> Fpm:
            folder = Path(tempfile.mkdtemp(prefix="phptrace-test."))
            stack.callback(shutil.rmtree, folder, ignore_errors=True)
            folder.chmod(0o755)
            for script in SCRIPTS.iterdir():
                shutil.copy(script, folder)
            fpm = Fpm(folder, pools, ini)
            stack.callback(fpm.stop)
            return fpm

        yield start


class Tracer:
    """A backend attached to a master or worker, and all facts it gave."""

    def __init__(self, *names: str, backend: Backend | None = None, symbols: bool = True, **options: object) -> None:
        self.backend = backend or BpfBackend(**options)  # type: ignore[arg-type]
        found = targets(names, symbols=symbols)
        self.backend.attach(found)
        self.facts: list[Fact] = []
        self._taken = 0

    @property
    def requests(self) -> list[Request]:
        return [fact for fact in self.facts if isinstance(fact, Request)]

    @property
    def growths(self) -> list[Growth]:
        return [fact for fact in self.facts if isinstance(fact, Growth)]

    @property
    def workers(self) -> list[Worker]:
        return [fact for fact in self.facts if isinstance(fact, Worker)]

    @property
    def lost(self) -> int:
        return sum(fact.lost for fact in self.facts if isinstance(fact, Loss))

    def poll(self) -> None:
        self.facts += self.backend.poll(0.02)

    def next(self, count: int = 1) -> list[Request]:
        """The next requests in order of arrival: the client has its answer before the worker is done."""

        def arrived() -> bool:
            self.poll()
            return len(self.requests) >= self._taken + count

        wait_for(arrived, f"{count} requests to be delivered")
        found = self.requests[self._taken : self._taken + count]
        self._taken += count
        return found

    def close(self) -> None:
        self.facts += self.backend.close()


@pytest.fixture
def trace() -> Iterator[Callable[..., Tracer]]:
    """Attaches for one test: trace(str(fpm.master))."""
    with contextlib.ExitStack() as stack:

        def attach(*names: str, backend: Backend | None = None, **options: object) -> Tracer:
            tracer = Tracer(*names, backend=backend, **options)
            stack.callback(tracer.close)
            return tracer

        yield attach


@pytest.fixture(scope="module")
def fpm(start_fpm: Callable[..., Fpm]) -> Fpm:
    """One static worker, so that requests follow each other in it."""
    return start_fpm(www="pm = static\npm.max_children = 1")


@pytest.fixture(scope="module")
def traced(fpm: Fpm) -> Iterator[Tracer]:
    """Attached to `fpm` for all tests of the module."""
    tracer = Tracer(str(fpm.master))
    yield tracer
    tracer.close()


def phptrace(*arguments: str, **options: object) -> subprocess.Popen[str]:
    """Starts the command as a user would."""
    command = [sys.executable, "-m", "tracer", *arguments]
    settings: dict[str, object] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, **options}
    return subprocess.Popen(command, **settings)  # type: ignore[call-overload, no-any-return]


def attached_to(process: subprocess.Popen[str], until: str = "workers, backend") -> str:
    """Waits until a `phptrace` says that it is attached; returns what it said."""
    assert process.stderr is not None
    said = ""
    while until not in said:
        line = process.stderr.readline()
        if not line:
            pytest.fail(f"phptrace ended before it was attached: {said}")
        said += line
    return said


def finish(process: subprocess.Popen[str], number: signal.Signals = signal.SIGINT) -> tuple[int, str, str]:
    """Ends it with a signal; returns exit code, stdout and stderr."""
    process.send_signal(number)
    out, err = process.communicate(timeout=30)
    return process.returncode, out, err
