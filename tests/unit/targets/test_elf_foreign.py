"""ELF files that lie about themselves: phptrace reads files of other users as root.

Whatever they hold, asking them anything gives an answer or an UnsupportedError, and soon.
"""

from __future__ import annotations

import contextlib
import os
import struct
from pathlib import Path

import pytest
from elfs import Note, elf
from hypothesis import given
from hypothesis import strategies as st
from samples import PROPERTY, within

from tracer.errors import UnsupportedError
from tracer.targets.elf import Elf, open_image

SOON_S = 0.5
# Places in the header and in a section header: <elf.h>.
E_PHOFF, E_SHOFF, E_PHENTSIZE, E_PHNUM, E_SHENTSIZE, E_SHNUM, E_SHSTRNDX = 32, 40, 54, 56, 58, 60, 62
SH_TYPE, SH_OFFSET, SH_SIZE, SH_LINK, SH_ENTSIZE, SH_BYTES = 4, 24, 32, 40, 56, 64
P_OFFSET, P_BYTES = 8, 56
# Of elf()'s sections, in its order.
DYNSTR, DYNSYM, HASH, NOTES = 1, 2, 3, 4
STYLES = pytest.mark.parametrize("hash_style", ["gnu", "sysv", None])


def sound(hash_style: str | None = "gnu") -> bytearray:
    """A file with everything that is asked for."""
    notes = Note("php", "request__shutdown", 0x700123).packed()
    functions = {"php_request_startup": b"\x55\xc3", "zend_mm_shutdown": b"\x90"}
    return bytearray(elf(functions, undefined=("mmap",), hash_style=hash_style, notes=notes, base=0x400000))


def section(blob: bytearray, number: int, field: int) -> int:
    """Offset in the file of that field of that section's header."""
    return int(struct.unpack_from("<Q", blob, E_SHOFF)[0]) + number * SH_BYTES + field


def ask_everything(path: Path) -> None:
    """Ask phptrace's questions of an executable or a C library."""
    image = open_image(str(path))
    try:
        with contextlib.suppress(UnsupportedError):
            found = Elf(image)
            assert isinstance(found.machine, str)
            assert isinstance(found.has_symbols, bool)
            for name in ("php_request_startup", "mmap", "not_there"):
                with contextlib.suppress(UnsupportedError):
                    symbol = found.symbol(name)
                    if symbol is not None:
                        assert len(found.code(symbol.address, symbol.size)) <= 1 << 16
                        found.code(symbol.address, 64)
            with contextlib.suppress(UnsupportedError):
                for site in found.usdt_sites("php", "request__shutdown"):
                    found.code(site, 1)
            found.text_after(b"X-Powered-By: PHP/", 32)
            found.link_address(0)
    finally:
        image.close()


def ask(directory: Path, blob: bytes) -> None:
    path = directory / "foreign"
    path.write_bytes(blob)
    with within(SOON_S):
        ask_everything(path)


@STYLES
@PROPERTY
@given(share=st.floats(0, 1))
def test_a_file_that_is_cut_short_anywhere_is_read_or_refused(tmp_path, hash_style, share):
    blob = sound(hash_style)

    ask(tmp_path, blob[: int(len(blob) * share)])


@STYLES
def test_a_file_whose_tables_are_cut_short_at_any_byte_is_read_or_refused(tmp_path, hash_style):
    blob = sound(hash_style)
    end = section(blob, NOTES + 3, 0)

    for length in range(0, end, 3):
        ask(tmp_path, blob[:length])


DAMAGE = st.lists(
    st.tuples(
        st.one_of(st.integers(0, 63), st.integers(64, 0x3A0)),
        st.one_of(
            st.binary(min_size=1, max_size=8),
            st.sampled_from(
                [b"\xff" * 4, b"\xff" * 8, b"\0" * 4, b"\0" * 8, b"\xff" * 7 + b"\x7f", b"\0" * 7 + b"\x40"]
            ),
        ),
    ),
    min_size=1,
    max_size=4,
)


@pytest.mark.parametrize("hash_style", ["gnu", "sysv"])
@PROPERTY
@given(damage=DAMAGE)
def test_a_file_that_is_damaged_anywhere_is_read_or_refused(tmp_path, hash_style, damage):
    blob = sound(hash_style)
    for at, change in damage:
        blob[at : at + len(change)] = change

    ask(tmp_path, blob)


def test_the_sound_file_answers_everything(tmp_path):
    (tmp_path / "sound").write_bytes(sound())
    image = open_image(str(tmp_path / "sound"))

    found = Elf(image)

    assert found.symbol("php_request_startup") is not None
    assert found.usdt_sites("php", "request__shutdown") == [0x700123 + 0x400000]
    image.close()


def test_a_table_beyond_what_a_file_can_hold_is_refused(tmp_path):
    blob = sound()
    struct.pack_into("<Q", blob, section(blob, HASH, SH_OFFSET), 1 << 62)

    ask(tmp_path, blob)


def test_notes_beyond_what_a_file_can_hold_are_refused(tmp_path):
    blob = sound()
    struct.pack_into("<Q", blob, section(blob, NOTES, SH_OFFSET), (1 << 63) - 1)

    ask(tmp_path, blob)


def test_code_beyond_what_a_file_can_hold_is_empty_or_refused(tmp_path):
    blob = sound()
    for number in range(3):
        struct.pack_into("<Q", blob, 64 + number * P_BYTES + P_OFFSET, 1 << 63)

    ask(tmp_path, blob)


