"""Code as a process has it in memory: a probe that is left would show in it."""

from __future__ import annotations

from pathlib import Path

from tracer.targets import allocator, processes

_BYTES = 16


def allocator_code(pid: int) -> dict[str, bytes]:
    """The first bytes at each site of malloc and its like in the C library of a process, by function."""
    image = processes.open_libc(pid)
    assert image is not None
    try:
        sites = allocator.inspect(image).sites
    finally:
        image.close()
    assert "malloc" in sites
    return {name: _code_at(pid, offset) for name, offset in sites.items()}


def php_code(pid: int) -> bytes:
    """The code of the PHP binary that a process runs."""
    found = b""
    with Path(f"/proc/{pid}/maps").open() as maps, Path(f"/proc/{pid}/mem").open("rb", buffering=0) as memory:
        for line in maps:
            if "php-fpm" in line and " r-xp " in line:
                start, end = (int(part, 16) for part in line.split()[0].split("-"))
                memory.seek(start)
                found += memory.read(end - start)
    return found


def _code_at(pid: int, file_offset: int) -> bytes:
    with Path(f"/proc/{pid}/maps").open() as maps, Path(f"/proc/{pid}/mem").open("rb", buffering=0) as memory:
        for line in maps:
            if "libc.so" in line and " r-xp " in line:
                addresses, _, mapped_from, *_ = line.split()
                start, end = (int(part, 16) for part in addresses.split("-"))
                at = file_offset - int(mapped_from, 16)
                if 0 <= at < end - start:
                    memory.seek(start + at)
                    return memory.read(_BYTES)
    raise AssertionError(f"process {pid} has no such code")
