"""Reading the running kernel: the per-CPU table from machine code, and the layout of its structures."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import btfs
import pytest
from hypothesis import given
from hypothesis import strategies as st
from samples import PROPERTY

from tracer.errors import UnsupportedError
from tracer.targets import kernel
from tracer.targets.btf import Btf
from tracer.targets.kernel import RssKind, kernel_layout, percpu_table_from_text

ROOT = Path(__file__).resolve().parents[3]
TABLE = 0xFFFF_FFFF_8234_5678
OTHER = 0xFFFF_FFFF_8100_0010
WANTED = ("task_struct", "mm_struct", "percpu_counter", "task_rss_stat")


def indexed(opcode: bytes, sib: int, table: int) -> bytes:
    """`mov` or `add` of table(,%reg,8): REX.W, opcode, modrm, SIB, displacement."""
    return b"\x4a" + opcode + b"\x04" + bytes([sib]) + (table & 0xFFFF_FFFF).to_bytes(4, "little")


@pytest.mark.parametrize("sib", [0xC5, 0xCD, 0xD5, 0xDD, 0xE5, 0xED, 0xF5, 0xFD])
@pytest.mark.parametrize("opcode", [b"\x03", b"\x8b"], ids=["add", "mov"])
def test_the_table_is_what_an_indexed_access_names(opcode, sib):
    code = b"\x90" * 7 + indexed(opcode, sib, TABLE) + b"\xc3"

    assert percpu_table_from_text(code) == TABLE


def test_the_table_is_what_most_accesses_name():
    code = indexed(b"\x8b", 0xC5, OTHER) + b"\x90".join(indexed(b"\x03", 0xC5, TABLE) for _ in range(3))

    assert percpu_table_from_text(code) == TABLE


def test_a_displacement_with_any_byte_in_it_is_found():
    table = 0xFFFF_FFFF_820A_0D0A  # newlines: a regular expression's dot would stop there

    assert percpu_table_from_text(indexed(b"\x03", 0xC5, table)) == table


@pytest.mark.parametrize(
    "code",
    [
        b"",
        b"\x90" * 64,
        indexed(b"\x8b", 0xC5, 0x1234_5678),  # not in the kernel's half
        indexed(b"\x8b", 0x85, TABLE),  # elements of 4 bytes
        indexed(b"\x8d", 0xC5, TABLE),  # lea: no access
        indexed(b"\x8b", 0xC5, TABLE)[1:],  # without REX.W
        indexed(b"\x8b", 0xC5, TABLE)[:-1],
    ],
)
def test_code_that_names_no_table_has_none(code):
    assert percpu_table_from_text(code) is None


@PROPERTY
@given(st.binary(max_size=512))
def test_a_table_of_any_code_is_in_the_kernels_half_or_there_is_none(code):
    found = percpu_table_from_text(code)

    assert found is None or 0xFFFF_FFFF_8000_0000 <= found <= 0xFFFF_FFFF_FFFF_FFFF


def structures(*, percpu: bool, without: str = "") -> Btf:
    """A kernel's structures, each member 8 bytes; before 6.2 if not `percpu`. One member may be missing."""
    types = btfs.Types()
    u64 = types.integer("u64", 8)

    def structure(name: str, *members: str | tuple[str, int], size: int = 0) -> int:
        pairs = [(member, u64) if isinstance(member, str) else member for member in members]
        kept = [pair for pair in pairs if pair[0] != without]
        laid = [(member, of, 64 * number) for number, (member, of) in enumerate(kept)]
        return types.structure(name, size or 8 * len(laid), *laid)

    if percpu:
        counter = structure("percpu_counter", "lock", "count", "counters", size=40)
        rss, more = types.array(counter, 4), []
    else:
        rss = structure("mm_rss_stat", "events", "count")
        more = [] if without == "task_rss_stat" else [("rss_stat", structure("task_rss_stat", "events", "count"))]
    structure("mm_struct", "pgd", "total_vm", "reserved", "brk", "arg_start", "data_vm", ("rss_stat", rss))
    entity = structure("sched_entity", "load", "sum_exec_runtime")
    structure(
        "task_struct", "mm", "tgid", "pid", "exit_code", "min_flt", "maj_flt", "start_time", "start_boottime", *more,
        ("se", entity),
    )  # fmt: skip
    return Btf(types.blob(), WANTED)


