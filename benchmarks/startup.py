"""The time that attaching and detaching take under load."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections.abc import Iterator

from benchmarks.figures import Figure
from benchmarks.pools import Pool, pools
from benchmarks.tracer import Recorder


def figures(rounds: int) -> Iterator[Figure]:
    with pools("traced") as found:
        pool = found["traced"]
        load = threading.Thread(target=pool.load, args=("work.php", 4 * rounds + 4, 1))
        load.start()
        first = [_first_request_s(pool) for _ in range(rounds)]
        attach, detach = [], []
        for _ in range(rounds):
            with Recorder(pool.master) as recorder:
                attach.append(recorder.attach_s)
            detach.append(recorder.detach_s)
        load.join()
    yield Figure("from the command to the first request seen", tuple(first), "s", "<= 1.5")
    yield Figure("from the command to attached", tuple(attach), "s")
    yield Figure("from Ctrl-C to the end", tuple(detach), "s", "<= 1")


def _first_request_s(pool: Pool) -> float:
    started = time.monotonic()
    command = [sys.executable, "-m", "tracer", "-q", "attach", "-c", "1", str(pool.master)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    process.stdout.readline()  # the header
    process.stdout.readline()
    seen = time.monotonic() - started
    process.communicate()
    return seen
