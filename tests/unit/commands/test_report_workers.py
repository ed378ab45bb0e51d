"""The report by worker, over recordings of several hosts and of pids that were used twice."""

from __future__ import annotations

import csv
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
