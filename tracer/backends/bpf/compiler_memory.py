"""Gives memory back that only compiling needed: LLVM is most of what a bcc process weighs."""

from __future__ import annotations

import ctypes
import os

from tracer.targets.processes import file_mappings

_MADV_DONTNEED = 4
_COMPILER = ("libLLVM", "libclang")


def release_compiler_memory() -> None:
    """Frees what malloc holds on to, and lets go of the compiler's code.

    Code pages are clean copies of the file: should anything still run there, they are read again. Only
    executable mappings, since those that are merely read-only hold relocated pointers.
    """
    libc = ctypes.CDLL(None)
    for mapping in file_mappings(os.getpid()):
        if mapping.executable and os.path.basename(mapping.path).startswith(_COMPILER):
            libc.madvise(ctypes.c_void_p(mapping.start), ctypes.c_size_t(mapping.end - mapping.start), _MADV_DONTNEED)
    libc.malloc_trim(0)
