"""From the records of the ring `stack_events` to Growth facts.

Functions and stacks come before the records that refer to them, once a request. The growth of a request
is kept until its Request has arrived.
"""

from __future__ import annotations

import dataclasses

from tracer.backends.records.address_space import AddressSpace, MemoryCall
from tracer.backends.records.request_structs import HEAD
from tracer.backends.records.stack_structs import (
    FRAME,
    FUNCTION,
    GROWTH,
    GROWTH_SLOT,
    GROWTH_SLOTS,
    HASH_LOST,
    HASH_NO_PHP,
    HASH_THREAD,
    MEMORY_CALL,
    STACK,
    WORKER_STACKS,
    Call,
    FunctionFlag,
    FunctionType,
    MetricKind,
    StackEventKind,
    StackFlag,
)
from tracer.facts import NO_PHP, STACK_LOST, THREAD, TRUNCATED, UNREADABLE, Frame, FrameKind, Growth, Metric, Stack

# A fault outside Zend's chunks is one of all faults, too.
_METRICS = {
    MetricKind.RSS: (Metric.RSS,),
    MetricKind.MAPPED: (Metric.MAPPED,),
    MetricKind.ZEND: (Metric.ZEND,),
    MetricKind.NATIVE: (Metric.RSS, Metric.NATIVE),
}
_ENDED_MAX = 20_000
_WITHOUT_STACK: dict[int, Stack] = {HASH_NO_PHP: (NO_PHP,), HASH_THREAD: (THREAD,), HASH_LOST: (STACK_LOST,)}
_NAMES_MAX = 100_000
_MOST = (1 << 63) - 1


class _Function:
    """A function's name and file; its Frames add the line."""

    __slots__ = ("_frames", "file", "kind", "name")

    def __init__(self, record: bytes) -> None:
        _, _, _, kind, _, flags, _, name, class_name, file = FUNCTION.unpack_from(record)
        self.kind = FrameKind.INTERNAL if kind == FunctionType.INTERNAL else FrameKind.USER
        self.file = None if flags & FunctionFlag.FILELESS else _text(file, cut_before=flags & FunctionFlag.FILE_CUT)
        if flags & FunctionFlag.NAMELESS:
            self.name: str | None = "eval" if kind == FunctionType.EVAL else None
        else:
            self.name = _text(name, cut_behind=flags & FunctionFlag.NAME_CUT)
            if not flags & FunctionFlag.CLASSLESS:
                self.name = f"{_text(class_name, cut_behind=flags & FunctionFlag.CLASS_CUT)}::{self.name}"
        self._frames: dict[tuple[int, bool], Frame] = {}

    def frame(self, line: int, *, outermost: bool) -> Frame:
        key = line, outermost
        if key not in self._frames:
            name = self.name or ("<main>" if outermost else "require")
            self._frames[key] = Frame(self.kind.value, name, self.file, line or None)
        return self._frames[key]


def _text(raw: bytes, *, cut_before: int = 0, cut_behind: int = 0) -> str:
    kept = raw.split(b"\0", 1)[0]
    cut = len(kept) == len(raw) - 1  # otherwise it ends at a NUL of its own, as `class@anonymous` does
    text = kept.decode("utf-8", "surrogateescape")
    return ("…" if cut_before and cut else "") + text + ("…" if cut_behind and cut else "")


@dataclasses.dataclass(slots=True)
class _Open:
    """The functions, stacks and growth of a request that is still running."""

    functions: dict[int, _Function] = dataclasses.field(default_factory=dict)
    stacks: dict[int, Stack] = dataclasses.field(default_factory=_WITHOUT_STACK.copy)
    grown: dict[tuple[str, Stack], list[int]] = dataclasses.field(default_factory=dict)

    def add(self, metric: Metric, stack: Stack, size: int, samples: int) -> None:
        both = self.grown.setdefault((metric.value, stack), [0, 0])
        # Read in the worker's own memory, so untrusted, and a recording has 64 bits for the sum.
        both[0] = max(-_MOST, min(both[0] + size, _MOST))
        both[1] += samples


