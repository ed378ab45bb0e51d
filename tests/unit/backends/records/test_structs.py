"""The structs of backends/records/ against the headers they mirror, compiled by the system's C compiler."""

from __future__ import annotations

import enum
import os
import re
import shutil
import struct
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tracer.backends.records import request_structs, stack_structs
from tracer.targets.kernel import KernelLayout, RssKind

HEADERS = [Path(__file__).resolve().parents[4] / "bpf" / name for name in ("request_events.h", "growth_events.h")]
DEPTH = 7  # frames of a stack: set by the loader
STRUCTS = {
    "request": request_structs.REQUEST_FIELDS,
    "process_event": request_structs.PROCESS_EVENT_FIELDS,
    "fork_event": request_structs.FORK_EVENT_FIELDS,
    "worker": request_structs.WORKER_FIELDS,
    "php_binary": request_structs.PHP_BINARY_FIELDS,
    "kernel": request_structs.KERNEL_FIELDS,
    "self_check": request_structs.SELF_CHECK_FIELDS,
    "function_event": stack_structs.FUNCTION_FIELDS,
    "frame": stack_structs.FRAME_FIELDS,
    "stack_event": stack_structs.STACK_FIELDS,
    "growth_event": stack_structs.GROWTH_FIELDS,
    "memory_call_event": stack_structs.MEMORY_CALL_FIELDS,
    "growth_slot": stack_structs.GROWTH_SLOT_FIELDS,
    "worker_stacks": stack_structs.WORKER_STACKS_FIELDS,
    "stack_layout": stack_structs.STACK_LAYOUT_FIELDS,
    "sampling_config": stack_structs.SAMPLING_CONFIG_FIELDS,
    "native_sums": request_structs.NATIVE_SUMS_FIELDS,
    "native_book": request_structs.NATIVE_BOOK_FIELDS,
    "release_event": request_structs.RELEASE_EVENT_FIELDS,
    "block_key": stack_structs.BLOCK_KEY_FIELDS,
    "block": stack_structs.BLOCK_FIELDS,
    "block_config": stack_structs.BLOCK_CONFIG_FIELDS,
}
# What stands behind those fields: (member, bytes), in C's order.
BEHIND = {
    "worker": [
        ("request", request_structs.REQUEST.size),
        ("strings", request_structs.STRINGS_BYTES),
    ],
    "stack_event": [("frames", DEPTH * stack_structs.FRAME.size)],
    "worker_stacks": [
        ("slots", stack_structs.GROWTH_SLOTS * stack_structs.GROWTH_SLOT.size),
        ("top", 16),
        ("function", stack_structs.FUNCTION.size),
        ("stack", stack_structs.STACK.size + DEPTH * stack_structs.FRAME.size),
    ],
}
# C's enum and the prefix of its names; LOST_KINDS and LOST_STACK_KINDS are counts.
ENUMS: dict[str, tuple[type[enum.IntEnum] | type[enum.IntFlag], str]] = {
    "event_kind": (request_structs.EventKind, "EVENT_"),
    "request_flag": (request_structs.Flag, "REQUEST_"),
    "role": (request_structs.Role, "ROLE_"),
    "lost": (request_structs.Lost, "LOST_"),
    "rss_kind": (RssKind, "RSS_"),
    "stack_event_kind": (stack_structs.StackEventKind, "EVENT_"),
    "metric": (stack_structs.MetricKind, "METRIC_"),
    "function_type": (stack_structs.FunctionType, "FUNCTION_"),
    "function_flag": (stack_structs.FunctionFlag, "FUNCTION_"),
    "stack_flag": (stack_structs.StackFlag, "STACK_"),
    "memory_call": (stack_structs.Call, "CALL_"),
    "lost_stacks": (stack_structs.LostStacks, "LOST_"),
}
COUNTS = ("LOST_KINDS", "LOST_STACK_KINDS")
DEFINES = {
    "SCRIPT_MAX": request_structs.SCRIPT_MAX,
    "URI_MAX": request_structs.URI_MAX,
    "CPUS_MAX": request_structs.CPUS_MAX,
    "PHP_BINARIES_MAX": request_structs.PHP_BINARIES_MAX,
    "REPLACED": request_structs.REPLACED,
    "NAME_MAX_BYTES": stack_structs.NAME_MAX_BYTES,
    "FILE_MAX_BYTES": stack_structs.FILE_MAX_BYTES,
    "GROWTH_SLOTS": stack_structs.GROWTH_SLOTS,
    "GAP_STEPS": stack_structs.GAP_STEPS,
    "HASH_NO_PHP": stack_structs.HASH_NO_PHP,
    "HASH_THREAD": stack_structs.HASH_THREAD,
    "HASH_LOST": stack_structs.HASH_LOST,
}


