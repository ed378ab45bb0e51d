"""The file that flame writes: its format, and what it must not overwrite."""

from __future__ import annotations

import os
import stat

import pytest


@pytest.mark.parametrize(
    ("name", "options", "begins"),
    [
        ("o.svg", [], "<"),
        ("o.folded", [], "/index.php;"),
        ("o.txt", [], "/index.php;"),
        ("o.json", [], '{"$schema"'),
        ("o.xyz", [], "<"),
        ("o.svg", ["--format", "folded"], "/index.php;"),
    ],
)
def test_the_format_of_a_flame_follows_the_option_or_the_file_name(run, path, tmp_path, name, options, begins):
    code, out, _ = run("flame", *options, path, "-o", tmp_path / name)

    assert (code, out) == (0, "")
    assert (tmp_path / name).read_text().startswith(begins)
    assert stat.S_IMODE((tmp_path / name).stat().st_mode) == 0o600


def test_a_flame_does_not_overwrite_unless_forced(run, path, tmp_path):
    (tmp_path / "o.svg").write_text("precious")

    code, _, err = run("flame", "-o", tmp_path / "o.svg", path)

    assert (code, (tmp_path / "o.svg").read_text()) == (2, "precious")
    assert "overwrite it with -f" in err
    assert run("flame", "-f", "-o", tmp_path / "o.svg", path)[0] == 0
    assert (tmp_path / "o.svg").read_text().endswith("</svg>\n")


def test_a_flame_is_never_written_through_a_link(run, path, tmp_path):
    (tmp_path / "precious").write_text("precious")
    (tmp_path / "o.svg").symlink_to(tmp_path / "precious")

    codes = [run("flame", *force, "-o", tmp_path / "o.svg", path)[0] for force in ([], ["-f"])]

    assert codes == [2, 2]
    assert (tmp_path / "precious").read_text() == "precious"
    assert (tmp_path / "o.svg").is_symlink()


@pytest.mark.parametrize("other_name", [False, True])
def test_a_recording_is_not_overwritten_by_its_own_flame(run, path, tmp_path, other_name):
    output = path
    if other_name:
        output = tmp_path / "link.svg"
        output.hardlink_to(path)
    before = path.read_bytes()

    code, out, err = run("flame", "-f", "-o", output, path)

    assert (code, out) == (2, "")
    assert err == f"phptrace: cannot write {output}: it is also an input file. Choose another name with -o.\n"
    assert path.read_bytes() == before


def test_a_flame_in_a_missing_folder_is_a_usage_error(run, path, tmp_path):
    code, _, err = run("flame", "-o", tmp_path / "no" / "o.svg", path)

    assert code == 2
    assert "No such file or directory" in err


def test_a_file_that_cannot_be_overwritten_is_a_usage_error(run, path):
    code, out, err = run("flame", "-f", "-o", "/proc/version", path)

    assert (code, out) == (2, "")
    assert err.startswith("phptrace: cannot overwrite /proc/version: ")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file away")
def test_under_sudo_a_flame_belongs_to_the_user(run, path, tmp_path, monkeypatch):
    monkeypatch.setenv("SUDO_UID", "65531")
    monkeypatch.setenv("SUDO_GID", "65521")

    run("flame", "-o", tmp_path / "o.svg", path)

    made = (tmp_path / "o.svg").stat()
    assert (made.st_uid, made.st_gid) == (65531, 65521)
