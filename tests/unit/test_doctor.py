"""The doctor's checks: the backend they leave, and that its exit code is the one `attach` would end with."""

from __future__ import annotations

import ctypes
import dataclasses
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from phps import executable, php_data, php_elf, running

from tracer.backends.choose import BACKENDS
from tracer.backends.ptrace import syscalls
from tracer.doctor import ALL, BPF, PTRACE, Check, checks, exit_code, usable

ROOT = Path(__file__).resolve().parents[2]
IDLE = "php-fpm: pool www"


def check(name: str, by: tuple[str, ...], code: int | None, *, ok: bool = False, needed: bool = True) -> Check:
    return Check(name, ok, "found", needed=needed, exit_code=code, by=by)


def without_bpf(found: list[Check]) -> list[Check]:
    """The checks as they would be on a host on which BPF does not work."""
    return [check("rights", BPF, 4), *found]


def no_capabilities() -> None:
    """Drop every capability of a child about to run phptrace (prctl(2), PR_CAPBSET_DROP)."""
    for capability in range(64):
        ctypes.CDLL(None).prctl(24, capability, 0, 0, 0)


def code_of(*arguments: str, setup: Callable[[], None] | None = None) -> int:
    command = [sys.executable, "-m", "tracer", *arguments]
    return subprocess.run(command, capture_output=True, cwd=ROOT, preexec_fn=setup).returncode


@pytest.mark.parametrize("setup", [None, no_capabilities])
@pytest.mark.parametrize(("target", "code"), [("nonsense", 3), ("4194303", 6), (str(os.getpid()), 5)])
def test_the_exit_code_is_the_one_of_an_attach_with_or_without_rights(target, code, setup):
    if setup is not None and target.isdecimal() and int(target) == os.getpid():
        code = 4  # without capabilities, phptrace may not even look at this process

    assert code_of("doctor", target, setup=setup) == code
    assert code_of("attach", target, setup=setup) == code


def test_every_check_names_backends_that_there_are():
    assert {name for one in checks(["nonsense"]) for name in one.by} == set(BACKENDS)


def test_the_exit_code_is_0_where_a_backend_works():
    assert exit_code([check("rights", BPF, 4), check("tracees", PTRACE, 4, ok=True)]) == 0


@pytest.mark.parametrize(
    ("failing", "code"),
    [
        ([check("rights", BPF, 4), check("ptrace", PTRACE, 5)], 5),
        ([check("rights", BPF, 4), check("nonsense", ALL, 3)], 3),
        ([check("rights", BPF, 4), check("ptrace", PTRACE, 5), check("nonsense", ALL, 3)], 3),
        ([check("bcc", BPF, 5), check("Yama", PTRACE, None), check("tracees", PTRACE, 4)], 4),
        ([check("bcc", BPF, 5), check("slowlog", PTRACE, 3, needed=False), check("tracees", PTRACE, 4)], 4),
    ],
)
def test_the_check_that_decides_is_the_one_attach_fails_on_after_bpf(failing, code):
    assert exit_code(failing) == code


def test_a_process_that_is_traced_already_has_the_exit_code_of_its_refusal(tmp_path):
    with running(executable(tmp_path / "php", php_elf()), IDLE) as process:
        syscalls.seize(process.pid, syscalls.O_SYSGOOD)
        found = without_bpf(list(checks([str(process.pid)])))

    [refused] = [one for one in found if one.name == "tracees"]
    assert "already traced" in refused.found
    assert (usable(found), exit_code(found), refused.exit_code) == (None, 5, 5)


def test_where_ptrace_is_refused_altogether_the_exit_code_is_not_permitted():
    [ptrace] = [one for one in checks(["nonsense"]) if one.name == "ptrace"]

    assert exit_code(without_bpf([dataclasses.replace(ptrace, ok=False)])) == 4


def test_a_php_that_does_not_speak_fastcgi_cannot_be_traced_without_bpf(tmp_path):
    """ptrace finds requests by FastCGI: `attach` refuses other SAPIs with exit code 5."""
    with running(executable(tmp_path / "php", php_elf(data=php_data(sapi="cli"))), IDLE) as process:
        found = without_bpf(list(checks([str(process.pid)])))

    assert usable(found) is None
    assert exit_code(found) == 5


def test_a_php_without_symbols_can_be_traced_with_ptrace(tmp_path):
    with running(executable(tmp_path / "php", php_elf(functions={})), IDLE) as process:
        found = {one.name: one for one in checks([str(process.pid)])}

    assert (found["request hooks"].ok, found["request hooks"].by) == (False, BPF)
    assert found["tracees"].ok
    assert usable([dataclasses.replace(one, ok=one.by != BPF) for one in found.values()]) == "ptrace"
