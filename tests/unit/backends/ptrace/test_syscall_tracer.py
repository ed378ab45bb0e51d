"""The phases of a request in SyscallTracer, driven by made-up system calls of this process."""

from __future__ import annotations

import ctypes
import dataclasses
import os
from collections.abc import Iterator
from types import SimpleNamespace

import fastcgi
import pytest

from tracer.backends.ptrace.proc_files import WorkerFiles
from tracer.backends.ptrace.syscall_tracer import Phase, SyscallTracer
from tracer.backends.ptrace.syscalls import Entry, Exit
from tracer.targets import arch
from tracer.targets.php_memory import PhpMemory

LISTENING, CONNECTION = 1000, 1001  # descriptors
END_REQUEST = b"\x01\x03\x00\x01\x00\x08\x00\x00" + bytes(8)
# A binary without known offsets: every read from PHP's memory is None.
UNKNOWN_PHP = SimpleNamespace(
    hooks=None, heap=None, layout=None, sapi_globals=None, core_globals=None, executor_globals=None, stack=None
)


@dataclasses.dataclass
class Worker:
    """This process as a worker: each method is one system call."""

    tracer: SyscallTracer
    records: list[bytes]

    def call(self, number: int, *arguments: int, result: int | None = 0) -> None:
        self.tracer.at_entry(Entry(number, (*arguments, 0, 0, 0, 0, 0, 0)[:6]))
        if result is not None:
            self.tracer.at_exit(Exit(result))

    def accept(self) -> None:
        self.call(arch.SYS_ACCEPT, LISTENING, result=CONNECTION)

    def wait_for_connection(self) -> None:
        self.call(arch.SYS_ACCEPT, LISTENING, result=None)

    def read(self, content: bytes) -> None:
        buffer = ctypes.create_string_buffer(content, len(content))
        self.call(arch.SYS_READ, CONNECTION, ctypes.addressof(buffer), len(content), result=len(content))

    def write(self, content: bytes) -> None:
        buffer = ctypes.create_string_buffer(content, len(content))
        self.call(arch.SYS_WRITE, CONNECTION, ctypes.addressof(buffer), len(content), result=len(content))

    def read_request(self, *, keep: bool = False) -> None:
        self.read(fastcgi.message({"REQUEST_URI": "/"}, keep=keep))


@pytest.fixture(params=[False, True], ids=["idle", "busy"])
def busy(request: pytest.FixtureRequest) -> bool:
    return request.param


@pytest.fixture
def worker(busy: bool) -> Iterator[Worker]:
    records: list[bytes] = []
    pid = os.getpid()
    tracer = SyscallTracer(
        pid, WorkerFiles(pid), PhpMemory(pid, UNKNOWN_PHP, 0), lambda make: records.append(make()), None, busy=busy
    )
    yield Worker(tracer, records)
    tracer.close()


def test_a_new_worker_is_idle_or_in_a_request_whose_start_was_not_seen(worker, busy):
    assert worker.tracer.phase is (Phase.START_NOT_SEEN if busy else Phase.IDLE)


def test_accept_ends_a_request_whose_start_was_not_seen(worker, busy):
    worker.accept()

    assert worker.tracer.phase is Phase.IDLE
    assert len(worker.records) == busy


def test_params_begin_a_request(worker, busy):
    worker.accept()
    worker.read_request()

    assert worker.tracer.phase is Phase.RUNNING
    assert len(worker.records) == busy


def test_a_write_without_end_request_leaves_the_request_running(worker):
    worker.accept()
    worker.read_request()
    worker.write(bytes(100))

    assert worker.tracer.phase is Phase.RUNNING


def test_an_end_request_leads_to_teardown_if_no_script_runs(worker, busy):
    worker.accept()
    worker.read_request()
    worker.write(b"answer" + END_REQUEST)

    assert worker.tracer.phase is Phase.TEARDOWN
    assert len(worker.records) == busy


@pytest.mark.parametrize("answer", [b"", END_REQUEST], ids=["running", "teardown"])
def test_accept_ends_the_request(worker, busy, answer):
    worker.accept()
    worker.read_request()
    worker.write(answer)
    worker.wait_for_connection()

    assert worker.tracer.phase is Phase.IDLE
    assert len(worker.records) == busy + 1


def test_a_read_on_a_kept_connection_ends_the_answered_request_and_begins_the_next(worker, busy):
    worker.accept()
    worker.read_request(keep=True)
    worker.write(END_REQUEST)
    worker.read_request(keep=True)

    assert worker.tracer.phase is Phase.RUNNING
    assert len(worker.records) == busy + 1


@pytest.mark.parametrize("answer", [b"", END_REQUEST], ids=["running", "teardown"])
@pytest.mark.parametrize("leave", [lambda tracer: tracer.exited(0), lambda tracer: tracer.cut_off()])
def test_the_end_of_the_worker_or_of_tracing_cuts_the_request_off(worker, busy, answer, leave):
    worker.accept()
    worker.read_request()
    worker.write(answer)
    leave(worker.tracer)

    assert worker.tracer.phase is Phase.IDLE
    assert len(worker.records) == busy + 1


def test_a_script_that_runs_on_after_its_answer_is_in_teardown_once_it_has_ended():
    current_execute_data = ctypes.c_uint64(1)
    php = SimpleNamespace(
        **{
            **vars(UNKNOWN_PHP),
            "executor_globals": ctypes.addressof(current_execute_data),
            "stack": SimpleNamespace(eg_current_execute_data=0),
        }
    )
    pid, calls = os.getpid(), []
    tracer = SyscallTracer(pid, WorkerFiles(pid), PhpMemory(pid, php, 0), lambda _: None, calls.append, busy=False)
    worker = Worker(tracer, [])
    worker.accept()
    worker.read_request()
    worker.write(END_REQUEST)
    assert tracer.phase is Phase.ANSWERED

    worker.call(arch.SYS_MUNMAP, 0x1000, 4096)
    assert tracer.phase is Phase.ANSWERED
    current_execute_data.value = 0
    worker.call(arch.SYS_MUNMAP, 0x1000, 4096)
    tracer.close()

    assert tracer.phase is Phase.TEARDOWN
    assert [call.script_ended for call in calls] == [False, True]