def fields() -> Iterator[tuple[str, str, str, int]]:
    """(struct, field, struct format, offset) of every field that we know, and of what stands behind them."""
    for name, table in STRUCTS.items():
        at = 0
        for field, form in (*table, *((member, f"{size}s") for member, size in BEHIND.get(name, ()))):
            yield name, field, form, at
            at += struct.calcsize("<" + form)


def names_of(c_enum: str) -> list[str]:
    """The names of an enum, in the headers' text."""
    text = "".join(header.read_text() for header in HEADERS)
    [body] = re.findall(rf"enum {c_enum} \{{(.*?)\}};", text, re.DOTALL)
    return re.findall(r"^\t(\w+)\s*=", body, re.MULTILINE)


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> dict[str, int]:
    """Numbers of the compiler by name: `request.flags` (offset), `request.flags#` (bytes), `request.flags-` (1 if
    signed), `request` (bytes), and the values of enums and defines by their name.
    """
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        reason = "no C compiler to compile bpf/*.h with: apt install gcc libc6-dev"
        if os.environ.get("PHPTRACE_REQUIRE") == "1":
            pytest.fail(reason)
        pytest.skip(reason)
    lines = [f'P("{name}", sizeof(struct {name}));' for name in STRUCTS]
    for name, field, form, _ in fields():
        member = f"((struct {name} *)0)->{field}"
        lines.append(f'P("{name}.{field}", __builtin_offsetof(struct {name}, {field}));')
        lines.append(f'P("{name}.{field}#", sizeof({member}));')
        if len(form) == 1:
            lines.append(f'P("{name}.{field}-", (__typeof__({member}))-1 < 0);')
    plain = (*DEFINES, "TITLE_MAX", "HASHES_RESERVED", *(name for c_enum in ENUMS for name in names_of(c_enum)))
    lines += [f'P("{name}", {name});' for name in plain]
    directory = tmp_path_factory.mktemp("structs")
    (directory / "print.c").write_text(
        "#include <linux/types.h>\n#include <stdio.h>\n"
        + f"#define DEPTH_MAX {DEPTH}\n"
        + "".join(f'#include "{header}"\n' for header in HEADERS)
        + '#define P(name, value) printf("%s %lld\\n", name, (long long)(value))\n'
        "int main(void)\n{\n" + "\n".join(lines) + "\nreturn 0;\n}\n"
    )
    subprocess.run([compiler, "-Wall", "-Werror", "-o", "print", "print.c"], cwd=directory, check=True)
    printed = subprocess.run([directory / "print"], capture_output=True, text=True, check=True).stdout
    return {name: int(value) for name, value in map(str.split, printed.splitlines())}


def test_every_field_is_where_the_compiler_puts_it(compiled):
    ours = {f"{name}.{field}": at for name, field, _, at in fields()}

    assert {name: compiled[name] for name in ours} == ours


def test_every_field_is_as_wide_as_in_c(compiled):
    ours = {f"{name}.{field}#": struct.calcsize("<" + form) for name, field, form, _ in fields()}

    assert {name: compiled[name] for name in ours} == ours


