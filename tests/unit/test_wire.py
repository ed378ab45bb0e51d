"""backends/wire.py against the header it mirrors, compiled by the system's C compiler."""

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

from tracer.backends import wire
from tracer.targets.kernel import KernelLayout, RssKind

HEADER = Path(__file__).resolve().parents[2] / "bpf" / "wire.h"
STRUCTS = {
    "request": wire.REQUEST_FIELDS,
    "process_event": wire.PROCESS_EVENT_FIELDS,
    "worker": wire.WORKER_FIELDS,
    "build": wire.BUILD_FIELDS,
    "kernel": wire.KERNEL_FIELDS,
    "self_check": wire.SELF_CHECK_FIELDS,
}
# C's enum and the prefix of its names; LOST_KINDS is a count.
ENUMS: dict[str, tuple[type[enum.IntEnum] | type[enum.IntFlag], str]] = {
    "event_kind": (wire.EventKind, "EVENT_"),
    "request_flag": (wire.Flag, "REQUEST_"),
    "role": (wire.Role, "ROLE_"),
    "loss": (wire.Lost, "LOST_"),
    "rss_kind": (RssKind, "RSS_"),
}
DEFINES = {
    "SCRIPT_MAX": wire.SCRIPT_MAX,
    "URI_MAX": wire.URI_MAX,
    "CPUS_MAX": wire.CPUS_MAX,
    "BUILDS_MAX": wire.BUILDS_MAX,
    "REPLACED": wire.REPLACED,
}


def fields() -> Iterator[tuple[str, str, str, int]]:
    """(struct, field, struct format, offset) of every field that wire.py knows, worker's inner ones included."""
    for name, table in STRUCTS.items():
        at = 0
        for field, form in table:
            yield name, field, form, at
            at += struct.calcsize("<" + form)
    yield "worker", "request", f"{wire.REQUEST.size}s", wire.WORKER.size
    yield "worker", "strings", f"{wire.SCRIPT_MAX + wire.URI_MAX}s", wire.WORKER.size + wire.REQUEST.size


def names_of(c_enum: str) -> list[str]:
    """The names of an enum, in the header's text."""
    body = re.search(rf"enum {c_enum} \{{(.*?)\}};", HEADER.read_text(), re.DOTALL)
    assert body is not None
    return re.findall(r"^\t(\w+)\s*=", body[1], re.MULTILINE)


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> dict[str, int]:
    """What the compiler says: `request.flags` (offset), `request.flags#` (bytes), `request.flags-` (1: signed),
    `request` (bytes), and the values of enums and defines by their name.
    """
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        reason = "no C compiler to compile bpf/wire.h with: apt install gcc libc6-dev"
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
    lines += [f'P("{name}", {name});' for name in (*DEFINES, "TITLE_MAX", *(n for e in ENUMS for n in names_of(e)))]
    directory = tmp_path_factory.mktemp("wire")
    (directory / "print.c").write_text(
        f'#include <linux/types.h>\n#include <stdio.h>\n#include "{HEADER}"\n'
        '#define P(name, value) printf("%s %lld\\n", name, (long long)(value))\n'
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
        "request": wire.REQUEST.size,
        "process_event": wire.PROCESS_EVENT.size,
        "worker": wire.WORKER_BYTES,
        "build": wire.BUILD.size,
        "kernel": wire.KERNEL.size,
        "self_check": wire.SELF_CHECK.size,
    }

    assert {name: compiled[name] for name in ours} == ours


def test_a_record_of_the_ring_begins_with_its_kind(compiled):
    assert (compiled["request.kind"], compiled["process_event.kind"], wire.HEAD.size) == (0, 0, 8)


@pytest.mark.parametrize("c_enum", ENUMS)
def test_an_enum_has_the_names_and_values_of_c(compiled, c_enum):
    ours, prefix = ENUMS[c_enum]
    theirs = {name.removeprefix(prefix): compiled[name] for name in names_of(c_enum) if name != "LOST_KINDS"}

    assert {member.name: member.value for member in ours} == theirs


def test_the_map_of_losses_has_an_entry_for_each_kind(compiled):
    assert compiled["LOST_KINDS"] == len(wire.Lost)


@pytest.mark.parametrize("name", DEFINES)
def test_a_limit_is_that_of_c(compiled, name):
    assert compiled[name] == DEFINES[name]


def test_texts_of_fixed_length_are_as_long_as_in_c(compiled):
    title, text = dict(wire.PROCESS_EVENT_FIELDS)["title"], dict(wire.SELF_CHECK_FIELDS)["text"]

    assert (title, text) == (f"{compiled['TITLE_MAX']}s", f"{wire.TEXT_BYTES}s")


def test_the_kernel_entry_has_a_field_for_every_offset_of_the_layout():
    unknown = set(KernelLayout.__slots__) - {name for name, _ in wire.KERNEL_FIELDS}

    assert unknown == set()
