"""Offsets of structure members from the kernel's own type information.

Not from headers: the headers of another version compile without an error and give wrong offsets.
Reads BTF as laid out in include/uapi/linux/btf.h (Linux 6.18). Structures only, no functions.
"""

from __future__ import annotations

import contextlib
import errno
import struct
from collections.abc import Iterable, Iterator
from pathlib import Path

from tracer.errors import UnsupportedError

VMLINUX = Path("/sys/kernel/btf/vmlinux")
_DO = (
    "Boot a kernel built with CONFIG_DEBUG_INFO_BTF=y, as distribution kernels are since 2020, or use --backend ptrace."
)

_HEADER = struct.Struct("<HBBIIIII")
_TYPE = struct.Struct("<III")
_MAGIC = 0xEB9F
_ARRAY, _STRUCT, _UNION, _ENUM, _FUNC_PROTO, _VAR, _DATASEC, _DECL_TAG, _ENUM64 = 3, 4, 5, 6, 13, 14, 15, 17, 19
_MODIFIERS = (8, 9, 10, 11, 18)  # typedef, volatile, const, restrict, type tag
_MAX_MODIFIERS = 64
# Bytes that follow a type, by kind: (fixed, for each of its vlen members).
_TAIL = {
    1: (4, 0),
    _ARRAY: (12, 0),
    _STRUCT: (0, 12),
    _UNION: (0, 12),
    _ENUM: (0, 8),
    _FUNC_PROTO: (0, 8),
    _VAR: (4, 0),
    _DATASEC: (0, 12),
    _DECL_TAG: (4, 0),
    _ENUM64: (0, 12),
}


def out_of_files(exc: OSError) -> UnsupportedError | None:
    """The error for a file of the kernel that is there, and that this process or host may not open; None for others."""
    if exc.errno not in (errno.EMFILE, errno.ENFILE):
        return None
    return UnsupportedError(
        f"cannot read {exc.filename}: {exc.strerror}. Close files, or raise the limit (ulimit -n).", fixable=True
    )


class Btf:
    """The kernel's structures by name.

    `wanted` names the structures that will be asked for. The kernel's hundred thousand other types are
    skipped by name, so that all are read in under a tenth of a second.
    """

    def __init__(self, blob: bytes, wanted: Iterable[str]) -> None:
        """Read the types in `blob`. UnsupportedError if it is not BTF, or is cut short."""
        try:
            magic, _, _, header, types, types_bytes, strings, strings_bytes = _HEADER.unpack_from(blob)
            if magic != _MAGIC:
                raise UnsupportedError(f"cannot read the kernel's type information (BTF): unknown format. {_DO}")
            self._blob = blob
            self._strings = blob[header + strings : header + strings + strings_bytes]
            self._at = [0]
            self._structs: dict[str, int] = {}
            self._skim(header + types, header + types + types_bytes, self._offsets_of(wanted))
        except struct.error as exc:
            raise UnsupportedError(
                f"cannot read the kernel's type information (BTF): it is cut short ({exc}). {_DO}"
            ) from exc

    @classmethod
    def of_kernel(cls, wanted: Iterable[str], path: Path = VMLINUX) -> Btf:
        """The running kernel's structures. UnsupportedError if the kernel was built without BTF."""
        try:
            blob = path.read_bytes()
        except OSError as exc:
            raise out_of_files(exc) or UnsupportedError(f"cannot read {path}: {exc.strerror}. {_DO}") from exc
        return cls(blob, wanted)

    @contextlib.contextmanager
    def _sound(self) -> Iterator[None]:
        try:
            yield
        except (struct.error, ValueError, IndexError, RecursionError) as exc:
            raise UnsupportedError(
                f"cannot read the kernel's type information (BTF): it is damaged ({exc}). {_DO}"
            ) from exc

    def offset(self, structure: str, member: str) -> int | None:
        """Byte offset of a member; None if there is none. `se.sum_exec_runtime` is a member of the member `se`.

        UnsupportedError if the type information is damaged; so for size() and element().
        """
        with self._sound():
            found = self._member(structure, member)
        return None if found is None else found[0]

    def size(self, structure: str) -> int | None:
        """Size of a structure in bytes; None if the kernel has no structure of that name."""
        index = self._structs.get(structure)
        with self._sound():
            return None if index is None else int(_TYPE.unpack_from(self._blob, self._at[index])[2])

    def element(self, structure: str, member: str) -> str | None:
        """Name of the structure that a member is, or is an array of; None if it is neither or absent."""
        with self._sound():
            found = self._member(structure, member)
            if found is None:
                return None
            index = self._resolve(found[1])
            if self._kind(index) == _ARRAY:
                index = self._resolve(struct.unpack_from("<I", self._blob, self._at[index] + 12)[0])
            if self._kind(index) != _STRUCT:
                return None
            return self._text(_TYPE.unpack_from(self._blob, self._at[index])[0])

    def _offsets_of(self, wanted: Iterable[str]) -> dict[int, str]:
        names = {}
        for name in wanted:
            at = self._strings.find(b"\0" + name.encode() + b"\0")
            if at >= 0:
                names[at + 1] = name
        return names

    def _skim(self, at: int, end: int, wanted: dict[int, str]) -> None:
        unpack, append, tails = _TYPE.unpack_from, self._at.append, _TAIL
        while at < end:
            name, info, _ = unpack(self._blob, at)
            append(at)
            kind = info >> 24 & 0x1F
            if kind == _STRUCT and name in wanted and info & 0xFFFF:
                self._structs.setdefault(wanted[name], len(self._at) - 1)
            fixed, each = tails.get(kind, (0, 0))
            at += 12 + fixed + each * (info & 0xFFFF)

    def _text(self, offset: int) -> str:
        return self._strings[offset : self._strings.index(b"\0", offset)].decode()

    def _kind(self, index: int) -> int:
        return int(_TYPE.unpack_from(self._blob, self._at[index])[1] >> 24 & 0x1F)

    def _resolve(self, index: int) -> int:
        for _ in range(_MAX_MODIFIERS):
            if self._kind(index) not in _MODIFIERS:
                return index
            index = _TYPE.unpack_from(self._blob, self._at[index])[2]
        raise ValueError("types refer to each other in a circle")

    def _member(self, structure: str, path: str) -> tuple[int, int] | None:
        index = self._structs.get(structure)
        offset, kind = 0, index
        for name in path.split("."):
            if kind is None:
                return None
            found = next((m for m in self._members(self._resolve(kind)) if m[0] == name), None)
            if found is None:
                return None
            offset, kind = offset + found[1], found[2]
        return None if kind is None else (offset, kind)

    def _members(self, index: int, base: int = 0) -> Iterator[tuple[str, int, int]]:
        """(name, byte offset, type) of each member, including members of unnamed inner structures."""
        _, info, _ = _TYPE.unpack_from(self._blob, self._at[index])
        for number in range(info & 0xFFFF):
            name, kind, bits = _TYPE.unpack_from(self._blob, self._at[index] + 12 + 12 * number)
            if info >> 31:
                bits &= 0xFFFFFF
            if name:
                yield self._text(name), base + bits // 8, kind
            elif self._kind(self._resolve(kind)) in (_STRUCT, _UNION):
                yield from self._members(self._resolve(kind), base + bits // 8)
