"""One PHP binary: its contents, the measurements it lacks, and the reasons why some are refused."""

from __future__ import annotations

from typing import Any

import elfs
import pytest
from elfs import DATA, TEXT, TEXT_OFFSET, Note, static_elf
from phps import GROWTH_SLOT, PUSHES, loads_heap, php_data, php_elf, php_functions, static_php

from tracer.errors import UnsupportedError
from tracer.targets import php as php_binary
from tracer.targets.elf import Image, open_image
from tracer.targets.layouts import LAYOUTS, STACK_LAYOUTS, layout_of, stack_layout_of
from tracer.targets.php import Heap, Php

EXECUTOR_GLOBALS = DATA + 0x30
FUNCTIONS_AT = 0x60  # behind what the file runs; 16 bytes each, in the order of php_functions()


@pytest.fixture
def image(tmp_path):
    """Open a file of that content."""
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
    """The PHP found in php_elf() with that change."""

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
    assert inspected().heap == Heap(slot=GROWTH_SLOT, size=0x10, peak=0x18, real_size=0x110, real_peak=0x118)


def test_the_globals_are_found_by_their_symbols(inspected):
    found = inspected()

    assert (found.sapi_globals, found.core_globals, found.executor_globals) == (DATA, DATA + 0x10, DATA + 0x30)
    assert found.sapi_module == DATA + 0x40


def test_a_request_ends_at_the_return_where_there_is_no_usdt_probe(inspected):
    hooks = inspected().hooks

    assert (hooks.end, hooks.end_is_return) == (hooks.script_end, True)


def test_a_request_ends_at_the_usdt_probes_nop(inspected):
    functions = {**php_functions(), "behind": b"\x90\xc3"}
    at = TEXT + FUNCTIONS_AT + 16 * 4 + 16 + 16 + 2 * 32  # the accessors take 32 bytes each

    hooks = inspected(functions=functions, notes=Note("php", "request__shutdown", at).packed()).hooks

    assert (hooks.end.address, hooks.end_is_return, hooks.end.emulated) == (at, False, True)


def test_a_usdt_probe_that_is_not_a_nop_is_not_used(inspected):
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
        ("zend_mm_shutdown", "not measured: Zend's peak (no symbol zend_mm_shutdown)"),
        (
            "zend_throw_unwind_exit",
            "not seen: exit(), which looks like a plain end (no symbol zend_throw_unwind_exit)",
        ),
        ("zend_mm_get_heap", "not measured: Zend's heap (zend_mm_get_heap() has an unknown form)"),
        ("zend_memory_peak_usage", "not measured: Zend's heap (zend_mm_get_heap() has an unknown form)"),
    ],
)
def test_a_php_without_a_function_can_be_traced_and_says_what_it_lacks(inspected, missing, lack):
    assert inspected(**without(missing)).lacking == (lack,)


def test_an_accessor_of_another_heap_is_not_believed(inspected):
    functions = {**php_functions(), "zend_memory_usage": loads_heap(bytes.fromhex("4084ff740c"), slot=GROWTH_SLOT + 8)}

    assert inspected(functions=functions).heap is None


def test_a_php_of_a_version_not_in_the_table_lacks_its_globals(inspected):
    found = inspected(data=php_data(version="9.7.13"))

    assert found.layout is None
    assert found.lacking == ("not measured: status, memory_limit, fatal errors (PHP 9.7 is not in the table)",)


def test_a_php_of_a_distributions_own_version_is_known_by_its_numbers(inspected):
    assert inspected(data=php_data(version="8.2.36-1~deb12u1")).version == (8, 2, 36)


@pytest.mark.parametrize(
    ("changed", "why"),
    [
        ({"machine": 183}, "it is built for AArch64; only x86-64 is supported"),
        ({"data": php_data(api="API20220829,TS")}, r"\(PHP 8.2.36\): it is a thread-safe \(ZTS\) build"),
        (without("texts"), "it has no X-Powered-By text, so it is not PHP"),
        (without("php_request_shutdown"), "it has no symbol php_request_shutdown"),
        (
            without("php_request_startup", "php_request_shutdown"),
            "no symbol php_request_startup and no symbol php_request_shutdown",
        ),
    ],
)
def test_a_php_that_cannot_be_traced_is_refused_with_its_name_and_why(inspected, changed, why):
    with pytest.raises(UnsupportedError, match=rf"^cannot .* /usr/sbin/php-fpm8\.2.*{why}"):
        inspected(**changed)


def test_a_static_build_is_refused(image):
    with pytest.raises(UnsupportedError, match="it is a static build without dynamic symbols"):
        php_binary.inspect(image(static_elf() + b"X-Powered-By: PHP/8.4.21\0"))


def test_php_is_known_by_its_request_functions(image):
    assert php_binary.is_php(image(php_elf()))
    assert not php_binary.is_php(image(elfs.elf({"main": PUSHES})))
    assert php_binary.is_php(image(static_php()))
    assert not php_binary.is_php(image(static_elf()))
    assert not php_binary.is_php(image(b"#!/usr/bin/php\n"))


@pytest.mark.parametrize("fastcgi", [True, False])
def test_a_static_build_of_php_fpm_is_known_by_its_settings(image, fastcgi):
    php = php_binary.without_symbols(image(static_php(fastcgi=fastcgi)), "it is static")

    assert php is not None
    assert (php.version, php.fastcgi, php.unhooked) == ((8, 2, 32), fastcgi, "it is static")


