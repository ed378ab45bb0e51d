"""Many CPUs, and long recordings."""

from __future__ import annotations

import mmap
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from benchmarks.figures import Figure
from benchmarks.pools import Pool, pools
from tracer.analysis.order import by_kept
from tracer.analysis.ranking import LIVE_GROUPS, LIVE_WINDOW, GroupBy, Ranking
from tracer.analysis.routes import LiveRoutes
from tracer.backends.bpf.backend import BpfBackend
from tracer.facts import Request
from tracer.recording.writer import Writer
from tracer.targets.kernel import possible_cpus
from tracer.targets.resolve import targets

_STATS = Path("/proc/sys/kernel/bpf_stats_enabled")
_PROGRAMS = ("on_startup", "on_script_end", "on_teardown", "on_end")
_REQUESTS = 1_000_000


# Prints its own peak: wait4() would return that of the process it was forked from, if that was larger.
_MEASURED = """
import atexit, re, sys
from tracer.cli import main
status = lambda: open("/proc/self/status").read()
atexit.register(lambda: print(re.search(r"VmHWM:\\s+(\\d+)", status())[1], file=sys.stderr))
main(sys.argv[1:])
"""


def figures(rounds: int) -> Iterator[Figure]:
    yield from _cpus(rounds)
    yield from _report()
    yield from _diff()
    yield from _redraw()


def _cpus(rounds: int) -> Iterator[Figure]:
    """Time inside the programs, by the kernel's own statistics, with this host's CPUs and with 64."""
    real, many = possible_cpus(), 64
    times: dict[int, list[float]] = {real: [], many: []}
    with pools("traced") as found:
        for _ in range(rounds):
            for cpus, runs in times.items():
                runs.append(_program_us(found["traced"], cpus))
    yield Figure(f"inside the BPF programs, {real} CPUs", tuple(times[real]), "µs/req")
    yield Figure(f"inside the BPF programs, {many} CPUs simulated", tuple(times[many]), "µs/req")
    each = tuple((b - a) / (many - real) for a, b in zip(times[real], times[many], strict=True))
    yield Figure("a CPU more costs", each, "µs/req", "<= 0.1")


def _program_us(pool: Pool, cpus: int) -> float:
    backend = BpfBackend(simulated_cpus=None if cpus == possible_cpus() else cpus)
    backend.attach(targets([str(pool.master)]))
    before = _STATS.read_text()
    try:
        _STATS.write_text("1")
        pool.load("noop.php", 1)
        return sum(_mean_ns(backend.program_fd(name)) for name in _PROGRAMS) / 1000
    finally:
        _STATS.write_text(before)
        backend.close()


def _mean_ns(fd: int) -> float:
    lines = Path(f"/proc/self/fdinfo/{fd}").read_text().splitlines()
    fields = dict(line.split(":\t", 1) for line in lines if ":\t" in line)
    return int(fields["run_time_ns"]) / max(1, int(fields["run_cnt"]))


def _report() -> Iterator[Figure]:
    """Measure `report` over a million requests of 200 scripts."""
    with tempfile.TemporaryDirectory() as folder:
        path = f"{folder}/big.phptrace"
        started = time.process_time()
        _write(path, _request)
        written_us = (time.process_time() - started) / _REQUESTS * 1e6
        size = Path(path).stat().st_size / _REQUESTS
        times, peaks = _measured("report", path)
    yield Figure("making and writing a request of a recording", (written_us,), "µs")
    yield Figure("a request in a recording", (size,), "bytes")
    yield Figure(f"report over {_REQUESTS:,} requests", times, "s", "<= 6")
    yield Figure("report: memory", peaks, "MB", "<= 300")


def _diff() -> Iterator[Figure]:
    """Measure `diff` of two times a million requests of 5,000 routes, one in a hundred of which begins to leak."""
    with tempfile.TemporaryDirectory() as folder:
        before, after = f"{folder}/before.phptrace", f"{folder}/after.phptrace"
        _write(before, lambda number: _of_a_route(number, 0))
        _write(after, lambda number: _of_a_route(number, 65_552))
        times, peaks = _measured("diff", "--group-by", "route", before, after)
    yield Figure(f"diff of twice {_REQUESTS:,} requests of 5,000 routes", times, "s", "<= 12")
    yield Figure("diff: memory", peaks, "MB", "<= 300")