@pytest.mark.parametrize("at", [0, 8], ids=["buckets", "bloom"])
def test_a_hash_table_of_no_size_finds_nothing_or_is_refused(tmp_path, at):
    blob = sound()
    table = struct.unpack_from("<Q", blob, section(blob, HASH, SH_OFFSET))[0]
    struct.pack_into("<I", blob, table + at, 0)

    ask(tmp_path, blob)


def test_a_hash_table_of_its_own_symbols_is_refused(tmp_path):
    blob = sound()
    struct.pack_into("<I", blob, section(blob, HASH, SH_LINK), HASH)

    ask(tmp_path, blob)


def test_a_hash_chain_that_bites_its_tail_comes_to_an_end(tmp_path):
    blob = sound("sysv")
    table = struct.unpack_from("<Q", blob, section(blob, HASH, SH_OFFSET))[0]
    buckets, chains = struct.unpack_from("<II", blob, table)
    struct.pack_into(f"<{chains}I", blob, table + 8 + 4 * buckets, *[1] * chains)

    ask(tmp_path, blob)


def test_more_sections_than_fit_in_the_file_are_refused(tmp_path):
    blob = sound()
    struct.pack_into("<H", blob, E_SHENTSIZE, 0)
    struct.pack_into("<H", blob, E_SHNUM, 0)
    struct.pack_into("<Q", blob, section(blob, 0, SH_SIZE), 1 << 60)

    ask(tmp_path, blob)


def test_more_segments_than_fit_in_the_file_are_refused(tmp_path):
    blob = sound()
    struct.pack_into("<H", blob, E_PHENTSIZE, 0)
    struct.pack_into("<H", blob, E_PHNUM, 0xFFFF)
    struct.pack_into("<I", blob, section(blob, 0, SH_LINK + 4), 0xFFFF_FFFF)

    ask(tmp_path, blob)


def test_a_hash_chain_through_a_huge_sparse_file_comes_to_an_end(tmp_path):
    blob = sound()
    table = struct.unpack_from("<Q", blob, section(blob, HASH, SH_OFFSET))[0]
    struct.pack_into("<I", blob, table + 24, 0x100_0000)  # the bucket: its chain begins in the hole
    with open(tmp_path / "sparse", "wb") as file:
        file.write(blob)
        file.truncate(1 << 28)

    with within(SOON_S):
        ask_everything(tmp_path / "sparse")


def test_a_hash_table_that_claims_gigabytes_of_a_sparse_file_is_refused(tmp_path):
    blob = sound()
    table = struct.unpack_from("<Q", blob, section(blob, HASH, SH_OFFSET))[0]
    struct.pack_into("<I", blob, table + 8, 1 << 28)
    with open(tmp_path / "sparse", "wb") as file:
        file.write(blob)
        file.truncate(1 << 28)

    with within(SOON_S):
        ask_everything(tmp_path / "sparse")


@pytest.mark.parametrize("field", [SH_TYPE, SH_ENTSIZE, SH_LINK])
@pytest.mark.parametrize("value", [0, 1, 0x7FFF_FFFF, 0xFFFF_FFFF])
def test_a_symbol_table_of_a_wrong_kind_is_refused(tmp_path, field, value):
    blob = sound()
    struct.pack_into("<I", blob, section(blob, DYNSYM, field), value)

    ask(tmp_path, blob)


@pytest.mark.parametrize("at", [E_SHSTRNDX, E_SHENTSIZE, E_PHENTSIZE])
@pytest.mark.parametrize("value", [0, 1, 3, 0xFFFF])
def test_a_header_with_a_wrong_index_or_size_is_refused(tmp_path, at, value):
    blob = sound()
    struct.pack_into("<H", blob, at, value)

    ask(tmp_path, blob)


def test_notes_that_claim_to_be_large_are_read_only_so_far(tmp_path):
    blob = sound()
    struct.pack_into("<Q", blob, section(blob, NOTES, SH_SIZE), 1 << 50)

    ask(tmp_path, blob)


@pytest.mark.parametrize("size", [0xFFFF_FFFF, 0xFFFF_FFFC, 0x7FFF_FFFF])
def test_a_note_that_claims_to_be_large_is_the_last(tmp_path, size):
    blob = sound()
    notes = struct.unpack_from("<Q", blob, section(blob, NOTES, SH_OFFSET))[0]
    struct.pack_into("<II", blob, notes, size, size)

    ask(tmp_path, blob)


def test_a_hash_table_that_claims_500_million_chains_of_a_sparse_file_is_not_read(tmp_path):
    blob = sound("sysv")
    first = int(struct.unpack_from("<Q", blob, E_PHOFF)[0])
    struct.pack_into("<I", blob, first, 2)  # PT_DYNAMIC: pyelftools looks up its string table among the sections
    struct.pack_into("<I", blob, section(blob, NOTES, SH_TYPE), 5)  # SHT_HASH
    struct.pack_into("<QQ", blob, section(blob, NOTES, SH_OFFSET), len(blob), 2_000_000_008)
    path = tmp_path / "sparse"
    path.write_bytes(blob + struct.pack("<II", 0, 500_000_000))
    os.truncate(path, len(blob) + 2_000_000_008)

    with within(SOON_S):
        ask_everything(path)
