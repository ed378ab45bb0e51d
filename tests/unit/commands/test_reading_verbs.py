"""The verbs that read recordings, report and export: their output, files and escapes."""

from __future__ import annotations

import csv
import importlib
import io
import json
import os
import stat
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TextIO

import pytest
from planted import traffic
from samples import COMPLETE, altered, json_lines, recording, request

from tracer.facts import Look, Loss, Request, Worker
from tracer.reporters.requests import render_requests_csv

export = importlib.import_module("tracer.commands.export")  # by its module's name: the command has the same
ROOT = Path(__file__).resolve().parents[3]
LEAKS = [request(script="/leak.php", uri="/l", native_kept=1_000_003, nth=n) for n in range(5)]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return recording(tmp_path / "r.phptrace", [COMPLETE, *LEAKS, COMPLETE])


def report_apart(path: Path, *options: str) -> subprocess.CompletedProcess[str]:
    """`report` in a process of its own."""
    return subprocess.run(
        [sys.executable, "-m", "tracer", "report", *options, str(path)], capture_output=True, text=True, cwd=ROOT
    )


def test_the_report_ranks_the_leak_first(run, path):
    code, out, err = run("report", path)

    assert (code, err) == (0, "")
    rows = out[out.index("KEPT↓") :].splitlines()[1:3]
    assert [row.split()[0] for row in rows] == ["/leak.php", "/srv/www/index.php"]
    assert "7 requests · 0 workers · 0 incomplete · 0 lost" in out


def test_the_report_opens_with_the_recording_and_the_verdicts(run, tmp_path, monkeypatch):
    recording(tmp_path / "planted", traffic("leak in a page of 6 MB"), {"targets": ["php-fpm:shop"]})
    monkeypatch.chdir(tmp_path)

    _, out, _ = run("report", "planted")
    _, by_worker, _ = run("report", "--group-by", "worker", "planted")

    assert [line.rstrip() for line in out.splitlines()[:5]] == [
        "planted · php-fpm:shop · 2023-11-14 22:13:20–22:13:43 UTC (24 s) · 1,200 requests · 0 lost",
        "",
        "LEAK        /leak.php keeps 33.5 KiB a request (4 of 4 workers): 1.4 GiB an hour.",
        "            Next: phptrace record --stacks -d 60s php-fpm:shop",
        "",
    ]
    assert "VERDICT" not in by_worker


def test_json_has_a_verdict_its_evidence_and_the_next_step_for_each_group(run, tmp_path):
    file = recording(tmp_path / "planted", traffic("leak in a page of 6 MB"))

    _, out, _ = run("report", "--format", "json", file)
    _, csv_text, _ = run("report", "--format", "csv", file)

    leak, *others = json.loads(out)["groups"]
    assert {name: leak[name] for name in ("key", "verdict", "verdict_why", "evidence", "next")} == {
        "key": "/leak.php",
        "verdict": "leak",
        "verdict_why": None,
        "evidence": "keeps 33.5 KiB a request (4 of 4 workers): 1.4 GiB an hour",
        "next": "phptrace record --stacks -d 60s php-fpm",
    }
    assert {group["key"]: group["verdict"] for group in others} == {"/hello.php": "steady", "/page.php": "steady"}
    assert {row["key"]: row["verdict"] for row in csv.DictReader(io.StringIO(csv_text))} == {
        "/leak.php": "leak", "/hello.php": "steady", "/page.php": "steady",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("options", "first"),
    [
        (["--sort", "key"], "/leak.php"),
        (["--sort", "zend"], "/leak.php"),
        (["--sort", "ZEND/LIMIT"], "/leak.php"),
        (["--sort", "5xx"], "/leak.php"),
        (["--sort", "growth"], "/leak.php"),
        (["--group-by", "uri"], "/l"),
        (["--group-by", "worker"], "www/4241"),
        (["--group-by", "pool"], "www"),
    ],
)
def test_the_report_is_grouped_and_sorted_as_asked(run, path, options, first):
    code, out, _ = run("report", "--format", "tsv", *options, path)

    assert code == 0
    assert out.splitlines()[1].split("\t")[0] == first


