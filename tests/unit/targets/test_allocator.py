"""Probe sites of malloc and its like: the code of four glibc versions, and unknown forms."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from samples import PROPERTY

from tracer.targets import allocator
from tracer.targets.elf import open_image
from tracer.targets.machine_code import Site, argument_site, argument_site_unless_null, jump_target, returns_from

# The first 28 bytes of each function.
# Debian's libc6, x86-64: 2.31-13+deb11u11, 2.36-9+deb12u14, 2.41-12+deb13u5, 2.43-7.
MALLOC = {
    "2.31": ("488b05098114004154554889fd53488b004885c00f85460100004885", 7),
    "2.36": ("415455534889fb4883ec10803d461b1400000f84f80100004885db0f", 0),
    "2.41": ("415455534889fb4883ec10803d46991400000f84680100004885db0f", 0),
    "2.43": ("4885ff7871488d4717488b15382514004883f81f765a4883e0f04839", 3),
}
CALLOC = {
    "2.31": ("41554889f8415455534883ec0848f7e64989c40f90c04d85e40f88c9", 0),
    "2.36": ("41554889f8415455534883ec1848f7e64889c30f90c04885db0f88d9", 0),
    "2.41": ("41564889f84155415455534883ec1048f7e64889c30f90c04885db0f", 0),
    "2.43": ("4889f848f7e60f809c0100000f90c14885c00f88d6000000488d5017", 6),
}
REALLOC = {
    "2.31": ("41574156415541544989f4554889fd534883ec18488b055579140048", 0),
    "2.36": ("4157415641554154554889f5534889fb4883ec28803d3d131400000f", 0),
    "2.41": ("4157415641554154554889f5534889fb4883ec38803dfd8e1400000f", 0),
    "2.43": ("4989f14885ff0f844403000041574989f841564155415455534883ec", 6),
}
FREE = {
    "2.31": ("4883ec18488b05dd7a1400488b004885c00f85810000004885ff7474", 17),
    "2.36": ("4885ff0f84bf00000055488d77f0534883ec18488b1dd69e1300488b", 9),
    "2.41": ("4885ff0f847f010000415741564155415455488d6ff0534883ec284c", 9),
    "2.43": ("4885ff0f84e700000040f6c70f0f85cd0000004c8b47f84d89c24983", 13),
}
# memalign(), its address, where it goes on, and the site there.
MEMALIGN = {
    "2.31": (0x86A90, "488b1424e977f6ffff0f1f80000000008b05be771400554889fd85c0", 0x86110,
             "488b05c97d1400415541544989f455488b004885c00f85d500000048", 7),
    "2.36": (0x99610, "803d710e1400007407e932f6ffff66904883ec18488974240848893c", 0x98C50,
             "41544989f455534883ec104883ff100f868b0100004883ff1f0f87b1", 0),
    "2.41": (0xA39C0, "803d61881400007407e912f2ffff66904883ec18488974240848893c", 0xA2BE0,
             "41554154554889f5534883ec084883ff100f86010200004883ff1f0f", 0),
    "2.43": (0xA5980, "e97bf4ffff66662e0f1f840000000000488d47ff4885f8750f4885ff", 0xA4E00,
             "4989f34883ff100f86030200004883ff1f0f875101000041b8200000", 7),
}  # fmt: skip
ENDBR64 = bytes.fromhex("f30f1efa")


@pytest.mark.parametrize(
    ("code", "offset"),
    [pytest.param(*found, id=f"{name}-{version}")
     for name, forms in (("malloc", MALLOC), ("calloc", CALLOC), ("realloc", REALLOC))
     for version, found in forms.items()],
)  # fmt: skip
def test_a_function_is_probed_at_its_first_emulated_instruction_with_the_arguments_in_place(code, offset):
    assert argument_site(bytes.fromhex(code)) == Site(offset, True)


@pytest.mark.parametrize("version", FREE)
def test_free_is_probed_behind_its_test_for_null_where_that_comes_first(version):
    code, offset = FREE[version]

    assert argument_site_unless_null(bytes.fromhex(code)) == Site(offset, True)


@pytest.mark.parametrize("version", MEMALIGN)
def test_the_memalign_family_is_probed_where_it_comes_together(version):
    address, code, core, core_code, offset = MEMALIGN[version]

    assert jump_target(address, bytes.fromhex(code)) == core
    assert argument_site(bytes.fromhex(core_code)) == Site(offset, True)


def test_a_function_may_begin_with_endbr64():
    assert argument_site(ENDBR64 + bytes.fromhex(MALLOC["2.43"][0])) == Site(4 + 3, True)
    assert argument_site_unless_null(ENDBR64 + bytes.fromhex(FREE["2.36"][0])) == Site(4 + 9, True)


@pytest.mark.parametrize(
    "code",
    [
        "4889fe 55 0000000000000000",  # mov %rdi,%rsi
        "488b3d00000000 55 00000000",  # mov rel32(%rip),%rdi
        "488d3500000000 55 00000000",  # lea rel32(%rip),%rsi
        "bf01000000 55 000000000000",  # mov $1,%edi
        "e800000000 55 000000000000",  # call
        "c3 55 00000000000000000000",
        "0f0b 55 000000000000000000",
    ],
    ids=["rsi", "rdi", "lea", "edi", "call", "ret", "unknown"],
)
def test_the_entry_is_the_site_behind_an_instruction_that_changes_an_argument_or_is_not_known(code):
    assert argument_site(bytes.fromhex(code)) == Site(0, False)


def test_a_form_of_free_that_is_not_known_is_probed_at_its_entry():
    code = bytes.fromhex("4885ff0f84bf000000 bf01000000 55 0000000000000000")  # the argument is gone behind the test

    assert argument_site_unless_null(code) == Site(3, True)  # at the test's jump: NULL is seen, too


@pytest.mark.parametrize(
    "code", ["", "55", "e90000", "ff2500000000 0000000000"], ids=["none", "push", "cut", "indirect"]
)
def test_a_function_that_does_not_go_on_by_a_direct_jump_has_no_target(code):
    assert jump_target(0x1000, bytes.fromhex(code)) is None


@PROPERTY
@given(st.binary(max_size=64))
def test_any_bytes_have_a_site_within_them_or_none(code):
    for form in (argument_site, argument_site_unless_null):
        site = form(code)
        assert site is None if not code else site is not None and 0 <= site.offset < len(code)


def test_this_machines_c_library_can_be_counted():
    image = open_image("/lib/x86_64-linux-gnu/libc.so.6")
    try:
        found = allocator.inspect(image)
    finally:
        image.close()

    assert found.usable
    assert (found.slow, found.missing) == ((), ())
    assert set(found.sites) == {"malloc", "free", "calloc", "realloc", "memalign"}


@pytest.mark.parametrize("version", MALLOC)
def test_the_return_of_every_function_that_allocates_can_be_probed_by_way_of_its_site(version):
    *_, core, offset = MEMALIGN[version]
    for code, at in (MALLOC[version], CALLOC[version], REALLOC[version], (core, offset)):
        assert returns_from(bytes.fromhex(code), at)
        assert returns_from(ENDBR64 + bytes.fromhex(code), at + 4)


def test_a_return_cannot_be_probed_behind_room_made_on_the_stack():
    code, offset = FREE["2.31"]  # sub $0x18,%rsp comes first

    assert not returns_from(bytes.fromhex(code), offset)


def test_a_return_cannot_be_probed_behind_an_unknown_instruction():
    assert not returns_from(bytes.fromhex("0fa2") + bytes.fromhex(MALLOC["2.36"][0]), 2)


def test_a_return_cannot_be_probed_within_an_instruction():
    assert not returns_from(bytes.fromhex(MALLOC["2.31"][0]), 3)
