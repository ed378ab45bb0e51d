"""One ELF file and its contents. test_elf_foreign.py has the broken ones."""

from __future__ import annotations

import os
import shutil
import subprocess

import pytest
from elfs import BASE, DATA, DATA_OFFSET, FORKS_AND_WAITS, TEXT, TEXT_OFFSET, Note, elf, note, static_elf
from hypothesis import given
from hypothesis import strategies as st
from samples import PROPERTY

from tracer.errors import UnsupportedError
from tracer.targets.elf import Elf, Symbol, open_image

FIRST = TEXT + len(FORKS_AND_WAITS) + -len(FORKS_AND_WAITS) % 16  # address of the first function
STYLES = pytest.mark.parametrize("hash_style", ["gnu", "sysv", None])


@pytest.fixture
def opened(tmp_path):
    """Open an ELF file of that content."""
    images = []

    def open_it(content: bytes) -> Elf:
        path = tmp_path / f"elf{len(images)}"
        path.write_bytes(content)
        images.append(open_image(str(path)))
        return Elf(images[-1])

    yield open_it
    for image in images:
        image.close()


@STYLES
def test_a_symbol_is_found_by_its_name(opened, hash_style):
    found = opened(elf({"first": b"\x55\xc3", "second": b"\x90\x90\xc3"}, hash_style=hash_style))

    assert found.symbol("first") == Symbol(FIRST, 2)
    assert found.symbol("second") == Symbol(FIRST + 16, 3)


@STYLES
def test_a_symbol_that_is_not_there_is_none(opened, hash_style):
    found = opened(elf({"first": b"\xc3"}, hash_style=hash_style))

    assert found.symbol("firs") is None
    assert found.symbol("") is None


@STYLES
def test_a_symbol_that_another_library_defines_is_none(opened, hash_style):
    found = opened(elf({"first": b"\xc3"}, undefined=("mmap",), hash_style=hash_style))

    assert found.symbol("mmap") is None
    assert found.symbol("first") is not None


def test_data_has_symbols_too(opened):
    assert opened(elf(data={"sapi_globals": b"\0" * 11})).symbol("sapi_globals") == Symbol(DATA, 11)


def test_a_library_without_any_symbol_has_none(opened):
    found = opened(elf())

    assert (found.has_symbols, found.symbol("first")) == (True, None)


def test_a_static_build_has_no_symbols_at_all(opened):
    found = opened(static_elf())

    assert (found.has_symbols, found.symbol("first")) == (False, None)


@pytest.mark.parametrize(("machine", "name"), [(62, "x64"), (183, "AArch64"), (3, "x86")])
def test_the_machine_has_a_short_name(opened, machine, name):
    assert opened(elf(machine=machine)).machine == name


def test_an_address_is_found_in_the_file_through_its_segment(opened):
    found = opened(elf(data={"a": b"\0" * 16}))

    assert found.file_offset(BASE) == 0
    assert found.file_offset(TEXT) == TEXT_OFFSET
    assert found.file_offset(TEXT + 7) == TEXT_OFFSET + 7
    assert found.file_offset(DATA + 15) == DATA_OFFSET + 15


@pytest.mark.parametrize("address", [0, BASE - 1, TEXT - 1, DATA + 16, DATA + 4096, -1, 1 << 64])
def test_an_address_outside_every_segment_is_not_in_the_file(opened, address):
    assert opened(elf(data={"a": b"\0" * 16})).file_offset(address) is None


def test_a_place_in_no_segment_has_no_address(opened):
    found = opened(elf(data={"a": b"\0" * 16}))

    assert found.link_address(DATA_OFFSET + 15) == DATA + 15
    assert found.link_address(DATA_OFFSET + 16) is None
    assert found.link_address(TEXT_OFFSET - 1) is None


@PROPERTY
@given(st.one_of(st.integers(TEXT - 8, TEXT + 128), st.integers(DATA - 8, DATA + 64), st.integers(0, 1 << 64)))
def test_an_address_and_its_place_lead_to_each_other(opened, address):
    found = opened(elf(data={"a": b"\0" * 53}))

    at = found.file_offset(address)

    assert at is None or found.link_address(at) == address


def test_code_is_read_at_its_address(opened):
    found = opened(elf({"first": b"\x55\x48\x89\xe5\xc3"}))

    assert found.code(FIRST, 5) == b"\x55\x48\x89\xe5\xc3"


def test_code_ends_where_the_file_ends(opened):
    found = opened(elf(data={"a": bytes(range(16))}))

    assert found.code(DATA + 13, 64) == b"\x0d\x0e\x0f"


def test_no_more_than_64_kib_of_code_are_read(opened):
    content = elf(data={"a": bytes(16)})
    found = opened(content + bytes(1 << 17))

    assert len(found.code(DATA, 1 << 30)) == 1 << 16


def test_code_outside_the_segments_is_empty(opened):
    assert opened(elf()).code(TEXT - 1, 16) == b""


