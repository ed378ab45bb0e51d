"""The cost of call stacks for a worker: each metric at two rates, on top of the default probes, as in single.py."""

from __future__ import annotations

import contextlib
import os
import random
from collections.abc import Iterator

from benchmarks.figures import Figure
from benchmarks.pools import pools
from benchmarks.single import REQUESTS, Client
from tracer.backends import StackOptions
from tracer.backends.bpf.backend import BpfBackend
from tracer.targets.resolve import targets

# The metric that is not measured is sampled almost never.
_SELDOM, _SLOWLY = 65536, 1
_VARIANTS: dict[str, StackOptions | None] = {
    "plain": None,
    "default": None,
    "rss1": StackOptions(every=1, hz=_SLOWLY),
    "rss16": StackOptions(every=16, hz=_SLOWLY),
    "zend99": StackOptions(every=_SELDOM, hz=99),
    "zend999": StackOptions(every=_SELDOM, hz=999),
    "both": StackOptions(),
}
_SHOWN = {
    "rss1": "rss, every page",
    "rss16": "rss, every 16 pages",
    "zend99": "zend, 99 Hz",
    "zend999": "zend, 999 Hz",
    "both": "record --stacks as it is",
}
_SCRIPTS = (("noop.php", "no-op", REQUESTS), ("work.php", "~10 ms", 20), ("faults.php", "7,300 faults", 20))


def figures(rounds: int) -> Iterator[Figure]:
    cpus = os.sched_getaffinity(0)
    one = {max(cpus)}
    with pools(*_VARIANTS, workers=1) as found, contextlib.ExitStack() as attached:
        backends = []
        for name, options in _VARIANTS.items():
            if name != "plain":
                backends.append(BpfBackend(stacks=options))
                backends[-1].attach(targets([str(found[name].master)]))
                attached.callback(backends[-1].close)
        attached.callback(os.sched_setaffinity, 0, cpus)
        os.sched_setaffinity(0, one)
        for pool in found.values():
            for worker in pool.workers():
                os.sched_setaffinity(worker, one)
        for script, label, requests in _SCRIPTS:
            clients = {name: Client(pool, script) for name, pool in found.items()}
            spent: dict[str, list[float]] = {name: [] for name in found}
            for turn in range(rounds + 2):
                for name in random.sample(list(found), len(found)):
                    cost_us = clients[name].cost_us(requests)
                    if turn >= 2:  # what comes before is warm-up
                        spent[name].append(cost_us)
                for backend in backends:
                    backend.poll(0)
            for client in clients.values():
                client.close()
            yield Figure(f"{label}: CPU of a request, untraced", tuple(spent["plain"]), "µs/req")
            yield Figure(f"{label}: CPU added, default probes", _added(spent, "default"), "µs/req")
            for name, shown in _SHOWN.items():
                yield Figure(f"{label}: CPU added, stacks: {shown}", _added(spent, name), "µs/req")


def _added(spent: dict[str, list[float]], name: str) -> tuple[float, ...]:
    return tuple(ours - theirs for ours, theirs in zip(spent[name], spent["plain"], strict=True))