def test_the_report_shows_as_many_groups_as_asked_and_counts_the_rest(run, path):
    _, out, _ = run("report", "-n", "1", path)

    assert "/srv/www/index.php" not in out
    assert "… and 1 more" in out


def test_the_columns_of_the_table_are_those_that_are_asked_for(run, path):
    _, out, _ = run("report", "--columns", "kept, /REQ,total", "--sort", "/req", path)

    header, first = out[out.index("SCRIPT") :].splitlines()[:2]
    assert header.split() == ["SCRIPT", "KEPT", "/REQ↓", "total"]
    assert first.split() == ["/leak.php", "+4.8", "MiB", "+977", "KiB", "62ms"]


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        (["--columns", "kept,p96"], "'p96' is not a column. Write one of key, verdict, reqs,"),
        (["--columns", ""], "'' is not a column."),
        (["--sort", "rss"], "'rss' is not a column."),
        (["--sort", "verdict"], "'verdict' is a column that cannot sort. Write key, reqs, kept,"),
    ],
)
def test_a_name_that_is_not_a_column_is_a_usage_error(run, path, options, problem):
    code, out, err = run("report", *options, path)

    assert (code, out) == (2, "")
    assert problem in err


def test_the_folder_of_all_scripts_is_in_the_header_and_in_no_row(run, tmp_path):
    file = recording(
        tmp_path / "r", [request(script=f"/srv/www/{name}.php", nth=n) for n, name in enumerate(["x/a", "b"])]
    )

    _, out, _ = run("report", file)

    assert "scripts in /srv/www/\n" in out
    assert {line.split()[0] for line in out.splitlines() if ".php" in line} == {"x/a.php", "b.php"}


def test_requests_without_a_script_are_counted_below_the_table_and_take_no_place_in_it(run, tmp_path):
    file = recording(tmp_path / "r", [*LEAKS, COMPLETE, *[request(script=None, native_kept=2_000_003)] * 3])

    _, out, _ = run("report", "-n", "2", file)
    _, as_json, _ = run("report", "-n", "1", "--format", "json", file)

    assert [line.split()[0] for line in out.splitlines() if line.startswith("/")] == ["/leak.php", "/srv/www/index.php"]
    assert "(none): 3 requests that ran no script (404), or whose script was not seen, kept " in out
    assert "more: -n 0" not in out
    assert [group["key"] for group in json.loads(as_json)["groups"]] == ["/leak.php"]


def test_no_limit_shows_all(run, tmp_path):
    file = recording(tmp_path / "many", [request(script=f"/{n}.php") for n in range(31)])

    _, twenty, _ = run("report", "--format", "csv", file)
    _, every, _ = run("report", "--format", "csv", "-n", "0", file)

    assert (len(twenty.splitlines()), len(every.splitlines())) == (21, 32)


def test_several_recordings_are_taken_together(run, tmp_path):
    files = [recording(tmp_path / name, [COMPLETE, Worker(n, n, None, None, None, None, None), Loss(1, n, "x")])
             for n, name in ((2, "a"), (3, "b"))]  # fmt: skip

    code, out, _ = run("report", "--format", "json", *files)

    document = json.loads(out)
    assert code == 0
    assert (document["requests"], document["workers"], document["lost"]) == (2, 2, 5)
    assert [group["requests"] for group in document["groups"]] == [2]


def test_a_report_as_csv_talks_on_stderr(run, path):
    _, out, err = run("report", "--format", "csv", path)

    assert [row[0] for row in csv.reader(io.StringIO(out))] == ["key", "/leak.php", "/srv/www/index.php"]
    assert err == "phptrace: 7 requests · 0 workers · 0 incomplete · 0 lost\n"


def test_an_empty_recording_has_an_empty_report(run, tmp_path):
    code, out, _ = run("report", recording(tmp_path / "empty"))

    assert code == 0
    assert "0 requests" in out


