"""Offsets of structure members, from type information made by hand and from the running kernel's."""

from __future__ import annotations

import struct

import btfs
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from samples import PROPERTY, within

from tracer.errors import UnsupportedError
from tracer.targets.btf import VMLINUX, Btf

WANTED = ("task_struct", "mm_struct", "percpu_counter")


def some_types(gap: bytes = b"") -> bytes:
    """Every kind of type, and what the kernel's structures are made of."""
    types = btfs.Types()
    u64 = types.integer("u64", 8)
    s32 = types.integer("int", 4)
    types.add(btfs.ENUM, "state", 4, 2, struct.pack("<IiIi", 0, 1, 0, 2))
    types.add(btfs.ENUM64, "big", 8, 1, struct.pack("<III", 0, 1, 0))
    types.add(btfs.FWD, "mm_struct")  # a forward declaration of the same name, before the structure
    types.add(btfs.FUNC_PROTO, "", s32, 2, struct.pack("<IIII", 0, s32, 0, u64))
    types.add(btfs.FUNC, "f", 6)
    types.add(btfs.VAR, "v", s32, tail=struct.pack("<I", 0))
    types.add(btfs.DATASEC, ".data", 8, 1, struct.pack("<III", 8, 0, 4))
    types.add(btfs.FLOAT, "float", 4)
    types.add(btfs.DECL_TAG, "tag", u64, tail=struct.pack("<i", -1))
    alias = types.add(btfs.TYPEDEF, "spin_t", s32)
    pointer = types.add(btfs.PTR, "", s32)
    counter = types.structure("percpu_counter", 40, ("lock", alias, 0), ("count", u64, 64), ("counters", pointer, 256))
    counters = types.array(types.add(btfs.CONST, "", types.add(btfs.TYPEDEF, "counter_t", counter)), 4)
    inner = types.structure("", 96, ("brk", u64, 320), ("rss_stat", counters, 512))
    outer = types.structure("", 96, ("", inner, 0), ("raw", u64, 0), kind=btfs.UNION)
    mm = types.structure("mm_struct", 1024, ("total_vm", u64, 104), ("", outer, 128))
    entity = types.structure("sched_entity", 64, ("load", u64, 0), ("sum_exec_runtime", u64, 24))
    qualified = types.add(btfs.VOLATILE, "", types.add(btfs.TYPE_TAG, "rcu", types.add(btfs.RESTRICT, "", entity)))
    types.structure(
        "task_struct", 2048, ("se", qualified, 128 * 8), ("mm", types.add(btfs.PTR, "", mm), 200 * 8),
        ("flags", s32, 300 * 8 | 4 << 24), ("on_cpu", s32, 301 * 8 | 1 << 24), flag=1,
    )  # fmt: skip
    return types.blob(gap)


BLOB = some_types()


@pytest.mark.parametrize(
    ("structure", "member", "offset"),
    [
        ("percpu_counter", "lock", 0),
        ("percpu_counter", "counters", 32),
        ("mm_struct", "total_vm", 13),
        ("mm_struct", "brk", 16 + 40),  # in a structure without a name in a union without a name
        ("mm_struct", "raw", 16),
        ("task_struct", "se", 128),
        ("task_struct", "se.sum_exec_runtime", 128 + 3),  # through volatile, type tag and restrict
        ("task_struct", "flags", 300),  # a bit field: its size is in the upper byte
        ("task_struct", "on_cpu", 301),
        ("mm_struct", "nothing", None),
        ("task_struct", "mm.total_vm", None),  # a pointer is not descended into
        ("task_struct", "flags.x", None),
        ("task_struct", "", None),
        ("no_struct", "x", None),
        ("sched_entity", "load", None),  # not among those wanted
    ],
)
def test_a_members_offset_is_found_through_all_that_lies_between(structure, member, offset):
    assert Btf(BLOB, WANTED).offset(structure, member) == offset


@pytest.mark.parametrize(("structure", "size"), [("percpu_counter", 40), ("mm_struct", 1024), ("no_struct", None)])
def test_the_size_of_a_structure_is_found(structure, size):
    assert Btf(BLOB, WANTED).size(structure) == size


@pytest.mark.parametrize(
    ("structure", "member", "element"),
    [
        ("mm_struct", "rss_stat", "percpu_counter"),  # an array of a const typedef of it
        ("task_struct", "se", "sched_entity"),
        ("mm_struct", "total_vm", None),
        ("task_struct", "mm", None),  # a pointer
        ("mm_struct", "nothing", None),
    ],
)
def test_the_structure_that_a_member_is_made_of_is_named(structure, member, element):
    assert Btf(BLOB, WANTED).element(structure, member) == element


