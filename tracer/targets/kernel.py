"""The running kernel: structure offsets, per-CPU areas, capabilities, lockdown."""

from __future__ import annotations

import dataclasses
import enum
import functools
import os
import platform
import re
import struct
from collections.abc import Sequence
from pathlib import Path

from tracer.errors import UnsupportedError
from tracer.targets import processes
from tracer.targets.btf import Btf, out_of_files

# include/uapi/linux/capability.h, Linux 6.18
_CAPABILITIES = {
    "CAP_DAC_READ_SEARCH": 2,
    "CAP_SYS_PTRACE": 19,
    "CAP_SYS_ADMIN": 21,
    "CAP_PERFMON": 38,
    "CAP_BPF": 39,
}
_SYSFS = Path("/sys/kernel")
# The table of per-CPU areas, and functions from whose code its address can be decoded.
PERCPU_SYMBOLS = ("__per_cpu_offset", "percpu_counter_set", "__percpu_counter_sum")
_UPROBE_PMU = Path("/sys/bus/event_source/devices/uprobe/type")
# mov or add of reg*8 + disp32 with REX.W: how compilers index __per_cpu_offset[cpu].
_INDEXED = re.compile(rb"[\x48-\x4f][\x03\x8b][\x00-\x3f][\xc5\xcd\xd5\xdd\xe5\xed\xf5\xfd](....)", re.DOTALL)


class RssKind(enum.IntEnum):
    """How the kernel stores RSS; the values are those in bpf/request_events.h."""

    PERCPU = 1  # Linux >= 6.2: one struct percpu_counter each
    SPLIT = 2  # before 6.2: mm->rss_stat.count[], and task->rss_stat.count[] not yet added to it


@dataclasses.dataclass(frozen=True, slots=True)
class KernelLayout:
    """Byte offsets in the running kernel's structures, read from its BTF."""

    task_mm: int
    task_tgid: int
    task_pid: int
    task_exit_code: int
    task_min_flt: int
    task_maj_flt: int
    task_sum_exec_runtime: int
    task_start_time: int
    task_start_boottime: int  # 0 if absent (before 5.5)
    task_rss_stat: int  # 0 unless SPLIT
    mm_rss_stat: int
    mm_total_vm: int
    mm_brk: int
    mm_arg_start: int
    mm_data_vm: int
    counter_size: int  # 0 unless PERCPU
    counter_count: int
    counter_counters: int
    rss_kind: RssKind


def kernel_layout(btf: Btf | None = None) -> KernelLayout:
    """Offsets for the running kernel, or from `btf`. UnsupportedError names the member that is missing."""
    btf = btf or Btf.of_kernel(("task_struct", "mm_struct", "percpu_counter", "task_rss_stat"))

    def need(structure: str, member: str) -> int:
        offset = btf.offset(structure, member)
        if offset is None:
            raise UnsupportedError(
                f"cannot use BPF on Linux {os.uname().release}: its kernel has no {structure}.{member}."
                " Use --backend ptrace, and report this kernel to phptrace."
            )
        return offset

    percpu = btf.element("mm_struct", "rss_stat") == "percpu_counter"
    task_rss_stat = btf.offset("task_struct", "rss_stat.count")
    return KernelLayout(
        task_mm=need("task_struct", "mm"),
        task_tgid=need("task_struct", "tgid"),
        task_pid=need("task_struct", "pid"),
        task_exit_code=need("task_struct", "exit_code"),
        task_min_flt=need("task_struct", "min_flt"),
        task_maj_flt=need("task_struct", "maj_flt"),
        task_sum_exec_runtime=need("task_struct", "se.sum_exec_runtime"),
        task_start_time=need("task_struct", "start_time"),
        task_start_boottime=btf.offset("task_struct", "start_boottime") or 0,
        task_rss_stat=0 if percpu else task_rss_stat or 0,
        mm_rss_stat=need("mm_struct", "rss_stat" if percpu else "rss_stat.count"),
        mm_total_vm=need("mm_struct", "total_vm"),
        mm_brk=need("mm_struct", "brk"),
        mm_arg_start=need("mm_struct", "arg_start"),
        mm_data_vm=need("mm_struct", "data_vm"),
        counter_size=btf.size("percpu_counter") or 0 if percpu else 0,
        counter_count=need("percpu_counter", "count") if percpu else 0,
        counter_counters=need("percpu_counter", "counters") if percpu else 0,
        rss_kind=RssKind.PERCPU if percpu else RssKind.SPLIT,
    )


@functools.cache
def running_layout() -> KernelLayout:
    """Offsets for the running kernel, read once. Raises as kernel_layout() does."""
    return kernel_layout()


