"""A recording's file: its rights, the files it never overwrites, and its content after a kill or on a full disk."""

from __future__ import annotations

import os
import shutil
import signal
import sqlite3
import stat
import tempfile
from pathlib import Path
from typing import Any

import pytest
from samples import COMPLETE, recording, request
from subprocesses import as_nobody, in_subprocess

from tracer.errors import RecordingError, UsageError
from tracer.facts import Request
from tracer.recording.reader import Reader
from tracer.recording.writer import Writer

ROOT = Path(__file__).resolve().parents[3]
OTHER = request(nth=7, uri=None)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "r.phptrace"


def read(path: Path) -> list[Request]:
    with Reader(str(path)) as file:
        return list(file.requests())


def test_a_recording_is_one_file_that_only_its_owner_may_read(path):
    before = os.umask(0)
    try:
        recording(path, [COMPLETE])
    finally:
        os.umask(before)

    assert [one.name for one in path.parent.iterdir()] == [path.name]
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_while_it_is_written_only_its_owner_may_read_any_of_it(path):
    before = os.umask(0)
    try:
        with Writer(str(path), {}) as file:
            file.add([COMPLETE])
            file.flush()
            modes = {one.name: stat.S_IMODE(one.stat().st_mode) for one in path.parent.iterdir()}
    finally:
        os.umask(before)

    assert set(modes.values()) == {0o600}


def test_an_existing_file_is_not_overwritten_unless_forced(path):
    path.write_text("precious")

    with pytest.raises(UsageError, match="exists. Choose another name, or overwrite it with -f"):
        Writer(str(path), {})

    assert path.read_text() == "precious"
    with Writer(str(path), {}, force=True):
        pass
    assert read(path) == []


def test_a_link_is_never_written_through(path):
    precious = path.parent / "precious"
    precious.write_text("precious")
    path.symlink_to(precious)

    for force in (False, True):
        with pytest.raises(UsageError, match="it is a symbolic link"):
            Writer(str(path), {}, force=force)

    assert precious.read_text() == "precious"
    assert path.is_symlink()


def test_a_recording_that_is_being_written_is_not_overwritten(path):
    with Writer(str(path), {}) as first:
        first.add([COMPLETE])
        tried = in_subprocess("try: Writer(path, {}, force=True)\nexcept UsageError as exc: print(exc)", path)
        first.add([OTHER])

    assert "another phptrace records to it" in tried.stdout
    assert read(path) == [COMPLETE, OTHER]
    with Writer(str(path), {}, force=True):
        pass
    assert read(path) == []


def test_the_lock_of_a_writer_does_not_cover_the_bytes_that_sqlite_locks(path):
    with Writer(str(path), {}):
        inode = f":{path.stat().st_ino}"
        # proc_locks(5): number kind mandatory access pid device:inode first-byte last-byte
        held = [line.split() for line in Path("/proc/locks").read_text().splitlines() if f"{inode} " in line]

    assert [(words[1], words[3], int(words[6])) for words in held if words[1] != "POSIX"] == [
        ("OFDLCK", "WRITE", 1 << 62)
    ]


def test_a_file_of_ones_own_that_cannot_be_opened_is_overwritten_if_forced():
    directory = Path(tempfile.mkdtemp())
    own = directory / "r.phptrace"
    own.touch(mode=0)
    if os.geteuid() == 0:
        os.chown(own, 65534, 65534)
        os.chown(directory, 65534, 65534)

    code = as_nobody(lambda: Writer(str(own), {}, force=True).close() is None)

    shutil.rmtree(directory)
    assert code == 0


@pytest.mark.parametrize("suffix", ["-wal", "-shm", "-journal"])
def test_a_side_file_that_is_a_fifo_is_named_and_holds_up_nobody(path, suffix):
    recording(path, [COMPLETE])
    os.mkfifo(str(path) + suffix)

    with pytest.raises(RecordingError, match=f"{suffix} is not a regular file"):
        Reader(str(path))