def _of_a_route(number: int, leaks: int) -> Request:
    at = number * 7_919 % 5_003 % 5_000
    kept = leaks if at % 100 == 7 else 0
    return _request(number)._replace(
        uri=f"/shop{at % 10}/part{at // 10 % 50}/page{at // 500}", script="/srv/app/index.php",
        duration_ns=2_000_000 + number % 997 * 1_009,
        native_kept=kept, native_alloc_bytes=40_000 + kept, native_free_bytes=40_000,
    )  # fmt: skip


def _write(path: str, request: Callable[[int], Request]) -> None:
    with Writer(path, {}) as writer:
        for at in range(0, _REQUESTS, 10_000):
            writer.add([request(number) for number in range(at, at + 10_000)])
            writer.flush()


def _measured(*arguments: str) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Seconds and peaks in MB of three runs of phptrace."""
    times, peaks = [], []
    for _ in range(3):
        started = time.monotonic()
        command = [sys.executable, "-c", _MEASURED, *arguments]
        ended = subprocess.run(command, capture_output=True, text=True, check=True)
        times.append(time.monotonic() - started)
        peaks.append(int(ended.stderr.split()[-1]) * 1024 / 1e6)
    return tuple(times), tuple(peaks)


def _redraw() -> Iterator[Figure]:
    """Measure the live view's ranking of a million requests on as many routes as it shows, and 1,000 a second more."""
    before = _resident()
    ranking = Ranking(GroupBy.ROUTE, routes=LiveRoutes(), window=LIVE_WINDOW, max_groups=LIVE_GROUPS)
    started = time.process_time()
    for number in range(_REQUESTS):
        ranking.add(_request_of_a_route(number))
    added_us = (time.process_time() - started) / _REQUESTS * 1e6
    ranking.groups(by_kept, 40)
    times = []
    for second in range(7):
        for number in range(1000):
            ranking.add(_request_of_a_route(_REQUESTS + second * 1000 + number))
        started = time.process_time()
        ranking.groups(by_kept, 40)
        times.append((time.process_time() - started) * 1e3)
    yield Figure("making and ranking a request, live", (added_us,), "µs")
    yield Figure(f"live ranking of {LIVE_GROUPS:,} routes: CPU of a redraw", tuple(times), "ms", "<= 50")
    yield Figure(f"live ranking of {LIVE_GROUPS:,} routes: memory", ((_resident() - before) / 1e6,), "MB", "<= 50")


def _request_of_a_route(number: int) -> Request:
    """A request of one of 5,000 routes. Of these, 100 keep memory."""
    letter, page = number % 50, number // 50 % 100
    route = f"/{chr(97 + letter)}/{page}.php"
    request = _request(number)._replace(uri=route, script=f"/srv{route}")
    if page >= 2:
        return request._replace(native_free_bytes=request.native_alloc_bytes, native_kept=0)
    return request


def _resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * mmap.PAGESIZE


def _request(number: int) -> Request:
    anon, item = 20_000_000 + number % 1009 * 4096, number % 5003
    return Request(
        "host", 4711 + number % 8, "www", number // 8 + 1,
        1_790_000_000_000_000_000 + number * 200_000, 2_000_000, 1_800_000,
        "GET", f"/shop/item/{item}", f"/srv/app/script{item % 200}.php", 200, "finished",
        anon, anon + 4096, anon + 4096, 9_000_000, 9_000_000, 400_000, 400_000, anon + 70_000,
        349_152, 349_648, 2_097_152, 2_097_152, 2_097_152, 2_097_152, 134_217_728, 258_572_288, 258_572_288,
        0, 0, 0, 0, 0, 0, 41_000, 300, 40_000, 298, 0, 0, 0, 1_000, 0, 12, 0, None,
    )  # fmt: skip