def possible_cpus() -> int:
    """Number of CPUs this kernel may ever have: the used length of __per_cpu_offset[]."""
    text = Path("/sys/devices/system/cpu/possible").read_text().strip()
    return int(re.split(r"[-,]", text)[-1]) + 1


@functools.cache
def kernel_symbol(name: str) -> int | None:
    """Address of a symbol from /proc/kallsyms; None if it is not listed or addresses are hidden."""
    ending = f" {name}\n"
    with open("/proc/kallsyms", encoding="ascii", errors="replace") as symbols:
        for line in symbols:
            if line.endswith(ending):
                return int(line.split(" ", 1)[0], 16) or None
    return None


def percpu_table_from_text(text: bytes) -> int | None:
    """Address of __per_cpu_offset[], decoded from the machine code of a function that indexes it.

    Kernels without CONFIG_KALLSYMS_ALL do not list the symbol. The table is the displacement that
    most indexed loads in the code use. None if there is no such load: then RSS cannot be exact.
    """
    votes: dict[int, int] = {}
    for match in _INDEXED.finditer(text):
        address = struct.unpack("<i", match[1])[0] & 0xFFFF_FFFF_FFFF_FFFF
        if address >> 31 == 0x1_FFFF_FFFF:
            votes[address] = votes.get(address, 0) + 1
    return max(votes, key=lambda address: votes[address]) if votes else None


def missing_capabilities() -> list[str]:
    """The capabilities the BPF backend needs and this process lacks; empty under root.

    CAP_SYS_ADMIN includes CAP_BPF and CAP_PERFMON, as in the kernel.
    """
    held = _effective_capabilities()
    admin = bool(held >> _CAPABILITIES["CAP_SYS_ADMIN"] & 1)
    needed = ["CAP_SYS_PTRACE", "CAP_DAC_READ_SEARCH"] + ([] if admin else ["CAP_BPF", "CAP_PERFMON"])
    return [name for name in needed if not held >> _CAPABILITIES[name] & 1]


def may_gain(capabilities: Sequence[str]) -> bool:
    """True if sudo can give this process these capabilities: not in a container that was started without them."""
    status = processes.status("self")
    bounding = int(status.get("CapBnd", "0"), 16)
    return status.get("NoNewPrivs") != "1" and all(bounding >> _CAPABILITIES[name] & 1 for name in capabilities)


def _effective_capabilities() -> int:
    return int(processes.status("self").get("CapEff", "0"), 16)


def has_sysfs() -> bool:
    """True if /sys is mounted, where the kernel shows its type information and its uprobes."""
    return _SYSFS.is_dir()


def hides_addresses() -> bool:
    """True if /proc/kallsyms does not show where the per-CPU areas are, without which RSS is not exact."""
    return all(kernel_symbol(name) is None for name in PERCPU_SYMBOLS)


def lockdown() -> str:
    """The level of lockdown(7): `none`, `integrity` or `confidentiality`. The last one forbids reading memory."""
    try:
        text = Path("/sys/kernel/security/lockdown").read_text()
    except OSError:
        return "none"
    match = re.search(r"\[(\w+)\]", text)
    return match[1] if match else "none"


def uprobe_pmu() -> int | None:
    """The perf event type of uprobes; None if the kernel has none (CONFIG_UPROBE_EVENTS).

    UnsupportedError if there are too many open files to see.
    """
    try:
        return int(_UPROBE_PMU.read_text())
    except ValueError:
        return None
    except OSError as exc:
        short = out_of_files(exc)
        if short is not None:
            raise short from exc
        return None


def filters_refuse_returns(release: str | None = None) -> bool:
    """True if a seccomp filter may refuse what a probe on the return of a function does, which ends the process.

    Since Linux 6.11 the return is a system call of its own, uretprobe, which no filter knows; from 6.14 on, filters
    let it through (kernel/seccomp.c). `release` is as uname says; None: the running kernel's.
    """
    numbers = re.match(r"(\d+)\.(\d+)", release or platform.release())
    return numbers is not None and (6, 11) <= (int(numbers[1]), int(numbers[2])) < (6, 14)


def has_uprobe_multi(release: str | None = None) -> bool:
    """True if BPF can set probes in one process alone: uprobe_multi links, since Linux 6.6.

    `release` is as uname says; None: the running kernel's.
    """
    numbers = re.match(r"(\d+)\.(\d+)", release or platform.release())
    return numbers is not None and (int(numbers[1]), int(numbers[2])) >= (6, 6)


def in_initial_pid_namespace() -> bool:
    """True if pids here are the pids that BPF programs see.

    The initial namespace has the inode PROC_PID_INIT_INO: include/linux/proc_ns.h, Linux 6.18.
    """
    try:
        return os.readlink("/proc/self/ns/pid") == f"pid:[{0xEFFFFFFC}]"
    except OSError:
        return True
