"""Where a worker's C library allocates and frees: the places to count malloc, free and their like at."""

from __future__ import annotations

import dataclasses
import os

from tracer.targets import machine_code, processes
from tracer.targets.elf import Elf, Image
from tracer.targets.machine_code import Site

_FUNCTION_BYTES = 64
# File names of C libraries' substitutes for malloc. musl's own malloc is in its loader.
_SUBSTITUTES = {
    "libjemalloc": "jemalloc",
    "libtcmalloc": "tcmalloc",
    "libmimalloc": "mimalloc",
    "libhoard": "Hoard",
    "libscudo": "Scudo",
    "libsnmalloc": "snmalloc",
    "libc_malloc_debug": "libc_malloc_debug",
    "ld-musl-": "musl",
}


@dataclasses.dataclass(frozen=True, slots=True)
class Allocator:
    """File offsets of the sites by function; `missing` are those not recognised.

    The site of a function that returns a block is also one by which its return can be probed.

    `memalign` stands for memalign, aligned_alloc, posix_memalign, valloc and pvalloc, which all end in one function
    that has no name (_mid_memalign: malloc/malloc.c, glibc 2.31 to 2.43).
    """

    image: Image
    sites: dict[str, int]
    slow: tuple[str, ...]  # of these, where the kernel single-steps the instruction
    missing: tuple[str, ...]

    @property
    def usable(self) -> bool:
        """True if what is allocated and what is freed can both be counted."""
        return not {"malloc", "free", "calloc", "realloc"} & set(self.missing)


def inspect(image: Image) -> Allocator:
    """Return what is recognised of that C library. UnsupportedError if it is not an ELF file."""
    elf = Elf(image)
    sites: dict[str, int] = {}
    slow = []
    names = ("malloc", "free", "calloc", "realloc", "memalign")
    for name in names:
        found = _site(elf, name)
        offset = None if found is None else elf.file_offset(found[0] + found[1].offset)
        if found is None or offset is None:
            continue
        if name == "free" or machine_code.returns_from(elf.code(found[0], _FUNCTION_BYTES), found[1].offset):
            sites[name] = offset
            if not found[1].emulated:
                slow.append(name)
    return Allocator(image, sites, tuple(slow), tuple(name for name in names if name not in sites))


def substitute_named(name: str) -> str | None:
    """The allocator that takes the place of glibc's malloc where a file of that name is mapped; None: none."""
    return next((shown for prefix, shown in _SUBSTITUTES.items() if name.startswith(prefix)), None)


def substitute(pid: int) -> str | None:
    """The allocator that takes the place of glibc's malloc in that process, by the names of its libraries.

    None if no such library is mapped. OSError if the process is gone or may not be read.
    """
    found = (substitute_named(os.path.basename(mapping.path)) for mapping in processes.file_mappings(pid))
    return next((name for name in found if name is not None), None)


def _site(elf: Elf, name: str) -> tuple[int, Site] | None:
    """Address of the function, and the site in it."""
    symbol = elf.symbol(name)
    if symbol is None or elf.machine != "x64":
        return None
    address, code = symbol.address, elf.code(symbol.address, _FUNCTION_BYTES)
    if name == "memalign":
        core = machine_code.jump_target(address, code)
        if core is None:
            return None
        address, code = core, elf.code(core, _FUNCTION_BYTES)
    form = machine_code.argument_site_unless_null if name == "free" else machine_code.argument_site
    site = form(code)
    return None if site is None else (address, site)
