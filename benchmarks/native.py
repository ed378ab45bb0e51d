"""The cost of counting native memory: for a traced worker, by how much it allocates, and for other processes."""

from __future__ import annotations

import contextlib
import math
import random
import subprocess
import tempfile
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from benchmarks.figures import Figure
from benchmarks.pools import Pool, pools
from benchmarks.single import Client, costs_us, on_one_cpu
from benchmarks.tracer import Recorder
from tests.helpers import mediawiki
from tracer.backends import NativeOptions
from tracer.backends.bpf.backend import BpfBackend
from tracer.facts import Request
from tracer.targets.resolve import targets

# (script, what it is, requests a run)
_PAGES = (
    ("noop.php", "no-op", 400),
    ("page.php", "a page that uses intl, DOM and preg", 100),
    ("dom.php", "a page that builds a DOM of 500 nodes", 40),
)
_WIKI_REQUESTS = 3
# Of a round under the budget: ten seconds of CPU time, in which a paused pool is counted again two times.
_TURNS, _TURN_REQUESTS = 16, 1000
_MODES: dict[str, NativeOptions | None] = {
    "off": None,
    "on": NativeOptions(math.inf),
}
_SOURCE = r"""
#include <stdio.h>
#include <stdlib.h>
#include <time.h>
static double now(void) { struct timespec t; clock_gettime(CLOCK_MONOTONIC, &t); return t.tv_sec * 1e9 + t.tv_nsec; }
int main(void)
{
	int n = 1000000, i;
	double a = now();
	for (i = 0; i < n; i++) { void *volatile p = malloc(100); free(p); }
	printf("%f\n", (now() - a) / n);
	return 0;
}
"""


def figures(rounds: int, budget_rounds: int) -> Iterator[Figure]:
    """Measure a request with the counting off and on, next to an untraced pool, in random order."""
    for script, shown, requests in _PAGES:
        yield from _page(script, shown, requests, rounds)
    if mediawiki.MISSING:
        print(f"MediaWiki is left out: {mediawiki.MISSING}")
    else:
        with mediawiki.installed() as settings:
            page = mediawiki.params(mediawiki.MAIN_PAGE)
            yield from _page(page, "MediaWiki's main page", _WIKI_REQUESTS, rounds, settings)
    yield from _bystander(rounds)
    yield from _budget(budget_rounds)


def _page(
    page: str | Mapping[str, str], shown: str, requests: int, rounds: int, settings: str = ""
) -> Iterator[Figure]:
    calls: list[float] = []
    with contextlib.ExitStack() as stack:
        found = stack.enter_context(pools("plain", *_MODES, workers=1, settings=settings))
        backends = {}
        for name, native in _MODES.items():
            backends[name] = BpfBackend(native=native)
            backends[name].attach(targets([str(found[name].master)]))
            stack.callback(backends[name].close)

        def poll(counts: bool) -> None:
            for name, backend in backends.items():
                seen = [fact for fact in backend.poll(0) if isinstance(fact, Request)]
                if name == "on" and counts:
                    calls.extend(float(one.native_alloc_calls or 0) for one in seen)

        stack.enter_context(on_one_cpu(found))
        spent = costs_us(found, page, requests, rounds, poll)
    yield Figure(f"{shown}: CPU of a request, untraced", tuple(spent["plain"]), "µs/req")
    yield Figure(f"{shown}: native allocations", tuple(calls), "")
    for name in _MODES:
        added = tuple(ours - theirs for ours, theirs in zip(spent[name], spent["plain"], strict=True))
        yield Figure(f"{shown}: CPU added, --native {name}", added, "µs/req")
    more = tuple(on - off for on, off in zip(spent["on"], spent["off"], strict=True))
    pairs = sorted(calls)[len(calls) // 2] if calls else 0
    if pairs:
        yield Figure(f"{shown}: CPU added by a counted pair", tuple(us / pairs for us in more), "µs")


def _bystander(rounds: int) -> Iterator[Figure]:
    """Measure a process that uses the traced pool's own copy of libc, as on a host everything uses the same."""
    with tempfile.TemporaryDirectory() as folder, pools("traced") as found:
        program = Path(folder) / "bystander"
        subprocess.run(["gcc", "-O2", "-x", "c", "-", "-o", str(program)], input=_SOURCE, text=True, check=True)
        results: dict[str, list[float]] = {"off": [], "on": []}
        for _ in range(rounds):
            for mode, runs in results.items():
                with _attached(found["traced"]) if mode == "on" else contextlib.nullcontext():
                    libc = str(Path(f"/proc/{found['traced'].master}/exe").resolve().parent)
                    out = subprocess.run(
                        [str(program)], env={"LD_LIBRARY_PATH": libc}, check=True, capture_output=True, text=True
                    ).stdout
                runs.append(float(out))
    yield Figure("untraced process: malloc + free, nothing attached", tuple(results["off"]), "ns")
    added = tuple(on - off for on, off in zip(results["on"], results["off"], strict=True))
    yield Figure("untraced process: added to malloc + free, counting", added, "ns")


def _budget(rounds: int) -> Iterator[Figure]:
    """Measure `record` with its default budget and a page that would exceed it; a value is the sum over a round."""
    shares = []
    with contextlib.ExitStack() as stack:
        found = stack.enter_context(pools("off", "auto", workers=2))
        stack.enter_context(Recorder(found["off"].master, options=("--native", "off")))
        recorder = stack.enter_context(Recorder(found["auto"].master))
        clients = {name: [Client(pool, "page.php") for _ in range(2)] for name, pool in found.items()}
        for name, pool in found.items():  # spends the advance
            _turn_ns(pool, clients[name])
        for _ in range(rounds):
            spent = dict.fromkeys(found, 0)
            for _ in range(_TURNS):
                for name in random.sample(list(found), len(found)):
                    spent[name] += _turn_ns(found[name], clients[name])
            shares.append((spent["auto"] / spent["off"] - 1) * 100)
        for client in (client for both in clients.values() for client in both):
            client.close()
    yield Figure("page of 330 native allocations: CPU added under the budget", tuple(shares), "%", "<= 2")
    counted = recorder.counted / recorder.totals.requests * 100
    yield Figure("page of 330 native allocations: requests counted", (counted,), "%")


def _turn_ns(pool: Pool, clients: list[Client]) -> int:
    """CPU time of a pool whose workers serve as many requests as they can."""
    before = pool.cpu_ns()
    with ThreadPoolExecutor(len(clients)) as threads:
        list(threads.map(lambda client: client.send(_TURN_REQUESTS), clients))
    return pool.cpu_ns() - before


@contextlib.contextmanager
def _attached(pool: Pool) -> Iterator[None]:
    backend = BpfBackend(native=NativeOptions(math.inf))
    backend.attach(targets([str(pool.master)]))
    try:
        yield
    finally:
        backend.close()