def test_a_side_file_counts_that_is_beside_the_file_that_a_link_leads_to(path):
    recording(path, [COMPLETE])
    os.mkfifo(f"{path}-journal")
    link = path.with_name("link")
    link.symlink_to(path)

    with pytest.raises(RecordingError, match=f"cannot read {link}: {path}-journal is not a regular file"):
        Reader(str(link))


def test_a_file_that_another_process_puts_in_its_place_is_not_written(path, monkeypatch):
    precious = path.with_name("precious")
    precious.write_bytes(b"")
    connect = sqlite3.connect

    def swapped(name: str, **options: Any) -> sqlite3.Connection:
        if name == str(path):
            precious.replace(path)
        return connect(name, **options)

    monkeypatch.setattr(sqlite3, "connect", swapped)
    with pytest.raises(UsageError, match="another process replaced it"):
        Writer(str(path), {})

    assert path.read_bytes() == b""


def test_a_link_that_leads_nowhere_is_not_followed_either(path):
    path.symlink_to(path.parent / "elsewhere")

    with pytest.raises(UsageError, match="it is a symbolic link"):
        Writer(str(path), {})

    assert not (path.parent / "elsewhere").exists()


@pytest.mark.parametrize("suffix", ["-wal", "-shm", "-journal"])
def test_a_journal_that_another_user_planted_is_not_used(path, suffix):
    planted = path.with_name(path.name + suffix)
    planted.write_bytes(b"\x37\x7f\x06\x82" + bytes(4096))

    with pytest.raises(UsageError, match=f"{suffix} exists"):
        Writer(str(path), {})
    assert not path.exists()
    with Writer(str(path), {}, force=True) as file:
        file.add([COMPLETE])
    assert read(path) == [COMPLETE]
    assert not planted.exists()


@pytest.mark.parametrize(("name", "why"), [("no/such/r.phptrace", "there is no directory"), ("sub", "is a directory")])
@pytest.mark.parametrize("force", [False, True])
def test_a_path_where_no_file_can_be_is_a_usage_error(tmp_path, name, why, force):
    (tmp_path / "sub").mkdir()

    with pytest.raises(UsageError, match=why):
        Writer(str(tmp_path / name), {}, force=force)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file away")
def test_under_sudo_the_recording_belongs_to_the_user(path, monkeypatch):
    monkeypatch.setenv("SUDO_UID", "65531")
    monkeypatch.setenv("SUDO_GID", "65521")

    recording(path)

    assert (path.stat().st_uid, path.stat().st_gid) == (65531, 65521)


@pytest.mark.parametrize("value", ["", "-1", "root", "0x10"])
def test_a_sudo_user_that_is_not_a_number_is_ignored(path, monkeypatch, value):
    monkeypatch.setenv("SUDO_UID", value)
    monkeypatch.setenv("SUDO_GID", value)

    recording(path)

    assert path.stat().st_uid == os.geteuid()


def test_a_file_that_cannot_be_removed_is_a_usage_error():
    with pytest.raises(UsageError):
        Writer("/proc/version", {}, force=True)


def test_a_recording_may_have_the_name_sqlite_has_for_memory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with Writer(":memory:", {}) as file:
        file.add([COMPLETE])

    assert read(tmp_path / ":memory:") == [COMPLETE]


def test_a_reader_sees_what_was_flushed_while_the_writer_goes_on(path):
    with Writer(str(path), {"host": "web1"}) as file:
        file.add([COMPLETE])
        file.flush()
        file.add([OTHER])

        assert read(path) == [COMPLETE]
        file.flush()
        assert read(path) == [COMPLETE, OTHER]


def test_a_recording_can_be_read_before_anything_was_flushed(path):
    with Writer(str(path), {"host": "web1"}), Reader(str(path)) as found:
        assert (list(found.requests()), found.meta["host"]) == ([], "web1")