def test_every_request_is_exported_as_ndjson(run, path):
    code, out, err = run("export", path)

    assert code == 0
    assert [row["nth"] for row in json_lines(out)] == [3, 0, 1, 2, 3, 4, 3]
    assert err.startswith("phptrace: 7 requests")


@pytest.mark.parametrize(
    ("options", "nths"),
    [
        (["--uri", "/l"], [0, 1, 2, 3, 4]),
        (["--script", "*index*"], [3, 3]),
        (["--slow", "13ms"], []),
        (["--slow", "12ms", "--script", "/srv/*"], [3, 3]),
        (["--min-growth", "900K"], [0, 1, 2, 3, 4]),
    ],
)
def test_only_requests_that_are_asked_for_are_exported(run, path, options, nths):
    _, out, _ = run("export", *options, path)

    assert [row["nth"] for row in json_lines(out)] == nths


@pytest.mark.parametrize(
    ("name", "options", "begins"),
    [
        ("o.csv", [], "host,pid,"),
        ("o.tsv", [], "native_kept\tgrowth_bytes\t"),
        ("o.ndjson", [], '{"host": "web1"'),
        ("o.txt", [], '{"host": "web1"'),
        ("o.csv", ["--format", "tsv"], "native_kept\t"),
    ],
)
def test_the_format_of_an_export_follows_the_option_or_the_file_name(run, path, tmp_path, name, options, begins):
    code, out, _ = run("export", "-o", tmp_path / name, *options, path)

    assert (code, out) == (0, "")
    assert (tmp_path / name).read_text().startswith(begins)
    assert stat.S_IMODE((tmp_path / name).stat().st_mode) == 0o600


def test_an_export_does_not_overwrite_unless_forced(run, path, tmp_path):
    (tmp_path / "o.csv").write_text("precious")

    code, _, err = run("export", "-o", tmp_path / "o.csv", path)

    assert (code, (tmp_path / "o.csv").read_text()) == (2, "precious")
    assert "overwrite it with -f" in err
    assert run("export", "-f", "-o", tmp_path / "o.csv", path)[0] == 0
    assert (tmp_path / "o.csv").read_text().startswith("host,")


def test_an_export_never_writes_through_a_link(run, path, tmp_path):
    (tmp_path / "precious").write_text("precious")
    (tmp_path / "o.csv").symlink_to(tmp_path / "precious")

    codes = [run("export", *force, "-o", tmp_path / "o.csv", path)[0] for force in ([], ["-f"])]

    assert codes == [2, 2]
    assert (tmp_path / "precious").read_text() == "precious"


def test_a_recording_that_is_named_twice_counts_once(run, path, tmp_path):
    (tmp_path / "other-name").symlink_to(path)

    code, out, err = run("export", path, path, tmp_path / "other-name")

    assert (code, len(out.splitlines())) == (0, len(run("export", path)[1].splitlines()))
    assert err.count("was named twice: its requests count once") == 2


def test_an_export_into_a_missing_folder_is_a_usage_error(run, path, tmp_path):
    code, _, err = run("export", "-o", tmp_path / "no" / "o.csv", path)

    assert code == 2
    assert "No such file or directory" in err


def test_an_export_of_a_file_that_is_not_a_recording_leaves_no_file(run, tmp_path):
    run("export", "-o", tmp_path / "o.csv", tmp_path / "gone")

    assert not (tmp_path / "o.csv").exists()


