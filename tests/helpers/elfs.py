"""ELF files made by hand: x86-64, with dynamic symbols, a hash table and USDT notes. Some can be run.

Layout: headers and tables in one segment, code in another, whose addresses are not its file offsets.
"""

from __future__ import annotations

import dataclasses
import struct
from collections.abc import Callable

BASE = 0x400000
TEXT_OFFSET = 0x2000
TEXT = 0x700000  # address of the code
DATA_OFFSET = 0x3000
DATA = 0x900000  # address of the data

_EHDR, _PHDR, _SHDR, _SYM = (
    struct.Struct("<" + form) for form in ("16sHHIQQQIHHHHHH", "IIQQQQQQ", "IIQQQQIIQQ", "IBBHQQ")
)
_STRTAB, _HASH, _NOTE, _DYNSYM, _GNU_HASH, _PROGBITS = 3, 5, 7, 11, 0x6FFFFFF6, 1

Content = bytes | Callable[[int], bytes]  # the latter given its address

# Forks a child for each of its arguments, which runs this file again with that argument as its title
# (argv[0]); then runs this file again without arguments; and without arguments waits for ever.
# What `as` (binutils 2.40) makes of
#       lea 16(%rsp),%rbx; cmpq $0,(%rbx); je 4f
#   1:  cmpq $0,(%rbx); je 2f; mov $57,%eax; syscall; test %eax,%eax; jz 3f; add $8,%rbx; jmp 1b
#   2:  lea 8(%rsp),%rbx
#   3:  xor %edx,%edx; push %rdx; push (%rbx); mov %rsp,%rsi; lea 5f(%rip),%rdi; mov $59,%eax; syscall; ud2
#   4:  mov $34,%eax; syscall; jmp 4b
#   5:  .asciz "/proc/self/exe"
FORKS_AND_WAITS = (
    bytes.fromhex(
        "488d5c2410 48833b00 7434 48833b00 7411 b839000000 0f05 85c0 740b 4883c308 ebe9 488d5c2408"
        "31d2 52 ff33 4889e6 488d3d12000000 b83b000000 0f05 0f0b b822000000 0f05 ebf7"
    )
    + b"/proc/self/exe\0"
)


@dataclasses.dataclass(frozen=True)
class Note:
    """A USDT probe, as <sys/sdt.h> leaves it; `base` is where .stapsdt.base was when it was linked."""

    provider: str
    name: str
    address: int
    base: int = 0

    def packed(self) -> bytes:
        description = struct.pack("<QQQ", self.address, self.base, 0)
        description += f"{self.provider}\0{self.name}\0-4@%eax\0".encode()
        return note(3, b"stapsdt\0", description)


def note(kind: int, name: bytes, description: bytes) -> bytes:
    head = struct.pack("<III", len(name), len(description), kind)
    return head + _padded(name, 4) + _padded(description, 4)


def elf(
    functions: dict[str, Content] | None = None,
    data: dict[str, Content] | None = None,
    *,
    undefined: tuple[str, ...] = (),
    hash_style: str | None = "gnu",
    notes: bytes = b"",
    base: int | None = None,
    machine: int = 62,
    start: bytes = FORKS_AND_WAITS,
) -> bytes:
    """An executable that exports these. `start` is what it runs; `hash_style`: gnu, sysv or None.

    The functions follow `start`, each 16 bytes aligned; the data lies at DATA. `base` makes a section
    .stapsdt.base of that address.
    """
    text, blob = _padded(start, 16), b""
    symbols = [(name, 0, 0) for name in undefined]
    for name, code in (functions or {}).items():
        content = code if isinstance(code, bytes) else code(TEXT + len(text))
        symbols.append((name, TEXT + len(text), len(content)))
        text += _padded(content, 16)
    for name, code in (data or {}).items():
        content = code if isinstance(code, bytes) else code(DATA + len(blob))
        symbols.append((name, DATA + len(blob), len(content)))
        blob += _padded(content, 16)
    strings, table = b"\0", _SYM.pack(0, 0, 0, 0, 0, 0)
    for name, address, size in symbols:
        table += _SYM.pack(len(strings), 0x12, 0, 1 if address else 0, address, size)
        strings += name.encode() + b"\0"

    sections = [(".dynstr", _STRTAB, strings, 0, 0), (".dynsym", _DYNSYM, table, 1, _SYM.size)]
    if hash_style == "gnu":
        sections.append((".gnu.hash", _GNU_HASH, _gnu_hash([name for name, *_ in symbols], len(undefined)), 2, 0))
    elif hash_style == "sysv":
        sections.append((".hash", _HASH, _sysv_hash(len(symbols)), 2, 4))
    if notes:
        sections.append((".note.stapsdt", _NOTE, notes, 0, 0))
    if base is not None:
        sections.append((".stapsdt.base", _PROGBITS, b"\0", base, 0))
    return _file(sections, text, blob, machine)


