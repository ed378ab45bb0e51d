"""One PHP binary: what is found in it, what it lacks, and why some are refused."""

from __future__ import annotations

from typing import Any

import elfs
import pytest
from elfs import DATA, TEXT, TEXT_OFFSET, Note, static_elf
from phps import PUSHES, SLOT, loads_heap, php_data, php_elf, php_functions

from tracer.errors import UnsupportedError
from tracer.targets import php as php_binary
from tracer.targets.elf import Image, open_image
from tracer.targets.layouts import LAYOUTS, layout_of
from tracer.targets.php import Heap, Php

FUNCTIONS_AT = 0x60  # behind what the file runs; 16 bytes each, in the order of php_functions()


@pytest.fixture
def image(tmp_path):
    """Opens a file of that content."""
    opened = []

    def open_it(content: bytes) -> Image:
        path = tmp_path / f"php{len(opened)}"
        path.write_bytes(content)
        opened.append(open_image(str(path), shown="/usr/sbin/php-fpm8.2"))
        return opened[-1]

    yield open_it
    for one in opened:
        one.close()


@pytest.fixture
def inspected(image):
    """What is found in php_elf() with that changed."""

    def inspect(**changed: Any) -> Php:
        return php_binary.inspect(image(php_elf(**changed)))

    return inspect


def without(*names: str) -> dict[str, Any]:
    functions = {name: code for name, code in php_functions().items() if name not in names}
    data = {name: content for name, content in php_data().items() if name not in names}
    return {"functions": functions, "data": data}


def test_a_known_php_lacks_nothing(inspected):
    found = inspected()

    assert found.lacking == ()
    assert (found.version, found.shown_version) == ((8, 2, 36), "8.2.36")


def test_the_hooks_are_where_the_functions_begin(inspected):
    hooks = inspected().hooks

    assert (hooks.startup.address, hooks.startup.file_offset) == (TEXT + FUNCTIONS_AT, TEXT_OFFSET + FUNCTIONS_AT)
    assert hooks.script_end.address == hooks.startup.address + 16
    assert hooks.teardown is not None
    assert hooks.teardown.address == hooks.startup.address + 32
    assert hooks.exit_call is not None
    assert all(hook.emulated for hook in (hooks.startup, hooks.script_end, hooks.teardown, hooks.exit_call))


def test_the_heap_is_decoded_from_its_accessors(inspected):
    assert inspected().heap == Heap(slot=SLOT, size=0x10, peak=0x18, real_size=0x110, real_peak=0x118)


def test_the_globals_are_found_by_their_symbols(inspected):
    found = inspected()

    assert (found.sapi_globals, found.core_globals, found.executor_globals) == (DATA, DATA + 0x10, DATA + 0x30)
    assert found.sapi_module == DATA + 0x40


def test_a_request_ends_at_the_return_where_there_is_no_usdt_probe(inspected):
    hooks = inspected().hooks

    assert (hooks.end, hooks.end_is_return) == (hooks.script_end, True)


def test_a_request_ends_at_the_usdt_probes_nop(inspected):
    functions = {**php_functions(), "behind": b"\x90\xc3"}
    at = TEXT + FUNCTIONS_AT + 16 * 3 + 16 + 16 + 2 * 32  # the accessors take 32 bytes each

    hooks = inspected(functions=functions, notes=Note("php", "request__shutdown", at).packed()).hooks

    assert (hooks.end.address, hooks.end_is_return, hooks.end.emulated) == (at, False, True)


def test_a_usdt_probe_that_is_no_nop_is_not_used(inspected):
    notes = Note("php", "request__shutdown", TEXT + FUNCTIONS_AT).packed()

    assert inspected(notes=notes).hooks.end_is_return


def test_a_usdt_probe_outside_the_file_is_not_used(inspected):
    assert inspected(notes=Note("php", "request__shutdown", 0x10).packed()).hooks.end_is_return


def test_functions_that_begin_with_endbr64_are_hooked_behind_it(inspected):
    functions = {**php_functions(), "php_request_startup": bytes.fromhex("f30f1efa") + PUSHES}

    hooks = inspected(functions=functions).hooks

    assert hooks.startup.address == TEXT + FUNCTIONS_AT + 4
    assert hooks.startup.emulated


@pytest.mark.parametrize(
    ("missing", "lack"),
    [
        ("zend_mm_shutdown", "not measured: Zend's peak: no symbol zend_mm_shutdown"),
        ("zend_throw_unwind_exit", "not told from a plain end: exit(): no symbol zend_throw_unwind_exit"),
        ("zend_mm_get_heap", "not measured: Zend's heap: zend_mm_get_heap() has an unknown form"),
        ("zend_memory_peak_usage", "not measured: Zend's heap: zend_mm_get_heap() has an unknown form"),
    ],
)
def test_a_php_without_a_function_can_be_traced_and_says_what_it_lacks(inspected, missing, lack):
    assert inspected(**without(missing)).lacking == (lack,)


def test_an_accessor_of_another_heap_is_not_believed(inspected):
    functions = {**php_functions(), "zend_memory_usage": loads_heap(bytes.fromhex("4084ff740c"), slot=SLOT + 8)}

    assert inspected(functions=functions).heap is None


def test_a_php_of_a_version_not_in_the_table_lacks_its_globals(inspected):
    found = inspected(data=php_data(version="9.7.13"))

    assert found.layout is None
    assert found.lacking == ("not measured: status, memory_limit, fatal errors: PHP 9.7 is not in the table",)


def test_a_php_of_a_distributions_own_version_is_known_by_its_numbers(inspected):
    assert inspected(data=php_data(version="8.2.36-1~deb12u1")).version == (8, 2, 36)


@pytest.mark.parametrize(
    ("changed", "why"),
    [
        ({"machine": 183}, "is built for AArch64; only x86-64 is supported"),
        ({"data": php_data(api="API20220829,TS")}, r"\(PHP 8.2.36\) is a thread-safe \(ZTS\) build"),
        (without("texts"), "is not a PHP binary: it has no X-Powered-By text"),
        (without("php_request_shutdown"), "lacks php_request_shutdown: its requests cannot be followed"),
        (without("php_request_startup", "php_request_shutdown"), "lacks php_request_startup and php_request_shutdown"),
    ],
)
def test_a_php_that_cannot_be_traced_is_refused_with_its_name_and_why(inspected, changed, why):
    with pytest.raises(UnsupportedError, match=rf"^/usr/sbin/php-fpm8\.2.*{why}"):
        inspected(**changed)


def test_a_static_build_is_refused(image):
    with pytest.raises(UnsupportedError, match="is a static build without dynamic symbols"):
        php_binary.inspect(image(static_elf() + b"X-Powered-By: PHP/8.4.21\0"))


def test_php_is_known_by_its_request_functions(image):
    assert php_binary.is_php(image(php_elf()))
    assert not php_binary.is_php(image(elfs.elf({"main": PUSHES})))
    assert not php_binary.is_php(image(static_elf()))
    assert not php_binary.is_php(image(b"#!/usr/bin/php\n"))


def test_every_row_of_the_table_is_of_its_own_version():
    versions = [row.version for row in LAYOUTS]

    assert versions == sorted(set(versions), reverse=True)


def test_a_layout_is_of_every_release_of_a_version():
    assert layout_of((8, 2, 0)) is layout_of((8, 2, 36)) is not None
    assert layout_of((8, 20, 36)) is None
