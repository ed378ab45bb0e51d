"""The pools in a master's configuration, read as the master sees it."""

from __future__ import annotations

import ctypes
import dataclasses
import os
from pathlib import Path

import pytest
from samples import within

from tracer.targets.fpm_config import fpm_pools
from tracer.targets.processes import Process, process


def master_of(configuration: Path | str) -> Process:
    """This process, titled as a master with that configuration."""
    found = process(os.getpid())
    assert found is not None
    return dataclasses.replace(found, title=f"php-fpm: master process ({configuration})")


def test_the_pools_are_the_sections_of_the_configuration(tmp_path):
    path = tmp_path / "php-fpm.conf"
    path.write_text("[global]\npid = /run/x\n[www]\nuser = www-data\n\n  [shop]\n")

    assert fpm_pools(master_of(path)) == {"www", "shop"}


def test_the_pools_of_included_files_count(tmp_path):
    path, pool_d = tmp_path / "php-fpm.conf", tmp_path / "pool.d"
    pool_d.mkdir()
    (pool_d / "a.conf").write_text("[a]\n")
    (pool_d / "b.conf").write_text("[b]\n")
    (pool_d / "c.disabled").write_text("[c]\n")
    path.write_text(f"[global]\ninclude={pool_d}/*.conf\n")

    assert fpm_pools(master_of(path)) == {"a", "b"}


def test_a_section_or_an_include_in_a_comment_does_not_count(tmp_path):
    path, other = tmp_path / "php-fpm.conf", tmp_path / "other.conf"
    other.write_text("[other]\n")
    path.write_text(f"; [one]\n;[two]\n;include={other}\nkey = [three]\n[four]\n")

    assert fpm_pools(master_of(path)) == {"four"}


def test_a_name_leaves_bytes_that_are_not_utf8_out(tmp_path):
    path = tmp_path / "php-fpm.conf"
    path.write_bytes(b"[\xff]\n[www]\n")

    assert fpm_pools(master_of(path)) == {"\ufffd", "www"}


@pytest.mark.parametrize(
    "content", ["", "[global]\n", "[unfinished", "include=\n", "include=/nowhere/*.conf\n", "[]\n"]
)
def test_a_configuration_without_pools_has_none(tmp_path, content):
    path = tmp_path / "php-fpm.conf"
    path.write_text(content)

    assert fpm_pools(master_of(path)) == set()


def test_a_configuration_that_is_not_there_has_no_pools(tmp_path):
    assert fpm_pools(master_of(tmp_path / "none.conf")) == set()


def test_a_directory_in_place_of_the_configuration_has_no_pools(tmp_path):
    assert fpm_pools(master_of(tmp_path)) == set()


def test_a_file_that_includes_itself_is_read_once_more_and_no_further(tmp_path):
    path = tmp_path / "php-fpm.conf"
    path.write_text(f"include={path}\n[www]\n")

    assert fpm_pools(master_of(path)) == {"www"}


@pytest.mark.parametrize(
    "title", ["php-fpm: master process", "php-fpm: pool www", "bash (x)", "", "php-fpm: master process ()"]
)
def test_a_title_that_names_no_configuration_has_no_pools(title):
    found = dataclasses.replace(master_of(""), title=title)

    assert fpm_pools(found) == set()


def test_a_configuration_is_read_only_so_far():
    assert fpm_pools(master_of("/dev/zero")) == set()


def test_a_path_that_is_not_a_file_is_not_even_opened(tmp_path):
    os.mkfifo(tmp_path / "php-fpm.conf")
    libc = ctypes.CDLL(None)
    watch = libc.inotify_init1(os.O_NONBLOCK)
    assert libc.inotify_add_watch(watch, os.fsencode(tmp_path / "php-fpm.conf"), 0x20) > 0  # IN_OPEN

    fpm_pools(master_of(tmp_path / "php-fpm.conf"))

    with open(watch, "rb", buffering=0) as events:
        assert events.read(4096) is None  # some devices act on being opened and closed, as /dev/watchdog


def test_a_fifo_in_place_of_the_configuration_does_not_hold_up_the_tracer(tmp_path):
    os.mkfifo(tmp_path / "php-fpm.conf")

    with within(0.5):
        assert fpm_pools(master_of(tmp_path / "php-fpm.conf")) == set()
