"""Machine code of PHP and glibc, byte for byte as their builds have it, and forms that must be refused."""

from __future__ import annotations

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from samples import PROPERTY

from tracer.targets.machine_code import Site, accessor_offsets, behind_syscall, entry_site, heap_slot, refers_to

ENDBR64 = bytes.fromhex("f30f1efa")

# Debian php8.2-fpm 8.2.36-1~deb12u1, x86-64: address and code.
GET_HEAP = 0x2C8B70, bytes.fromhex("488b057999 2b00 c3")
USAGE = 0x2C8900, bytes.fromhex("488b05e99b2b00 4084ff 740c 488b8010010000 c3 0f1f4000 488b4010 c3")
PEAK_USAGE = 0x2C8920, bytes.fromhex("488b05c99b2b00 4084ff 740c 488b8018010000 c3 0f1f4000 488b4018 c3")
GROWTH_SLOT = 0x5824F0
REQUEST_STARTUP = bytes.fromhex("415455534881ecf000000064488b042528000000")
REQUEST_SHUTDOWN = bytes.fromhex("55534881ec98070000488d15807a2f00")
MM_SHUTDOWN = bytes.fromhex("4157415641554154 4189f4 5553 4889fb")
THROW_UNWIND_EXIT = bytes.fromhex("4850e8e2ffffff4889c2")
SHUTDOWN_MEMORY_MANAGER = bytes.fromhex("400fb6d7488b3d559b2b00")

# Debian libc6 2.36-9+deb12u, x86-64: code, number of the system call, offset of the jump behind it.
MMAP = bytes.fromhex(
    "4189ca41f7c1ff0f00007514 b809000000 0f05 483d00f0ffff 7725 c3"
    "0f1f4000 488b0519140d0064c7001600000048c7c0ffffffffc3662e0f1f840000000000 488b15f9130d00f7d8648902"
)
MUNMAP = bytes.fromhex("b80b000000 0f05 483d01f0ffff 7301 c3 488b0dc9130d00f7d8648901 4883c8ff c3")
BRK = bytes.fromhex("b80c000000 0f05 488b15e2510d00 488902 4839f8 720a 31c0 c3 0f1f8000000000 488b0579510d00")
MREMAP = bytes.fromhex(
    "4883ec584c8944244064488b042528000000488944241831c0 83f907775a 4189ca4531c0 f6c1067527"
    "b819000000 0f05 483d00f0ffff 7758 488b54241864482b142528000000755d4883c458c3"
)


@pytest.mark.parametrize("prefix", [b"", ENDBR64], ids=["plain", "endbr64"])
def test_the_heap_is_where_its_getter_loads_it_from(prefix):
    address, code = GET_HEAP

    assert heap_slot(address - len(prefix), prefix + code) == GROWTH_SLOT


def test_the_heap_may_lie_before_the_code():
    assert heap_slot(0x2000, bytes.fromhex("488b05 f9efffff c3")) == 0x1000


@pytest.mark.parametrize(
    "code",
    [
        bytes.fromhex("488b0599992b00 64488b10 488b0589992b00 488b0402 c3"),  # ZTS in a shared library
        bytes.fromhex("48c7c0e8ffffff 64488b10 488b0579992b00 488b0402 c3"),  # ZTS in an executable
        bytes.fromhex("488b0579992b00 90"),
        bytes.fromhex("488b0579992b00"),
        bytes.fromhex("488b0d79992b00 c3"),  # into another register
        bytes.fromhex("488b0579"),
        ENDBR64,
        b"",
    ],
)
def test_a_getter_of_another_form_has_no_heap(code):
    assert heap_slot(0x2C8B70, code) is None


@pytest.mark.parametrize("prefix", [b"", ENDBR64], ids=["plain", "endbr64"])
@pytest.mark.parametrize(("function", "offsets"), [(USAGE, (0x110, 0x10)), (PEAK_USAGE, (0x118, 0x18))])
def test_the_accessors_of_8_2_name_the_offsets_of_real_and_used(prefix, function, offsets):
    address, code = function

    assert accessor_offsets(address - len(prefix), prefix + code, GROWTH_SLOT) == offsets


def test_the_accessor_of_7_4_tests_the_whole_argument():
    address, code = USAGE

    seven = code.replace(bytes.fromhex("4084ff"), bytes.fromhex("85ff"))

    assert accessor_offsets(address, seven, GROWTH_SLOT) == (0x110, 0x10)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("4084ff", "4084f6"),  # tests another register
        ("740c", "750c"),  # jne: the branches change places
        ("740c", "740d"),  # jumps beside the instruction
        ("488b801001", "488b811001"),  # loads from another register
        ("c30f1f4000", "900f1f4000"),  # goes on instead of returning
        ("488b4010c3", "488b401090"),
        ("488b4010c3", "488b4080c3"),  # before the heap
    ],
)
def test_an_accessor_of_another_form_has_no_offsets(old, new):
    address, code = USAGE

    changed = code.replace(bytes.fromhex(old), bytes.fromhex(new))

    assert changed != code
    assert accessor_offsets(address, changed, GROWTH_SLOT) is None


