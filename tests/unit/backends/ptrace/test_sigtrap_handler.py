"""SigtrapHandler refuses a worker with a reason and a fix."""

from __future__ import annotations

import os

import pytest

from tracer.backends.ptrace import sigtrap_handler
from tracer.backends.ptrace.sigtrap_handler import SigtrapHandler
from tracer.errors import UnsupportedError
from tracer.targets import arch

PID = os.getpid()
CODE = arch.SYSCALL_RET + arch.RET + arch.RESTORER


def test_a_c_library_without_the_needed_code_is_refused(monkeypatch):
    monkeypatch.setattr(sigtrap_handler, "_libc_text", lambda _: (0x7F00_0000_0000, b"\x90" * 64))

    with pytest.raises(UnsupportedError) as refused:
        SigtrapHandler(PID)
    assert str(refused.value) == (
        f"cannot set breakpoints in process {PID}: its C library lacks the code of a SIGTRAP handler."
        " Use --ptrace-mode syscalls."
    )


def test_a_process_without_a_known_c_library_is_refused(monkeypatch):
    monkeypatch.setattr(sigtrap_handler.processes, "file_mappings", lambda _: iter(()))

    with pytest.raises(
        UnsupportedError, match=f"^cannot set breakpoints in process {PID}: it has no known C library. "
    ):
        SigtrapHandler(PID)


def test_a_worker_with_a_shadow_stack_is_refused(monkeypatch):
    monkeypatch.setattr(sigtrap_handler, "_libc_text", lambda _: (0x7F00_0000_0000, CODE))
    monkeypatch.setattr(sigtrap_handler.processes, "status", lambda _: {"x86_Thread_features": "shstk wrss"})

    with pytest.raises(UnsupportedError, match=f"^cannot set breakpoints in process {PID}: it has a shadow stack. "):
        SigtrapHandler(PID).install(PID)


def test_a_handler_fits_only_a_process_with_the_same_code(monkeypatch):
    at = 0x7F00_0000_0000
    monkeypatch.setattr(sigtrap_handler, "_libc_text", lambda _: (at, CODE))
    handler = SigtrapHandler(PID)

    memory = sigtrap_handler.remote_memory
    monkeypatch.setattr(memory, "read_memory", lambda _, address, size: CODE[address - at :][:size])
    same = handler.fits(PID)
    monkeypatch.setattr(memory, "read_memory", lambda _pid, _address, size: bytes(size))

    assert (same, handler.fits(PID)) == (True, False)
