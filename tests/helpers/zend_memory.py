"""PHP's structures in this process's own memory, where a Walker finds them as in a worker's."""

from __future__ import annotations

import ctypes
import mmap
import struct

from tracer.backends.records.stack_structs import FunctionType
from tracer.targets.layouts import StackLayout, stack_layout_of

PAGE = mmap.PAGESIZE
_FUNCTION_BYTES = 256
_OP_BYTES, _OP_LINENO = 32, 24
_IS_OBJECT = 8


def _layout() -> StackLayout:
    found = stack_layout_of((8, 2, 36))
    assert found is not None
    return found


LAYOUT = _layout()


class ZendMemory:
    """Structures of PHP, at the addresses that put() returns until close(). `current` is that of
    EG(current_execute_data).
    """

    def __init__(self) -> None:
        self._memory = mmap.mmap(-1, 64 * PAGE, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        self._view = ctypes.c_char.from_buffer(self._memory)
        self._base = ctypes.addressof(self._view)
        self._used = 0
        self.current = self.put(bytes(8))

    def close(self) -> None:
        del self._view
        self._memory.close()

    def put(self, content: bytes, *, before_page_border: int | None = None) -> int:
        """Put the bytes somewhere; with `before_page_border`, so many of them before the border of a page."""
        at = (self._used + 15) & ~15
        if before_page_border is not None:
            at = (at // PAGE + 2) * PAGE - before_page_border
        self._used = at + len(content)
        self._memory[at : self._used] = content
        return self._base + at

    def write(self, address: int, content: bytes) -> None:
        at = address - self._base
        self._memory[at : at + len(content)] = content

    def string(self, text: bytes, *, length: int | None = None, before_page_border: int | None = None) -> int:
        """A zend_string; `length` if it says another than it has."""
        head = struct.pack("<16xQ", len(text) if length is None else length)
        return self.put(head + text + b"\0", before_page_border=before_page_border)

    def scope(self, name: bytes) -> int:
        """A zend_class_entry."""
        return self.put(struct.pack("<8xQ", self.string(name)))

    def internal(self, name: bytes | None, scope: int = 0) -> int:
        """A zend_internal_function."""
        at = self.string(name) if name is not None else 0
        return self.put(struct.pack("<B7xQQ", FunctionType.INTERNAL, at, scope).ljust(_FUNCTION_BYTES, b"\xff"))

    def user(
        self,
        name: bytes | None,
        lines: tuple[int, ...] = (3, 5, 7),
        *,
        file: bytes | None = b"/srv/app/Repo.php",
        scope: int = 0,
        kind: int = FunctionType.USER,
        name_at: int | None = None,
    ) -> int:
        """A zend_op_array with an opcode on each of these lines; the first is where it starts."""
        code = b"".join(bytes(_OP_LINENO) + struct.pack("<II", line, 0) for line in lines)
        content = bytearray(_FUNCTION_BYTES)
        if name_at is None:
            name_at = self.string(name) if name is not None else 0
        struct.pack_into("<B7xQQ", content, 0, kind, name_at, scope)
        struct.pack_into("<QI", content, LAYOUT.filename, self.string(file) if file is not None else 0, lines[0])
        struct.pack_into("<Q", content, LAYOUT.opcodes, self.put(code))
        struct.pack_into("<I", content, LAYOUT.last, len(lines))
        return self.put(bytes(content))

    def opline(self, function: int, number: int) -> int:
        at = function - self._base + LAYOUT.opcodes
        return int.from_bytes(self._memory[at : at + 8], "little") + number * _OP_BYTES

    def call(self, function: int, previous: int, opline: int = 0, *, this: int = 0, is_object: bool = False) -> int:
        """A zend_execute_data."""
        this_type = _IS_OBJECT if is_object else 0
        return self.put(struct.pack("<QQQQQIIQ", opline, 0, 0, function, this, this_type, 0, previous))

    def generator(self, execute_data: int) -> int:
        """A zend_generator that runs in this frame."""
        return self.put(bytes(LAYOUT.generator_execute_data) + struct.pack("<Q", execute_data))

    def run(self, call: int) -> None:
        """Make that the frame that PHP is in."""
        self.write(self.current, struct.pack("<Q", call))