def test_an_accessor_of_another_heap_has_no_offsets():
    address, code = USAGE

    assert accessor_offsets(address, code, GROWTH_SLOT + 8) is None


def test_an_accessor_cut_off_behind_its_jump_has_no_offsets():
    address, code = USAGE

    assert accessor_offsets(address, code[: code.index(b"\x74") + 1], GROWTH_SLOT) is None


@pytest.mark.parametrize("length", [n for n in range(29) if n != 11])  # 11: the test above
def test_an_accessor_cut_off_anywhere_has_no_offsets(length):
    address, code = USAGE

    assert accessor_offsets(address, code[:length], GROWTH_SLOT) is None


@pytest.mark.parametrize(
    ("code", "site"),
    [
        (REQUEST_STARTUP, Site(0, True)),  # push %r12
        (REQUEST_SHUTDOWN, Site(0, True)),  # push %rbp
        (MM_SHUTDOWN, Site(0, True)),  # push %r15
        (THROW_UNWIND_EXIT, Site(0, False)),  # rex.W push: the kernel knows pushes without REX.W only
        (SHUTDOWN_MEMORY_MANAGER, Site(0, False)),  # movzbl
        (b"\x90", Site(0, True)),
        (ENDBR64 + REQUEST_STARTUP, Site(4, True)),
        (ENDBR64 + SHUTDOWN_MEMORY_MANAGER, Site(0, False)),
        (ENDBR64, Site(0, False)),
        (b"\x50", Site(0, True)),
        (b"\x57", Site(0, True)),
        (b"\x41\x50", Site(0, True)),
        (b"\x41\x57", Site(0, True)),
        (b"\x41\x4f", Site(0, False)),
        (b"\x41", Site(0, False)),
        (b"\x41\x58", Site(0, False)),  # pop %r8
        (b"\x4f", Site(0, False)),
        (b"\x58", Site(0, False)),
        (b"", None),
    ],
)
def test_a_probe_goes_on_an_instruction_that_the_kernel_emulates_if_there_is_one(code, site):
    assert entry_site(code) == site


@pytest.mark.parametrize(
    ("code", "number", "offset"),
    [(MMAP, 9, 0x19), (MUNMAP, 11, 0xD), (BRK, 12, 0x14), (MREMAP, 25, 0x36)],
    ids=["mmap", "munmap", "brk", "mremap"],
)
@pytest.mark.parametrize("prefix", [b"", ENDBR64], ids=["plain", "endbr64"])
def test_the_jump_behind_a_system_call_of_glibc_is_found(prefix, code, number, offset):
    found = behind_syscall(prefix + code, number)

    assert found == len(prefix) + offset
    assert 0x70 <= (prefix + code)[found] <= 0x7F


@pytest.mark.parametrize("number", [0, 10, 12, 9 << 8])
def test_another_system_call_is_not_taken_for_the_one_asked_for(number):
    assert behind_syscall(MMAP, number) is None


@pytest.mark.parametrize("condition", range(16))
def test_every_conditional_jump_is_found_with_a_short_and_a_long_displacement(condition):
    syscall = bytes.fromhex("b80b000000 0f05 483d01f0ffff")

    assert behind_syscall(syscall + bytes([0x70 | condition, 1]), 11) == 13
    assert behind_syscall(syscall + bytes([0x0F, 0x80 | condition, 1, 0, 0, 0]), 11) == 13


@pytest.mark.parametrize("other", ["6f01", "eb01", "80c001", "0f7f00000000", "0f90c0000000", "73", "0f8310"])
def test_bytes_that_are_not_a_whole_conditional_jump_are_not_taken_for_one(other):
    assert behind_syscall(bytes.fromhex("b80b000000 0f05 483d01f0ffff" + other), 11) is None


@pytest.mark.parametrize(
    "between",
    [
        "4839f8",  # cmp %rdi,%rax
        "483bc7",  # cmp %rdi,%rax, the other way to write it
        "4885c0",  # test %rax,%rax
        "488902",  # mov %rax,(%rdx)
        "488b0de2510d00",  # mov rel32(%rip),%rcx
        "488905e2510d00",  # mov %rax,rel32(%rip)
        "483d01f0ffff" * 3,
    ],
)
def test_an_instruction_that_leaves_the_result_and_the_arguments_alone_is_stepped_over(between):
    code = bytes.fromhex("b80b000000 0f05" + between)

    assert behind_syscall(code + b"\x73\x01", 11) == len(code)


def test_a_load_of_rdx_is_stepped_over_in_brk_alone_which_has_no_third_argument():
    between = "488b15e2510d00"  # mov rel32(%rip),%rdx
    brk, mremap = (bytes.fromhex(f"b8{number:02x}000000 0f05" + between) for number in (12, 25))

    assert behind_syscall(brk + b"\x72\x01", 12) == len(brk)
    assert behind_syscall(mremap + b"\x77\x01", 25) is None


