"""Reasons why ptrace may not trace a process, also if a process ends or cannot be started during the check."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
from pathlib import Path

from subprocesses import ROOT, as_nobody
from waiting import wait_for

from tracer.backends.ptrace import syscalls
from tracer.backends.ptrace.permissions import obstacle, refusal

# Prints the pid of the child that obstacle() traces, and is killed instead of killing it.
KILLED_BEFORE_IT_KILLS = """
import os, signal
from tracer.backends.ptrace.permissions import obstacle
kill = os.kill
def die(pid, number):
    print(pid, flush=True)
    kill(os.getpid(), signal.SIGKILL)
os.kill = die
obstacle()
"""


def is_running(pid: int) -> bool:
    try:
        return " Z " not in Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return False


def test_a_process_that_ends_during_the_check_is_not_refused():
    def ended_process_is_not_refused() -> bool:
        process = subprocess.Popen(["sleep", "600"])
        stat = os.stat

        def stat_of_one_that_has_ended(path: str) -> os.stat_result:
            process.kill()
            process.wait()
            return stat(path)

        os.stat = stat_of_one_that_has_ended
        try:
            return refusal(process.pid) is None
        finally:
            os.stat = stat
            process.kill()

    assert as_nobody(ended_process_is_not_refused) == 0


def test_the_child_on_which_ptrace_is_tested_ends_with_a_killed_phptrace():
    with subprocess.Popen(
        [sys.executable, "-c", KILLED_BEFORE_IT_KILLS],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    ) as phptrace:
        assert phptrace.stdout is not None
        child = int(phptrace.stdout.readline())  # one line only: the child holds the pipe open, too
    try:
        wait_for(lambda: not is_running(child), "the child to end")

        assert phptrace.returncode == -signal.SIGKILL
    finally:
        if is_running(child):
            os.kill(child, signal.SIGKILL)


def test_obstacle_reports_that_no_process_can_be_started(monkeypatch):
    def refused() -> int:
        raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))

    monkeypatch.setattr(os, "fork", refused)

    assert "Resource temporarily unavailable" in (obstacle() or "")


def test_an_obstacle_is_an_error_message(monkeypatch):
    def refused(pid: int, options: int) -> None:
        raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))

    monkeypatch.setattr(syscalls, "seize", refused)

    assert obstacle() == (
        "cannot trace even a child process: a seccomp filter or a security module forbids ptrace"
        " (Operation not permitted)"
    )
