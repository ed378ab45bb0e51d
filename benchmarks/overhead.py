"""The cost for a traced pool under full load, compared with an identical pool and with logging from PHP."""

from __future__ import annotations

import random
import statistics
from collections.abc import Iterator

from benchmarks.figures import Figure
from benchmarks.pools import Pool, pools
from benchmarks.tracer import Recorder

_SCRIPTS = (("noop.php", "no-op", ">= 0.95"), ("work.php", "~10 ms", ">= 0.995"))


def figures(rounds: int, full_speed_s: int) -> Iterator[Figure]:
    """Measure runs of a second each, in random order.

    No two pools are quite alike (the place of their pages makes some percent), so a and b change roles
    half-way: a figure is the geometric mean of a pair of rounds, one with each of them traced.
    """
    with pools("a", "b", "logger") as found:
        for pool in found.values():
            for script, _, _ in _SCRIPTS:
                pool.load(script, 1)
        noise = {script: _rates(found, script, rounds) for script, _, _ in _SCRIPTS}
        traced: dict[str, list[list[float]]] = {script: [] for script, _, _ in _SCRIPTS}
        tracer_us: list[float] = []
        for subject, other in (("a", "b"), ("b", "a")):
            with Recorder(found[subject].master) as recorder:
                for script, _, _ in _SCRIPTS:
                    before, sent = recorder.cpu_us(), found[subject].served
                    rates = _rates(found, script, rounds, (subject, other))
                    if script == "noop.php":
                        tracer_us.append((recorder.cpu_us() - before) / (found[subject].served - sent))
                    pairs = zip(rates[subject], rates[other], strict=True)
                    traced[script].append([ours / theirs for ours, theirs in pairs])
        for script, label, budget in _SCRIPTS:
            plain = noise[script]
            ratio = tuple((first * second) ** 0.5 for first, second in zip(*traced[script], strict=True))
            yield Figure(f"{label}: requests/s, untraced", tuple(plain["a"] + plain["b"]), "req/s")
            yield Figure(f"{label}: throughput, traced / untraced", ratio, "", budget)
            twin = statistics.median(plain["a"]) / statistics.median(plain["b"])
            again = tuple(a / b / twin for a, b in zip(plain["a"], plain["b"], strict=True))
            yield Figure(f"{label}: throughput, noise (nobody traced)", again, "")
            logged = tuple(ours / theirs for ours, theirs in zip(plain["logger"], plain["a"], strict=True))
            yield Figure(f"{label}: throughput, auto_prepend_file logger / untraced", logged, "")
        yield Figure("no-op, both CPUs full: tracer's CPU, recording", tuple(tracer_us), "µs/req", "<= 5")
        yield from _paced(found["a"], rounds)
        yield from _full_speed(found["a"], full_speed_s)


def _rates(found: dict[str, Pool], script: str, rounds: int, names: tuple[str, ...] = ()) -> dict[str, list[float]]:
    rates: dict[str, list[float]] = {name: [] for name in names or found}
    for _ in range(rounds):
        for name in random.sample(list(rates), len(rates)):
            rates[name].append(found[name].load(script, 1))
    return rates


def _paced(pool: Pool, rounds: int) -> Iterator[Figure]:
    """Measure at a rate that leaves the host some idle time."""
    rates, spent = [], []
    with Recorder(pool.master) as recorder:
        for _ in range(rounds):
            before, sent = recorder.cpu_us(), pool.served
            rates.append(pool.load("noop.php", 2, connections=50, pause_ms=9))
            spent.append((recorder.cpu_us() - before) / (pool.served - sent))
    yield Figure("no-op, paced: rate", tuple(rates), "req/s")
    yield Figure("no-op, paced: tracer's CPU, recording", tuple(spent), "µs/req", "<= 5")


def _full_speed(pool: Pool, seconds: int) -> Iterator[Figure]:
    with Recorder(pool.master) as recorder:
        before = recorder.rss_bytes()
        rate = pool.load("noop.php", seconds, connections=16)
        after = recorder.rss_bytes()
    yield Figure(f"full speed for {seconds} s, 16 connections", (rate,), "req/s", ">= 5000")
    yield Figure("full speed: requests lost", (float(recorder.totals.lost),), "", "<= 0")
    yield Figure("tracer's memory before", (before / 1e6,), "MB", "<= 130")
    yield Figure("tracer's memory after", (after / 1e6,), "MB", "<= 130")
