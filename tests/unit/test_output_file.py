"""New files: their rights, their owner, and the files they never overwrite."""

from __future__ import annotations

import errno
import os
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from subprocesses import as_nobody

from tracer.errors import IncompleteError, UsageError
from tracer.output_file import check_folder, create, opened, refuse_own_input
from tracer.output_place import refuse_foreign_place

ROOT = Path(__file__).resolve().parents[2]
ADVICE = "Name a file in another place with -o."
AS_ROOT = pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file away")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "new"


def made(path: Path) -> os.stat_result:
    os.close(create(str(path)))
    return path.lstat()


def sudo(monkeypatch: pytest.MonkeyPatch, uid: str | None, gid: str | None) -> None:
    for name, value in (("SUDO_UID", uid), ("SUDO_GID", gid)):
        if value is None:
            monkeypatch.delenv(name, raising=False)
        else:
            monkeypatch.setenv(name, value)


def test_a_new_file_is_empty_and_can_be_written_and_read(path):
    descriptor = create(str(path))

    os.write(descriptor, b"growth")
    assert os.pread(descriptor, 7919, 0) == b"growth"
    os.close(descriptor)
    assert path.read_bytes() == b"growth"


@pytest.mark.parametrize("umask", [0, 0o777])
def test_only_its_owner_may_read_a_new_file_whatever_the_umask(path, umask):
    before = os.umask(umask)
    try:
        mode = made(path).st_mode
    finally:
        os.umask(before)

    assert mode == stat.S_IFREG | 0o600


def test_a_file_that_is_there_stays_as_it_is(path):
    path.write_text("precious")
    path.chmod(0o644)

    with pytest.raises(FileExistsError):
        create(str(path))

    assert (path.read_text(), stat.S_IMODE(path.stat().st_mode)) == ("precious", 0o644)


@pytest.mark.parametrize("there", [True, False])
def test_no_file_is_made_through_a_link(path, there):
    target = path.with_name("target")
    if there:
        target.write_text("precious")
    path.symlink_to(target)

    with pytest.raises(FileExistsError):
        create(str(path))

    assert path.is_symlink()
    assert target.exists() == there
    assert not there or target.read_text() == "precious"


@pytest.mark.parametrize("unnamed", [True, False])
def test_a_folder_is_tried_and_stays_as_it_is(tmp_path, monkeypatch, unnamed):
    if not unnamed:
        monkeypatch.setattr(os, "O_TMPFILE", os.O_DIRECTORY | os.O_WRONLY)  # as where the kernel does not know it

    check_folder(str(tmp_path), "r.phptrace")

    assert list(tmp_path.iterdir()) == []


def test_a_folder_in_which_no_file_can_be_made_is_a_usage_error():
    with pytest.raises(UsageError, match=r"cannot write /proc/r: .*\. Name a file in another place"):
        check_folder("/proc", "/proc/r")


def test_a_file_in_a_missing_folder_is_a_usage_error(tmp_path):
    with pytest.raises(UsageError) as refused:
        create(f"{tmp_path}/no/new")

    assert str(refused.value) == f"cannot write {tmp_path}/no/new: No such file or directory. {ADVICE}"


@AS_ROOT
def test_under_sudo_a_new_file_belongs_to_the_user(path, monkeypatch):
    sudo(monkeypatch, "65531", "65521")

    found = made(path)

    assert (found.st_uid, found.st_gid, stat.S_IMODE(found.st_mode)) == (65531, 65521, 0o600)


@AS_ROOT
@pytest.mark.parametrize(
    ("uid", "gid"),
    [
        (None, None),
        ("65531", None),
        (None, "65521"),
        ("root", "65521"),
        ("65531", ""),
        ("-1", "-1"),
        ("\uff11", "\uff11"),
    ],
)
def test_without_both_numbers_of_a_sudo_user_a_new_file_stays_roots(path, monkeypatch, uid, gid):
    sudo(monkeypatch, uid, gid)

    found = made(path)

    assert (found.st_uid, found.st_gid) == (0, os.getegid())


