"""The cost that the probes add to one worker's request: worker and client take turns on one CPU, alone.

On two CPUs, the cost of wake-ups across CPUs would hide the figure.
"""

from __future__ import annotations

import contextlib
import os
import random
import socket
from collections.abc import Callable, Iterator, Mapping

from benchmarks.figures import Figure
from benchmarks.pools import Pool, pools
from tests.helpers import fastcgi
from tracer.backends import NativeOptions
from tracer.backends.bpf.backend import BpfBackend
from tracer.targets.resolve import targets

REQUESTS = 400
_WARM_UP = 2  # turns


def figures(rounds: int) -> Iterator[Figure]:
    with pools("traced", "plain", "logger", workers=1) as found:
        backend = BpfBackend(native=NativeOptions())
        backend.attach(targets([str(found["traced"].master)]))
        try:
            with on_one_cpu(found):
                spent = costs_us(found, "noop.php", REQUESTS, rounds, lambda _: backend.poll(0))
        finally:
            backend.close()
    yield Figure("no-op, one worker: CPU of a request, untraced", tuple(spent["plain"]), "µs/req")
    for name, shown, budget in (("traced", "traced", "<= 8"), ("logger", "auto_prepend_file logger", None)):
        added = tuple(ours - theirs for ours, theirs in zip(spent[name], spent["plain"], strict=True))
        yield Figure(f"no-op, one worker: CPU added, {shown}", added, "µs/req", budget)


@contextlib.contextmanager
def on_one_cpu(found: Mapping[str, Pool]) -> Iterator[None]:
    """Keep this process and the workers of all pools on one CPU."""
    cpus = os.sched_getaffinity(0)
    one = {max(cpus)}
    os.sched_setaffinity(0, one)
    try:
        for pool in found.values():
            for worker in pool.workers():
                os.sched_setaffinity(worker, one)
        yield
    finally:
        os.sched_setaffinity(0, cpus)


def costs_us(
    found: Mapping[str, Pool],
    page: str | Mapping[str, str],
    requests: int,
    rounds: int,
    after_turn: Callable[[bool], object],
) -> dict[str, list[float]]:
    """CPU time of a request, in µs, by pool: a value a round, in random order.

    `page` is one of the pools' scripts, or the FastCGI parameters of another page.
    `after_turn` is called after each turn; True: it was one of the rounds, and no longer warm-up.
    """
    clients = {name: Client(pool, page) for name, pool in found.items()}
    spent: dict[str, list[float]] = {name: [] for name in found}
    for turn in range(-_WARM_UP, rounds):
        for name in random.sample(list(found), len(found)):
            cost_us = clients[name].cost_us(requests)
            if turn >= 0:
                spent[name].append(cost_us)
        after_turn(turn >= 0)
    for client in clients.values():
        client.close()
    return spent


class Client:
    """Sends the same request over and over on one kept connection."""

    def __init__(self, pool: Pool, page: str | Mapping[str, str]) -> None:
        self._pool = pool
        self._connection = socket.socket(socket.AF_UNIX)
        self._connection.connect(str(pool.socket))
        params = _params(pool, page) if isinstance(page, str) else page
        self._message = fastcgi.message(params, keep=True)

    def cost_us(self, requests: int) -> float:
        """CPU time of the pool's workers per request, in µs, over that many requests."""
        before = self._pool.cpu_ns()
        self.send(requests)
        return (self._pool.cpu_ns() - before) / requests / 1000

    def send(self, requests: int) -> None:
        """Send so many requests, one after the other has been answered."""
        for _ in range(requests):
            self._connection.sendall(self._message)
            answer = b""
            while answer[-16:-14] != b"\x01\x03":  # END_REQUEST is 16 bytes long
                answer = answer[-16:] + self._connection.recv(65536)

    def close(self) -> None:
        self._connection.close()


def _params(pool: Pool, script: str) -> dict[str, str]:
    return {
        "SCRIPT_FILENAME": f"{pool.folder}/{script}",
        "SCRIPT_NAME": f"/{script}",
        "REQUEST_URI": f"/{script}?item=4711",
        "QUERY_STRING": "item=4711",
        "REQUEST_METHOD": "GET",
        "SERVER_PROTOCOL": "HTTP/1.1",
        "HTTP_HOST": "localhost",
        "REMOTE_ADDR": "127.0.0.1",
    }