def test_every_number_is_signed_as_in_c(compiled):
    ours = {f"{name}.{field}-": int(form.islower()) for name, field, form, _ in fields() if len(form) == 1}

    assert {name: compiled[name] for name in ours} == ours


def test_no_field_of_c_is_unknown_and_none_is_hidden_padding(compiled):
    ours = dict.fromkeys(STRUCTS, 0)
    for name, _, form, _ in fields():
        ours[name] += struct.calcsize("<" + form)

    assert {name: compiled[name] for name in ours} == ours


def test_the_sizes_that_records_and_map_entries_are_cut_by_are_those_of_c(compiled):
    ours = {
        "request": request_structs.REQUEST.size,
        "process_event": request_structs.PROCESS_EVENT.size,
        "fork_event": request_structs.FORK_EVENT.size,
        "worker": request_structs.WORKER_BYTES,
        "php_binary": request_structs.PHP_BINARY.size,
        "kernel": request_structs.KERNEL.size,
        "self_check": request_structs.SELF_CHECK.size,
        "function_event": stack_structs.FUNCTION.size,
        "frame": stack_structs.FRAME.size,
        "growth_event": stack_structs.GROWTH.size,
        "memory_call_event": stack_structs.MEMORY_CALL.size,
        "growth_slot": stack_structs.GROWTH_SLOT.size,
        "stack_layout": stack_structs.STACK_LAYOUT.size,
        "sampling_config": stack_structs.SAMPLING_CONFIG.size,
        "stack_event.frames": stack_structs.STACK.size,
        "worker_stacks.slots": stack_structs.WORKER_STACKS.size,
    }

    assert {name: compiled[name] for name in ours} == ours


def test_a_record_of_the_ring_begins_with_its_kind(compiled):
    assert (compiled["request.kind"], compiled["process_event.kind"], request_structs.HEAD.size) == (0, 0, 8)


@pytest.mark.parametrize("record", ["function_event", "stack_event", "growth_event", "memory_call_event"])
def test_a_record_of_the_ring_of_stacks_begins_with_its_kind_its_worker_and_its_request(compiled, record):
    assert [compiled[f"{record}.{field}"] for field in ("kind", "pid", "nth")] == [0, 4, 8]


@pytest.mark.parametrize("c_enum", ENUMS)
def test_an_enum_has_the_names_and_values_of_c(compiled, c_enum):
    ours, prefix = ENUMS[c_enum]
    theirs = {name.removeprefix(prefix): compiled[name] for name in names_of(c_enum) if name not in COUNTS}

    assert {member.name: member.value for member in ours} == theirs


def test_the_maps_of_losses_have_an_entry_for_each_kind(compiled):
    assert [compiled[name] for name in COUNTS] == [len(request_structs.Lost), len(stack_structs.LostStacks)]


def test_no_stack_has_a_reserved_hash(compiled):
    assert compiled["HASHES_RESERVED"] > max(
        stack_structs.HASH_NO_PHP, stack_structs.HASH_THREAD, stack_structs.HASH_LOST
    )


@pytest.mark.parametrize("name", DEFINES)
def test_a_limit_is_that_of_c(compiled, name):
    assert compiled[name] == DEFINES[name]


def test_texts_of_fixed_length_are_as_long_as_in_c(compiled):
    title, text = dict(request_structs.PROCESS_EVENT_FIELDS)["title"], dict(request_structs.SELF_CHECK_FIELDS)["text"]

    assert (title, text) == (f"{compiled['TITLE_MAX']}s", f"{request_structs.TEXT_BYTES}s")


def test_the_kernel_entry_has_a_field_for_every_offset_of_the_layout():
    unknown = set(KernelLayout.__slots__) - {name for name, _ in request_structs.KERNEL_FIELDS}

    assert unknown == set()
