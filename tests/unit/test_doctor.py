"""The doctor's checks, and that its verdict is what `attach` would do."""

from __future__ import annotations

import contextlib
import ctypes
import dataclasses
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from elfs import elf
from phps import executable, php_data, php_elf, running, static_php

from tracer.backends.choose import BACKENDS
from tracer.backends.ptrace import syscalls
from tracer.doctor import Check, checks, verdict
from tracer.errors import NotPermittedError, PhptraceError, UnsupportedError
from tracer.targets import kernel

ROOT = Path(__file__).resolve().parents[2]
IDLE = "php-fpm: pool www"
OLD_KERNEL = UnsupportedError("cannot trace with BPF: this kernel is old. Boot another.")
GONE = 4194303
PROGRAMS = {
    "dynamic": php_elf(),
    "static": static_php(),
    "static cli": static_php(fastcgi=False),
    "cli": php_elf(data=php_data(sapi="cli")),
    "cli-server": php_elf(data=php_data(sapi="cli-server")),
    "nameless": php_elf(data={name: data for name, data in php_data().items() if name != "texts"}),
    "not php": elf(),
}
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="these codes are those that root gets")


@pytest.fixture
def bpf_lacks(monkeypatch: pytest.MonkeyPatch) -> list[PhptraceError]:
    """The errors of BPF on this host, in place of the real ones."""
    lacks: list[PhptraceError] = []
    monkeypatch.setitem(BACKENDS, "bpf", dataclasses.replace(BACKENDS["bpf"], unmet=lambda: lacks))
    return lacks


@pytest.fixture
def no_bcc(monkeypatch: pytest.MonkeyPatch) -> None:
    """A Python in which bcc is not installed."""
    monkeypatch.setitem(sys.modules, "bcc", None)


@pytest.fixture
def pid_of(tmp_path: Path) -> Iterator[Callable[[str], int]]:
    """The PID of a process that runs one of PROGRAMS, by its name."""
    with contextlib.ExitStack() as stack:

        def started(kind: str) -> int:
            path = executable(tmp_path / kind, PROGRAMS[kind])
            return stack.enter_context(running(path, IDLE)).pid

        yield started


def no_capabilities() -> None:
    """Drop every capability of a child about to run phptrace, as in a container (prctl(2), PR_CAPBSET_DROP)."""
    for capability in range(64):
        ctypes.CDLL(None).prctl(24, capability, 0, 0, 0)


def code_of(*arguments: str, setup: Callable[[], None] | None = None) -> int:
    command = [sys.executable, "-m", "tracer", *arguments]
    return subprocess.run(command, capture_output=True, cwd=ROOT, preexec_fn=setup).returncode


@pytest.mark.parametrize("setup", [None, no_capabilities])
@pytest.mark.parametrize(("target", "code"), [("nonsense", 3), (str(GONE), 6), (str(os.getpid()), 5)])
def test_the_exit_code_is_the_one_of_an_attach_with_or_without_rights(target, code, setup):
    if setup is not None and target.isdecimal() and int(target) == os.getpid():
        code = 4  # without capabilities, phptrace may not even look at this process

    assert code_of("doctor", target, setup=setup) == code
    assert code_of("attach", target, setup=setup) == code


@needs_root
@pytest.mark.parametrize(
    ("kind", "code", "why"),
    [
        ("dynamic", 5, "cannot import bcc"),
        ("cli-server", 5, "cannot import bcc"),
        ("static cli", 5, "is neither php-fpm nor php-cgi"),
        ("cli", 5, "it is PHP's cli"),
        ("nameless", 5, "it has no X-Powered-By text"),
        ("not php", 5, "which is not PHP"),
    ],
)
def test_without_bcc_attach_ends_as_the_doctor_says(no_bcc, run, pid_of, kind, code, why):
    pid = pid_of(kind)

    examined, out, _ = run("doctor", "--json", pid)
    attached, _, err = run("attach", pid)

    assert (examined, attached) == (code, code)
    document = json.loads(out)
    assert (document["can_trace"], document["backend"], document["traced"]) == (False, None, [])
    assert why in document["error"]
    assert err == f"phptrace: {document['error']}\n"


@needs_root
@pytest.mark.parametrize(("name", "code"), [("nonsense", 3), ("php-fpm:phptrace-has-no-such-pool", 3), (str(GONE), 6)])
def test_without_bcc_a_target_that_is_not_there_comes_first(no_bcc, run, name, code):
    assert run("doctor", name)[0] == code
    assert run("attach", name)[0] == code


@needs_root
def test_without_bcc_the_doctor_names_the_package_and_the_other_backend_with_its_cost(no_bcc, run, pid_of):
    _, out, _ = run("doctor", pid_of("dynamic"))

    last = out.splitlines()[-1]
    assert last.startswith("attach would end with: cannot import bcc: ")
    assert "apt install python3-bpfcc" in last
    assert "Or use --backend ptrace, which slows requests down: each system call of a worker stops it twice" in last
    assert "Cannot trace. Fix 1 problem (listed above)." in out


@needs_root
def test_a_static_php_fpm_needs_no_bcc(no_bcc, run, pid_of):
    pid = pid_of("static")
    code, out, _ = run("doctor", "--json", pid)

    document = json.loads(out)
    assert (code, document["error"]) == (0, None)
    assert document["traced"] == [{"backend": "ptrace", "pids": [pid]}]
    [hooks] = [check for check in document["checks"] if check["name"] == "request hooks"]
    assert "it is a static build without dynamic symbols" in hooks["found"]
    assert (hooks["ok"], hooks["by"]) == (False, "bpf")


