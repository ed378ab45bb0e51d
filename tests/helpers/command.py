"""The command phptrace, run as a user runs it."""

from __future__ import annotations

import io
import signal
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import IO, Protocol

import pytest

CHECKOUT = Path(__file__).resolve().parents[2]


class Running(Protocol):
    """A `phptrace` that was started: subprocess.Popen, and WarmRecorder of warm_recorder.py."""

    pid: int
    returncode: int | None

    @property
    def stderr(self) -> IO[str] | None: ...
    def send_signal(self, number: int, /) -> None: ...
    def kill(self) -> None: ...
    def communicate(self, *, timeout: float | None = None) -> tuple[str, str]: ...


def phptrace(*arguments: str, **options: object) -> subprocess.Popen[str]:
    """Start the command; its output goes to pipes."""
    command = [sys.executable, "-m", "tracer", *arguments]
    settings: dict[str, object] = {
        "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "cwd": CHECKOUT, **options,
    }  # fmt: skip
    return subprocess.Popen(command, **settings)  # type: ignore[call-overload, no-any-return]


def attached_to(process: Running, until: str = ", backend ") -> str:
    """Wait until a `phptrace` reports that it is attached; return what it wrote to stderr so far."""
    assert process.stderr is not None
    said = ""
    while until not in said:
        line = process.stderr.readline()
        if not line:
            pytest.fail(f"phptrace ended before it was attached: {said}")
        said += line
    return said


def finish(process: Running, number: signal.Signals = signal.SIGINT) -> tuple[int, str, str]:
    """End it with a signal; return exit code, stdout and stderr."""
    process.send_signal(number)
    out, err = process.communicate(timeout=60)
    assert process.returncode is not None
    return process.returncode, out, err


def run(*arguments: str, **options: object) -> subprocess.CompletedProcess[str]:
    """Run the command to its end."""
    command = [sys.executable, "-m", "tracer", *arguments]
    settings: dict[str, object] = {"capture_output": True, "text": True, "timeout": 120, "cwd": CHECKOUT, **options}
    return subprocess.run(command, **settings)  # type: ignore[call-overload, no-any-return]


# The checkout may be in a directory that other users cannot read: the package comes through a pipe.
_FROM_PIPE = (
    "import sys, io, zipfile, tempfile; sys.modules['bcc'] = None; folder = tempfile.TemporaryDirectory();"
    "zipfile.ZipFile(io.BytesIO(sys.stdin.buffer.read())).extractall(folder.name); sys.path.insert(0, folder.name);"
    "from tracer.cli import main; main(sys.argv[1:])"
)


def run_as_nobody(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run the command as an ordinary user without any capability, in a Python that has no bcc."""
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        for source in (CHECKOUT / "tracer").rglob("*.py"):
            archive.write(source, source.relative_to(CHECKOUT))
    rights = ["setpriv", "--bounding-set=-all", "--inh-caps=-all", "--reuid=65534", "--regid=65534", "--clear-groups"]
    command = [*rights, "/usr/bin/python3", "-c", _FROM_PIPE, *arguments]
    answer = subprocess.run(command, cwd="/", input=packed.getvalue(), capture_output=True)
    return subprocess.CompletedProcess(command, answer.returncode, answer.stdout.decode(), answer.stderr.decode())