def static_elf() -> bytes:
    """An executable without sections, and so without symbols."""
    return _file([], FORKS_AND_WAITS, b"", 62, with_sections=False)


def _file(
    sections: list[tuple[str, int, bytes, int, int]],
    text: bytes,
    data: bytes,
    machine: int,
    *,
    with_sections: bool = True,
) -> bytes:
    content = bytearray(_EHDR.size + 3 * _PHDR.size)
    names, headers = b"\0", _SHDR.pack(*(0,) * 10)
    for name, kind, body, link, entry_size in sections:
        content += b"\0" * (-len(content) % 8)
        address = BASE + len(content)
        if name == ".stapsdt.base":
            address, link = link, 0
        headers += _SHDR.pack(len(names), kind, 2, address, len(content), len(body), link, 0, 8, entry_size)
        names += name.encode() + b"\0"
        content += body
    headers += _SHDR.pack(len(names), _STRTAB, 0, 0, len(content), len(names) + 10, 0, 0, 1, 0)
    content += names + b".shstrtab\0"
    content += b"\0" * (-len(content) % 8)
    headers_at, count = (len(content), len(sections) + 2) if with_sections else (0, 0)
    content += headers if with_sections else b""
    assert len(content) <= TEXT_OFFSET
    assert len(text) <= DATA_OFFSET - TEXT_OFFSET

    whole = _padded(bytes(content), TEXT_OFFSET) + text
    whole = _padded(whole, DATA_OFFSET) + data
    ident = b"\x7fELF\x02\x01\x01".ljust(16, b"\0")
    header = _EHDR.pack(ident, 2, machine, 1, TEXT, _EHDR.size, headers_at, 0, _EHDR.size, _PHDR.size, 3,
                        _SHDR.size, count, max(0, count - 1))  # fmt: skip
    for at, address, size, flags in (
        (0, BASE, len(content), 4),
        (TEXT_OFFSET, TEXT, len(text), 5),
        (DATA_OFFSET, DATA, len(data), 6),
    ):
        header += _PHDR.pack(1, flags, at, address, address, size, size, 0x1000)
    return header + whole[len(header) :]


def _padded(content: bytes, to: int) -> bytes:
    return content + b"\0" * (-len(content) % to)


def _gnu_hash(names: list[str], undefined: int) -> bytes:
    """One bucket, and a Bloom filter that lets all pass: https://flapenguin.me/elf-dt-gnu-hash."""
    chain = b""
    for number, name in enumerate(names[undefined:], undefined + 1):
        value = 5381
        for byte in name.encode():
            value = (value * 33 + byte) & 0xFFFFFFFF
        chain += struct.pack("<I", value & ~1 | (number == len(names)))
    first = undefined + 1 if names[undefined:] else 0
    return struct.pack("<IIIIQI", 1, undefined + 1, 1, 6, (1 << 64) - 1, first) + chain


def _sysv_hash(symbols: int) -> bytes:
    """One bucket; each symbol's chain goes on with the one before it: gABI chapter 5."""
    chains = [0, *range(symbols)]
    return struct.pack(f"<{3 + len(chains)}I", 1, len(chains), symbols, *chains)
