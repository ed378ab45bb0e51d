"""The three ways to watch workers, and what each of them cannot see."""

from __future__ import annotations

import math
from typing import Any

import pytest
from program_cache import ProgramCache

from tracer.backends import Backend, NativeOptions, PtraceMode
from tracer.backends.bpf.backend import BpfBackend
from tracer.backends.ptrace.backend import PtraceBackend
from tracer.facts import Note, Request

BPF, SYSCALLS, BREAKPOINTS = "bpf", "syscalls", "breakpoints"

BPF_PARAM = pytest.param(BPF, marks=pytest.mark.needs_bpf)
SYSCALLS_PARAM = pytest.param(SYSCALLS, marks=pytest.mark.needs_ptrace)
BREAKPOINTS_PARAM = pytest.param(BREAKPOINTS, marks=pytest.mark.needs_ptrace)
PTRACE_PARAMS = [SYSCALLS_PARAM, BREAKPOINTS_PARAM]
# What --backend takes.
OPTIONS = [
    pytest.param("bpf", marks=pytest.mark.needs_bpf),
    pytest.param("ptrace", marks=pytest.mark.needs_ptrace),
]

MEMORY_CALLS = frozenset({"map_bytes", "map_calls", "unmap_bytes", "unmap_calls", "brk_bytes", "brk_calls"})

NATIVE = frozenset({
    "native_alloc_bytes", "native_alloc_calls", "native_free_bytes", "native_free_calls", "native_freed_earlier",
    "native_mapped_bytes", "native_between_bytes", "native_kept", "native_released",
})  # fmt: skip

# The columns of a Request that stay None.
CANNOT_SEE: dict[str, frozenset[str]] = {
    BPF: frozenset(),
    SYSCALLS: frozenset({"zend_used_end", "memory_limit"}) | NATIVE,
    BREAKPOINTS: MEMORY_CALLS | NATIVE,
}
# The notes of every request that is whole.
NOTES: dict[str, frozenset[str]] = {
    BPF: frozenset(),
    SYSCALLS: frozenset({Note.NATIVE_NOT_COUNTED.value, Note.SCRIPT_END_NOT_SEEN.value}),
    BREAKPOINTS: frozenset({Note.NATIVE_NOT_COUNTED.value, Note.CALLS_NOT_HOOKED.value}),
}
# True if exit() in a script is distinguished from a plain end.
SEES_EXIT = {BPF: True, SYSCALLS: False, BREAKPOINTS: False}

PROGRAMS = ProgramCache()


def make_backend(name: str, **options: Any) -> Backend:
    """A backend by its name in the tests; the options are those of its class. BPF counts all native memory."""
    if name == BPF:
        return BpfBackend(**{"compiled": PROGRAMS, "native": NativeOptions(math.inf), **options})
    return PtraceBackend(mode=PtraceMode(name), **options)


def notes(request: Request) -> set[str]:
    """The notes of a request, whatever their order."""
    return set(request.notes.split(",")) if request.notes else set()


def kept(request: Request) -> int | None:
    """Native bytes that the request kept; where they cannot be counted, the growth of its worker."""
    return request.growth if request.native_kept is None else request.native_kept