def test_the_layout_of_a_kernel_with_percpu_counters_is_read():
    found = kernel_layout(structures(percpu=True))

    assert found.rss_kind is RssKind.PERCPU
    assert (found.mm_rss_stat, found.counter_size, found.counter_count, found.counter_counters) == (48, 40, 8, 16)
    assert found.task_rss_stat == 0
    assert (found.task_mm, found.task_tgid, found.task_pid, found.task_sum_exec_runtime) == (0, 8, 16, 64 + 8)
    assert (found.mm_total_vm, found.mm_brk, found.mm_arg_start, found.mm_data_vm) == (8, 24, 32, 40)


def test_the_layout_of_a_kernel_that_splits_rss_between_mm_and_task_is_read():
    found = kernel_layout(structures(percpu=False))

    assert found.rss_kind is RssKind.SPLIT
    assert (found.mm_rss_stat, found.task_rss_stat) == (48 + 8, 64 + 8)
    assert (found.counter_size, found.counter_count, found.counter_counters) == (0, 0, 0)


def test_a_kernel_that_keeps_rss_in_mm_alone_has_nothing_of_it_in_the_task():
    assert kernel_layout(structures(percpu=False, without="task_rss_stat")).task_rss_stat == 0


def test_a_kernel_without_the_time_of_birth_does_without_it():
    assert kernel_layout(structures(percpu=True, without="start_boottime")).task_start_boottime == 0


@pytest.mark.parametrize("member", ["mm", "exit_code", "total_vm", "counters", "se"])
def test_a_kernel_that_lacks_a_member_is_refused_by_its_name(member):
    with pytest.raises(UnsupportedError, match=rf"has no \w+\.{member}"):
        kernel_layout(structures(percpu=True, without=member))


def test_there_are_at_least_as_many_possible_cpus_as_this_process_may_use():
    assert kernel.possible_cpus() >= len(os.sched_getaffinity(0))


def test_the_lockdown_is_one_of_the_kernels_three():
    assert kernel.lockdown() in ("none", "integrity", "confidentiality")


def test_a_symbol_of_the_kernel_has_its_address_unless_that_is_hidden():
    with open("/proc/kallsyms", encoding="ascii") as symbols:
        address, _, name = symbols.readline().split()[:3]

    assert kernel.kernel_symbol(name) == (int(address, 16) or None)


def test_the_initial_pid_namespace_is_known_by_its_number():
    assert kernel.in_initial_pid_namespace() == (os.readlink("/proc/self/ns/pid") == "pid:[4026531836]")


def test_a_symbol_that_no_kernel_has_is_not_found():
    assert kernel.kernel_symbol("phptrace_has_no_such_symbol") is None


def held_capabilities() -> int:
    return int(Path("/proc/self/status").read_text().partition("CapEff:")[2].split()[0], 16)


@pytest.mark.parametrize(
    "dropped", [(), (2,), (19,), (38,), (39,), (21,), (21, 38), (21, 39), (2, 19, 21, 38, 39)], ids=str
)
def test_the_capabilities_missing_are_those_needed_and_not_held(dropped):
    program = (
        f"import ctypes, os, sys\nfor number in {dropped}: ctypes.CDLL(None).prctl(24, number, 0, 0, 0)\n"
        "os.execv(sys.executable, [sys.executable, '-c',"
        " 'from tracer.targets.kernel import *; print(*missing_capabilities())'])"
    )  # PR_CAPBSET_DROP: prctl(2); the numbers: include/uapi/linux/capability.h, Linux 6.18
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=ROOT)

    left = {number for number in (2, 19, 21, 38, 39) if held_capabilities() >> number & 1} - set(dropped)
    needed = {19: "CAP_SYS_PTRACE", 2: "CAP_DAC_READ_SEARCH"}
    if 21 not in left:  # CAP_SYS_ADMIN stands for both
        needed |= {39: "CAP_BPF", 38: "CAP_PERFMON"}
    assert ended.stdout.split() == [name for number, name in needed.items() if number not in left]


@pytest.mark.parametrize(
    ("release", "refused"),
    [("6.10.14", False), ("6.11.0-9-generic", True), ("6.13.12+deb", True), ("6.14.0", False), ("6.18.44", False),
     ("7.0", False), ("5.10.0-23-amd64", False), ("of no known form", False)],
)  # fmt: skip
def test_kernels_whose_seccomp_filters_may_refuse_a_probed_return_are_known(release, refused):
    assert kernel.filters_refuse_returns(release) is refused


@pytest.mark.parametrize(
    ("release", "has"),
    [("6.5.0-generic", False), ("6.6.1", True), ("6.18.44", True), ("7.0-rc1", True), ("5.10", False)],
)
def test_a_kernel_can_set_probes_in_one_process_from_6_6_on(release, has):
    assert kernel.has_uprobe_multi(release) is has
