"""BTF made by hand, as include/uapi/linux/btf.h lays it out (Linux 6.18)."""

from __future__ import annotations

import struct

INT, PTR, ARRAY, STRUCT, UNION, ENUM, FWD, TYPEDEF, VOLATILE, CONST, RESTRICT = range(1, 12)
FUNC, FUNC_PROTO, VAR, DATASEC, FLOAT, DECL_TAG, TYPE_TAG, ENUM64 = range(12, 20)


class Types:
    """Types one by one; each method returns the type's number. blob() is the file."""

    def __init__(self) -> None:
        self._types = b""
        self._strings = b"\0"
        self._count = 0

    def add(
        self, kind: int, name: str = "", size_or_type: int = 0, length: int = 0, tail: bytes = b"", flag: int = 0
    ) -> int:
        self._types += struct.pack("<III", self._text(name), flag << 31 | kind << 24 | length, size_or_type) + tail
        self._count += 1
        return self._count

    def integer(self, name: str, size: int) -> int:
        return self.add(INT, name, size, tail=struct.pack("<I", size * 8))

    def structure(self, name: str, size: int, *members: tuple[str, int, int], kind: int = STRUCT, flag: int = 0) -> int:
        """Add a structure; members are (name, type, offset in bits)."""
        tail = b"".join(struct.pack("<III", self._text(member), of, bits) for member, of, bits in members)
        return self.add(kind, name, size, len(members), tail, flag)

    def array(self, of: int, count: int) -> int:
        return self.add(ARRAY, tail=struct.pack("<III", of, 1, count))

    def blob(self, gap: bytes = b"") -> bytes:
        """`gap` lies between header and types, and between types and strings."""
        size, behind = len(self._types), len(gap) + len(self._types) + len(gap)
        header = struct.pack("<HBBIIIII", 0xEB9F, 1, 0, 24, len(gap), size, behind, len(self._strings))
        return header + gap + self._types + gap + self._strings

    def _text(self, text: str) -> int:
        if not text:
            return 0
        # Each text is there once, as in a kernel's: pahole and the linker leave no duplicates.
        at = self._strings.find(b"\0" + text.encode() + b"\0")
        if at < 0:
            at = len(self._strings) - 1
            self._strings += text.encode() + b"\0"
        return at + 1