@pytest.mark.parametrize("force", [[], ["-f"]])
def test_an_export_of_a_recording_that_proves_damaged_leaves_no_partial_file(run, tmp_path, monkeypatch, force):
    """The recording is cut while it is being read: what SQLite has in memory is exported, then an error follows."""
    path = recording(tmp_path / "r", [request(uri=f"/{nth}" + "x" * 3_000, nth=nth) for nth in range(3_000)])
    output = tmp_path / "o.csv"
    before = None
    if force:
        before = "precious"
        output.write_text(before)

    def cut_after_ten(requests: Iterable[Request], out: TextIO, route: Callable[[str], str]) -> None:
        def cut() -> Iterator[Request]:
            for number, one in enumerate(requests):
                if number == 10:
                    os.truncate(path, 16_384)
                yield one

        render_requests_csv(cut(), out, route)

    monkeypatch.setitem(export._RENDER, "csv", cut_after_ten)
    code, out, err = run("export", *force, "-o", output, path)

    assert (code, out) == (7, "")
    assert "is damaged or cut short" in err
    assert (output.read_text() if output.exists() else None) == before
    assert sorted(one.name for one in tmp_path.iterdir()) == sorted(["r", *(["o.csv"] if force else [])])


READERS = [["report", "-n", "0"], ["report", "-n", "0", "--format", "tsv"], ["report", "--format", "json"], ["export"]]


