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


def argument_site(code: bytes) -> Site | None:
    """The first instruction that the kernel emulates and at which %rdi and %rsi still hold the arguments.

    The return address is still on top of the stack there.
    Where none is recognised, the entry. Between the entry and that instruction only forms that are known are stepped
    over: those of malloc and its like in glibc 2.31 to 2.43. None where there is no code.
    """
    at = _emulated_from(code, _after_endbr(code))
    return entry_site(code) if at is None else Site(at, True)


def argument_site_unless_null(code: bytes) -> Site | None:
    """As argument_site(), but only where the first argument is not 0: behind `test %rdi,%rdi; je`.

    free() is called with NULL many times as often as with a block.
    """
    start = _after_endbr(code)
    if code[start : start + 3] == b"\x48\x85\xff":
        jump = start + 3
        if code[jump : jump + 1] == b"\x74":
            behind: int | None = _emulated_from(code, jump + 2)
        elif code[jump : jump + 2] == b"\x0f\x84":
            behind = _emulated_from(code, jump + 6)
        else:
            behind = None
        if behind is not None:
            return Site(behind, True)
    return argument_site(code)


def returns_from(code: bytes, offset: int) -> bool:
    """True if %rsp still points to the return address at that site of a function, one of argument_site().

    A probe on the return of the function may then be set by way of that site.
    """
    at = 0
    while at < offset:
        rest = code[at : at + 8]
        length = 4 if rest.startswith(_ENDBR64) else _keeps_arguments(rest)
        if length is None or rest.startswith(b"\x48\x83\xec"):  # sub $imm8,%rsp
            return False
        at += length
    return at == offset


def jump_target(address: int, code: bytes) -> int | None:
    """Address to which a function goes on by its first direct `jmp`, arguments unchanged; None if it does not."""
    at = _after_endbr(code)
    for _ in range(8):
        if code[at : at + 1] == b"\xe9" and len(code) >= at + 5:
            return address + at + 5 + int.from_bytes(code[at + 1 : at + 5], "little", signed=True)
        length = 2 if code[at : at + 1] and 0x70 <= code[at] <= 0x7F else _keeps_arguments(code[at : at + 8])
        if length is None:
            return None
        at += length
    return None


def _after_endbr(code: bytes) -> int:
    return 4 if code.startswith(_ENDBR64) else 0


def _emulated_from(code: bytes, at: int) -> int | None:
    """Offset of the first emulated instruction from there; None if a form that is not known comes before it."""
    for _ in range(8):
        rest = code[at : at + 8]
        if _is_emulated(rest):
            return at
        length = _keeps_arguments(rest)
        if length is None:
            return None
        at += length
    return None


def _is_emulated(code: bytes) -> bool:
    """True for push of a register, a conditional or direct jump, and nop: arch/x86/kernel/uprobes.c, Linux 6.18."""
    if not code:
        return False
    if 0x50 <= code[0] <= 0x57 or 0x70 <= code[0] <= 0x7F or code[0] in (0x90, 0xE9, 0xEB):
        return True
    if len(code) < 2:
        return False
    return (code[0] == 0x41 and 0x50 <= code[1] <= 0x57) or (code[0] == 0x0F and 0x80 <= code[1] <= 0x8F)


def _keeps_arguments(code: bytes) -> int | None:
    """Length of an instruction that changes none of %rdi, %rsi and %rsp; None for a form that is not known."""
    if len(code) < 8:
        return None
    modrm = code[2]
    register_form, rip_form = modrm >= 0xC0, modrm & 0xC7 == 0x05
    if code[:2] in (b"\x48\x85", b"\x48\x39", b"\x48\x3b") and register_form:  # test, cmp of two registers
        return 3
    if code[:2] in (b"\x48\x89", b"\x49\x89") and register_form:  # mov reg,reg
        return None if code[0] == 0x48 and modrm & 7 in (4, 6, 7) else 3
    if code[:2] in (b"\x48\x8b", b"\x48\x8d") and rip_form:  # mov, lea rel32(%rip),reg
        return None if modrm >> 3 & 7 in (4, 6, 7) else 7
    if code[:2] == b"\x48\x8d" and modrm & 0xC7 in (0x46, 0x47):  # lea disp8(%rsi or %rdi),reg
        return None if modrm >> 3 & 7 in (4, 6, 7) else 4
    if code[:2] == b"\x80\x3d":  # cmpb $imm8,rel32(%rip)
        return 7
    if code[:3] == b"\x48\xf7\xe6":  # mul %rsi
        return 3
    if code[:2] == b"\x0f\x90" and register_form:  # seto
        return 3
    if code[:2] == b"\x31\xc0":  # xor %eax,%eax
        return 2
    if code[:4] in (b"\x40\xf6\xc7\x0f", b"\x48\x8b\x14\x24"):  # test $15,%dil; mov (%rsp),%rdx
        return 4
    if code[:3] == b"\x48\x8b\x00":  # mov (%rax),%rax
        return 3
    return 4 if code[:3] in (b"\x48\x83\xec", b"\x48\x83\xff") else None  # sub $imm8,%rsp; cmp $imm8,%rdi


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
