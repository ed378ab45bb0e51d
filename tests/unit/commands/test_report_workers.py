"""The report by worker, over recordings of several hosts and of pids that were used twice."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest
from samples import BLOG, SHOP, recording, request

from tracer.cli import main
from tracer.facts import Worker

WORKER = Worker(77, 7919, "www", "8.2.36", None, None, None)


def workers_of(capsys: pytest.CaptureFixture[str], *paths: Path) -> dict[str, int]:
    """Number of requests that the report shows of each worker."""
    with pytest.raises(SystemExit) as ended:
        main(["report", "--group-by", "worker", "--sort", "key", "--format", "tsv", *map(str, paths)])
    assert ended.value.code == 0
    return {
        row["key"]: int(row["requests"]) for row in csv.DictReader(capsys.readouterr().out.splitlines(), delimiter="\t")
    }


def test_recordings_of_two_hosts_share_no_worker(capsys, tmp_path):
    paths = [
        recording(tmp_path / host, [WORKER, request(pid=77, host=host), request(pid=77, host=host)], {"host": host})
        for host in ("web1", "web2")
    ]

    assert workers_of(capsys, *paths) == {"web1 www/77": 2, "web2 www/77": 2}


def test_two_recordings_of_one_host_share_a_worker(capsys, tmp_path):
    paths = [recording(tmp_path / name, [WORKER, request(pid=77)], {"host": "web1"}) for name in ("before", "after")]

    assert workers_of(capsys, *paths) == {"www/77": 2}


def test_a_pid_that_was_used_twice_is_two_workers(capsys, tmp_path):
    first, second = WORKER._replace(died_ns=100), WORKER._replace(start_ticks=7927, born_ns=200)
    requests = [request(pid=77, started_ns=at, start_ticks=None) for at in (50, 300)]
    path = recording(tmp_path / "r", [first, requests[0], second, requests[1]])

    assert workers_of(capsys, path) == {"www/77 #1": 1, "www/77 #2": 1}


@pytest.mark.parametrize(("hosts", "shown"), [(("web1", "web2"), "2 workers"), (("web1", "web1"), "1 worker")])
def test_workers_are_counted_by_host(capsys, tmp_path, hosts, shown):
    paths = [recording(tmp_path / str(n), [WORKER], {"host": host}) for n, host in enumerate(hosts)]

    with pytest.raises(SystemExit):
        main(["report", *map(str, paths)])

    assert f"0 requests · {shown} ·" in capsys.readouterr().out


def test_a_script_of_two_containers_is_two_rows_in_every_format(run, tmp_path):
    path = recording(
        tmp_path / "r", [request(script="/a.php", nth=n, **place._asdict()) for place in (SHOP, BLOG) for n in (1, 2)]
    )

    code, out, _ = run("report", "--format", "tsv", path)
    rows = list(csv.DictReader(out.splitlines(), delimiter="\t"))

    assert (code, [(row["key"], row["container"], row["requests"]) for row in rows]) == (
        0,
        [("/a.php", "blog", "2"), ("/a.php", "shop", "2")],
    )
    _, exported, _ = run("export", "--format", "csv", path)
    assert [row["container"] for row in csv.DictReader(exported.splitlines())] == ["shop", "shop", "blog", "blog"]


def test_workers_of_equal_pid_and_start_on_two_hosts_are_two_in_an_export(run, tmp_path):
    paths = [
        recording(tmp_path / host, [WORKER, request(pid=77, host=host)], {"host": host}) for host in ("web1", "web2")
    ]

    _, _, err = run("export", *paths)

    assert "2 requests · 2 workers ·" in err


MIB = 1 << 20


def raised(tmp_path: Path) -> Path:
    """A recording of a worker that /export raised from 29 to 93 MiB."""
    sizes = [29, 29, 93, 93]
    return recording(tmp_path / "r", [WORKER, *(
        request(
            pid=77, start_ticks=7919, nth=nth, uri=uri, started_ns=1_700_000_000_000_000_000 + nth * 10**9,
            anon_before=sizes[nth - 1] * MIB, anon_after=sizes[nth] * MIB, anon_peak=sizes[nth] * MIB,
        )
        for nth, uri in enumerate(("/a", "/export", "/a"), 1)
    )], {"host": "web1"})  # fmt: skip


def test_the_report_by_worker_shows_the_request_that_raised_each(run, tmp_path):
    _, out, _ = run("report", "--group-by", "worker", raised(tmp_path))

    lines = [" ".join(line.split()) for line in out.splitlines()]
    assert "www/77 93.0 MiB 93.0 MiB 29.0 MiB 93.0 MiB 22:13:22 /export" in lines
    assert "www: 1 worker has 93.0 MiB; about 29.0 MiB without /export, which raised it" in lines


def test_the_report_by_worker_as_json_has_the_steps(run, tmp_path):
    _, out, _ = run("report", "--group-by", "worker", "--format", "json", raised(tmp_path))

    assert json.loads(out)["high_water"] == {
        "workers": [{
            "worker": "www/77", "container": None, "now": 93 * MIB, "peak": 93 * MIB, "alive": True,
            "steps": [{
                "uri": "/export", "script": "/srv/www/index.php", "route": "/export",
                "started_ns": 1_700_000_002_000_000_000, "before": 29 * MIB, "after": 93 * MIB, "starts": False,
            }],
            "other_steps": 0, "other_bytes": 0, "other_route": None,
        }],
        "workers_forgotten": 0,
        "pools": [{
            "host": None, "pool": "www", "container": None, "workers": 1, "weight": 93 * MIB,
            "without": [{"route": "/export", "workers": 1, "weight": 29 * MIB}],
        }],
    }  # fmt: skip


def test_the_report_by_script_has_no_steps(run, tmp_path):
    path = raised(tmp_path)

    assert "raised by" not in run("report", path)[1]
    assert json.loads(run("report", "--format", "json", path)[1])["high_water"] is None


def test_the_report_by_worker_shows_as_many_workers_as_asked_for(run, tmp_path):
    path = recording(tmp_path / "r", [request(pid=pid) for pid in (11, 13, 17)])

    _, out, _ = run("report", "--group-by", "worker", "-n", "1", path)

    assert "… and 2 more workers: -n 0 shows all" in out
