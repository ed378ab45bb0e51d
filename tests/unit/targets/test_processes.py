"""Processes as /proc shows them, on processes of the tests' own."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from phps import executable, php_data, php_elf, running

from tracer.targets import php as php_binary
from tracer.targets import processes
from tracer.targets.elf import Elf
from tracer.targets.processes import Process

NO_PID = 1 << 30  # above any pid_max


@contextlib.contextmanager
def started(*title: str) -> Iterator[subprocess.Popen[bytes]]:
    """/bin/cat with that title and arguments, once it runs: right after execve(2) it has no title yet."""
    with subprocess.Popen(title, executable="/bin/cat", stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
        assert child.stdin is not None
        assert child.stdout is not None
        child.stdin.write(b"ready\n")
        child.stdin.flush()
        assert child.stdout.readline() == b"ready\n"
        yield child


@pytest.fixture
def waiting() -> Iterator[subprocess.Popen[bytes]]:
    """A process of another program that waits for its input to end."""
    with started("cat") as child:
        yield child


def seen(pid: int) -> Process:
    found = processes.process(pid)
    assert found is not None
    return found


def test_this_process_is_seen_with_its_parent_and_executable():
    found = seen(os.getpid())

    exe = os.stat("/proc/self/exe")
    assert (found.pid, found.parent_pid) == (os.getpid(), os.getppid())
    assert found.executable == (exe.st_dev, exe.st_ino)


def test_a_child_is_born_no_earlier_than_its_parent(waiting):
    child = seen(waiting.pid)

    assert child.parent_pid == os.getpid()
    assert child.start_ticks >= seen(os.getpid()).start_ticks > 0


def test_the_title_is_the_arguments_with_blanks_between():
    with started("php-fpm: pool  a", "-") as child:
        title = seen(child.pid).title

    assert title == "php-fpm: pool  a -"


def test_a_title_that_is_not_utf8_is_recoverable(tmp_path):
    path = executable(tmp_path / "php-fpm", php_elf())

    with running(path, os.fsdecode(b"php-fpm: pool \xff\xfe")) as found:
        assert found.title.encode("utf-8", "surrogateescape") == b"php-fpm: pool \xff\xfe"


def test_a_title_is_read_only_so_far():
    with started("t" * 10_007) as child:
        title = seen(child.pid).title

    assert title == "t" * 4096


@pytest.mark.parametrize("name", ["a) S 1 (b", "a b", "))", "\x1b[31m"])
def test_a_program_may_have_any_name(tmp_path, name):
    path = executable(tmp_path / name, php_elf())

    with running(path, "anything") as found:
        assert (found.parent_pid, found.title) == (os.getpid(), "anything")


def test_a_pid_that_does_not_exist_is_none():
    assert processes.process(NO_PID) is None


def test_a_zombie_is_none(waiting):
    waiting.kill()
    os.waitid(os.P_PID, waiting.pid, os.WEXITED | os.WNOWAIT)  # dead, and not yet waited for

    assert os.path.exists(f"/proc/{waiting.pid}")
    assert processes.process(waiting.pid) is None


def test_every_process_is_listed_once_in_order(waiting):
    pids = [found.pid for found in processes.processes()]

    assert pids == sorted(set(pids))
    assert {os.getpid(), waiting.pid} <= set(pids)


@pytest.mark.parametrize(
    ("title", "pool"),
    [
        ("php-fpm: pool www", "www"),
        ("php-fpm: pool www          ", "www"),
        ("php-fpm: pool two words", "two words"),
        ("php-fpm: pool ", None),
        ("php-fpm: master process (/etc/php/fpm.conf)", None),
        ("php-fpm", None),
        ("xphp-fpm: pool www", None),
        ("", None),
    ],
)
def test_the_pool_is_what_the_title_names(title, pool):
    assert processes.pool_of(title) == pool


def test_the_children_of_a_master_are_those_that_run_what_it_runs(tmp_path):
    path = executable(tmp_path / "php-fpm", php_elf())

    with running(path, "php-fpm: master process (x)", ("php-fpm: pool www", "php-fpm: pool shop")) as master:
        found = processes.children(master)

    assert sorted(child.pool or "" for child in found) == ["shop", "www"]
    assert {child.parent_pid for child in found} == {master.pid}


def test_a_child_that_runs_another_program_is_not_a_child_of_the_master(waiting):
    assert waiting.pid not in [child.pid for child in processes.children(seen(os.getpid()))]


def test_the_executable_is_opened_even_if_it_was_replaced(tmp_path):
    path = executable(tmp_path / "php-fpm", php_elf())

    with running(path, "old") as old:
        path.unlink()
        executable(path, b"\x7fELF: another")
        image = processes.open_executable(old.pid)

    assert image.identity == old.executable
    assert Elf(image).symbol("php_request_startup") is not None
    image.close()


def test_the_executable_of_a_process_that_is_gone_cannot_be_opened():
    with pytest.raises(FileNotFoundError):
        processes.open_executable(NO_PID)


def test_the_files_a_process_has_mapped_are_listed_with_their_inodes():
    exe = os.stat("/proc/self/exe")

    ours = [mapping for mapping in processes.file_mappings(os.getpid()) if mapping.inode == exe.st_ino]

    assert [mapping.offset for mapping in ours] == sorted({mapping.offset for mapping in ours})
    assert any(mapping.executable for mapping in ours)
    assert all(mapping.end > mapping.start for mapping in ours)
    assert {mapping.path for mapping in ours} == {os.readlink("/proc/self/exe")}


def test_a_mapped_file_may_have_blanks_in_its_name(tmp_path):
    path = executable(tmp_path / "a name  of blanks", php_elf())

    with running(path, "anything") as found:
        assert {mapping.path for mapping in processes.file_mappings(found.pid)} == {str(path)}


def test_the_mappings_of_a_process_that_is_gone_cannot_be_read():
    with pytest.raises(FileNotFoundError):
        processes.file_mappings(NO_PID)


def test_mappings_beyond_a_bound_are_not_read_and_the_reason_is_given(monkeypatch):
    size = len(Path("/proc/self/maps").read_bytes())
    monkeypatch.setattr(processes, "MAPS_BYTES", size // 2)

    with pytest.raises(OSError, match=f"its list of mappings has more than {size // 2:,} bytes: '/proc/{os.getpid()}/"):
        processes.file_mappings(os.getpid())


def test_a_static_process_has_no_c_library(tmp_path):
    path = executable(tmp_path / "php-fpm", php_elf())

    with running(path, "anything") as found:
        assert processes.open_libc(found.pid) is None


@pytest.mark.parametrize("sapi", ["fpm-fcgi", "cli", "apache2handler"])
def test_the_sapi_is_read_in_the_live_process(tmp_path, sapi):
    path = executable(tmp_path / "php", php_elf(data=php_data(sapi=sapi)))

    with running(path, "anything") as found:
        image = processes.open_executable(found.pid)
        assert processes.sapi_name(found.pid, php_binary.inspect(image)) == sapi
        image.close()


def test_the_sapi_of_a_process_that_does_not_run_that_php_is_unknown(tmp_path, waiting):
    path = executable(tmp_path / "php", php_elf())

    with running(path, "anything") as found:
        image = processes.open_executable(found.pid)
        assert processes.sapi_name(waiting.pid, php_binary.inspect(image)) is None
        image.close()


def test_the_sapi_behind_a_wild_pointer_is_unknown(tmp_path):
    data = {**php_data(), "sapi_module": b"\xff" * 16}
    path = executable(tmp_path / "php", php_elf(data=data))

    with running(path, "anything") as found:
        image = processes.open_executable(found.pid)
        assert processes.sapi_name(found.pid, php_binary.inspect(image)) is None
        image.close()


def test_a_process_of_the_system_is_not_php(waiting):
    image = processes.open_executable(waiting.pid)

    assert not php_binary.is_php(image)
    image.close()


# Installs a filter that allows everything, and waits: struct sock_filter and sock_fprog, include/uapi/linux/filter.h.
FILTERED = """
import ctypes, struct, sys
libc = ctypes.CDLL(None, use_errno=True)
allow = ctypes.create_string_buffer(struct.pack("<HBBI", 0x06, 0, 0, 0x7FFF0000))
program = ctypes.create_string_buffer(struct.pack("<HxxxxxxQ", 1, ctypes.addressof(allow)))
assert libc.prctl(38, 1, 0, 0, 0) == 0 and libc.prctl(22, 2, program, 0, 0) == 0
print("filtered", flush=True)
sys.stdin.read()
"""


def test_a_process_with_a_seccomp_filter_is_distinguished_from_one_without():
    with subprocess.Popen(
        [sys.executable, "-c", FILTERED], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:  # fmt: skip
        assert process.stdout is not None
        assert process.stdout.readline() == "filtered\n"

        assert processes.has_seccomp_filter(process.pid)
        process.communicate()
    assert not processes.has_seccomp_filter(process.pid)