def piped(file: Path, verb: list[str], read_lines: int) -> tuple[int, str]:
    """Exit code and stderr, where the pipe's reader closes it after so many lines; buffered as a user has it."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    with subprocess.Popen(
        [sys.executable, "-m", "tracer", *verb, file],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=ROOT, env=environment,
    ) as writer:  # fmt: skip
        assert writer.stdout is not None
        assert writer.stderr is not None
        for _ in range(read_lines):
            writer.stdout.readline()
        writer.stdout.close()
        said = writer.stderr.read().decode()
    return writer.returncode, said


@pytest.mark.parametrize("verb", READERS)
def test_a_reader_that_stops_reading_is_not_an_error(tmp_path, verb):
    file = recording(tmp_path / "many", [request(script=f"/{n}.php") for n in range(2003)])

    code, said = piped(file, verb, 1)

    assert "Traceback" not in said
    assert "Exception ignored" not in said
    assert code == 0


@pytest.mark.parametrize("verb", READERS[1:])
def test_a_reader_that_reads_nothing_is_not_an_error(path, verb):
    code, said = piped(path, verb, 0)

    assert "incomplete:" not in said
    assert code == 0


def test_growth_beyond_64_bits_is_ranked_or_refused(tmp_path):
    path = recording(tmp_path / "r", [COMPLETE._replace(anon_before=-(1 << 63), anon_after=(1 << 63) - 1)])

    ended = report_apart(path)

    assert "Traceback" not in ended.stderr
    assert ended.returncode in (0, 7)


@pytest.mark.parametrize(
    "options",
    [
        *(["--format", form] for form in ("table", "csv", "tsv", "json")),
        *(["--group-by", by] for by in ("uri", "worker")),
    ],
)
def test_report_shows_nothing_of_a_hostile_request_raw(tmp_path, options):
    evil = "\x1b[2J\x07\x9b31m\u202e\udcff\n\t"
    path = recording(tmp_path / "r", [COMPLETE._replace(pool=evil, method=evil, uri=evil, script=evil)])

    ended = report_apart(path, *options)

    shown = ended.stdout.replace("\n", "").replace("\t", "") + ended.stderr.replace("\n", "")
    assert ended.returncode == 0
    assert not [c for c in shown if ord(c) < 0x20 or 0x7F <= ord(c) < 0xA0 or c == "\u202e"]


@pytest.mark.parametrize("form", ["table", "csv"])
def test_report_shows_nothing_of_a_hostile_loss_raw(tmp_path, form):
    path = recording(tmp_path / "r", [COMPLETE, Loss(1, 2, "\x1b]0;owned\x07")])

    ended = report_apart(path, "--format", form)

    assert "\x1b" not in ended.stdout + ended.stderr
    assert "\x07" not in ended.stdout + ended.stderr


def test_report_writes_json_without_lone_surrogates_whatever_was_lost(tmp_path):
    path = recording(tmp_path / "r", [COMPLETE, Loss(1, 2, "x")])
    altered(path, "UPDATE loss SET why = CAST(x'ff' AS TEXT)")

    ended = report_apart(path, "--format", "json")

    assert "\\ud" not in ended.stdout
    assert json.loads(ended.stdout)["lost"] == 2


LOOK = Look(
    pid=4241, start_ticks=7919, at_ns=COMPLETE.started_ns - 1009, took_ns=13, anon=10_000_019, malloc_in_use=4_000_016,
    malloc_uncertain=0, malloc_resident=4_100_096, zend_resident=2_097_152, settled=True, in_accept=True, requests=None,
    why=None,
)  # fmt: skip
AGAIN = LOOK._replace(
    at_ns=COMPLETE.started_ns + COMPLETE.duration_ns + 1,
    anon=10_624_307,
    malloc_in_use=4_042_000,
    malloc_resident=4_106_288,
    requests=1,
)


def test_the_report_as_json_has_the_balance_of_the_workers(run, tmp_path):
    file = recording(tmp_path / "r", [LOOK, COMPLETE, AGAIN])

    _, out, err = run("report", "--format", "json", file)

    assert json.loads(out)["balance"] == {
        "workers": 1, "looked_at": 1, "requests": 1, "counted": 1, "workers_grew": 624_288, "native_kept": 101_328,
        "zend": 0, "between_requests": 6_192, "unexplained": 516_768, "malloc_free": -35_792, "heap_check": 0,
        "why": None,
        "from_requests": {
            "workers": 1, "grew": 524_288, "in_requests": 524_288, "between_requests": None, "workers_between": 0,
            "not_known": 0, "shared_memory": 12, "workers_shared": 1, "why": "no worker served two requests",
        },
    }  # fmt: skip
    assert err == ""


def test_the_balance_of_a_recording_without_looks_is_null_and_states_why(run, path):
    _, out, _ = run("report", "--format", "json", path)

    balance = json.loads(out)["balance"]
    assert balance["why"] == "no worker was looked at"
    assert [balance[name] for name in ("workers_grew", "native_kept", "zend", "between_requests", "unexplained")] == (
        [None] * 5
    )


def test_a_request_that_was_lost_may_be_one_between_the_looks(run, tmp_path):
    file = recording(tmp_path / "r", [LOOK, COMPLETE, AGAIN, Loss(1, 1, "requests: the ring buffer was full")])

    _, out, _ = run("report", "--format", "json", file)

    assert json.loads(out)["balance"]["why"] == "1 worker: requests were lost"


def not_counted_growth(tmp_path: Path) -> Path:
    """A recording of 99 requests, of which the last 89 were not counted, and kept 2 MB."""
    started_ns = COMPLETE.started_ns
    requests = [
        request(
            nth=nth, started_ns=started_ns + nth, duration_ns=1, native_kept=0, native_alloc_bytes=1_008,
            native_free_bytes=1_008, native_freed_earlier=0, native_between_bytes=0,
        )
        for nth in range(1, 100)
    ]  # fmt: skip
    calls = dict.fromkeys(
        ("native_between_bytes", "native_kept", "native_alloc_bytes", "native_free_bytes", "native_freed_earlier")
    )
    facts = [*requests[:10], *(one._replace(**calls) for one in requests[10:])]
    end = AGAIN._replace(at_ns=started_ns + 1_000, malloc_in_use=6_000_016, requests=99)
    return recording(tmp_path / "r", [LOOK, *facts, end])


def test_growth_that_the_counted_requests_do_not_explain_is_reported(run, tmp_path):
    _, out, _ = run("report", not_counted_growth(tmp_path))

    assert (
        "NOT COUNTED: since 2023-11-14T22:13:20Z, the requests that were not counted kept +1.9 MiB (malloc's heap grew"
        " by that); if they were like the counted ones, it would be 0 B. So figures with ~ and ≤ are less sure. To have"
        " every request counted, record with --native on (backend bpf)."
    ) in " ".join(out.split())
    assert "≤ 1.9 MiB" in out


def test_the_report_as_json_has_the_growth_that_was_not_counted(run, tmp_path):
    _, out, _ = run("report", "--format", "json", not_counted_growth(tmp_path))

    assert json.loads(out)["not_counted"] == {
        "since_ns": LOOK.at_ns, "kept_bytes": 2_000_000, "explained_bytes": 0
    }  # fmt: skip


def test_the_report_as_json_has_null_where_the_counted_requests_explain_the_growth(run, path):
    assert json.loads(run("report", "--format", "json", path)[1])["not_counted"] is None


def test_the_balance_is_printed_with_v(tmp_path):
    file = recording(tmp_path / "r", [LOOK, COMPLETE, AGAIN])

    verbose, plain = (
        subprocess.run(
            [sys.executable, "-m", "tracer", *options, "report", str(file)], capture_output=True, text=True, cwd=ROOT
        )
        for options in (["-v"], [])
    )

    assert verbose.stderr == (
        "phptrace: workers grew 610 KiB: native 99.0 KiB, Zend's chunks 0 B, between requests 6.0 KiB,"
        " unexplained 505 KiB (1 of 1 worker, 1 request)\n"
        "phptrace: between requests: not known (no worker served two requests)\n"
        "phptrace: shared memory: +12 B (1 of 1 worker). It is mostly OPcache's, which all workers share: a page counts"
        " in each that has used it.\n"
        "phptrace: start of 1 worker: not known (its first requests cannot be distinguished from the others)\n"
        "phptrace: 1 worker grew 512 KiB: kept 99.9 KiB, the rest 412 KiB\n"
    )
    explained = verbose.stdout.removeprefix(plain.stdout)
    assert (plain.stderr, explained.startswith("VERDICT: what the requests do to memory;")) == ("", True)


def test_much_growth_between_requests_and_of_shared_memory_is_in_the_report(run, tmp_path):
    later = {"nth": COMPLETE.nth + 1, "started_ns": COMPLETE.started_ns + (1 << 40)}
    grown = COMPLETE._replace(
        anon_before=COMPLETE.anon_after + (3 << 20), anon_after=COMPLETE.anon_after, shmem_after=(5 << 20), **later
    )
    file = recording(tmp_path / "r", [COMPLETE, grown])

    _, out, _ = run("report", file)

    lines = " ".join(out.split())
    assert (
        "between requests: +3.0 MiB (1 of 1 worker), in requests -2.5 MiB. PHP reads a request's parameters before the"
        " request begins: large cookies or headers show here. shared memory: +2.1 MiB (1 of 1 worker). It is mostly"
        " OPcache's, which all workers share: a page counts in each that has used it."
    ) in lines


def test_a_filter_is_the_reason_why_growth_between_requests_is_not_known(run, tmp_path):
    later = COMPLETE._replace(nth=COMPLETE.nth + 2, started_ns=COMPLETE.started_ns + (1 << 40))
    file = recording(tmp_path / "r", [COMPLETE, later], {"options": {"script": "*.php"}})

    _, out, _ = run("report", "--format", "json", file)

    found = json.loads(out)["balance"]["from_requests"]
    assert (found["between_requests"], found["not_known"]) == (None, COMPLETE.anon_before - COMPLETE.anon_after)
    assert found["why"] == "1 of 1 times requests in between were left out by a filter"


@pytest.mark.parametrize("options", [[], ["-q"]])
def test_a_warning_is_printed_where_much_is_not_explained(tmp_path, options):
    file = recording(tmp_path / "r", [LOOK, COMPLETE._replace(anon_after=30_000_019), AGAIN._replace(anon=30_000_019)])

    ended = subprocess.run(
        [sys.executable, "-m", "tracer", *options, "report", str(file)], capture_output=True, text=True, cwd=ROOT
    )

    assert (ended.returncode, ended.stderr) == (0, (
        "phptrace: warning: 19.0 MiB of the 19.1 MiB that 1 worker grew by is not explained by what the requests kept."
        " See `phptrace heap PID`.\n"
    ))  # fmt: skip
