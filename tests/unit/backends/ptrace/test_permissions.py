"""Why a process may not be traced: also where processes end, or cannot be started, while that is asked."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from subprocesses import ROOT, as_nobody

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


def test_a_process_that_ends_while_its_rights_are_looked_at_is_not_refused():
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


def test_the_child_that_is_traced_to_try_ptrace_ends_with_a_phptrace_that_is_killed():
    with subprocess.Popen(
        [sys.executable, "-c", KILLED_BEFORE_IT_KILLS],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    ) as phptrace:
        assert phptrace.stdout is not None
        child = int(phptrace.stdout.readline())  # not all of it: the child has the pipe, too
    try:
        deadline = time.monotonic() + 5
        while is_running(child) and time.monotonic() < deadline:
            time.sleep(0.01)

        assert phptrace.returncode == -signal.SIGKILL
        assert not is_running(child)
    finally:
        if is_running(child):
            os.kill(child, signal.SIGKILL)


def test_where_no_process_can_be_started_ptrace_cannot_be_tried(monkeypatch):
    def refused() -> int:
        raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))

    monkeypatch.setattr(os, "fork", refused)

    assert "Resource temporarily unavailable" in (obstacle() or "")