def test_a_php_whose_functions_are_found_is_hooked(inspected):
    assert inspected().unhooked is None


def scope(target: int, offset: int | None = None, behind: int = 0) -> elfs.Content:
    """zend_get_executed_scope(): `lea target(%rip),%rcx; mov offset(%rcx),%rax`, or `mov target(%rip),%rax` alone."""

    def code(at: int) -> bytes:
        padding = b"\x90" * behind
        distance = (target - at - behind - 7).to_bytes(4, "little", signed=True)
        if offset is None:
            return padding + b"\x48\x8b\x05" + distance + b"\xc3"
        return padding + b"\x48\x8d\x0d" + distance + b"\x48\x8b\x81" + offset.to_bytes(4, "little") + b"\xc3"

    return code


def filename(offset: int, behind: int = 0) -> bytes:
    """zend_get_executed_filename_ex(): `mov offset(%rax),%rax; ret`."""
    return b"\x90" * behind + b"\x48\x8b\x80" + offset.to_bytes(4, "little") + b"\xc3"


def with_accessors(scope_code: elfs.Content, filename_code: bytes, name: str = "zend_get_executed_filename_ex") -> Any:
    return {**php_functions(), "zend_get_executed_scope": scope_code, name: filename_code}


STACK_8_2 = stack_layout_of((8, 2, 36))


@pytest.mark.parametrize(
    "code",
    [
        scope(EXECUTOR_GLOBALS, 488),
        scope(EXECUTOR_GLOBALS + 488),
        scope(EXECUTOR_GLOBALS, 488, behind=29),
        scope(EXECUTOR_GLOBALS + 488, behind=29),
    ],
    ids=["base and offset", "sum", "later: base and offset", "later: sum"],
)
def test_the_call_stack_is_laid_out_as_its_version_has_it_if_the_accessors_agree(inspected, code):
    found = inspected(functions=with_accessors(code, filename(152, behind=31)))

    assert (found.stack, found.stack_lacking) == (STACK_8_2, None)
    assert found.lacking == ()


def test_php_before_8_has_another_accessor_of_the_filename(inspected):
    functions = with_accessors(scope(EXECUTOR_GLOBALS, 488), filename(136), "zend_get_executed_filename")

    found = inspected(functions=functions, data=php_data(version="7.4.33"))

    assert (found.stack, found.stack_lacking) == (stack_layout_of((7, 4, 33)), None)


@pytest.mark.parametrize(
    ("scope_code", "filename_code"),
    [
        (scope(EXECUTOR_GLOBALS, 496), filename(152)),
        (scope(EXECUTOR_GLOBALS + 496), filename(152)),
        (scope(EXECUTOR_GLOBALS), filename(152)),
        (scope(EXECUTOR_GLOBALS - 16, 488), filename(152)),
        (scope(EXECUTOR_GLOBALS + 8, 480), filename(152)),
        (scope(EXECUTOR_GLOBALS, 488), filename(168)),
        (scope(EXECUTOR_GLOBALS, 488), b"\xc3"),
        (b"\xc3", filename(152)),
    ],
)
def test_a_build_whose_accessors_use_other_offsets_has_no_stacks(inspected, scope_code, filename_code):
    found = inspected(functions=with_accessors(scope_code, filename_code))

    assert found.stack is None
    assert found.stack_lacking == "PHP 8.2: this build's structures are not those of its version"


@pytest.mark.parametrize("missing", ["zend_get_executed_scope", "zend_get_executed_filename_ex"])
def test_a_php_without_an_accessor_has_no_stacks(inspected, missing):
    functions = with_accessors(scope(EXECUTOR_GLOBALS, 488), filename(152))
    del functions[missing]

    assert inspected(functions=functions).stack_lacking == (
        "PHP 8.2 lacks the accessors with which its layout is checked"
    )


def test_a_php_without_its_executors_globals_has_no_stacks(inspected):
    functions = with_accessors(scope(EXECUTOR_GLOBALS, 488), filename(152))

    found = inspected(functions=functions, data=without("executor_globals")["data"])

    assert (found.stack, found.stack_lacking) == (None, "PHP 8.2 has no symbol executor_globals")


def test_a_php_of_a_version_without_a_layout_has_no_stacks(inspected):
    found = inspected(functions=with_accessors(scope(EXECUTOR_GLOBALS, 488), filename(152)), data=php_data("8.1.29"))

    assert (found.stack, found.stack_lacking) == (None, "PHP 8.1 is not in the table of layouts")


def test_every_row_of_the_table_of_stacks_is_of_its_own_version():
    versions = [row.version for row in STACK_LAYOUTS]

    assert versions == sorted(set(versions), reverse=True)


def test_a_layout_of_the_stack_is_of_every_release_of_a_version():
    assert stack_layout_of((8, 2, 0)) is stack_layout_of((8, 2, 36)) is not None
    assert stack_layout_of((8, 20, 36)) is None
    assert stack_layout_of((82, 0, 0)) is None


def test_every_row_of_the_table_is_of_its_own_version():
    versions = [row.version for row in LAYOUTS]

    assert versions == sorted(set(versions), reverse=True)


def test_a_layout_is_of_every_release_of_a_version():
    assert layout_of((8, 2, 0)) is layout_of((8, 2, 36)) is not None
    assert layout_of((8, 20, 36)) is None
