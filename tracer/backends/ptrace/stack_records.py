"""Send the stacks of memory calls as records of bpf/growth_events.h, each function and stack once per request."""

from __future__ import annotations

from collections.abc import Callable

from tracer.backends.ptrace.php_stack import Function, Key, Walked, Walker
from tracer.backends.ptrace.syscall_tracer import MemoryCallMade
from tracer.backends.records.stack_structs import (
    FRAME,
    FUNCTION,
    HASH_LOST,
    HASH_NO_PHP,
    MEMORY_CALL,
    STACK,
    Call,
    StackEventKind,
    StackFlag,
)

_FIRST_HASH = 16  # HASHES_RESERVED
_MAX_STACKS = 16384  # per request; later new stacks are [stack lost]


class StackSender:
    """Sends the stacks of one worker, which is stopped while a method runs."""

    def __init__(self, pid: int, walker: Walker, emit: Callable[[bytes], None]) -> None:
        """`emit` takes each record."""
        self._pid = pid
        self._walker = walker
        self._emit = emit
        self._nth = 0
        self._functions: dict[Key, int] = {}
        self._stacks: dict[Walked, int] = {}

    def memory_call(self, made: MemoryCallMade) -> None:
        """Send a memory call with its stack; munmap() needs no stack, and is sent without."""
        if made.nth != self._nth:
            self._nth = made.nth
            self._functions.clear()
            self._stacks.clear()
            self._walker.forget()
        key = HASH_NO_PHP if made.call is Call.MUNMAP else self._stack()
        self._emit(
            MEMORY_CALL.pack(
                StackEventKind.MEMORY_CALL, self._pid, made.nth, made.call, key,
                made.address, made.bytes, made.to, made.to_bytes, made.script_ended, 0,
            )
        )  # fmt: skip

    def _stack(self) -> int:
        walked = self._walker.walk()
        if not walked.frames and not walked.flags:
            return HASH_NO_PHP
        known = self._stacks.get(walked)
        if known is not None:
            return known
        if len(self._stacks) >= _MAX_STACKS:
            return HASH_LOST
        frames = b""
        for frame in walked.frames:
            number = self._function(frame[0]) if frame is not None else 0
            if number is None:
                return HASH_LOST
            frames += FRAME.pack(number, frame[1] if frame is not None else 0, 0)
        key = self._stacks[walked] = _FIRST_HASH + len(self._stacks)
        flags = walked.flags & (StackFlag.TRUNCATED | StackFlag.CORRUPT)
        self._emit(STACK.pack(StackEventKind.STACK, self._pid, self._nth, flags, key, len(walked.frames), 0) + frames)
        return key

    def _function(self, key: Key) -> int | None:
        known = self._functions.get(key)
        if known is not None:
            return known
        function: Function | None = self._walker.function(key)
        if function is None:
            return None
        number = self._functions[key] = len(self._functions) + 1
        self._emit(
            FUNCTION.pack(
                StackEventKind.FUNCTION, self._pid, self._nth, function.type, number, function.flags,
                function.line_start, function.name, function.class_name, function.file,
            )
        )  # fmt: skip
        return number
