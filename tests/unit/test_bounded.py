"""Memory of phptrace itself while workers come and go, and while each request has another uri: it stays as it is."""

from __future__ import annotations

import gc
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from phps import executable, php_elf
from records import record

from tracer.analysis.ranking import GroupBy, Ranking
from tracer.analysis.routes import LiveRoutes
from tracer.analysis.tally import Tally
from tracer.backends.records.event_decoder import EventDecoder
from tracer.backends.records.request_decoder import RequestDecoder
from tracer.backends.records.request_structs import FORK_EVENT, PROCESS_EVENT, RELEASE_EVENT, EventKind
from tracer.backends.records.worker_table import WorkerTable
from tracer.facts import Fact, Loss, Release, Request
from tracer.recording.writer import Writer
from tracer.targets import php as php_binary
from tracer.targets.elf import open_image
from tracer.targets.processes import Process
from tracer.targets.resolve import Target

MASTER = Process(4001, 1, 7, "php-fpm: master process (x)", (3, 5))
_NO_PID = 5_000_000  # beyond the largest pid that Linux has: of a process that is there, its place would be read
WORKERS = 3000  # the windows of every kind of run are full after half of them


@pytest.fixture
def target(tmp_path: Path) -> Iterator[Target]:
    image = open_image(str(executable(tmp_path / "php-fpm", php_elf())))
    yield Target("php-fpm", php_binary.inspect(image), "fpm-fcgi", MASTER, (), None)
    image.close()


def life(pid: int) -> list[bytes]:
    """The records of a worker that serves two requests with uris of their own, and forks in one."""
    at = pid * 1_000_003

    def served(nth: int) -> bytes:
        began = at + nth
        return record(uri=b"/%d/%d" % (pid, nth), script=b"/srv/%d.php" % pid, pid=pid, nth=nth, started_ns=began,
                      ended_ns=began + 100, native_alloc_bytes=3000)  # fmt: skip

    return [
        PROCESS_EVENT.pack(EventKind.BORN, pid, MASTER.pid, 0, at, at, b""),
        PROCESS_EVENT.pack(EventKind.TITLED, pid, MASTER.pid, 0, at, at, b"php-fpm: pool www"),
        served(1),
        FORK_EVENT.pack(EventKind.FORKED, pid + 1_000_000, pid, 0, at + 1, at + 50),
        RELEASE_EVENT.pack(EventKind.RELEASED, pid, at + 1, at + 2, 1000, 1, 0, 0),
        RELEASE_EVENT.pack(EventKind.RELEASED, pid, at + 1, 0, 500, 1, 1, 0),
        served(2),
        RELEASE_EVENT.pack(EventKind.RELEASED, pid, at + 2, 0, 500, 1, 1, 0),
        PROCESS_EVENT.pack(EventKind.DIED, pid, MASTER.pid, 0, at + 200, at, b""),
    ]


@pytest.fixture
def decoded(target: Target) -> Callable[[int], list[Fact]]:
    table = WorkerTable(3)
    table.masters[MASTER.pid] = target
    decoder = EventDecoder(table, RequestDecoder("web1", 3, keep_query=False, calls=True))
    return lambda pid: decoder.facts(life(pid))


def growth(serve: Callable[[int], object]) -> int:
    """Bytes of Python's heap that serving some workers leaves behind, once as many have been served."""
    sizes = []
    tracemalloc.start()
    try:
        for first in (_NO_PID, _NO_PID + WORKERS):
            for pid in range(first, first + WORKERS):
                serve(pid)
            gc.collect()
            sizes.append(tracemalloc.get_traced_memory()[0])
    finally:
        tracemalloc.stop()
    return sizes[1] - sizes[0]


def test_workers_that_end_leave_nothing_behind_in_the_decoder(decoded):
    assert growth(decoded) < 4 * WORKERS


def test_workers_that_end_leave_nothing_behind_in_the_tally(decoded):
    tally = Tally()

    assert growth(lambda pid: tally.add_all([*decoded(pid), Loss(pid, 1, "ring buffer")])) < 4 * WORKERS


@pytest.mark.parametrize("by", GroupBy)
def test_a_live_ranking_has_a_size_that_it_does_not_exceed(decoded, monkeypatch, by):
    for name in ("seen_workers._WORKERS_MAX", "held._HELD_MAX", "routes._MOST_CACHED", "routes._MOST_ROUTES",
                 "route_tree._MOST_KNOWN", "ranking._LIVE_WORKERS"):  # fmt: skip
        monkeypatch.setattr(f"tracer.analysis.{name}", 100)
    ranking = Ranking(by, routes=LiveRoutes(), window=64, max_groups=50)

    def serve(pid: int) -> None:
        for fact in decoded(pid):
            if isinstance(fact, Release):
                ranking.release(fact)
            elif isinstance(fact, Request):
                ranking.add(fact)

    assert growth(serve) < 8 * WORKERS


def test_a_recording_is_on_disk_and_not_in_memory(decoded, monkeypatch, tmp_path):
    monkeypatch.setattr("tracer.recording.request_tables._MOST_KNOWN", 100)
    monkeypatch.setattr("tracer.recording.recent_rows._DEAD_WORKERS", 100)
    with Writer(str(tmp_path / "r.phptrace"), {"stacks": {}}) as file:

        def serve(pid: int) -> None:
            file.add(decoded(pid))
            if pid % 50 == 0:
                file.flush()

        assert growth(serve) < 8 * WORKERS