def test_a_user_who_is_not_root_keeps_the_file_whatever_sudo_says(monkeypatch):
    sudo(monkeypatch, "65531", "65521")
    directory = Path(tempfile.mkdtemp())
    directory.chmod(0o777)

    code = as_nobody(lambda: made(directory / "new").st_uid == os.getuid())

    shutil.rmtree(directory)
    assert code == 0


def test_an_output_file_is_there_only_once_it_is_complete(path):
    with opened(str(path), force=False) as out:
        out.write("growth")
        assert not path.exists()

    assert path.read_text() == "growth"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert list(path.parent.iterdir()) == [path]


def write_half(path: Path, *, force: bool) -> None:
    with opened(str(path), force=force) as out:
        out.write("gro")
        raise ZeroDivisionError


@pytest.mark.parametrize("force", [False, True])
def test_an_output_that_fails_half_way_leaves_nothing(path, force):
    with pytest.raises(ZeroDivisionError):
        write_half(path, force=force)

    assert list(path.parent.iterdir()) == []


def test_an_output_that_fails_half_way_leaves_the_file_it_was_to_overwrite(path):
    path.write_text("precious")

    with pytest.raises(ZeroDivisionError):
        write_half(path, force=True)

    assert path.read_text() == "precious"
    assert list(path.parent.iterdir()) == [path]


def test_an_output_overwrites_a_file_only_with_force(path):
    path.write_text("precious")

    with pytest.raises(UsageError) as refused, opened(str(path), force=False):
        pytest.fail("there is no file to write to")
    with opened(str(path), force=True) as out:
        out.write("growth")

    assert str(refused.value) == f"cannot write {path}: it exists. Choose another name, or overwrite it with -f."
    assert path.read_text() == "growth"


def test_an_output_does_not_overwrite_a_file_that_was_made_meanwhile(path):
    with pytest.raises(UsageError, match="exists"), opened(str(path), force=False):
        path.write_text("precious")

    assert path.read_text() == "precious"
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize("force", [False, True])
def test_an_output_neither_follows_nor_replaces_a_link(path, force):
    target = path.with_name("target")
    target.write_text("precious")
    path.symlink_to(target)

    with pytest.raises(UsageError, match="it is a symbolic link"), opened(str(path), force=force):
        pytest.fail("there is no file to write to")

    assert path.is_symlink()
    assert target.read_text() == "precious"


@pytest.mark.parametrize("force", [False, True])
def test_an_output_must_not_be_a_folder_or_a_device(tmp_path, force):
    for name, kind in ((str(tmp_path), "is a directory"), ("/dev/null", "is not a file")):
        with pytest.raises(UsageError, match=f"cannot write {name}: it {kind}"), opened(name, force=force):
            pytest.fail("there is no file to write to")


@pytest.mark.parametrize("name", ["-", "/dev/stdout", "/dev/fd/1", "/proc/self/fd/1"])
def test_stdout_by_any_name_is_stdout(capsys, name):
    with opened(name, force=True) as out:
        out.write("growth")

    assert capsys.readouterr().out == "growth"
    assert Path("/dev/stdout").is_symlink()


@AS_ROOT
def test_root_does_not_replace_a_file_of_another_user(path, monkeypatch):
    path.write_text("precious")
    os.chown(path, 65531, 65521)

    with pytest.raises(UsageError, match="it belongs to another user"), opened(str(path), force=True):
        pytest.fail("there is no file to write to")
    sudo(monkeypatch, "65531", "65521")
    with opened(str(path), force=True) as out:
        out.write("growth")

    assert path.read_text() == "growth"


