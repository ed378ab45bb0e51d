"""Facts and recordings for the tests, and how their property tests run."""

from __future__ import annotations

import contextlib
import json
import signal
import sqlite3
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any

from hypothesis import HealthCheck, settings

from tracer.facts import Fact, Footprint, Frame, Growth, Metric, Place, Request
from tracer.recording.writer import Writer

# One run is as another, and no examples are kept: the checkout may be read-only.
PROPERTY = settings(
    database=None,
    deadline=None,
    derandomize=True,
    max_examples=100,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)

# Every field is set, and no two numbers are alike.
COMPLETE = Request(
    host="web1",
    pid=4241,
    pool="www",
    nth=3,
    started_ns=1_700_000_000_123_456_789,
    duration_ns=12_345_701,
    cpu_ns=7_654_321,
    method="GET",
    uri="/index.php",
    script="/srv/www/index.php",
    status=200,
    ending="finished",
    anon_before=10_000_019,
    anon_end=10_400_009,
    anon_after=10_524_307,
    file_before=20_000_003,
    file_after=20_000_047,
    shmem_before=3_000_017,
    shmem_after=3_000_029,
    anon_peak=30_000_001,
    zend_used_end=401_987,
    zend_peak=2_921_293,
    zend_real_before=2_097_152,
    zend_real_peak=4_194_304,
    zend_real_end=2_359_309,
    zend_real_after=2_097_152,
    memory_limit=134_217_728,
    vm_before=250_000_013,
    vm_after=250_524_301,
    map_bytes=2_097_169,
    map_calls=5,
    unmap_bytes=1_572_899,
    unmap_calls=2,
    brk_bytes=-8_191,
    brk_calls=11,
    native_alloc_bytes=70_096,
    native_alloc_calls=67,
    native_free_bytes=34_304,
    native_free_calls=31,
    native_freed_earlier=1_008,
    native_mapped_bytes=65_536,
    native_between_bytes=6_192,
    native_kept=102_336,
    native_released=0,
    minor_faults=131,
    major_faults=1,
    notes="uri_cut,script_cut",
    start_ticks=900_107,
    master_pid=4231,
    container="shop",
    container_id="3f2a91b04c77" + "5d" * 26,
    cgroup="/system.slice/docker-3f2a91b04c77" + "5d" * 26 + ".scope",
    namespaces="mnt:4026532768 pid:4026532770",
    root="/srv/jail",
)

# 20,011,000 of its own, 3,000,000 of the master's pages, 5,000,000 of OPcache's with four other workers.
FOOTPRINT = Footprint(
    pid=4241, start_ticks=7, at_ns=11, took_ns=1_000_003, idle=True, rss=40_011_000, pss=24_711_000,
    pss_shmem=1_000_000, private_clean=400_000, private_dirty=20_000_000, anonymous=23_000_000, shmem=5_000_000,
    swap_pss=0, page_tables=11_000,
)  # fmt: skip

# Two containers of one host.
SHOP = Place("shop", "5a" * 32, "/docker/" + "5a" * 32, None, "/")
BLOG = Place("blog", "b1" * 32, "/docker/" + "b1" * 32, None, "/")

MAIN = Frame("user", "<main>", "/srv/www/index.php", 3)
FIND = Frame("user", "Repo::find", "/srv/app/Repo.php", 89)
QUERY = Frame("internal", "PDO::query", None, None)
WITH_STACKS = {"stacks": {"max_depth": 127, "every": 17, "hz": 997}}  # meta data of a recording that has some


def request(**changed: Any) -> Request:
    """COMPLETE with that changed."""
    return COMPLETE._replace(**changed)


def growth(size: int, *stack: Frame, of: Request = COMPLETE, metric: Metric = Metric.RSS, samples: int = 1) -> Growth:
    """A growth of the request in that stack, whose outermost frame is first."""
    return Growth(of.pid, of.nth, metric.value, stack, size, samples)


def recording(path: Path, facts: Iterable[Fact] = (), meta: dict[str, Any] | None = None) -> Path:
    """A recording of these facts."""
    with Writer(str(path), meta or {}) as file:
        file.add(facts)
    return path


def altered(path: Path, *statements: str, values: tuple[object, ...] = ()) -> Path:
    """The recording after these SQL statements; the last one is given the values."""
    connection = sqlite3.connect(path, isolation_level=None)
    for statement in statements[:-1]:
        connection.execute(statement)
    connection.execute(statements[-1], values)
    connection.close()
    return path


def json_lines(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines()]


class TooSlowError(BaseException):
    """Not an Exception, so that no `except` takes it for the trouble it knows."""


@contextlib.contextmanager
def within(seconds: float) -> Iterator[None]:
    """TooSlowError if it takes more CPU time: on a busy machine it may wait as long as it has to."""

    def late(number: int, frame: FrameType | None) -> None:
        raise TooSlowError(f"not done within {seconds} s")

    before = signal.signal(signal.SIGPROF, late)
    signal.setitimer(signal.ITIMER_PROF, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)