def test_the_sites_of_a_usdt_probe_are_found(opened):
    notes = b"".join(
        one.packed()
        for one in (
            Note("php", "request__shutdown", 0x700123),
            Note("php", "request__startup", 0x700127),
            Note("php", "request__shutdown", 0x700131),
            Note("php", "request__shutdown__not", 0x700137),
            Note("libc", "request__shutdown", 0x700139),
        )
    )

    assert opened(elf(notes=notes)).usdt_sites("php", "request__shutdown") == [0x700123, 0x700131]


def test_a_usdt_site_moves_with_its_base_when_the_file_was_prelinked(opened):
    notes = Note("php", "request__shutdown", 0x1123, base=0x5000).packed()

    assert opened(elf(notes=notes, base=0x705000)).usdt_sites("php", "request__shutdown") == [0x701123]


def test_a_note_of_another_kind_is_not_a_usdt_probe(opened):
    description = Note("php", "request__shutdown", 0x700123).packed()[20:]

    assert opened(elf(notes=note(4, b"stapsdt\0", description))).usdt_sites("php", "request__shutdown") == []


def test_a_file_without_notes_has_no_usdt_sites(opened):
    assert opened(elf()).usdt_sites("php", "request__shutdown") == []


@pytest.mark.parametrize("cut", [1, 11, 12, 20, 27, 40, 44, 61])
def test_a_usdt_note_that_is_cut_short_is_none(opened, cut):
    notes = Note("php", "request__shutdown", 0x700123).packed()

    assert opened(elf(notes=notes[:cut])).usdt_sites("php", "request__shutdown") == []


def test_a_note_of_no_length_is_stepped_over(opened):
    notes = note(0, b"", b"") + Note("php", "request__shutdown", 0x700123).packed()

    assert opened(elf(notes=notes)).usdt_sites("php", "request__shutdown") == [0x700123]


@pytest.mark.parametrize(("length", "text"), [(32, b"8.2.36"), (6, b"8.2.36"), (3, b"8.2"), (0, b"")])
def test_a_text_behind_its_marker_ends_at_a_nul_or_the_length_asked_for(opened, length, text):
    found = opened(elf(data={"a": b"X-Powered-By: PHP/8.2.36\0X-Powered-By: PHP/7"}))

    assert found.text_after(b"X-Powered-By: PHP/", length) == text


def test_a_text_without_its_marker_is_none(opened):
    assert opened(elf()).text_after(b"X-Powered-By: PHP/", 32) is None


def test_a_text_at_the_end_of_the_file_is_what_is_left_of_it(opened):
    found = opened(elf(data={"a": bytes(16)}) + b"API20")

    assert found.text_after(b"API20", 32) == b""


def test_an_image_leads_to_the_file_after_it_was_replaced(tmp_path):
    path = tmp_path / "php-fpm"
    path.write_bytes(elf({"old": b"\xc3"}))
    image = open_image(str(path))
    path.unlink()
    path.write_bytes(elf({"new": b"\xc3"}))

    found = Elf(image)

    assert found.symbol("old") is not None
    assert os.stat(image.path).st_ino == image.inode != path.stat().st_ino
    image.close()


def test_an_image_is_shown_by_what_a_link_names(tmp_path):
    path, link = tmp_path / "php-fpm8.2", tmp_path / "exe"
    path.write_bytes(elf())
    link.symlink_to(path)

    image = open_image(str(link))
    image.close()

    assert (image.shown, image.identity) == (str(path), (path.stat().st_dev, path.stat().st_ino))


@pytest.mark.parametrize("content", [b"", b"#!/bin/sh\n", b"\x7fELF", b"\x7fELF\x02\x01\x01" + bytes(56)])
def test_a_file_that_is_not_elf_is_unsupported(opened, content, tmp_path):
    with pytest.raises(UnsupportedError, match=rf"cannot parse {tmp_path}.* as an ELF file"):
        opened(content)


@pytest.mark.skipif(shutil.which("gcc") is None, reason="no gcc to build a library with: apt install gcc")
@pytest.mark.parametrize("hash_style", ["gnu", "sysv", "both"])
def test_a_library_of_the_systems_own_linker_is_read(tmp_path, hash_style):
    (tmp_path / "a.c").write_text("int php_request_startup(void) { return 7; }\nint other(void) { return 11; }\n")
    subprocess.run(
        ["gcc", "-shared", "-nostdlib", "-O1", f"-Wl,--hash-style={hash_style}", "-o", "a.so", "a.c"],
        cwd=tmp_path,
        check=True,
    )
    image = open_image(str(tmp_path / "a.so"))

    found = Elf(image)
    startup = found.symbol("php_request_startup")

    assert startup is not None
    assert found.code(startup.address, startup.size).endswith(b"\xb8\x07\0\0\0\xc3")
    image.close()


@pytest.mark.parametrize("at", [(1 << 20) - 30, (1 << 20) - 9, (1 << 20) - 1, 1 << 20, (3 << 20) + 17])
def test_a_text_is_found_across_the_steps_of_a_search(opened, at):
    blob = elf()

    found = opened(blob + bytes(at - len(blob)) + b"X-Powered-By: PHP/8.2.36\0rest")

    assert found.text_after(b"X-Powered-By: PHP/", 32) == b"8.2.36"
