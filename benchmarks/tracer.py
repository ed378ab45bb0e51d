"""A running `phptrace record`, watched from outside."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from tracer.recording.reader import Reader, Totals

_TICK_US = 1_000_000 / os.sysconf("SC_CLK_TCK")


class Recorder:
    """Attached while inside the `with`; afterwards, `totals` has what it recorded.

    `counted` is then the number of requests whose native memory was counted.
    """

    def __init__(self, *targets: int, options: Sequence[str] = ()) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="phptrace-bench-rec.")
        self._path = f"{self._folder.name}/r.phptrace"
        self._arguments = [*options, *map(str, targets)]

    def __enter__(self) -> Recorder:
        self._started = time.monotonic()
        command = [sys.executable, "-m", "tracer", "record", "-o", self._path, *self._arguments]
        self._process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
        assert self._process.stderr is not None
        while "recording to" not in (line := self._process.stderr.readline()):
            if not line:
                raise RuntimeError("phptrace did not attach")
        self.attach_s = time.monotonic() - self._started
        return self

    def __exit__(self, *_: object) -> None:
        started = time.monotonic()
        self._process.send_signal(signal.SIGINT)
        _, said = self._process.communicate()
        self.detach_s = time.monotonic() - started
        if self._process.returncode not in (0, 8):
            raise RuntimeError(f"phptrace failed: {said}")
        with Reader(self._path) as recording:
            self.totals: Totals = recording.totals()
            self.counted = sum(request.native_kept is not None for request in recording.requests(("native_kept",)))
        self._folder.cleanup()

    def cpu_us(self) -> float:
        """User and system time so far."""
        fields = Path(f"/proc/{self._process.pid}/stat").read_text().rsplit(")", 1)[1].split()
        return (int(fields[11]) + int(fields[12])) * _TICK_US

    def rss_bytes(self) -> int:
        lines = Path(f"/proc/{self._process.pid}/status").read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmRSS"))
