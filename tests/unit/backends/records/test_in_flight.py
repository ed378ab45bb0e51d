"""Requests that run when tracing begins or ends, sampled in this process and another one."""

from __future__ import annotations

import ctypes
import dataclasses
import mmap
import os
import struct
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from phps import executable, php_elf
from records import record

from tracer.backends.records.event_decoder import EventDecoder
from tracer.backends.records.in_flight import InFlight
from tracer.backends.records.request_decoder import RequestDecoder
from tracer.backends.records.request_structs import PROCESS_EVENT, EventKind
from tracer.backends.records.worker_table import TrackedWorker, WorkerTable
from tracer.facts import Request, Worker
from tracer.targets import php as php_binary
from tracer.targets.elf import open_image
from tracer.targets.php import Php
from tracer.targets.process_memory import PAGE, ProcessMemory
from tracer.targets.processes import Process, file_mappings, is_libc, load_bias
from tracer.targets.resolve import Target

MASTER = Process(4001, 1, 7, "php-fpm: master process (x)", None)
NO_PID = 1 << 30
ME = os.getpid()
DECODER = RequestDecoder("web1", 0, keep_query=False, calls=True)
REAL_BYTES = 4_194_304


class Heap:
    """A zend_mm_heap of a running request in this process, and the slot that points to it."""

    def __init__(self, php: Php) -> None:
        self._memory = mmap.mmap(-1, 4 * PAGE, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        self._memory.madvise(mmap.MADV_NOHUGEPAGE)
        self._view = ctypes.c_char.from_buffer(self._memory)
        self.at = ctypes.addressof(self._view) + 2 * PAGE
        assert php.heap is not None
        for offset in (php.heap.size, php.heap.peak, php.heap.real_size, php.heap.real_peak):
            struct.pack_into("<q", self._memory, 2 * PAGE + offset, REAL_BYTES)
        self.slot = ctypes.addressof(self._view)
        self.point_to(self.at)

    def point_to(self, address: int) -> None:
        struct.pack_into("<Q", self._memory, 0, address)

    def close(self) -> None:
        del self._view
        self._memory.close()


@pytest.fixture
def heap(php: Php) -> Iterator[Heap]:
    made = Heap(php)
    yield made
    made.close()


@pytest.fixture
def php(tmp_path: Path) -> Iterator[Php]:
    """A PHP whose globals are not known. Its file is the C library, which has another address in each process."""
    library = next(mapping.path for mapping in file_mappings(ME) if is_libc(mapping.path))
    image, known = open_image(library), open_image(str(executable(tmp_path / "php-fpm", php_elf())))
    yield dataclasses.replace(php_binary.inspect(known), image=image, sapi_globals=None)
    image.close()
    known.close()


@pytest.fixture
def target(php: Php, heap: Heap) -> Target:
    assert php.heap is not None
    found = dataclasses.replace(php.heap, slot=heap.slot - load_bias(ME, php.image))
    return Target("php-fpm", dataclasses.replace(php, heap=found), "fpm-fcgi", MASTER, (), None)


def worker(pid: int, target: Target) -> TrackedWorker:
    return TrackedWorker(Worker(pid, None, "www", "8.2.36", None, None, None), target, wanted=True)


@pytest.fixture
def other() -> Iterator[int]:
    """Another process with that C library."""
    started = subprocess.Popen(
        [sys.executable, "-c", "print(flush=True); input()"], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert started.stdout is not None
    started.stdout.readline()
    yield started.pid
    started.communicate(b"\n")


def running(in_flight: InFlight, target: Target) -> list[Request]:
    return in_flight.still_running({ME: worker(ME, target)})


def test_a_request_that_runs_from_before_tracing_until_after_it_has_its_memory_at_both_ends(target):
    in_flight = InFlight(DECODER)
    in_flight.begin({ME: worker(ME, target)})

    [request] = running(in_flight, target)

    assert (request.pid, request.pool, request.ending) == (ME, "www", "cut_off")
    assert (request.zend_real_before, request.zend_real_after) == (REAL_BYTES, REAL_BYTES)
    assert request.anon_before is not None
    assert running(in_flight, target) == []


def test_a_worker_that_has_just_ended_does_not_hide_those_of_the_same_master(target):
    in_flight = InFlight(DECODER)

    in_flight.begin({NO_PID: worker(NO_PID, target), ME: worker(ME, target)})

    assert len(running(in_flight, target)) == 1


def test_php_is_looked_for_anew_once_its_master_has_executed_a_program(target, other):
    in_flight = InFlight(DECODER)
    events = EventDecoder(WorkerTable(0), DECODER, in_flight=in_flight)
    in_flight.begin({other: worker(other, target)})
    in_flight.begin({ME: worker(ME, target)})
    before = running(in_flight, target)

    events.facts([PROCESS_EVENT.pack(EventKind.EXECED, MASTER.pid, 1, 0, 1, 0, b"")])
    in_flight.begin({ME: worker(ME, target)})

    if load_bias(other, target.php.image) == load_bias(ME, target.php.image):
        pytest.skip("two processes have their C library at one address here: set kernel.randomize_va_space to 2")
    assert (len(before), len(running(in_flight, target))) == (0, 1)


def test_a_request_whose_start_was_seen_is_not_one_that_ran_before(target):
    in_flight = InFlight(DECODER)
    in_flight.begin({ME: worker(ME, target)})

    assert in_flight.still_running({ME: worker(ME, target)}, {ME}) == []


def test_a_request_that_ends_is_not_one_that_runs_on(target):
    in_flight = InFlight(DECODER)
    in_flight.begin({ME: worker(ME, target)})
    in_flight.seen(DECODER.request(record(pid=ME), "www"), 7)

    assert running(in_flight, target) == []


def test_requests_that_run_now_are_shown_and_not_used_up(target):
    in_flight, workers = InFlight(DECODER), {ME: worker(ME, target)}
    in_flight.begin(workers)

    assert [len(in_flight.running(workers)) for _ in range(2)] == [1, 1]
    assert in_flight.running(workers, {ME}) == []
    assert len(in_flight.still_running(workers)) == 1


def test_a_request_that_began_while_tracing_is_noticed_until_it_ends(target, heap):
    in_flight, workers = InFlight(DECODER), {ME: worker(ME, target)}
    in_flight.notice(workers)
    [first] = in_flight.running(workers)
    in_flight.notice(workers)
    [again] = in_flight.running(workers)

    assert first.started_ns == again.started_ns
    assert again.duration_ns > first.duration_ns
    assert in_flight.still_running(workers) == [], "the backend knows it"
    in_flight.seen(DECODER.request(record(pid=ME), "www"), 7)
    assert in_flight.running(workers) == []
    in_flight.notice(workers)
    heap.point_to(0)
    in_flight.notice(workers)
    assert in_flight.running(workers) == []


def test_no_page_becomes_resident_by_a_sample(target, heap):
    in_flight = InFlight(DECODER)
    untouched = heap.at + PAGE
    heap.point_to(untouched)

    in_flight.begin({ME: worker(ME, target)})

    with ProcessMemory(ME) as memory:
        assert memory.read(heap.at, 8) is not None
        assert memory.read(untouched, 8) is None
    assert running(in_flight, target) == []
