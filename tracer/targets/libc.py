"""Probe sites in a C library: where mmap, munmap, brk and mremap return from the kernel."""

from __future__ import annotations

import dataclasses

from tracer.targets import arch, machine_code
from tracer.targets.elf import Elf, Image

SYSCALLS = {"mmap": arch.SYS_MMAP, "munmap": arch.SYS_MUNMAP, "brk": arch.SYS_BRK, "mremap": arch.SYS_MREMAP}
_WRAPPER_BYTES = 160


@dataclasses.dataclass(frozen=True, slots=True)
class Libc:
    """File offsets of the conditional jump after each `syscall`; `missing` names the calls not recognized.

    The function that opened `image` closes it, when it sets no more probes.
    """

    image: Image
    sites: dict[str, int]
    missing: tuple[str, ...]


def inspect(image: Image) -> Libc:
    """Find the probe sites in a C library. UnsupportedError if it is not an ELF file.

    The caller closes `image`, also if this raises.
    """
    elf = Elf(image)
    sites = {}
    for name, number in SYSCALLS.items():
        wrapper = elf.symbol(name)
        if wrapper is None or elf.machine != arch.ELF_MACHINE:
            continue
        code = elf.code(wrapper.address, min(wrapper.size or _WRAPPER_BYTES, _WRAPPER_BYTES))
        jump = machine_code.behind_syscall(code, number)
        offset = None if jump is None else elf.file_offset(wrapper.address + jump)
        if offset is not None:
            sites[name] = offset
    return Libc(image, sites, tuple(name for name in SYSCALLS if name not in sites))
