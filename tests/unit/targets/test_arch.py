"""The facts of x86-64, compared with the C headers of the machine that runs the tests."""

from __future__ import annotations

import platform
import shutil
import subprocess

import pytest

from tracer.targets import arch

PROGRAM = r"""
#include <stddef.h>
#include <stdio.h>
#include <sys/syscall.h>
#include <sys/user.h>
#define NUMBER(name) printf("SYS_" #name " %d\n", SYS_##name)
int main(void)
{
	NUMBERS
	printf("debug %zu\nregisters %zu\norig_rax %zu\nrip %zu\nrsp %zu\nfloats %zu\n", offsetof(struct user, u_debugreg),
		sizeof(struct user_regs_struct), offsetof(struct user_regs_struct, orig_rax),
		offsetof(struct user_regs_struct, rip), offsetof(struct user_regs_struct, rsp),
		sizeof(struct user_fpregs_struct));
}
"""
NAMES = [name for name in vars(arch) if name.startswith("SYS_")]


@pytest.fixture(scope="module")
def in_c(tmp_path_factory):
    """Values of the headers, by name, from the compiler."""
    if platform.machine() != arch.MACHINE or shutil.which("cc") is None:
        pytest.skip("needs a C compiler on x86-64")
    folder = tmp_path_factory.mktemp("arch")
    numbers = " ".join(f"NUMBER({name.removeprefix('SYS_').lower()});" for name in NAMES)
    (folder / "arch.c").write_text(PROGRAM.replace("NUMBERS", numbers))
    subprocess.run(["cc", "-o", folder / "arch", folder / "arch.c"], check=True)
    lines = subprocess.run([folder / "arch"], check=True, stdout=subprocess.PIPE, text=True).stdout.splitlines()
    return {name.upper() if name.startswith("SYS_") else name: int(value) for name, value in map(str.split, lines)}


def test_system_call_numbers_are_those_of_the_headers(in_c):
    assert {name: getattr(arch, name) for name in NAMES} == {name: in_c[name] for name in NAMES}


def test_registers_are_where_the_headers_have_them(in_c):
    assert 8 * len(arch.USER_REGISTERS) == in_c["registers"]
    assert {name: 8 * arch.USER_REGISTERS.index(name) for name in ("orig_rax", "rip", "rsp")} == {
        name: in_c[name] for name in ("orig_rax", "rip", "rsp")
    }
    assert in_c["floats"] == arch.FLOAT_BYTES
    assert arch.debug_register_offset(0) == in_c["debug"]


def test_the_control_register_enables_the_first_breakpoints():
    assert [arch.debug_control(count) for count in range(5)] == [0, 0b1, 0b101, 0b10101, 0b1010101]


def test_a_result_is_signed():
    assert [arch.syscall_result(rax) for rax in (0, 7, (1 << 64) - 516)] == [0, 7, arch.RESTART_BLOCK]


def test_the_restorer_calls_rt_sigreturn():
    assert arch.RESTORER.hex() == "48c7c00f0000000f05"