def test_a_reader_in_the_middle_of_it_does_not_keep_the_writer_from_ending(path):
    writer = Writer(str(path), {})
    writer.add([COMPLETE] * 7)
    writer.flush()
    reader = Reader(str(path))
    requests = reader.requests()
    next(requests)
    writer.add([OTHER])

    writer.close()

    assert len(list(requests)) == 6
    reader.close()
    assert len(read(path)) == 8


def test_facts_added_before_an_error_are_kept(path):
    def fails_half_way() -> None:
        with Writer(str(path), {}) as file:
            file.add([COMPLETE])
            raise KeyError

    with pytest.raises(KeyError):
        fails_half_way()

    assert read(path) == [COMPLETE]


def test_a_closed_writer_can_be_closed_again(path):
    file = Writer(str(path), {})
    file.close()

    file.close()

    assert read(path) == []


def test_a_writer_that_is_killed_leaves_what_it_flushed(path):
    ended = in_subprocess(
        "w = Writer(path, {'host': 'web1'})\n"
        "w.add([request] * 1009); w.flush()\n"
        "w.add([request] * 13)\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n",
        path,
    )

    assert ended.returncode == -signal.SIGKILL
    assert read(path) == [COMPLETE] * 1009


def test_a_writer_that_is_killed_before_its_first_flush_leaves_a_recording(path):
    in_subprocess("w = Writer(path, {})\nos.kill(os.getpid(), signal.SIGKILL)\n", path)

    assert read(path) == []


def test_many_requests_are_written_without_being_asked_to(path):
    with Writer(str(path), {}) as file:
        file.add([COMPLETE] * 999)
        before = read(path)
        file.add([OTHER])

        assert (before, len(read(path))) == ([], 1000)


def test_a_full_disk_at_the_very_end_is_reported_too(path):
    ended = in_subprocess(
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "w = Writer(path, {})\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (8192, 8192))\n"
        "try:\n"
        "    with w:\n"
        "        w.add([request] * 499)\n"
        "except IncompleteError:\n"
        "    print('told')\n",
        path,
    )

    assert ended.stdout == "told\n"


def test_a_copy_of_a_recording_that_was_still_growing_can_be_read_where_nothing_may_be_written(path, tmp_path):
    with Writer(str(path), {"host": "web1"}) as file:
        file.add([COMPLETE] * 1000)
        copy = Path(shutil.copy(path, tmp_path / "copy.phptrace"))
        copy.chmod(0o444)
    directory = Path(tempfile.mkdtemp())
    copy = copy.rename(directory / "r.phptrace")
    directory.chmod(0o555)

    code = as_nobody(lambda: Reader(str(copy)).meta["host"] == "web1")

    directory.chmod(0o755)
    shutil.rmtree(directory)
    assert code == 0


def test_a_full_disk_is_reported_and_facts_flushed_before_can_be_read(path):
    ended = in_subprocess(
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 19, 1 << 19))\n"
        "flushed = 0\n"
        "try:\n"
        "    with Writer(path, {}) as w:\n"
        "        while True:\n"
        "            w.add([request] * 101)\n"
        "            w.flush()\n"
        "            flushed += 101\n"
        "except IncompleteError as exc:\n"
        "    print(flushed, str(exc).startswith(f'cannot write {path}: '))\n",
        path,
    )

    flushed, told = ended.stdout.split()
    found = read(path)
    assert told == "True"
    assert int(flushed) > 505
    assert len(found) >= int(flushed)
    assert set(found) == {COMPLETE}


def test_a_directory_or_device_is_not_overwritten_even_when_forced(tmp_path):
    os.mkfifo(tmp_path / "fifo")

    with pytest.raises(UsageError, match="is not a file"):
        Writer(str(tmp_path / "fifo"), {}, force=True)
    assert (tmp_path / "fifo").is_fifo()
