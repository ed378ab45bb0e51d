"""Records of the ring of stacks, as the kernel sends them, all of one request but where said otherwise."""

from __future__ import annotations

from tracer.backends.records.growth_decoder import GrowthDecoder
from tracer.backends.records.stack_structs import (
    FILE_MAX_BYTES,
    FRAME,
    FUNCTION,
    GROWTH,
    GROWTH_SLOT,
    GROWTH_SLOTS,
    MEMORY_CALL,
    NAME_MAX_BYTES,
    STACK,
    WORKER_STACKS,
    Call,
    FunctionFlag,
    FunctionType,
    MetricKind,
    StackEventKind,
)
from tracer.facts import Frame, Growth

PID = 4241
NTH = 7
HASH = 0x9E3779B97F4A7C15


def function(
    number: int,
    name: bytes | None = b"find",
    class_name: bytes | None = None,
    file: bytes | None = b"/srv/app/Repo.php",
    *,
    kind: FunctionType = FunctionType.USER,
    line_start: int = 83,
    pid: int = PID,
    nth: int = NTH,
    left_behind: bytes = b"",
) -> bytes:
    """`left_behind`: what an earlier, longer name left behind the NUL; the kernel's buffer is not cleared."""
    flags = 0
    for text, size, if_none, if_cut in (
        (name, NAME_MAX_BYTES, FunctionFlag.NAMELESS, FunctionFlag.NAME_CUT),
        (class_name, NAME_MAX_BYTES, FunctionFlag.CLASSLESS, FunctionFlag.CLASS_CUT),
        (file, FILE_MAX_BYTES, FunctionFlag.FILELESS, FunctionFlag.FILE_CUT),
    ):
        flags |= if_none if text is None else if_cut if len(text) >= size else 0
    return FUNCTION.pack(
        StackEventKind.FUNCTION,
        pid,
        nth,
        kind,
        number,
        flags,
        line_start,
        (name or b"")[: NAME_MAX_BYTES - 1] + b"\0" + left_behind,
        (class_name or b"")[: NAME_MAX_BYTES - 1],
        (file or b"")[-(FILE_MAX_BYTES - 1) :],
    )


def stack(
    *frames: tuple[int, int], key: int = HASH, flags: int = 0, depth: int | None = None, pid: int = PID, nth: int = NTH
) -> bytes:
    """`frames`: (id of the function, line), the innermost first."""
    head = STACK.pack(StackEventKind.STACK, pid, nth, flags, key, len(frames) if depth is None else depth, 0)
    return head + b"".join(FRAME.pack(number, line, 0) for number, line in frames)


def grown(
    size: int,
    *,
    key: int = HASH,
    samples: int = 1,
    metric: int = MetricKind.RSS,
    pid: int = PID,
    nth: int = NTH,
) -> bytes:
    return GROWTH.pack(StackEventKind.GROWTH, pid, nth, metric, key, size, samples, 0)


def called(
    call: Call,
    address: int,
    size: int = 0,
    to: int = 0,
    to_size: int = 0,
    *,
    key: int = HASH,
    script_ended: bool = False,
    pid: int = PID,
    nth: int = NTH,
) -> bytes:
    return MEMORY_CALL.pack(
        StackEventKind.MEMORY_CALL, pid, nth, call, key, address, size, to, to_size, script_ended, 0
    )


def entry(*slots: tuple[int, int, int, int], nth: int = NTH) -> bytes:
    """A worker's entry in the map `worker_stacks`; of each slot (hash, bytes, metric, samples)."""
    free = [(HASH, 1_000_003, 0, 13)] * (GROWTH_SLOTS - len(slots))
    head = WORKER_STACKS.pack(nth, 0, 1, 0, 3, 4_000_037)
    return head + b"".join(GROWTH_SLOT.pack(*slot) for slot in (*free, *slots)) + b"\xff" * 997


def growths(decoder: GrowthDecoder, *records: bytes, pid: int = PID, nth: int = NTH) -> list[Growth]:
    for record in records:
        decoder.take(record)
    return decoder.growths(pid, nth)


def frames(decoder: GrowthDecoder, *records: bytes) -> tuple[Frame, ...]:
    """The frames of the one stack that these records make, the outermost first."""
    [found] = growths(decoder, *records, grown(101))
    return found.stack