@pytest.mark.parametrize(
    "between",
    [
        "",  # ret
        "89c2",  # mov %eax,%edx
        "e800000000",  # call
        "488b5424 18",  # mov 0x18(%rsp),%rdx
        "488945f8",  # mov %rax,-8(%rbp)
        "48894208",  # mov %rax,8(%rdx)
        "48890424",  # mov %rax,(%rsp)
        "488904",  # mov %rax,(%rbx,%rsi,2), of which the last byte looks like a jump
        "483b07",  # cmp (%rdi),%rax: memory
        "483907",  # cmp %rax,(%rdi): memory
        "483d01f0ffff" * 4,  # more than any wrapper has
    ],
)
def test_an_unknown_instruction_between_a_system_call_and_its_jump_is_refused(between):
    tail = "c3" if not between else "7301"

    assert behind_syscall(bytes.fromhex("b80b000000 0f05" + between + tail), 11) is None


def test_a_load_that_overwrites_the_result_is_not_stepped_over():
    assert behind_syscall(bytes.fromhex("b80c000000 0f05 488b0579510d00 4839f8 720a"), 12) is None


def test_a_load_that_overwrites_an_argument_is_not_stepped_over():
    assert behind_syscall(bytes.fromhex("b80b000000 0f05 488b3d79510d00 483d01f0ffff 7301"), 11) is None


@pytest.mark.parametrize(("code", "number", "jump"), [(MUNMAP, 11, 0xD), (BRK, 12, 0x14)], ids=["munmap", "brk"])
def test_a_wrapper_cut_off_before_its_jump_has_none(code, number, jump):
    assert [behind_syscall(code[:length], number) for length in range(jump + 2)] == [None] * (jump + 2)
    assert behind_syscall(code[: jump + 2], number) == jump


# Pieces of what the decoders look for, so that random code comes near it.
PIECES = st.sampled_from(
    list(map(bytes.fromhex, (
        "b80b000000", "0f05", "483d01f0ffff", "4839f8", "488902", "488b15e2510d00", "488b0579992b00", "4084ff", "85ff",
        "740c", "488b4010", "488b8010010000", "c3", "f30f1efa", "0f83", "48",
    )))
)  # fmt: skip
CODE = st.lists(st.one_of(PIECES, st.binary(max_size=4)), max_size=24).map(b"".join)


@PROPERTY
@given(CODE)
@example(MUNMAP)
def test_a_site_behind_a_system_call_is_always_a_conditional_jump(code):
    found = behind_syscall(code, 11)

    if found is not None:
        assert 0x70 <= code[found] <= 0x7F or (code[found] == 0x0F and 0x80 <= code[found + 1] <= 0x8F)
        assert b"\xb8\x0b\0\0\0\x0f\x05" in code[:found]


@PROPERTY
@given(CODE)
def test_a_probe_site_is_the_start_or_behind_endbr64(code):
    found = entry_site(code)

    assert (found is None) == (not code)
    assert found is None or found.offset == 0 or (found.offset == 4 and code.startswith(ENDBR64))


@PROPERTY
@given(st.integers(0, 1 << 47), CODE)
def test_a_heap_is_only_found_in_code_that_loads_and_returns(address, code):
    found = heap_slot(address, code)

    assert (found is not None) == (code.removeprefix(ENDBR64)[:3] == b"\x48\x8b\x05" and
                                   code.removeprefix(ENDBR64)[7:8] == b"\xc3")  # fmt: skip


@PROPERTY
@given(CODE)
def test_random_code_behind_the_load_of_the_heap_has_offsets_or_none(code):
    address, known = USAGE

    try:
        found = accessor_offsets(address, known[:7] + code, GROWTH_SLOT)
    except IndexError:  # test_an_accessor_cut_off_behind_its_jump_has_no_offsets
        found = None

    assert found is None or all(0 <= offset < 1 << 32 for offset in found)


# Debian php8.2-fpm 8.2.36-1~deb12u1, x86-64: zend_get_executed_scope() begins `lea executor_globals(%rip),%rax`.
@pytest.mark.parametrize("prefix", [b"", ENDBR64, b"\x90" * 13], ids=["at once", "endbr64", "later"])
@pytest.mark.parametrize("distance", [0, 0x29_9B6C, -0x1003])
def test_code_refers_to_what_a_displacement_leads_to_from_right_behind_it(prefix, distance):
    code = prefix + b"\x48\x8d\x05" + distance.to_bytes(4, "little", signed=True) + b"\xc3"
    target = 0x70_0000 + len(prefix) + 7 + distance

    assert refers_to(0x70_0000, code, target)
    assert not refers_to(0x70_0000, code, target + 1)
    assert not refers_to(0x70_0001, code, target)


def test_a_displacement_at_the_very_end_of_the_code_is_read_and_a_part_of_one_is_not():
    code = b"\x48\x8d\x05" + (0x1003).to_bytes(4, "little")

    assert refers_to(0x70_0000, code, 0x70_0000 + 7 + 0x1003)
    assert not refers_to(0x70_0000, code[:-1], 0x70_0000 + 7 + 0x1003)
    assert not refers_to(0x70_0000, b"", 0x70_0000)
