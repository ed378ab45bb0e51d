"""The cost of the ptrace backend in both modes, in time from a request's first byte to its last.

A worker is stopped while it is read, which its own CPU time does not show. Compared with an identical untraced pool.
"""

from __future__ import annotations

import contextlib
import random
import time
from collections.abc import Iterator

from benchmarks.figures import Figure
from benchmarks.pools import pools
from benchmarks.single import Client
from tracer.backends import PtraceMode
from tracer.backends.ptrace.backend import PtraceBackend
from tracer.targets.resolve import targets

_SCRIPTS = (("noop.php", "no-op", 50), ("work.php", "~10 ms", 10), ("files.php", "~10 ms, 22 files read", 10))


def figures(rounds: int) -> Iterator[Figure]:
    with pools("plain", "syscalls", "breakpoints", workers=1) as found, contextlib.ExitStack() as attached:
        backends = []
        for name in ("syscalls", "breakpoints"):
            backends.append(PtraceBackend(mode=PtraceMode(name)))
            backends[-1].attach(targets([str(found[name].master)]))
            attached.callback(backends[-1].close)
        for script, label, requests in _SCRIPTS:
            clients = {name: Client(pool, script) for name, pool in found.items()}
            spent: dict[str, list[float]] = {name: [] for name in found}
            for turn in range(rounds + 2):
                for name in random.sample(list(found), len(found)):
                    started = time.perf_counter()
                    clients[name].cost_us(requests)
                    if turn >= 2:  # what comes before is warm-up
                        spent[name].append((time.perf_counter() - started) / requests * 1e6)
                for backend in backends:
                    backend.poll(0)
            for client in clients.values():
                client.close()
            yield Figure(f"{label}: time of a request, untraced", tuple(spent["plain"]), "µs/req")
            for name in ("syscalls", "breakpoints"):
                pairs = tuple(zip(spent[name], spent["plain"], strict=True))
                yield Figure(f"{label}: time added, ptrace {name}", tuple(a - b for a, b in pairs), "µs/req")
                yield Figure(f"{label}: time, ptrace {name} / untraced", tuple(a / b for a, b in pairs), "")
