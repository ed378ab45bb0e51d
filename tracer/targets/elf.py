"""One ELF file: symbols, code bytes, USDT notes, texts. The only module that imports pyelftools.

The file is untrusted, since it belongs to the owner of the traced process: nothing is read whole, the
sizes it claims are capped, and anything broken in it becomes an UnsupportedError.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import struct
from collections.abc import Iterator
from typing import Any

from elftools.common.exceptions import ELFError
from elftools.common.utils import struct_parse
from elftools.elf.elffile import ELFFile

from tracer.errors import UnsupportedError

_MAX_NAMES = 1 << 16
_MAX_NOTES = 1 << 20
_MAX_SEARCHED = 64 << 20
_STEP = 1 << 20  # of a search
_MAX_CODE = 1 << 16
_NT_STAPSDT = 3
_MAX_SYMBOLS = 1 << 20  # bytes of .dynsym, and of .dynstr
_SYMBOL = struct.Struct("<IBBHQQ")  # Elf64_Sym
_SHN_UNDEF = 0
# Exceptions that pyelftools raises for a corrupt or crafted file.
_BROKEN = (
    ELFError,
    ValueError,
    KeyError,
    IndexError,
    TypeError,
    AttributeError,
    struct.error,
    ArithmeticError,
    RecursionError,
    OSError,
)


@dataclasses.dataclass(frozen=True, slots=True)
class Image:
    """An open executable file, as the kernel knows it: a path may be stale, this is not.

    The function that calls open_image() owns it and closes it once; Elf, Php and Libc only refer to it.
    """

    fd: int
    device: int
    inode: int
    shown: str  # to be printed: the path from which the process was started

    @property
    def path(self) -> str:
        """A path to this very file, also if it was deleted. Valid until close()."""
        return f"/proc/self/fd/{self.fd}"

    @property
    def identity(self) -> tuple[int, int]:
        """(device, inode): equal for two images of one file."""
        return self.device, self.inode

    def close(self) -> None:
        """Close the file. Call it once: a second time would close the descriptor of another file."""
        os.close(self.fd)


def open_image(path: str, shown: str | None = None) -> Image:
    """The file behind `path`, typically /proc/PID/exe. The caller closes it. OSError if it cannot be opened."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        stat = os.fstat(fd)
        if shown is None:
            shown = os.readlink(path) if os.path.islink(path) else path
    except BaseException:
        os.close(fd)
        raise
    shown = ascii(shown)[1:-1]  # another user chose the name, and it will be printed
    return Image(fd, stat.st_dev, stat.st_ino, shown)


@dataclasses.dataclass(frozen=True, slots=True)
class Symbol:
    """A dynamic symbol. `address` is the link address: add the load bias for the running one."""

    address: int
    size: int


