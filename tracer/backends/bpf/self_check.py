"""Fills in the kernel's offsets and proves them on this very process before any worker is measured.

A wrong offset would not fail; it would measure something else. So the programs first measure the
process they were loaded by, and that has to agree with its /proc/self/status.
"""

from __future__ import annotations

import ctypes
import dataclasses
import logging
import mmap
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tracer.backends.bpf.maps import Map
from tracer.backends.records.request_structs import (
    CPUS_MAX,
    KERNEL,
    KERNEL_FIELDS,
    SELF_CHECK,
    SELF_CHECK_FIELDS,
    TEXT_BYTES,
)
from tracer.errors import UnsupportedError
from tracer.targets import kernel
from tracer.targets.kernel import KernelLayout, RssKind

log = logging.getLogger(__name__)

_PR_SET_NAME, _PR_GET_NAME = 15, 16
TRACEPOINT = "task_rename"
# This process goes on while it is being measured; a wrong offset is off by far more.
_TOLERANCE_BYTES = 1 << 20
_TOUCHED, _OTHERS = 13, 8  # pages: what the check touches, and at most what Python touches meanwhile


def fill_layout(maps: Callable[[str], Map], layout: KernelLayout, cpus: int, *, simulated: bool = False) -> None:
    """Write the map `kernel_layout` and check it: what the programs then measure has to be what /proc shows.

    `maps` returns a map by name. The program on_rename has to be attached to the raw tracepoint TRACEPOINT meanwhile.
    `simulated` repeats the real CPUs' areas up to `cpus`, which costs what so many CPUs cost and measures nonsense:
    for benchmarks. Raises UnsupportedError if a symbol is hidden or a figure differs.
    """
    if cpus > CPUS_MAX:
        raise UnsupportedError(
            f"cannot trace with BPF: this host may have {cpus} CPUs, and phptrace supports up to {CPUS_MAX}."
            " Use --backend ptrace."
        )
    offsets: list[int] = []
    if layout.rss_kind is RssKind.PERCPU:
        offsets = _percpu_offsets(maps, layout, kernel.possible_cpus())
    if simulated:
        _write(maps, layout, (offsets * cpus)[:cpus])
        return
    _write(maps, layout, offsets)
    _compare(_look(maps))
    _compare_growth(maps)


def addresses_hidden() -> UnsupportedError:
    """The error for a kernel that hides where its per-CPU areas are."""
    return UnsupportedError(
        "cannot find the kernel's per-CPU areas, without which RSS is not exact: /proc/kallsyms hides its addresses."
        " Run sysctl kernel.kptr_restrict=1 as root, or kernel.kptr_restrict=0 if phptrace lacks CAP_SYSLOG.",
        fixable=True,
    )


def _write(maps: Callable[[str], Map], layout: KernelLayout, percpu: list[int]) -> None:
    known = dataclasses.asdict(layout)
    values = [int(known.get(name, 0)) for name, _ in KERNEL_FIELDS[:-2]]
    padded = percpu + [0] * (CPUS_MAX - len(percpu))
    maps("kernel_layout")[0] = KERNEL.pack(*values, mmap.PAGESIZE, *padded)


def _look(maps: Callable[[str], Map], text_from: int = 0) -> dict[str, Any]:
    """The fields of `struct self_check`, measured of this process now; `text` is copied from `text_from`, if not 0."""
    maps("self_check")[0] = SELF_CHECK.pack(text_from, os.getpid(), 0, 0, 0, 0, 0, b"")
    _rename_to_same()
    fields = (name for name, _ in SELF_CHECK_FIELDS)
    return dict(zip(fields, SELF_CHECK.unpack(maps("self_check")[0]), strict=True))


def _rename_to_same() -> None:
    libc = ctypes.CDLL(None)
    name = ctypes.create_string_buffer(16)
    libc.prctl(_PR_GET_NAME, name, 0, 0, 0)
    libc.prctl(_PR_SET_NAME, name, 0, 0, 0)


def _percpu_offsets(maps: Callable[[str], Map], layout: KernelLayout, cpus: int) -> list[int]:
    """__per_cpu_offset[0:cpus], read from the kernel at the address of its symbol, or decoded from code."""
    _write(maps, layout, [])
    symbol, *functions = kernel.PERCPU_SYMBOLS
    table = kernel.kernel_symbol(symbol)
    for name in functions if table is None else ():
        address = kernel.kernel_symbol(name)
        if address is not None:
            table = kernel.percpu_table_from_text(_look(maps, address)["text"])
        if table is not None:
            log.info("__per_cpu_offset decoded from %s", name)
            break
    if table is None:
        if kernel.hides_addresses():
            raise addresses_hidden()
        raise UnsupportedError(
            "cannot find the kernel's per-CPU areas, without which RSS is not exact: its code has an unknown form."
            " Report this with the output of `uname -r`, and use --backend ptrace."
        )
    offsets: list[int] = []
    while len(offsets) < cpus:
        text = _look(maps, table + 8 * len(offsets))["text"]
        offsets += [int.from_bytes(text[i : i + 8], "little") for i in range(0, TEXT_BYTES, 8)]
    return offsets[:cpus]


def _compare(seen: dict[str, Any]) -> None:
    if not seen["seen"]:
        raise UnsupportedError(
            "cannot trace with BPF: the BPF programs do not recognise phptrace's own process. Either phptrace runs in a"
            " PID namespace of its own, or the type information (BTF) is that of another kernel. Run phptrace on the"
            " host, or use --backend ptrace."
        )
    # Not /proc/self/status: before 6.2 it lacks up to 64 pages a thread, and from 6.2 until 6.16 (and its
    # backports) up to max(32, 2 * CPUs) pages a CPU. The page tables, which smaps_rollup walks, are exact.
    real = _fields("/proc/self/status") | _fields("/proc/self/smaps_rollup")
    looked = {
        "VmSize": seen["vm"],
        "Anonymous": seen["anon"],
        "Rss": seen["anon"] + seen["file"] + seen["shmem"],
    }
    for name, ours in looked.items():
        log.debug("self-check: %s is %d, seen %d", name, real[name], ours)
        if abs(ours - real[name]) > _TOLERANCE_BYTES:
            raise UnsupportedError(
                f"cannot read the memory counters of this kernel: {name} of phptrace's own process is {real[name]}"
                f" bytes, but phptrace reads {ours}. Report this with the output of `uname -r`, and use --backend"
                " ptrace."
            )


def _compare_growth(maps: Callable[[str], Map]) -> None:
    """Check that a few pages more show as a few pages more.

    The absolute figure is no proof: without the per-CPU parts it is off by some 32 pages a CPU at most.
    """
    for _ in range(3):
        with mmap.mmap(-1, 64 * mmap.PAGESIZE, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as memory:
            before = _look(maps)["anon"]
            for page in range(_TOUCHED):
                memory[page * mmap.PAGESIZE] = 1
            grown = (_look(maps)["anon"] - before) // mmap.PAGESIZE
        if not _TOUCHED <= grown <= _TOUCHED + _OTHERS:
            raise UnsupportedError(
                f"cannot read RSS exactly on this kernel: {_TOUCHED} touched pages show as {grown}."
                " Report this with the output of `uname -r`, and use --backend ptrace."
            )


def _fields(path: str) -> dict[str, int]:
    """The lines of the form `name: number kB`, as bytes."""
    lines = (line.split() for line in Path(path).read_text().splitlines())
    return {words[0][:-1]: int(words[1]) * 1024 for words in lines if len(words) == 3 and words[2] == "kB"}
