"""--ptrace-mode: its names, the former one, and the backends it cannot be combined with."""

from __future__ import annotations

import click
import pytest

from tracer.backends import PtraceMode
from tracer.commands.attach import attach
from tracer.commands.attaching import Plan
from tracer.commands.options import PTRACE_MODE
from tracer.errors import UsageError


@pytest.mark.parametrize(
    ("name", "mode"),
    [
        ("syscalls", PtraceMode.SYSCALLS),
        ("breakpoints", PtraceMode.BREAKPOINTS),
        ("boundaries", PtraceMode.BREAKPOINTS),
    ],
)
def test_a_mode_is_found_by_its_name_and_breakpoints_by_the_former_one(name, mode):
    assert PTRACE_MODE.convert(name, None, None) is mode


def test_an_unknown_mode_is_refused():
    with pytest.raises(click.BadParameter, match="'syscalls', 'breakpoints'"):
        PTRACE_MODE.convert("signals", None, None)


def test_the_former_name_is_not_in_the_help():
    help_text = attach.get_help(click.Context(attach))

    assert "[syscalls|breakpoints]" in help_text
    assert "boundaries" not in help_text


def test_the_mode_cannot_be_used_with_bpf():
    with pytest.raises(
        UsageError, match="^cannot use --ptrace-mode with --backend bpf: only ptrace has modes. Use --backend ptrace.$"
    ):
        Plan.of(
            targets=["php-fpm"], pids=[], duration=None, count=None, backend="bpf", uri=None, script=None, slow=None,
            min_growth=None, query="strip", force=False, ptrace_mode=PtraceMode.BREAKPOINTS,
        )  # fmt: skip
