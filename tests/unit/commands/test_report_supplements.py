"""The lines of `report` below the ranking: workers that died, fatal errors, and limits that requests came near."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from samples import COMPLETE, altered, recording, request

from tracer.cli import main
from tracer.facts import Worker

MIB = 1 << 20
SECOND = 1_000_000_000
TIMEOUTS = {"master_pid": 4231, "pool": "www", "request_terminate_timeout_s": 30.0, "max_execution_time_s": None}
META = {"host": "web1", "timeouts": [TIMEOUTS]}
DIED_NS = COMPLETE.started_ns + 37 * SECOND
DIED = Worker(4241, 900_107, "www", "8.2.36", None, DIED_NS, "killed:KILL", "oom")
IMPORT = request(
    uri="/import", nth=4, duration_ns=37 * SECOND, anon_peak=1900 * MIB, anon_after=None, ending="killed:KILL",
    notes="end_not_seen,oom",
)  # fmt: skip


def lines_of(out: str) -> str:
    return " ".join(out.split())


def test_a_report_on_requests_without_trouble_has_none_of_these_lines(run, tmp_path):
    _, out, _ = run("report", recording(tmp_path / "r", [COMPLETE], META))

    assert [label for label in ("DIED", "FATAL", "MEMORY", "TIME") if label in out] == []


def test_a_worker_that_died_is_shown_with_its_last_request(run, tmp_path):
    _, out, _ = run("report", recording(tmp_path / "r", [COMPLETE, IMPORT, DIED], META))

    assert (
        "DIED www/4241 at 2023-11-14 22:13:57 by the kernel's OOM killer, in /import (/srv/www/index.php),"
        " which had run for 37.00 s; it had at least 1.9 GiB"
    ) in lines_of(out)


def test_the_last_words_are_in_the_report_as_json(run, tmp_path):
    stopped = Worker(4243, 7927, "www", "8.2.36", None, DIED_NS, "killed:TERM")

    _, out, _ = run("report", "--format", "json", recording(tmp_path / "r", [COMPLETE, IMPORT, DIED, stopped], META))

    assert json.loads(out)["last_words"] == {
        "workers": [{
            "host": "web1", "pid": 4241, "pool": "www", "exit": "killed:KILL", "died_ns": DIED_NS,
            "by_oom_killer": True, "container": None, "in_flight": True, "uri": "/import",
            "script": "/srv/www/index.php", "started_ns": COMPLETE.started_ns, "duration_ns": 37 * SECOND,
            "size": 1900 * MIB,
        }],
        "more": 0,
        "stopped": 1,
    }  # fmt: skip


def test_a_filter_leaves_the_last_request_in_doubt(run, tmp_path):
    path = recording(tmp_path / "r", [COMPLETE, DIED], {**META, "options": {"uri": "/index*"}})

    assert json.loads(run("report", "--format", "json", path)[1])["last_words"]["workers"][0]["in_flight"] is None


def test_a_recording_of_an_earlier_schema_does_not_state_who_sent_sigkill(tmp_path, capsys):
    old = Path(__file__).resolve().parents[2] / "recordings" / "schema-2.phptrace"
    path = tmp_path / "r"
    path.write_bytes(old.read_bytes())
    altered(path, "UPDATE worker SET exit = 'killed:KILL'")

    with pytest.raises(SystemExit):
        main(["report", "--format", "json", str(path)])

    (death,) = json.loads(capsys.readouterr().out)["last_words"]["workers"]
    assert (death["exit"], death["by_oom_killer"]) == ("killed:KILL", None)


def test_fatal_errors_and_near_misses_are_lines(run, tmp_path):
    requests = [
        request(uri="/cart/7", ending="fatal"),
        request(uri="/export", zend_peak=122 * MIB, nth=4),
        request(uri="/slow", duration_ns=28 * SECOND, nth=5),
    ]

    text = lines_of(run("report", recording(tmp_path / "r", requests, META))[1])

    assert "FATAL /cart/{n} (/srv/www/index.php): 1 fatal error; the last at 2023-11-14 22:13:20 by /cart/7" in text
    assert "MEMORY /export (/srv/www/index.php) used up to 122 MiB of 128 MiB (memory_limit) at 2023-11-14" in text
    assert "TIME /slow (/srv/www/index.php) ran for up to 28.00 s of 30.00 s (request_terminate_timeout) at" in text


def test_fatal_errors_and_near_misses_are_found_without_timeouts(run, tmp_path):
    requests = [request(ending="fatal"), request(uri="/export", zend_peak=122 * MIB, nth=4)]

    out = run("report", recording(tmp_path / "r", requests))[1]

    assert [line.split()[:2] for line in out.splitlines() if line[:1] in "FM" and line[1:2].isupper()] == [
        ["FATAL", "/index.php:"], ["MEMORY", "/export"],
    ]  # fmt: skip


def test_a_report_on_some_requests_has_their_errors_only_and_the_deaths_in_them(run, tmp_path):
    requests = [request(ending="fatal"), request(uri="/import", ending="fatal", nth=2), COMPLETE, IMPORT]
    path = recording(tmp_path / "r", [*requests, DIED], META)

    imports = json.loads(run("report", "--uri", "/import", "--format", "json", path)[1])
    others = json.loads(run("report", "--uri", "/index*", "--format", "json", path)[1])

    assert [row["route"] for row in imports["limits"]["routes"]] == ["/import"]
    assert [row["route"] for row in others["limits"]["routes"]] == ["/index.php"]
    assert [len(found["last_words"]["workers"]) for found in (imports, others)] == [1, 0]


def test_the_limits_are_always_in_the_report_as_json(run, tmp_path):
    near = request(uri="/export", zend_peak=122 * MIB, nth=4)

    _, out, _ = run("report", "--format", "json", recording(tmp_path / "r", [COMPLETE, near], META))

    assert json.loads(out)["limits"] == {
        "routes": [{
            "route": "/export", "script": "/srv/www/index.php", "container": None, "fatal": 0,
            "fatal_near_memory_limit": 0, "fatal_uri": None, "fatal_at_ns": None, "terminated": 0,
            "memory_limit": {
                "near": 1, "share": 0.953125, "used": 122 * MIB, "limit": 128 * MIB, "uri": "/export",
                "started_ns": COMPLETE.started_ns,
            },
            "request_terminate_timeout": None, "max_execution_time": None,
        }],
        "timeouts": [{"host": "web1", **TIMEOUTS}],
        "recordings_without_timeouts": 0,
    }  # fmt: skip


def test_json_of_a_recording_without_timeouts_has_none(run, path):
    found = json.loads(run("report", "--format", "json", path)[1])["limits"]

    assert (found["timeouts"], found["recordings_without_timeouts"]) == ([], 1)


def test_json_has_no_lone_surrogates_in_these_parts(run, tmp_path):
    evil = "/\udcff"
    facts = [
        request(uri=evil, ending="fatal", zend_peak=127 * MIB),
        IMPORT._replace(uri=evil, script=evil, anon_after=99 * MIB),
        DIED,
    ]

    _, out, _ = run("report", "--group-by", "worker", "--format", "json", recording(tmp_path / "r", facts, META))

    assert "\\ud" not in out
    assert json.loads(out)["last_words"]["workers"][0]["uri"] == "/\ufffd"
