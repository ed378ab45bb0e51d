"""Reads addresses and offsets from machine code, known instruction by instruction. x86-64 only.

Neither PHP's heap (`alloc_globals` is static, Zend/zend_alloc.c) nor the place after libc's `syscall`
instructions has a symbol. Every function recognizes exact forms and returns None for any other: a
probe on a wrong byte would corrupt the traced process.
"""

from __future__ import annotations

import dataclasses

_BRK = 12  # arch/x86/entry/syscalls/syscall_64.tbl
_ENDBR64 = b"\xf3\x0f\x1e\xfa"


@dataclasses.dataclass(frozen=True, slots=True)
class Site:
    """A place for a probe, in bytes from a function's start.

    The kernel emulates pushes and nops (0.6 µs a hit), and single-steps any other instruction (12 µs):
    arch/x86/kernel/uprobes.c, Linux 6.18.
    """

    offset: int
    emulated: bool


def entry_site(code: bytes) -> Site | None:
    """The first instruction of a function, or the one after endbr64; None if `code` is empty.

    An instruction begins where a function begins, so a probe is safe there, whatever the instruction.
    """
    if not code:
        return None
    start = 4 if code.startswith(_ENDBR64) else 0
    rest = code[start:]
    push = rest[:1] and 0x50 <= rest[0] <= 0x57
    push_high = rest[:1] == b"\x41" and len(rest) > 1 and 0x50 <= rest[1] <= 0x57
    if push or push_high or rest[:1] == b"\x90":
        return Site(start, True)
    return Site(0, False)


def heap_slot(address: int, code: bytes) -> int | None:
    """Address of alloc_globals.mm_heap, from zend_mm_get_heap(): `mov rel32(%rip),%rax; ret`. None for other code.

    The `ret` is part of the form, since a thread-safe build in a shared library begins with the same
    instruction and then loads through %fs.
    """
    target, length = _load_rax(address, code)
    if target is None or code[length : length + 1] != b"\xc3":
        return None
    return target


def accessor_offsets(address: int, code: bytes, slot: int) -> tuple[int, int] | None:
    """Offsets (real usage, usage) in zend_mm_heap, from zend_memory_usage() or zend_memory_peak_usage().

    Their form at -O2: load the heap; test the argument; je; load the real one; ret; load the other;
    ret. `slot` is the result of heap_slot(). None for other code, or if the code loads another heap.
    """
    target, at = _load_rax(address, code)
    if target is None or target != slot:
        return None
    for test in (b"\x40\x84\xff", b"\x85\xff"):  # test %dil,%dil; 7.4: test %edi,%edi
        if code[at : at + len(test)] == test:
            at += len(test)
            break
    else:
        return None
    if code[at : at + 1] != b"\x74" or len(code) < at + 2:
        return None
    otherwise = at + 2 + code[at + 1]
    real = _load_from_rax(code[at + 2 :])
    plain = _load_from_rax(code[otherwise:])
    return None if real is None or plain is None else (real, plain)


def refers_to(address: int, code: bytes, target: int) -> bool:
    """True if four bytes of the code are the distance from their end to `target`, as in a %rip-relative operand."""
    return any(
        address + at + 4 + int.from_bytes(code[at : at + 4], "little", signed=True) == target
        for at in range(len(code) - 3)
    )


def behind_syscall(code: bytes, number: int) -> int | None:
    """Offset of the conditional jump after `mov $number,%eax; syscall` in one of libc's wrappers; None if not found.

    There the result is in %rax, the arguments are still in place, and the kernel emulates the jump.
    Only known instructions may be between the two: comparisons of %rax, and brk's store of the new break.
    """
    syscall = b"\xb8" + number.to_bytes(4, "little") + b"\x0f\x05"
    at = code.find(syscall)
    if at < 0:
        return None
    at += len(syscall)
    for _ in range(4):
        rest = code[at : at + 7]
        if len(rest) >= 2 and 0x70 <= rest[0] <= 0x7F:
            return at
        if len(rest) >= 6 and rest[0] == 0x0F and 0x80 <= rest[1] <= 0x8F:
            return at
        length = _harmless(rest, number)
        if length is None:
            return None
        at += length
    return None


def _harmless(code: bytes, number: int) -> int | None:
    """Length of an instruction that changes neither the result nor a counted argument; None for any other."""
    if code.startswith(b"\x48\x3d"):  # cmp $imm32,%rax
        return 6
    if code.startswith((b"\x48\x39", b"\x48\x3b", b"\x48\x85")) and len(code) > 2 and code[2] >= 0xC0:
        return 3  # cmp or test of two registers
    if code.startswith(b"\x48\x89") and len(code) > 2 and code[2] & 0xC7 == 0x05:
        return 7  # mov reg,rel32(%rip)
    # mov rel32(%rip),reg: into %rcx, which the system call has destroyed, or %rdx, which brk does not take
    if code.startswith(b"\x48\x8b\x0d") or (code.startswith(b"\x48\x8b\x15") and number == _BRK):
        return 7
    if code.startswith(b"\x48\x89") and len(code) > 2 and code[2] & 0xC0 == 0 and code[2] & 7 not in (4, 5):
        return 3  # mov reg,(reg)
    return None


def _load_rax(address: int, code: bytes) -> tuple[int | None, int]:
    """Target and end of `mov rel32(%rip),%rax`, after endbr64 or not; (None, 0) for other code."""
    at = 4 if code.startswith(_ENDBR64) else 0
    if code[at : at + 3] != b"\x48\x8b\x05" or len(code) < at + 7:
        return None, 0
    end = at + 7
    return address + end + int.from_bytes(code[at + 3 : end], "little", signed=True), end


def _load_from_rax(code: bytes) -> int | None:
    """Displacement of `mov disp(%rax),%rax; ret`; None for other code."""
    if code[:3] == b"\x48\x8b\x40" and code[4:5] == b"\xc3" and code[3] < 0x80:
        return code[3]
    if code[:3] == b"\x48\x8b\x80" and code[7:8] == b"\xc3":
        return int.from_bytes(code[3:7], "little")
    return None