def test_the_first_of_two_structures_of_a_name_counts():
    types = btfs.Types()
    u64 = types.integer("u64", 8)
    types.structure("mm_struct", 8, ("brk", u64, 64))
    types.structure("mm_struct", 16, ("brk", u64, 128))

    assert Btf(types.blob(), WANTED).offset("mm_struct", "brk") == 8


def test_types_and_names_may_lie_anywhere_behind_the_header():
    found = Btf(some_types(gap=b"\xff" * 52), WANTED)

    assert found.offset("task_struct", "se.sum_exec_runtime") == 128 + 3


def test_an_empty_structure_of_the_name_is_skipped():
    types = btfs.Types()
    types.structure("mm_struct", 0)
    types.structure("mm_struct", 8, ("brk", types.integer("u64", 8), 64))

    assert Btf(types.blob(), WANTED).offset("mm_struct", "brk") == 8


def test_another_files_magic_number_is_refused():
    with pytest.raises(UnsupportedError, match="unknown format"):
        Btf(b"\x9f\xeb"[::-1] + BLOB[2:], WANTED)


def test_a_kernel_without_type_information_is_refused_with_what_to_do(tmp_path):
    with pytest.raises(UnsupportedError, match="CONFIG_DEBUG_INFO_BTF=y"):
        Btf.of_kernel(WANTED, tmp_path / "vmlinux")


@pytest.mark.skipif(not VMLINUX.is_file(), reason=f"this kernel has no {VMLINUX}")
def test_the_running_kernels_structures_are_found():
    found = Btf.of_kernel(("task_struct", "mm_struct", "percpu_counter"))

    pid, tgid = found.offset("task_struct", "pid"), found.offset("task_struct", "tgid")
    size = found.size("task_struct")
    assert pid is not None
    assert tgid == pid + 4  # side by side: include/linux/sched.h, Linux 6.18
    assert size is not None
    assert pid < size < 1 << 15


def ask_everything(blob: bytes) -> None:
    """Ask phptrace's questions of a kernel's types: an answer or an UnsupportedError, and soon."""
    with within(0.5):
        try:
            found = Btf(blob, WANTED)
            for structure, member in (
                ("task_struct", "se.sum_exec_runtime"), ("task_struct", "mm"), ("mm_struct", "brk"),
                ("mm_struct", "rss_stat"), ("percpu_counter", "counters"), ("percpu_counter", "nothing"),
            ):  # fmt: skip
                found.offset(structure, member)
                found.element(structure, member)
                found.size(structure)
        except UnsupportedError:
            pass


LAST_STRING = BLOB.rindex(b"\0", 0, len(BLOB) - 1) + 1


@pytest.mark.parametrize("length", range(0, LAST_STRING - 400, 7))
def test_types_that_are_cut_short_are_refused(length):
    with pytest.raises(UnsupportedError, match="cut short"):
        Btf(BLOB[:length], WANTED)


def test_types_whose_names_are_cut_short_are_read_or_refused():
    for length in range(len(BLOB)):
        ask_everything(BLOB[:length])


@PROPERTY
@given(st.lists(st.tuples(st.integers(0, len(BLOB) - 5), st.binary(min_size=1, max_size=4)), min_size=1, max_size=3))
def test_types_that_are_damaged_anywhere_are_read_or_refused(damage):
    blob = bytearray(BLOB)
    for at, change in damage:
        blob[at : at + len(change)] = change

    ask_everything(bytes(blob))


def test_types_that_are_aliases_of_each_other_are_refused():
    types = btfs.Types()
    types.add(btfs.TYPEDEF, "a", 2)
    types.add(btfs.TYPEDEF, "b", 1)
    types.structure("mm_struct", 8, ("", 1, 0))

    ask_everything(types.blob())


def test_a_structure_that_contains_itself_is_refused():
    types = btfs.Types()
    types.structure("mm_struct", 8, ("", 1, 0))

    ask_everything(types.blob())


@PROPERTY
@given(st.binary(max_size=200))
@example(b"")
@example(struct.pack("<HBBIIIII", 0xEB9F, 1, 0, 24, 0, 1 << 31, 0, 0))
def test_any_bytes_are_refused(blob):
    with pytest.raises(UnsupportedError):
        Btf(blob, WANTED)
