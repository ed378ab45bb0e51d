"""One ELF file: symbols, code bytes, USDT notes, texts. The only place that knows pyelftools.

The file belongs to whoever owns the traced process, so it is foreign: nothing is read whole, sizes it
claims are capped, and whatever is broken in it becomes an UnsupportedError.
"""

from __future__ import annotations

import contextlib
import dataclasses
import mmap
import os
import struct
from collections.abc import Iterator

from elftools.common.exceptions import ELFError
from elftools.elf.elffile import ELFFile

from tracer.errors import UnsupportedError

_MAX_NOTES = 1 << 20
_MAX_CODE = 1 << 16
_NT_STAPSDT = 3
# What pyelftools lets through for a file that lies about itself.
_BROKEN = (ELFError, ValueError, KeyError, IndexError, TypeError, AttributeError, struct.error, OverflowError)


@dataclasses.dataclass(frozen=True, slots=True)
class Image:
    """An open executable file, as the kernel knows it: a path may be stale, this is not."""

    fd: int
    device: int
    inode: int
    shown: str  # for people: the path the process was started from

    @property
    def path(self) -> str:
        """A path that leads to this very file while the fd is open, even if it was deleted."""
        return f"/proc/self/fd/{self.fd}"

    @property
    def identity(self) -> tuple[int, int]:
        return self.device, self.inode

    def close(self) -> None:
        os.close(self.fd)


def open_image(path: str, shown: str | None = None) -> Image:
    """The file behind `path`, typically /proc/PID/exe; OSError if it cannot be opened."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    stat = os.fstat(fd)
    if shown is None:
        shown = os.readlink(path) if os.path.islink(path) else path
    return Image(fd, stat.st_dev, stat.st_ino, shown)


@dataclasses.dataclass(frozen=True, slots=True)
class Symbol:
    """A dynamic symbol. `address` is the link address: add the load bias for the running one."""

    address: int
    size: int


class Elf:
    """What is asked of one ELF file. Addresses are link addresses."""

    def __init__(self, image: Image) -> None:
        self._image = image
        self._file = open(image.fd, "rb", closefd=False)  # noqa: SIM115 - closed with this object's owner
        with self._foreign():
            self._elf = ELFFile(self._file)
            self._dynsym = self._elf.get_section_by_name(".dynsym")
            self._hash = self._elf.get_section_by_name(".gnu.hash") or self._elf.get_section_by_name(".hash")
            self._loads = [
                (s["p_vaddr"], s["p_filesz"], s["p_offset"])
                for s in self._elf.iter_segments()
                if s["p_type"] == "PT_LOAD"
            ]

    @property
    def machine(self) -> str:
        """`x64`, `AArch64`, …: pyelftools' short names."""
        return str(self._elf.get_machine_arch())

    def symbol(self, name: str) -> Symbol | None:
        """The defined dynamic symbol of that name; None if there is none (a static build has none at all)."""
        with self._foreign():
            if self._hash is not None:
                found = self._hash.get_symbol(name)
            elif self._dynsym is not None:
                found = next(iter(self._dynsym.get_symbol_by_name(name) or ()), None)
            else:
                return None
            if found is None or found["st_shndx"] == "SHN_UNDEF":
                return None
            return Symbol(found["st_value"], found["st_size"])

    @property
    def has_symbols(self) -> bool:
        return self._dynsym is not None

    def file_offset(self, address: int) -> int | None:
        """Where in the file that address is; None if it is in none of its segments."""
        for start, size, offset in self._loads:
            if start <= address < start + size:
                return int(offset + address - start)
        return None

    def link_address(self, file_offset: int) -> int | None:
        """The reverse of file_offset()."""
        for start, size, offset in self._loads:
            if offset <= file_offset < offset + size:
                return int(start + file_offset - offset)
        return None

    def code(self, address: int, size: int) -> bytes:
        """Up to `size` bytes from that address; empty if it is in no segment."""
        offset = self.file_offset(address)
        return b"" if offset is None else os.pread(self._image.fd, min(size, _MAX_CODE), offset)

    def usdt_sites(self, provider: str, name: str) -> list[int]:
        """Addresses of a USDT probe's nops (.note.stapsdt), corrected for prelinking."""
        with self._foreign():
            notes = self._elf.get_section_by_name(".note.stapsdt")
            if notes is None:
                return []
            base = self._elf.get_section_by_name(".stapsdt.base")
            shift_to = base["sh_addr"] if base is not None else None
            blob = os.pread(self._image.fd, min(notes["sh_size"], _MAX_NOTES), notes["sh_offset"])
            wanted = provider.encode() + b"\0" + name.encode() + b"\0"
            sites = []
            for kind, description in _notes(blob):
                if kind != _NT_STAPSDT or description[24 : 24 + len(wanted)] != wanted:
                    continue
                address, linked_base = struct.unpack_from("<QQ", description)
                sites.append(address if shift_to is None else address + shift_to - linked_base)
            return sites

    def text_after(self, marker: bytes, length: int) -> bytes | None:
        """Up to `length` bytes behind the first `marker` anywhere in the file, cut at a NUL; None if absent."""
        if os.fstat(self._image.fd).st_size == 0:
            return None
        with mmap.mmap(self._image.fd, 0, prot=mmap.PROT_READ) as whole:
            at = whole.find(marker)
            if at < 0:
                return None
            return whole[at + len(marker) : at + len(marker) + length].split(b"\0")[0]

    @contextlib.contextmanager
    def _foreign(self) -> Iterator[None]:
        try:
            yield
        except _BROKEN as exc:
            raise UnsupportedError(f"{self._image.shown} is not an ELF file that can be read: {exc}") from exc


def _notes(blob: bytes) -> Iterator[tuple[int, bytes]]:
    """(type, description) of each note: gABI chapter 5, with the 4-byte alignment GNU tools use."""
    at = 0
    while at + 12 <= len(blob):
        name_size, description_size, kind = struct.unpack_from("<III", blob, at)
        start = at + 12 + (name_size + 3 & ~3)
        yield kind, blob[start : start + description_size]
        at = start + (description_size + 3 & ~3)
