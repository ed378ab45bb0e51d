"""`phptrace host`: this machine's memory, the cgroups of masters, and what `report -v` shows of a recording's."""

from __future__ import annotations

import json
import logging
import os

import pytest
from samples import COMPLETE, FOOTPRINT, recording

from tracer.commands import host as verb
from tracer.targets import host_memory, processes
from tracer.targets.host_memory import Cgroup
from tracer.targets.processes import Process
from tracer.targets.rollup import Rollup

MIB = 1 << 20
HOST = {
    "MemTotal": 8000 * MIB, "MemFree": 500 * MIB, "MemAvailable": 5600 * MIB, "Buffers": 40 * MIB,
    "Cached": 5060 * MIB, "AnonPages": 1900 * MIB, "Mapped": 160 * MIB, "Shmem": 60 * MIB, "Dirty": 4 * MIB,
    "SReclaimable": 220 * MIB, "SUnreclaim": 90 * MIB, "KernelStack": 5 * MIB, "PageTables": 15 * MIB,
}  # fmt: skip
STAT = {"anon": 300 * MIB, "file": 180 * MIB, "shmem": 40 * MIB, "kernel": 20 * MIB, "slab_reclaimable": 8 * MIB}
CGROUP = Cgroup("/fpm.service\x1b", 2, 512 * MIB, 500 * MIB, STAT)
PROCESSES = [
    Process(4001, 1, 7, "php-fpm: master process (/x)", None),
    Process(4241, 4001, 8, "php-fpm: pool shop", None),
    Process(4242, 4001, 8, "php-fpm: pool shop", None),
    Process(4243, 4001, 8, "php-fpm: pool b\x1blog", None),
    Process(5003, 1, 8, "php-fpm: pool other", None),
]


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine with one master; the memory of its worker 4242 may not be read."""

    def rollup(pid: int) -> Rollup:
        if pid == 4241:
            return Rollup(*FOOTPRINT[5:])
        raise PermissionError

    monkeypatch.setattr(host_memory, "host", lambda: HOST)
    monkeypatch.setattr(host_memory, "cgroup", {4001: CGROUP}.get)
    monkeypatch.setattr(processes, "processes", lambda: iter(PROCESSES))
    monkeypatch.setattr(verb, "rollup", rollup)


def rows(out: str) -> dict[str, str]:
    """The size of each row of the host."""
    found: dict[str, str] = {}
    for line in out.split("\n\n")[0].splitlines()[1:]:
        found.setdefault(line[2:28].strip(), " ".join(line[28:].split()[:2]))
    return found


def test_eaten_memory_is_distinguished_from_borrowed(run, machine):
    code, out, err = run("host")

    found = rows(out)
    assert (code, err) == (0, "")
    assert out.startswith(f"{os.uname().nodename}: 7.8 GiB\n")
    assert (found["anonymous"], found["shared memory"], found["kernel"]) == ("1.9 GiB", "60.0 MiB", "110 MiB")
    assert (found["eaten"], found["borrowed"], found["page cache"]) == ("2.2 GiB", "5.1 GiB", "4.9 GiB")
    assert (found["reclaimable slab"], found["free"], found["available"]) == ("220 MiB", "500 MiB", "5.5 GiB")


def test_dropping_caches_changes_nothing_where_they_are_available(run, machine):
    _, out, _ = run("host")

    assert "Dropping caches would change nothing for PHP: it moves at most 5.0 GiB from borrowed to free" in out


@pytest.mark.parametrize(
    ("changed", "sentence"),
    [
        ({"AnonPages": 7000 * MIB, "Cached": 60 * MIB, "Buffers": 0, "MemAvailable": 520 * MIB},
         "Dropping caches would not help: 91 % is eaten, and at most 220 MiB is cache."),
        ({"MemAvailable": 600 * MIB},
         "Dropping caches would free at most 5.0 GiB, of which 4.9 GiB is not counted as available."),
    ],
)  # fmt: skip
def test_a_sentence_states_whether_dropping_caches_would_help(run, machine, monkeypatch, changed, sentence):
    monkeypatch.setattr(host_memory, "host", lambda: {**HOST, **changed})

    assert sentence in run("host")[1]


def test_a_cgroup_with_its_limit_is_shown(run, machine):
    _, out, _ = run("host")

    assert "\ncgroup /fpm.service\\x1b (version 2): 512 MiB\n" in out
    assert "The kernel takes back the page cache before it kills: 69 % of the limit counts." in out


def test_a_cgroup_that_is_full_of_what_is_eaten_is_near_an_oom_kill(run, machine, monkeypatch):
    full = CGROUP._replace(stat={**CGROUP.stat, "anon": 430 * MIB, "file": 40 * MIB})
    monkeypatch.setattr(host_memory, "cgroup", {4001: full}.get)

    assert "Near an OOM kill: 96 % of the limit is eaten." in run("host")[1]


def test_pools_are_shown_with_what_can_be_read(run, machine):
    _, out, _ = run("host")

    own = "19.1 MiB of their own (19.1 MiB each)"
    assert f"pool shop of master 4001: 2 workers (1 worker read), {own}, and 7.6 MiB shared, once\n" in out
    assert "pool b\\x1blog of master 4001: 1 worker. Their memory may not be read: run as root" in out
    assert "pool other" not in out


def test_json_has_all_figures(run, machine):
    code, out, _ = run("host", "--format", "json")

    found = json.loads(out)
    assert (code, found["schema"]) == (0, 1)
    assert (found["host"]["anon"], found["host"]["available"]) == (1900 * MIB, 5600 * MIB)
    assert found["host"]["eaten"] + found["host"]["borrowed"] + found["host"]["free"] == 8000 * MIB
    assert [(one["path"], one["total"], one["slab"]) for one in found["cgroups"]] == [
        ("/fpm.service\x1b", 512 * MIB, 8 * MIB)
    ]
    assert [(pool["name"], pool["workers"], pool["read"]) for pool in found["pools"]] == [
        ("b\x1blog", 1, 0),
        ("shop", 2, 1),
    ]


def test_a_pid_asks_for_the_cgroup_of_that_process(run):
    code, out, _ = run("host", os.getpid())

    assert (code, "pool " in out) == (0, False)
    assert out.startswith(f"{os.uname().nodename}: ")


def test_a_process_that_is_not_there_is_an_error(run):
    code, _, err = run("host", 1 << 22)

    assert (code, err) == (
        3,
        f"phptrace: cannot show the cgroup of process {1 << 22}: there is no such process. Check the PID.\n",
    )


def test_report_shows_the_memory_of_the_recordings_host_with_verbose(run, tmp_path, caplog):
    entry = {"host": HOST, "cpus": 2, "cgroups": [{**CGROUP._asdict(), "pids": [4001]}]}
    path = recording(tmp_path / "r.phptrace", [COMPLETE], {"host": "web1\x07", "memory": entry, "memory_ended": entry})
    with caplog.at_level(logging.INFO):
        assert run("-v", "report", path)[0] == 0

    shown = [message for message in caplog.messages if message.startswith("memory of ")]
    assert len(shown) == 4
    assert shown[0].startswith(
        "memory of web1\\x07 when it began: 7.8 GiB, eaten 2.2 GiB (anonymous 1.9 GiB, shared memory 60.0 MiB, kernel"
        " 110 MiB, other 170 MiB), borrowed 5.1 GiB (page cache 4.9 GiB, reclaimable slab 220 MiB), free 500 MiB,"
        " available 5.5 GiB. Dropping caches would change nothing"
    )
    assert shown[3] == (
        "memory of cgroup /fpm.service\\x1b when it ended: 512 MiB, eaten 352 MiB (anonymous 300 MiB, shared memory"
        " 40.0 MiB, kernel 12.0 MiB), borrowed 148 MiB (page cache 140 MiB, reclaimable slab 8.0 MiB), free 12.0 MiB,"
        " available 160 MiB"
    )
