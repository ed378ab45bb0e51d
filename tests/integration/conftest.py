"""Real php-fpm, a real kernel: pools of the tests' own on unix sockets, and a backend attached to them."""

from __future__ import annotations

import contextlib
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from backend_kinds import BPF_PARAM, PTRACE_PARAMS, make_backend
from fpm import ONE_WORKER, SCRIPTS, Fpm
from machine import PHP_FPMS, lacking, missing_for
from tracing import Tracer
from warm_recorder import load_programs


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip or fail a test whose markers need what this machine does not have, before its fixtures are made."""
    for marker in item.iter_markers():
        reason = missing_for(marker.name)
        if reason is not None:
            lacking(reason)


@pytest.fixture(
    scope="session", params=[pytest.param(path, marks=pytest.mark.needs_php, id=Path(path).name) for path in PHP_FPMS]
)
def php_fpm(request: pytest.FixtureRequest) -> str:
    """The path of the php-fpm that the test starts."""
    path = str(request.param)
    if not Path(path).exists():
        lacking(f"there is no {path}. Correct PHPTRACE_TEST_PHP_FPM.")
    return path


@pytest.fixture
def site() -> Iterator[Path]:
    """A folder with the tests' scripts that other users may read, for a php-fpm that the test starts."""
    folder = Path(tempfile.mkdtemp(prefix="phptrace-test."))
    folder.chmod(0o755)
    shutil.copytree(SCRIPTS, folder, dirs_exist_ok=True)
    yield folder
    shutil.rmtree(folder)


@pytest.fixture(scope="module")
def start_fpm(php_fpm: str) -> Iterator[Callable[..., Fpm]]:
    """Start masters: start_fpm(www="pm = static\\npm.max_children = 2"), with `ini` settings for all pools.

    `binary` is the path of another php-fpm than the test's.
    """
    with contextlib.ExitStack() as stack:

        def start(*ini: str, binary: str = php_fpm, daemonize: bool = False, **pools: str) -> Fpm:
            folder = Path(tempfile.mkdtemp(prefix="phptrace-test."))
            stack.callback(shutil.rmtree, folder, ignore_errors=True)
            folder.chmod(0o755)
            for script in SCRIPTS.iterdir():
                shutil.copy(script, folder)
            fpm = Fpm(binary, folder, pools, ini, daemonize=daemonize)
            stack.callback(fpm.stop)
            return fpm

        yield start


@pytest.fixture(scope="session")
def programs_loaded(php_fpm: str) -> None:
    """Load the BPF programs for every WarmRecorder of this run, if they can be loaded here."""
    if missing_for("needs_bpf") is not None:
        return
    with tempfile.TemporaryDirectory(prefix="phptrace-test.") as folder:
        fpm = Fpm(php_fpm, Path(folder), {"www": ONE_WORKER})
        try:
            load_programs(fpm)
        finally:
            fpm.stop()


@pytest.fixture(scope="module", params=[BPF_PARAM, *PTRACE_PARAMS])
def backend(request: pytest.FixtureRequest) -> str:
    """A backend's name, for make_backend(). A folder of tests may have fewer of them in its conftest.py."""
    return str(request.param)


@pytest.fixture
def trace(backend: str) -> Iterator[Callable[..., Tracer]]:
    """Attach a backend for one test: trace(str(fpm.master), keep_query=True)."""
    with contextlib.ExitStack() as stack:

        def attach(*names: str, **options: object) -> Tracer:
            tracer = Tracer(make_backend(backend, **options), *names)
            stack.callback(tracer.close)
            return tracer

        yield attach


@pytest.fixture(scope="module")
def fpm(start_fpm: Callable[..., Fpm]) -> Fpm:
    """One static worker, so that requests follow each other in it."""
    return start_fpm(www=ONE_WORKER)


@pytest.fixture(scope="module")
def traced(fpm: Fpm, backend: str) -> Iterator[Tracer]:
    """Attached to `fpm` for all tests of the module."""
    tracer = Tracer(make_backend(backend), str(fpm.master))
    yield tracer
    tracer.close()
