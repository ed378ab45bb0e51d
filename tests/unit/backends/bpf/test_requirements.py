"""The requirements of BPF: which of them the user can fix on the host."""

from __future__ import annotations

import ctypes
import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tracer.backends.bpf.programs import _refused_by_bcc, bcc_problem
from tracer.backends.bpf.requirements import unmet_requirements
from tracer.errors import UnsupportedError

ROOT = Path(__file__).resolve().parents[4]
_PR_CAPBSET_DROP, _PR_SET_SECUREBITS, _PR_SET_NO_NEW_PRIVS = 24, 28, 38  # prctl(2)
_SECBIT_NOROOT = 1
_REPORT = (
    "from tracer.backends.bpf.requirements import unmet_requirements\n"
    "first = unmet_requirements()[0]\n"
    "print(type(first).__name__, first.fixable, first)"
)


def _prctl(option: int, value: int) -> None:
    ctypes.CDLL(None, use_errno=True).prctl(option, value, 0, 0, 0)


def as_user() -> None:
    """Give root no rights in the program that is run next, as an ordinary user has none; sudo would help."""
    _prctl(_PR_SET_SECUREBITS, _SECBIT_NOROOT)


def without_sudo() -> None:
    """The same where sudo does nothing."""
    _prctl(_PR_SET_NO_NEW_PRIVS, 1)
    as_user()


def in_container() -> None:
    """Drop all rights for good, as Docker drops most."""
    for capability in range(64):
        _prctl(_PR_CAPBSET_DROP, capability)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can drop its rights")
@pytest.mark.parametrize(
    ("setup", "fixable", "fix"),
    [
        (as_user, True, "Run with sudo."),
        (without_sudo, False, "Run with sudo on the host, or start the container with --privileged."),
        (in_container, False, "Run with sudo on the host, or start the container with --privileged."),
    ],
)
def test_missing_rights_can_be_fixed_where_sudo_can_give_them(setup, fixable, fix):
    ended = subprocess.run([sys.executable, "-c", _REPORT], capture_output=True, text=True, cwd=ROOT, preexec_fn=setup)

    assert ended.stdout == (
        f"NotPermittedError {fixable} cannot trace with BPF: this process lacks CAP_SYS_PTRACE, CAP_DAC_READ_SEARCH,"
        f" CAP_BPF, CAP_PERFMON. {fix}\n"
    )


def test_a_kernel_that_cannot_be_read_for_lack_of_files_is_not_taken_for_one_without_uprobes():
    program = (
        "import resource\n"
        "from tracer.backends.bpf import requirements\n"
        "resource.setrlimit(resource.RLIMIT_NOFILE, (3, 3))\n"
        "[error] = requirements._kernel_problems()\n"
        "print(error.fixable, error)"
    )
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=ROOT)

    assert ended.stdout == (
        "True cannot read /sys/bus/event_source/devices/uprobe/type: Too many open files."
        " Close files, or raise the limit (ulimit -n).\n"
    ), ended.stderr


def test_a_bcc_that_is_not_installed_can_be_fixed(monkeypatch):
    monkeypatch.setitem(sys.modules, "bcc", None)
    problem = bcc_problem()

    assert problem is not None
    assert problem.fixable
    assert str(problem) in map(str, unmet_requirements())


@pytest.mark.parametrize(("code", "fixable"), [(errno.EMFILE, True), (errno.ENFILE, True), (errno.EPERM, False)])
def test_a_program_that_cannot_be_loaded_for_lack_of_files_can_be_fixed(code, fixable):
    with pytest.raises(UnsupportedError, match="^cannot load it: ") as refused, _refused_by_bcc("load it"):
        raise Exception(f"Failed to load BPF program b'on_exit': {os.strerror(code)}")

    assert refused.value.fixable is fixable
    assert ("ulimit -n" in str(refused.value)) is fixable