class GrowthDecoder:
    """Keeps the functions, stacks and growth of the running requests, and what each worker has mapped.

    `stacks` counts the stacks that were read, `unreadable` those of them that could not be read to their end.
    """

    def __init__(self, *, keep_stacks: bool = False) -> None:
        """Know nothing yet. With `keep_stacks`, stack() also knows those of requests that have ended."""
        self._keep_stacks = keep_stacks
        self._ended: dict[tuple[int, int], dict[int, Stack]] = {}  # stacks by hash, by pid and nth
        self._open: dict[int, dict[int, _Open]] = {}  # by pid and nth
        self._spaces: dict[int, AddressSpace] = {}
        self._names: dict[tuple[object, ...], _Function] = {}
        self.stacks = 0
        self.unreadable = 0

    def take(self, record: bytes) -> None:
        """Decode one record. An unknown kind or metric is ignored."""
        kind, pid = HEAD.unpack_from(record)
        nth = int.from_bytes(record[8:12], "little")
        request = self._request(pid, nth)
        if kind == StackEventKind.GROWTH:
            _, _, _, metric, key, size, samples, _ = GROWTH.unpack_from(record)
            self._grow(request, metric, key, size, samples)
        elif kind == StackEventKind.FUNCTION:
            request.functions[FUNCTION.unpack_from(record)[4]] = self._function(record)
        elif kind == StackEventKind.STACK:
            _, _, _, flags, key, depth, _ = STACK.unpack_from(record)
            request.stacks[key] = self._stack(request, record, flags, depth)
        elif kind == StackEventKind.MEMORY_CALL:
            _, _, _, call, key, address, size, to, to_size, script_ended, _ = MEMORY_CALL.unpack_from(record)
            stack = request.stacks.get(key, (STACK_LOST,))
            space = self._spaces.setdefault(pid, AddressSpace())
            what = MemoryCall(Call(call), address, size, to, to_size)
            for changed, change in space.changes(nth, what, stack, script_ended=bool(script_ended)):
                # The call counts as a sample where it added memory, not where it took memory off.
                request.add(Metric.MAPPED, changed, change, int(change > 0))

    def take_slots(self, pid: int, entry: bytes) -> None:
        """Add what the kernel has not yet sent of a worker's request; `entry` is its entry in `worker_stacks`."""
        nth = WORKER_STACKS.unpack_from(entry)[0]
        request = self._request(pid, nth)
        for key, size, metric, samples in GROWTH_SLOT.iter_unpack(
            entry[WORKER_STACKS.size : WORKER_STACKS.size + GROWTH_SLOTS * GROWTH_SLOT.size]
        ):
            if metric:
                self._grow(request, metric, key, size, samples)

    def growths(self, pid: int, nth: int) -> list[Growth]:
        """Remove and return the growth of a finished request, without stacks whose bytes add up to 0.

        Older open requests of the worker are dropped: their end was lost.
        """
        requests = self._open.get(pid, {})
        request = requests.pop(nth, None)
        for earlier in [number for number in requests if number < nth]:
            del requests[earlier]
        if self._keep_stacks and request is not None:
            self._ended[pid, nth] = request.stacks
            if len(self._ended) > _ENDED_MAX:
                del self._ended[next(iter(self._ended))]
        return [
            Growth(pid, nth, metric, stack, size, samples)
            for (metric, stack), (size, samples) in ({} if request is None else request.grown).items()
            if size
        ]

    def stack(self, pid: int, nth: int, key: int) -> Stack | None:
        """Return the stack with that hash; None if it is not known, or its request ended before forget_ended()."""
        request = self._open.get(pid, {}).get(nth)
        stacks = self._ended.get((pid, nth), {}) if request is None else request.stacks
        return stacks.get(key) or _WITHOUT_STACK.get(key)

    def forget_ended(self) -> None:
        """Drop the stacks of requests that have ended."""
        self._ended.clear()

    def forget(self, pid: int) -> None:
        """Drop all that is known of a worker that has ended: another may get its pid."""
        self._spaces.pop(pid, None)
        self._open.pop(pid, None)

    def _request(self, pid: int, nth: int) -> _Open:
        requests = self._open.setdefault(pid, {})
        request = requests.get(nth)
        if request is None:
            request = requests[nth] = _Open()
        return request

    def _grow(self, request: _Open, metric: int, key: int, size: int, samples: int) -> None:
        if metric in _METRICS:
            for one in _METRICS[MetricKind(metric)]:
                request.add(one, request.stacks.get(key, (STACK_LOST,)), size, samples)

    def _function(self, record: bytes) -> _Function:
        """The function of a record: one object for all records with this content, whatever their id and request."""
        _, _, _, kind, _, flags, line_start, *texts = FUNCTION.unpack_from(record)
        content = kind, flags, line_start, *(text.split(b"\0", 1)[0] for text in texts)
        known = self._names.get(content)
        if known is None:
            if len(self._names) >= _NAMES_MAX:
                self._names.clear()
            known = self._names[content] = _Function(record)
        return known

    def _stack(self, request: _Open, record: bytes, flags: int, depth: int) -> Stack:
        self.stacks += 1
        found = list(FRAME.iter_unpack(record[STACK.size : STACK.size + depth * FRAME.size]))
        frames: list[Frame] = []
        if flags & StackFlag.CORRUPT:
            self.unreadable += 1
            frames.append(UNREADABLE)
        elif flags & StackFlag.TRUNCATED:
            frames.append(TRUNCATED)
        for function_id, line, _ in reversed(found):
            if not function_id:
                continue
            function = request.functions.get(function_id)
            outermost = not frames
            frames.append(STACK_LOST if function is None else function.frame(line, outermost=outermost))
        return tuple(frames) or (NO_PHP,)