def test_each_target_has_its_backend_in_the_verdict(bpf_lacks, run, pid_of):
    dynamic, static = pid_of("dynamic"), pid_of("static")
    code, out, _ = run("doctor", dynamic, static)

    assert code == 0
    assert out.splitlines()[-2:] == [
        f"  with backend bpf: process {dynamic}",
        f"  with backend ptrace, which slows requests down: process {static}",
    ]


def test_a_master_that_is_left_out_is_named_beside_one_that_is_traced(bpf_lacks, run, tmp_path):
    pool = "php-fpm: pool phptrace-doctor-test"
    title = "php-fpm: master process (x)"
    good, bad = executable(tmp_path / "good", php_elf()), executable(tmp_path / "bad", PROGRAMS["nameless"])

    with running(good, title, (pool,)) as traced, running(bad, title, (pool,)) as left_out:
        code, out, _ = run("doctor", "--json", "php-fpm:phptrace-doctor-test")

    document = json.loads(out)
    assert (code, document["traced"]) == (0, [{"backend": "bpf", "pids": [traced.pid]}])
    assert [one["pid"] for one in document["not_traced"]] == [left_out.pid]
    assert "it has no X-Powered-By text" in document["not_traced"][0]["why"]
    named = [check for check in document["checks"] if f"process {left_out.pid} is not traced" in check["found"]]
    assert [(check["name"], check["ok"], check["needed"]) for check in named] == [
        ("php-fpm:phptrace-doctor-test", False, False)
    ]


def test_a_check_with_the_same_outcome_for_two_masters_is_printed_once(bpf_lacks, run, tmp_path):
    pool, title = "php-fpm: pool phptrace-doctor-test", "php-fpm: master process (x)"
    path = executable(tmp_path / "fpm", php_elf())

    with running(path, title, (pool,)) as one, running(path, title, (pool,)) as other:
        code, out, _ = run("doctor", "--json", "php-fpm:phptrace-doctor-test")

    checks = json.loads(out)["checks"]
    masters = [check["found"] for check in checks if check["name"] == "php-fpm:phptrace-doctor-test"]
    assert code == 0
    assert [str(process.pid) in found for process, found in zip((one, other), masters, strict=True)] == [True, True]
    assert [check["name"] for check in checks].count("request hooks") == 1


def test_every_check_names_backends_that_there_are():
    assert {name for one in checks(["nonsense"]) for name in one.by} == set(BACKENDS)


def test_where_bpf_is_not_possible_the_verdict_is_ptrace(bpf_lacks, pid_of):
    bpf_lacks.append(OLD_KERNEL)
    decided = verdict([str(pid_of("dynamic"))])

    assert (decided.backend, decided.exit_code) == ("ptrace", 0)


def test_a_process_that_is_traced_already_has_the_exit_code_of_its_refusal(bpf_lacks, pid_of):
    bpf_lacks.append(OLD_KERNEL)
    pid = pid_of("dynamic")
    syscalls.seize(pid, syscalls.O_SYSGOOD)

    [refused] = [one for one in checks([str(pid)]) if one.name == "tracees"]
    decided = verdict([str(pid)])

    assert "already traced" in refused.found
    assert (decided.backend, decided.exit_code) == (None, 5)


def test_where_ptrace_is_refused_altogether_the_exit_code_is_not_permitted(bpf_lacks, pid_of, monkeypatch):
    bpf_lacks.append(OLD_KERNEL)
    refused = [NotPermittedError("cannot trace even a child process.")]
    monkeypatch.setitem(BACKENDS, "ptrace", dataclasses.replace(BACKENDS["ptrace"], unmet=lambda: refused))

    assert verdict([str(pid_of("dynamic"))]).exit_code == 4


def test_a_php_that_does_not_speak_fastcgi_cannot_be_traced_without_bpf(bpf_lacks, pid_of):
    """ptrace finds requests by FastCGI: `attach` refuses other SAPIs with exit code 5."""
    bpf_lacks.append(OLD_KERNEL)
    pid = pid_of("cli-server")

    failed = {one.name: one.by for one in checks([str(pid)]) if not one.ok and one.needed}
    assert failed.get("FastCGI") == ("ptrace",)
    assert verdict([str(pid)]).exit_code == 5


def test_a_script_on_the_command_line_fails_a_check_of_all_backends(bpf_lacks, pid_of):
    pid = pid_of("cli")
    found = {one.name: one for one in checks([str(pid)])}

    assert (found["requests"].ok, set(found["requests"].by)) == (False, set(BACKENDS))
    assert "FastCGI" not in found, "--backend bpf cannot trace it either"
    assert f"phptrace heap {pid} --again 10s" in str(found["requests"].fix)
    assert verdict([str(pid)]).exit_code == 5


def test_a_php_without_symbols_can_be_traced_with_ptrace(bpf_lacks, pid_of):
    pid = pid_of("static")
    found: dict[str, Check] = {one.name: one for one in checks([str(pid)])}

    assert (found["request hooks"].ok, found["request hooks"].by) == (False, ("bpf",))
    assert found["tracees"].ok
    assert verdict([str(pid)]).backend == "ptrace"


@pytest.mark.parametrize(
    ("release", "pmu", "found"),
    [
        ("6.6.1", 7, "available as BPF links"),
        ("6.5.0-generic", 7, "available as perf events, which are slow to remove"),
        ("6.6.1", None, "not available"),
    ],
)
def test_the_kind_of_probe_that_this_kernel_has_is_printed(monkeypatch, release, pmu, found):
    monkeypatch.setattr("platform.release", lambda: release)
    monkeypatch.setattr(kernel, "uprobe_pmu", lambda: pmu)

    (uprobes,) = [one for one in checks(["nonsense"]) if one.name == "uprobes"]
    assert (uprobes.found, uprobes.ok) == (found, pmu is not None)
