"""The structs of bpf/growth_events.h, as Python reads and writes them.

A unit test compiles the header and compares every offset.
"""

from __future__ import annotations

import enum
import struct

NAME_MAX_BYTES = 128
FILE_MAX_BYTES = 256
GROWTH_SLOTS = 64
GAP_STEPS = 1024
HASH_NO_PHP = 0
HASH_THREAD = 1
HASH_LOST = 2


class StackEventKind(enum.IntEnum):
    """enum stack_event_kind: the kinds of records in the ring `stack_events`."""

    FUNCTION = 1
    STACK = 2
    GROWTH = 3
    MEMORY_CALL = 4


class MetricKind(enum.IntEnum):
    """enum metric."""

    RSS = 1
    MAPPED = 2
    ZEND = 3
    NATIVE = 4


class FunctionType(enum.IntEnum):
    """enum function_type."""

    INTERNAL = 1
    USER = 2
    EVAL = 4


class FunctionFlag(enum.IntFlag):
    """enum function_flag."""

    NAME_CUT = 1 << 0
    CLASS_CUT = 1 << 1
    FILE_CUT = 1 << 2
    NAMELESS = 1 << 3
    CLASSLESS = 1 << 4
    FILELESS = 1 << 5


class StackFlag(enum.IntFlag):
    """enum stack_flag."""

    TRUNCATED = 1 << 0
    CORRUPT = 1 << 1
    LOST = 1 << 2


class Call(enum.IntEnum):
    """enum memory_call: a system call that changed the address space."""

    MMAP = 1
    MUNMAP = 2
    MREMAP = 3
    BRK = 4


class LostStacks(enum.IntEnum):
    """enum lost_stacks: index into the map `lost_stacks`."""

    GROWTH = 0
    STACKS = 1
    BLOCKS = 2


FUNCTION_FIELDS = (
    ("kind", "I"),
    ("pid", "I"),
    ("nth", "I"),
    ("type", "I"),
    ("id", "Q"),
    ("flags", "I"),
    ("line_start", "I"),
    ("name", f"{NAME_MAX_BYTES}s"),
    ("class_name", f"{NAME_MAX_BYTES}s"),
    ("file", f"{FILE_MAX_BYTES}s"),
)
FRAME_FIELDS = (("function", "Q"), ("line", "I"), ("pad", "I"))
STACK_FIELDS = (
    ("kind", "I"),
    ("pid", "I"),
    ("nth", "I"),
    ("flags", "I"),
    ("hash", "Q"),
    ("depth", "I"),
    ("pad", "I"),
)  # then `depth` frames
GROWTH_FIELDS = (
    ("kind", "I"),
    ("pid", "I"),
    ("nth", "I"),
    ("metric", "I"),
    ("hash", "Q"),
    ("bytes", "q"),
    ("samples", "I"),
    ("pad", "I"),
)
MEMORY_CALL_FIELDS = (
    ("kind", "I"),
    ("pid", "I"),
    ("nth", "I"),
    ("call", "I"),
    ("hash", "Q"),
    ("address", "Q"),
    ("bytes", "Q"),
    ("to", "Q"),
    ("to_bytes", "Q"),
    ("script_ended", "I"),
    ("pad", "I"),
)
GROWTH_SLOT_FIELDS = (("hash", "Q"), ("bytes", "q"), ("metric", "I"), ("samples", "I"))
WORKER_STACKS_FIELDS = (
    ("nth", "I"),
    ("busy", "I"),
    ("dirty", "I"),
    ("pad", "I"),
    ("functions", "Q"),
    ("zend_last", "Q"),
)  # then GROWTH_SLOTS slots, then what Python does not read
STACK_LAYOUT_FIELDS = (
    ("current_execute_data", "Q"),
    ("heap_size", "I"),
    ("heap_real_peak", "I"),
    ("filename", "I"),
    ("opcodes", "I"),
    ("last", "I"),
    ("generator_execute_data", "I"),
    ("volatile_calls", "I"),
    ("pad", "I"),
)
SAMPLING_CONFIG_FIELDS = (("fault_bytes", "Q"),)
BLOCK_KEY_FIELDS = (("address", "Q"), ("pid", "I"), ("outlived", "I"))
BLOCK_FIELDS = (("hash", "Q"), ("bytes", "Q"), ("nth", "I"), ("pad", "I"))
BLOCK_CONFIG_FIELDS = (("retained_after", "I"), ("gaps", f"{4 * (GAP_STEPS + 1)}s"))


def _struct(fields: tuple[tuple[str, str], ...]) -> struct.Struct:
    return struct.Struct("<" + "".join(form for _, form in fields))


FUNCTION = _struct(FUNCTION_FIELDS)
FRAME = _struct(FRAME_FIELDS)
STACK = _struct(STACK_FIELDS)
GROWTH = _struct(GROWTH_FIELDS)
MEMORY_CALL = _struct(MEMORY_CALL_FIELDS)
GROWTH_SLOT = _struct(GROWTH_SLOT_FIELDS)
WORKER_STACKS = _struct(WORKER_STACKS_FIELDS)
STACK_LAYOUT = _struct(STACK_LAYOUT_FIELDS)
SAMPLING_CONFIG = _struct(SAMPLING_CONFIG_FIELDS)
BLOCK_KEY = _struct(BLOCK_KEY_FIELDS)
BLOCK = _struct(BLOCK_FIELDS)
BLOCK_CONFIG = _struct(BLOCK_CONFIG_FIELDS)