class Elf:
    """Reads one ELF file. Addresses are link addresses."""

    def __init__(self, image: Image) -> None:
        """Read the headers. UnsupportedError if it is not an ELF file; the caller closes `image` in any case."""
        self._image = image
        self._file = open(image.fd, "rb", closefd=False)  # noqa: SIM115 - the descriptor is the image's
        self._names: dict[bytes, Symbol] | None = None
        with self._foreign():
            _refuse_extended_numbers(os.pread(image.fd, 64, 0))
            self._elf = ELFFile(self._file)
            self._sections = self._read_sections()
            self._loads = self._read_loads()

    @property
    def machine(self) -> str:
        """The machine it is built for, by pyelftools' short names: `x64`, `AArch64`, …"""
        return str(self._elf.get_machine_arch())

    def symbol(self, name: str) -> Symbol | None:
        """The defined dynamic symbol of that name; None if there is none. A static build has none at all."""
        if self._names is None:
            with self._foreign():
                self._names = self._read_symbols()
        return self._names.get(name.encode())

    def _read_sections(self) -> dict[str, Any]:
        """Section headers by name. pyelftools' own sections would parse their content, whatever size it claims."""
        size, start = self._elf["e_shentsize"], self._elf["e_shoff"]
        headers = [
            struct_parse(self._elf.structs.Elf_Shdr, self._file, start + size * number)
            for number in range(self._elf["e_shnum"])
        ]
        names = self._content(headers[self._elf["e_shstrndx"]], _MAX_NAMES) if headers else b""
        found = {names[h["sh_name"] :].split(b"\0", 1)[0][:64].decode("ascii", "replace"): h for h in headers}
        self._headers = headers
        return found

    def _read_loads(self) -> list[tuple[int, int, int]]:
        """(address, size in the file, offset) of each segment that is loaded.

        From the headers alone: pyelftools' own segments would look up sections, and read hash tables to their claimed
        end.
        """
        size, start = self._elf["e_phentsize"], self._elf["e_phoff"]
        headers = [
            struct_parse(self._elf.structs.Elf_Phdr, self._file, start + size * number)
            for number in range(self._elf["e_phnum"])
        ]
        return [(h["p_vaddr"], h["p_filesz"], h["p_offset"]) for h in headers if h["p_type"] == "PT_LOAD"]

    def _read_symbols(self) -> dict[bytes, Symbol]:
        """All defined dynamic symbols, read as an array: pyelftools would follow the file's hash chains, and cycles."""
        if not self.has_symbols:
            return {}
        dynsym = self._sections[".dynsym"]
        texts = self._content(self._headers[dynsym["sh_link"]], _MAX_SYMBOLS)
        table = self._content(dynsym, _MAX_SYMBOLS)
        found: dict[bytes, Symbol] = {}
        for name, _, _, section, value, size in _SYMBOL.iter_unpack(table[: len(table) // _SYMBOL.size * _SYMBOL.size]):
            if section != _SHN_UNDEF and name < len(texts):
                found.setdefault(texts[name : texts.find(b"\0", name)], Symbol(value, size))
        return found

    def _content(self, header: Any, limit: int) -> bytes:
        return os.pread(self._image.fd, min(header["sh_size"], limit), header["sh_offset"])

    @property
    def has_symbols(self) -> bool:
        """True if the file has a table of dynamic symbols."""
        return ".dynsym" in self._sections

    def file_offset(self, address: int) -> int | None:
        """Offset in the file of that address; None if it is in no segment."""
        for start, size, offset in self._loads:
            if start <= address < start + size:
                return int(offset + address - start)
        return None

    def link_address(self, file_offset: int) -> int | None:
        """Address of that offset in the file; None if it is in no segment. The reverse of file_offset()."""
        for start, size, offset in self._loads:
            if offset <= file_offset < offset + size:
                return int(start + file_offset - offset)
        return None

    def code(self, address: int, size: int) -> bytes:
        """Up to `size` bytes from that address, at most 64 KiB; empty if it is in no segment."""
        offset = self.file_offset(address)
        with self._foreign():
            return b"" if offset is None else os.pread(self._image.fd, min(size, _MAX_CODE), offset)

    def usdt_sites(self, provider: str, name: str) -> list[int]:
        """Addresses of a USDT probe's nops (.note.stapsdt), corrected for prelinking."""
        with self._foreign():
            notes = self._sections.get(".note.stapsdt")
            if notes is None:
                return []
            base = self._sections.get(".stapsdt.base")
            shift_to = base["sh_addr"] if base is not None else None
            blob = self._content(notes, _MAX_NOTES)
            wanted = provider.encode() + b"\0" + name.encode() + b"\0"
            sites = []
            for kind, description in _notes(blob):
                if kind != _NT_STAPSDT or description[24 : 24 + len(wanted)] != wanted:
                    continue
                address, linked_base = struct.unpack_from("<QQ", description)
                sites.append(address if shift_to is None else address + shift_to - linked_base)
            return sites

    def text_after(self, marker: bytes, length: int) -> bytes | None:
        """Up to `length` bytes after the first `marker` in the file's first 64 MiB, cut at a NUL; None if absent."""
        # Read, not mapped: its owner may cut it short meanwhile, and a page that is gone would be a SIGBUS.
        overlap = len(marker) + length
        with self._foreign():
            for start in range(0, _MAX_SEARCHED, _STEP):
                part = os.pread(self._image.fd, _STEP + overlap, start)
                at = part.find(marker)
                if 0 <= at < _STEP:
                    return part[at + len(marker) : at + overlap].split(b"\0")[0]
                if len(part) <= _STEP:
                    return None
        return None

    @contextlib.contextmanager
    def _foreign(self) -> Iterator[None]:
        try:
            yield
        except _BROKEN as exc:
            raise UnsupportedError(
                f"cannot parse {self._image.shown} as an ELF file: {exc}. Check it with readelf -a."
            ) from exc


def _refuse_extended_numbers(header: bytes) -> None:
    """ValueError if the file keeps its counts in the 64-bit fields for 65,280 sections or 65,535 segments and more.

    No program has so many, and pyelftools would loop as often as is claimed (gABI chapter 4, e_shnum, e_phnum).
    """
    segments, _, sections, names = struct.unpack_from("<HHHH", header, 56)
    if (sections == 0 and header[40:48] != bytes(8)) or segments == 0xFFFF or names == 0xFFFF:
        raise ValueError("it claims more sections or segments than a program has")


def _notes(blob: bytes) -> Iterator[tuple[int, bytes]]:
    """(type, description) of each note: gABI chapter 5, with the 4-byte alignment GNU tools use."""
    at = 0
    while at + 12 <= len(blob):
        name_size, description_size, kind = struct.unpack_from("<III", blob, at)
        start = at + 12 + (name_size + 3 & ~3)
        yield kind, blob[start : start + description_size]
        at = start + (description_size + 3 & ~3)
