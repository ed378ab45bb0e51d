"""The pools in a master's configuration, read as the master sees it."""

from __future__ import annotations

import ctypes
import dataclasses
import os
from pathlib import Path

import pytest
from samples import within

from tracer.targets.fpm_config import Timeouts, fpm_pools, fpm_timeouts
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


def timeouts_of(tmp_path: Path, text: str) -> dict[str, Timeouts]:
    path = tmp_path / "php-fpm.conf"
    path.write_text(text)
    return fpm_timeouts(master_of(path))


@pytest.mark.parametrize(
    ("setting", "seconds"),
    [
        ("", 0.0),
        ("request_terminate_timeout = 0", 0.0),
        ("request_terminate_timeout = 30", 30.0),
        ("request_terminate_timeout=30s", 30.0),
        ('  request_terminate_timeout = "2m" ; at most', 120.0),
        ("request_terminate_timeout = 3h", 10_800.0),
        ("request_terminate_timeout = 1d", 86_400.0),
        ("request_terminate_timeout = 7\nrequest_terminate_timeout = 11", 11.0),
        ("; request_terminate_timeout = 30", 0.0),
        ("request_terminate_timeout = ${LIMIT}", None),
        ("request_terminate_timeout = -1", None),
        ("request_terminate_timeout =", None),
        ("request_terminate_timeout = " + "9" * 400, None),
    ],
)
def test_the_time_after_which_php_fpm_ends_a_request_is_read(tmp_path, setting, seconds):
    assert timeouts_of(tmp_path, f"[www]\n{setting}\n") == {"www": Timeouts(seconds, None)}


@pytest.mark.parametrize(
    ("setting", "seconds"),
    [
        ("php_value[max_execution_time] = 60", 60.0),
        ("php_admin_value[max_execution_time] = 30\nphp_value[max_execution_time] = 60", 30.0),
        ("php_admin_value[max_execution_time] = 0", 0.0),
        ("php_admin_value[max_execution_time] = none", None),
        ("php_admin_value[memory_limit] = 64M", None),
    ],
)
def test_the_time_after_which_php_ends_a_request_is_read_if_the_pool_sets_it(tmp_path, setting, seconds):
    assert timeouts_of(tmp_path, f"[www]\n{setting}\n") == {"www": Timeouts(0.0, seconds)}


def test_each_pool_of_each_file_has_its_own_timeouts(tmp_path):
    (tmp_path / "a.inc").write_text("[a]\nrequest_terminate_timeout = 7\n[b]\nuser = www-data\n")

    found = timeouts_of(tmp_path, f"[global]\ninclude={tmp_path}/*.inc\n[www]\nrequest_terminate_timeout = 11\n")

    assert found == {"www": Timeouts(11.0, None), "a": Timeouts(7.0, None), "b": Timeouts(0.0, None)}


def test_no_timeout_is_sure_where_a_file_has_a_part_of_a_pool(tmp_path):
    (tmp_path / "a.inc").write_text("request_terminate_timeout = 7\n")

    assert timeouts_of(tmp_path, f"[www]\ninclude={tmp_path}/*.inc\n") == {}


def test_a_configuration_that_cannot_be_read_has_no_timeouts(tmp_path):
    assert fpm_timeouts(master_of(tmp_path / "none.conf")) == {}


def test_a_configuration_of_a_megabyte_of_settings_is_read_in_a_moment(tmp_path):
    with within(2.0):
        found = timeouts_of(tmp_path, "[www]\n" + " request_terminate_timeout \t= \n" * 32_000)

    assert found == {"www": Timeouts(None, None)}


def test_a_path_that_was_given_relative_to_the_masters_folder_is_found(tmp_path, monkeypatch):
    (tmp_path / "php-fpm.conf").write_text("[www]\n")
    monkeypatch.chdir(tmp_path)

    assert fpm_pools(master_of("php-fpm.conf")) == {"www"}
