"""PHP's call stack, read from a stopped worker's memory, a page at a time.

The C code does the same walk; change both together. hash_of() and its helpers in bpf/php_stack.h find the frames,
send_stack() and fill_frame() in bpf/growth.bpf.c find their functions and lines.

33 frames take 43 to 66 µs; one read per structure took 490 to 860 µs.
"""

from __future__ import annotations

import mmap
import struct
from typing import NamedTuple

from tracer.backends.records.stack_structs import FILE_MAX_BYTES, NAME_MAX_BYTES, FunctionFlag, FunctionType, StackFlag
from tracer.targets.layouts import StackLayout
from tracer.targets.remote_memory import read_memory

_PAGE = mmap.PAGESIZE
_CALL = struct.Struct("<QQQQQIIQ")  # zend_execute_data: opline, call, return_value, func, This, u1, u2, previous
_HEAD = struct.Struct("<B7xQQ")  # zend_function: type, function_name, scope
_STRING_LEN, _STRING_VAL, _STRING_MAX = 16, 24, 1 << 20
_CLASS_NAME = 8
_OP_LINENO, _OP_SIZE, _OPS_MAX = 24, 32, 1 << 22
_IS_OBJECT = 8


class Key(NamedTuple):
    """Identity of a function, unique within a request."""

    body: int
    name: int
    scope: int
    file: int
    line_start: int


class Function(NamedTuple):
    """Fields of `struct function_event`."""

    type: int
    flags: int
    line_start: int
    name: bytes
    class_name: bytes
    file: bytes


class Walked(NamedTuple):
    """A stack: (function, line) of each frame, innermost first; None is a dummy frame of the engine."""

    frames: tuple[tuple[Key, int] | None, ...]
    flags: StackFlag


class _CorruptError(Exception):
    """The memory does not hold a valid structure; never leaves this module."""


class Walker:
    """Walks the stacks of one process. `current` is the address of EG(current_execute_data)."""

    def __init__(self, pid: int, layout: StackLayout, current: int, max_depth: int) -> None:
        """`current`: address of EG(current_execute_data); `max_depth`: maximum of frames, from the innermost."""
        self._pid = pid
        self._layout = layout
        self._current = current
        self._max_depth = max_depth
        self._pages: dict[int, bytes] = {}
        self._types: dict[Key, int] = {}

    def walk(self) -> Walked:
        """Return the current stack, without frames if no PHP runs; it ends before the first corrupt frame."""
        self._pages.clear()
        frames: list[tuple[Key, int] | None] = []
        flags = StackFlag(0)
        try:
            call = self._u64(self._current)
            while call and len(frames) < self._max_depth:
                frame, call = self._frame(call)
                frames.append(frame)
            if call:
                flags = StackFlag.TRUNCATED
        except (_CorruptError, OSError, struct.error):
            flags = StackFlag.CORRUPT
        return Walked(tuple(frames), flags)

    def function(self, key: Key) -> Function | None:
        """Return the names of a function seen in the last walk; None if they are corrupt."""
        kind = self._types[key]
        flags = FunctionFlag(0)
        try:
            name = class_name = file = b""
            if key.name:
                name, flags = self._string(key.name, NAME_MAX_BYTES, flags, FunctionFlag.NAME_CUT)
            else:
                flags |= FunctionFlag.NAMELESS
            class_at = self._u64(key.scope + _CLASS_NAME) if key.scope else 0
            if class_at:
                class_name, flags = self._string(class_at, NAME_MAX_BYTES, flags, FunctionFlag.CLASS_CUT)
            else:
                flags |= FunctionFlag.CLASSLESS
            if key.file:
                file, flags = self._string(key.file, FILE_MAX_BYTES, flags, FunctionFlag.FILE_CUT, tail=True)
            else:
                flags |= FunctionFlag.FILELESS
        except (_CorruptError, OSError, struct.error):
            return None
        return Function(kind, flags, key.line_start, name, class_name, file)

    def forget(self) -> None:
        """Drop all known functions: in a new request, another function may be at the same address."""
        self._types.clear()

    def _frame(self, at: int) -> tuple[tuple[Key, int] | None, int]:
        opline, _, _, function, this, this_type, _, previous = _CALL.unpack(self._read(at, _CALL.size))
        if not function and this_type & 0xFF == _IS_OBJECT:
            # A placeholder for the generator that a `yield from` delegates to.
            inner = self._u64(this + self._layout.generator_execute_data)
            if inner:
                opline, _, _, function, *_ = _CALL.unpack(self._read(inner, _CALL.size))
        if not function:
            return None, previous
        kind, name, scope = _HEAD.unpack(self._read(function, _HEAD.size))
        if kind == FunctionType.INTERNAL:
            if not name:  # a fiber's fake function
                return None, previous
            key, line = Key(function, name, scope, 0, 0), 0
        elif kind in (FunctionType.USER, FunctionType.EVAL):
            layout = self._layout
            file, line_start = struct.unpack("<QI", self._read(function + layout.filename, 12))
            if not file:
                raise _CorruptError
            key = Key(self._u64(function + layout.opcodes), name, scope, file, line_start)
            line = self._line(function, opline)
        else:
            raise _CorruptError
        self._types[key] = kind
        return (key, line), previous

    def _line(self, function: int, opline: int) -> int:
        first = self._u64(function + self._layout.opcodes)
        (count,) = struct.unpack("<I", self._read(function + self._layout.last, 4))
        if not first or count > _OPS_MAX or not first <= opline < first + count * _OP_SIZE:
            return 0
        (line,) = struct.unpack("<I", self._read(opline + _OP_LINENO, 4))
        return int(line)

    def _string(
        self, at: int, limit: int, flags: FunctionFlag, if_cut: FunctionFlag, *, tail: bool = False
    ) -> tuple[bytes, FunctionFlag]:
        """Read a zend_string up to its first NUL: its first, or with `tail` its last, `limit` - 1 bytes at most."""
        length = self._u64(at + _STRING_LEN)
        if length > _STRING_MAX:
            raise _CorruptError
        size = min(length, limit - 1)
        skipped = length - size if tail else 0
        text = self._read(at + _STRING_VAL + skipped, size).split(b"\0", 1)[0]
        cut = length > size and len(text) == size
        return text, flags | if_cut if cut else flags

    def _u64(self, address: int) -> int:
        return int.from_bytes(self._read(address, 8), "little")

    def _read(self, address: int, size: int) -> bytes:
        number = address // _PAGE
        page = self._pages.get(number)
        if page is None:
            page = self._pages[number] = read_memory(self._pid, number * _PAGE, _PAGE)
        offset = address % _PAGE
        found = page[offset : offset + size]
        if len(found) == size:
            return found
        return found + self._read(address + len(found), size - len(found))
