"""The cost that the probes add to one worker's request: worker and client take turns on one CPU, alone.

On two CPUs, the cost of wake-ups across CPUs would hide the figure.
"""

from __future__ import annotations

import os
import random
import socket
from collections.abc import Iterator

from benchmarks.figures import Figure
from benchmarks.pools import Pool, pools
from tests.helpers import fastcgi
from tracer.backends.bpf.backend import BpfBackend
from tracer.targets.resolve import targets

REQUESTS = 400


def figures(rounds: int) -> Iterator[Figure]:
    cpus = os.sched_getaffinity(0)
    one = {max(cpus)}
    with pools("traced", "plain", "logger", workers=1) as found:
        backend = BpfBackend()
        backend.attach(targets([str(found["traced"].master)]))
        try:
            os.sched_setaffinity(0, one)
            for pool in found.values():
                for worker in pool.workers():
                    os.sched_setaffinity(worker, one)
            clients = {name: Client(pool, "noop.php") for name, pool in found.items()}
            spent: dict[str, list[float]] = {name: [] for name in found}
            for turn in range(rounds + 2):
                for name in random.sample(list(found), len(found)):
                    cost_us = clients[name].cost_us(REQUESTS)
                    if turn >= 2:  # what comes before is warm-up
                        spent[name].append(cost_us)
                backend.poll(0)
        finally:
            os.sched_setaffinity(0, cpus)
            backend.close()
    yield Figure("no-op, one worker: CPU of a request, untraced", tuple(spent["plain"]), "µs/req")
    for name, shown, budget in (("traced", "traced", "<= 8"), ("logger", "auto_prepend_file logger", None)):
        added = tuple(ours - theirs for ours, theirs in zip(spent[name], spent["plain"], strict=True))
        yield Figure(f"no-op, one worker: CPU added, {shown}", added, "µs/req", budget)


class Client:
    """Sends the same request over and over on one kept connection."""

    def __init__(self, pool: Pool, script: str) -> None:
        self._pool = pool
        self._connection = socket.socket(socket.AF_UNIX)
        self._connection.connect(str(pool.socket))
        params = {
            "SCRIPT_FILENAME": f"{pool.folder}/{script}",
            "SCRIPT_NAME": f"/{script}",
            "REQUEST_URI": f"/{script}?item=4711",
            "QUERY_STRING": "item=4711",
            "REQUEST_METHOD": "GET",
            "SERVER_PROTOCOL": "HTTP/1.1",
            "HTTP_HOST": "localhost",
            "REMOTE_ADDR": "127.0.0.1",
        }
        self._message = fastcgi.message(params, keep=True)

    def cost_us(self, requests: int) -> float:
        """CPU time of the worker per request, in µs, over that many requests."""
        before = self._pool.cpu_ns()
        for _ in range(requests):
            self._connection.sendall(self._message)
            answer = b""
            while answer[-16:-14] != b"\x01\x03":  # END_REQUEST is 16 bytes long
                answer += self._connection.recv(65536)
        return (self._pool.cpu_ns() - before) / requests / 1000

    def close(self) -> None:
        self._connection.close()