@AS_ROOT
@pytest.mark.parametrize(
    ("owner", "mode", "who"),
    [
        (65531, 0o755, "user 65531"),
        (0, 0o757, "every user"),
        (0, 0o775, "its group"),
        (0, 0o1777, None),
        (0, 0o755, None),
    ],
)
@pytest.mark.parametrize("below", ["", "of-root/"])
def test_root_writes_nothing_where_another_user_could_replace_it(tmp_path, monkeypatch, owner, mode, who, below):
    sudo(monkeypatch, None, None)
    folder = tmp_path / "theirs"
    (folder / below).mkdir(parents=True)
    os.chown(folder, owner, 65521)
    folder.chmod(mode)
    path = str(folder / below / "new")

    if who is None:
        refuse_foreign_place(path)
        return
    with pytest.raises(UsageError, match=f"{who} may replace files in {folder}"):
        refuse_foreign_place(path)
    with opened(path, force=True) as out:
        out.write("growth")
    assert Path(path).read_text() == "growth"


@AS_ROOT
def test_root_follows_no_link_that_another_user_could_replace(tmp_path, monkeypatch):
    sudo(monkeypatch, None, None)
    safe, theirs, shared = (tmp_path / name for name in ("safe", "theirs", "shared"))
    for folder in (safe, theirs, shared):
        folder.mkdir()
        (folder / "link").symlink_to("../safe")
    os.chown(theirs, 65531, 65521)
    shared.chmod(0o1777)
    os.chown(shared / "link", 65531, 65521, follow_symlinks=False)
    (safe / "far").symlink_to(theirs / "link")

    refuse_foreign_place(str(safe / "link" / "new"))
    for way, place in ((theirs / "link", theirs), (shared / "link", shared / "link"), (safe / "far", theirs)):
        with pytest.raises(UsageError, match=f"user 65531 may replace files in {place}, "):
            refuse_foreign_place(str(way / "new"))


@AS_ROOT
def test_a_loop_of_links_is_no_place(tmp_path, monkeypatch):
    sudo(monkeypatch, None, None)
    (tmp_path / "loop").symlink_to("loop")

    with pytest.raises(UsageError, match="Too many levels of symbolic links"):
        refuse_foreign_place(str(tmp_path / "loop" / "new"))


@AS_ROOT
def test_the_folder_of_the_user_who_called_sudo_is_no_foreign_place(tmp_path, monkeypatch):
    sudo(monkeypatch, "65531", "65521")
    os.chown(tmp_path, 65531, 65521)
    tmp_path.chmod(0o775)

    refuse_foreign_place(str(tmp_path / "new"))


def test_an_output_on_a_full_disk_is_named_and_leaves_nothing(path):
    with pytest.raises(IncompleteError) as failed, opened(str(path), force=False):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    assert str(failed.value) == f"cannot write {path}: No space left on device. No file was written. {ADVICE}"
    assert list(path.parent.iterdir()) == []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_an_output_ended_by_a_signal_leaves_nothing(path, number):
    program = f"""
import os, signal
from tracer.output_file import opened
signal.signal(signal.SIGINT, signal.SIG_DFL)  # as tracer.__main__ has it
with opened({str(path)!r}, force=False) as out:
    out.write("growth")
    os.kill(os.getpid(), {int(number)})
"""
    ended = subprocess.run([sys.executable, "-c", program], env={**os.environ, "PYTHONPATH": str(ROOT)})

    assert ended.returncode == -number
    assert list(path.parent.iterdir()) == []


def test_signals_do_what_they_did_once_the_output_is_written(path):
    before = signal.getsignal(signal.SIGTERM)

    with opened(str(path), force=False):
        during = signal.getsignal(signal.SIGTERM)

    assert (before, during != before, signal.getsignal(signal.SIGTERM)) == (signal.SIG_DFL, True, signal.SIG_DFL)


def test_an_output_must_not_be_an_input(tmp_path):
    one = tmp_path / "one"
    one.write_text("")
    two = tmp_path / "two"
    two.hardlink_to(one)

    with pytest.raises(UsageError) as refused:
        refuse_own_input(str(two), [str(one)])

    assert str(refused.value) == f"cannot write {two}: it is also an input file. Choose another name with -o."
    refuse_own_input(str(tmp_path / "three"), [str(one), str(tmp_path / "gone")])
