"""New files: who may read them and whom they belong to, and what they never overwrite."""

from __future__ import annotations

import os
import shutil
import stat
import tempfile
from pathlib import Path

import pytest
from subprocesses import as_nobody

from tracer.errors import UsageError
from tracer.output_file import create

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


def test_only_its_owner_may_read_a_new_file_whatever_the_umask(path):
    before = os.umask(0)
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


def test_a_file_in_a_folder_that_is_not_there_is_a_mistake_of_usage(tmp_path):
    with pytest.raises(UsageError) as refused:
        create(f"{tmp_path}/no/new")

    assert str(refused.value) == f"cannot write {tmp_path}/no/new: No such file or directory"


@AS_ROOT
def test_under_sudo_a_new_file_belongs_to_the_user(path, monkeypatch):
    sudo(monkeypatch, "65531", "65521")

    found = made(path)

    assert (found.st_uid, found.st_gid, stat.S_IMODE(found.st_mode)) == (65531, 65521, 0o600)


@AS_ROOT
@pytest.mark.parametrize(
    ("uid", "gid"), [(None, None), ("65531", None), (None, "65521"), ("root", "65521"), ("65531", ""), ("-1", "-1")]
)
def test_without_both_numbers_of_a_sudo_user_a_new_file_stays_roots(path, monkeypatch, uid, gid):
    sudo(monkeypatch, uid, gid)

    found = made(path)

    assert (found.st_uid, found.st_gid) == (0, os.getegid())


def test_one_who_is_not_root_keeps_the_file_whatever_sudo_says(monkeypatch):
    sudo(monkeypatch, "65531", "65521")
    directory = Path(tempfile.mkdtemp())
    directory.chmod(0o777)

    code = as_nobody(lambda: made(directory / "new").st_uid == os.getuid())

    shutil.rmtree(directory)
    assert code == 0
