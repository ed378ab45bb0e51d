"""phptrace diff: its options, its exit codes, and recordings that lack something."""

from __future__ import annotations

import csv
import io
import json
import os
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from samples import COMPLETE, altered, recording, request

from tracer.facts import Loss, Request, Worker

ROOT = Path(__file__).parents[3]
RECORDINGS = Path(__file__).parents[2] / "recordings"
BASE = 1_700_000_000_000_000_000
META = {"host": "web1", "backend": "bpf", "options": {"query": "strip"}, "native": {"budget": 0.02},
        "targets": ["php-fpm:shop"]}  # fmt: skip
FIXED = {"native_kept": 0, "native_alloc_bytes": 0, "native_free_bytes": 0, "native_freed_earlier": 0}


def requests(count: int = 200, size: int = 0, first_pid: int = 7, **changed: object) -> list[Request]:
    """Requests of two workers that each keep so many bytes."""
    fixed = {**FIXED, "native_kept": size, "native_alloc_bytes": size, **changed}
    return [
        request(**{"pid": first_pid + at % 2, "nth": 1 + at // 2, "started_ns": BASE + at * 10**8, **fixed})
        for at in range(count)
    ]


@pytest.fixture
def before(tmp_path: Path) -> Path:
    return recording(tmp_path / "before", requests(), META)


@pytest.fixture
def leaks(tmp_path: Path) -> Path:
    return recording(tmp_path / "leaks", requests(size=65_552), META)


def document(out: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(out)
    return found


def test_a_leak_that_a_deploy_adds_is_the_first_line(run, before, leaks):
    code, out, err = run("diff", before, leaks)

    assert (code, err) == (0, "")
    assert "\nWORSE       /srv/www/index.php keeps 64.0 KiB more a request: 0 B before, 64.0 KiB after (200 and" in out
    assert "\nscript " in out


def test_a_deploy_gate_fails_where_a_route_surely_keeps_more(run, before, leaks):
    code, out, err = run("diff", "--fail-over", "64K", before, leaks)

    assert code == 1
    assert "WORSE" in out
    assert err == (
        f"phptrace: cannot accept {leaks}: kept surely rose by more than 64.0 KiB a request in 1 script, the first of"
        " which is /srv/www/index.php. Fix that, or raise --fail-over.\n"
    )


@pytest.mark.parametrize("form", ["table", "json", "md", "csv"])
def test_a_deploy_gate_fails_though_nobody_reads_what_it_prints(before, leaks, form):
    reading, writing = os.pipe()
    os.close(reading)
    command = [sys.executable, "-m", "tracer", "diff", "--fail-over", "64K", "--format", form, str(before), str(leaks)]

    ended = subprocess.run(command, stdout=writing, stderr=subprocess.PIPE, text=True, cwd=ROOT)
    os.close(writing)

    assert ended.returncode == 1
    assert ended.stderr.startswith(f"phptrace: cannot accept {leaks}: kept surely rose by")
    assert ended.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("options", "code"),
    [
        (("--fail-over", "65552"), 0),
        (("--fail-over", "65551"), 1),
        (("--fail-over", "0"), 1),
        (("--metric", "zend", "--fail-over", "1M"), 0),
        (("--metric", "duration", "--fail-over", "1ms"), 0),
        ((), 0),
    ],
)
def test_a_gate_goes_by_its_limit_and_its_metric(run, before, leaks, options, code):
    assert run("diff", *options, before, leaks)[0] == code


def test_a_gate_goes_by_what_is_sure_and_not_by_what_is_likely(run, before, tmp_path):
    # Two of three requests keep 96 KiB: 64 KiB on average.
    facts = [one if at % 3 else one._replace(native_kept=0, native_alloc_bytes=0)
             for at, one in enumerate(requests(size=98_304, first_pid=9))]  # fmt: skip
    random.Random(1).shuffle(order := list(range(len(facts))))
    after = recording(tmp_path / "after", [facts[at]._replace(nth=1 + nth, pid=9 + nth % 2)
                                           for nth, at in enumerate(order)], META)  # fmt: skip

    kept = document(run("diff", "--format", "json", before, after)[1])["groups"][0]["kept"]

    assert 40 << 10 < kept["low"] < 60 << 10 < kept["shift"]
    for limit, code in ((int(kept["low"]) - 1, 1), (int(kept["low"]) + 1, 0), (60 << 10, 0)):
        assert run("diff", "--fail-over", limit, before, after)[0] == code


def test_a_gate_passes_where_it_became_better(run, before, leaks):
    code, out, _ = run("diff", "--fail-over", "1", leaks, before)

    assert code == 0
    assert "\nBETTER " in out


def test_a_gate_on_durations_takes_a_duration(run, before, tmp_path):
    slow = recording(tmp_path / "slow", requests(duration_ns=COMPLETE.duration_ns + 30_000_001), META)

    for limit, code in (("20ms", 1), ("30ms", 1), ("31ms", 0)):
        assert run("diff", "--metric", "duration", "--fail-over", limit, before, slow)[0] == code


def test_a_gate_fails_for_a_new_route_that_surely_keeps_memory(run, before, tmp_path):
    new = recording(tmp_path / "new", requests() + requests(size=65_552, script="/new.php", first_pid=9), META)

    code, out, err = run("diff", "--fail-over", "64K", before, new)

    assert code == 1
    assert "\nNEW LEAK    /new.php is new, and keeps 64.0 KiB a request (200 requests)." in out
    assert "/new.php" in err


def test_a_gate_that_nothing_decides_exits_with_8(run, before, tmp_path):
    few = recording(tmp_path / "few", requests(6), META)

    code, out, err = run("diff", "--fail-over", "64K", before, few)

    assert code == 8
    assert "\nCAUTION     requests: 200 before, 6 after\n" in out
    assert err == (
        "phptrace: cannot decide on --fail-over: kept is unclear for every script of both recordings. Record more"
        " requests, in the same way.\n"
    )


@pytest.mark.parametrize(("metric", "limit"), [("kept", "20ms"), ("duration", "64K"), ("kept", "x"), ("kept", "-1")])
def test_a_limit_has_the_unit_of_its_metric(run, before, metric, limit):
    code, out, err = run("diff", "--metric", metric, f"--fail-over={limit}", before, before)

    assert (code, out) == (2, "")
    assert err.startswith(f"phptrace: cannot use --fail-over '{limit}' with --metric {metric}: it is not a ")


@pytest.mark.parametrize("count", [0, 1, 3])
def test_two_recordings_are_compared(run, before, count):
    assert run("diff", *[before] * count)[0] == 2


def test_a_file_of_another_kind_is_refused(run, before, tmp_path):
    other = tmp_path / "other"
    other.write_text("x" * 200)

    assert run("diff", before, other)[0] == run("diff", other, before)[0] == 7
    assert run("diff", before, tmp_path / "missing")[0] == 7


def test_figures_of_more_than_64_bits_are_a_corrupt_recording(run, before, tmp_path):
    crafted = recording(tmp_path / "crafted", requests(4), META)
    altered(crafted, "UPDATE request_row SET anon_before = -9223372036854775807, anon_peak = 9223372036854775807")

    code, _, err = run("diff", before, crafted)

    assert code == 7
    assert "it is corrupt, with memory figures of more than 64 bits" in err


def test_routes_are_those_of_both_recordings(run, tmp_path):
    before = recording(tmp_path / "a", requests(100, uri="/user/7") + requests(100, uri="/cart", first_pid=9), META)
    after = recording(tmp_path / "b", requests(100, uri="/user/11") + requests(100, uri="/cart", first_pid=9), META)
    patterns = tmp_path / "patterns"
    patterns.write_text("/{all}/*\n")

    for options, keys in (
        ((), {"/user/{n}", "/cart"}),
        (("--group-by", "script"), {"/srv/www/index.php"}),
        (("--group-by", "uri"), {"/user/7", "/user/11", "/cart"}),
        (("--group-by", "route", "--routes", patterns), {"/{all}/*"}),
    ):
        found = document(run("diff", "--format", "json", *options, before, after)[1])
        assert {group["key"] for group in found["groups"]} == keys


def test_rows_are_limited_by_their_number_and_by_their_requests(run, tmp_path):
    facts = [one for at in range(30) for one in requests(2 + at, script=f"/{at}.php")]
    paths = [recording(tmp_path / name, facts, META) for name in "ab"]

    def keys(*options: str) -> list[str]:
        return [group["key"] for group in document(run("diff", "--format", "json", *options, *paths)[1])["groups"]]

    assert (len(keys()), len(keys("-n", "0")), len(keys("-n", "3"))) == (20, 30, 3)
    assert sorted(keys("--min-requests", "30")) == ["/28.php", "/29.php"]
    assert "… and 10 more: -n 0 shows all" in run("diff", *paths)[1]


def test_each_format_has_the_rows(run, before, leaks):
    markdown = run("diff", "--format", "md", before, leaks)[1]
    assert "| `/srv/www/index.php` | worse | 200 → 200 | +64.0 KiB | = | = | = |\n" in markdown
    [row] = csv.DictReader(io.StringIO(run("diff", "--format", "csv", before, leaks)[1]))
    assert (row["key"], row["kept_low"]) == ("/srv/www/index.php", "65552.0")
    header, line = run("diff", "--format", "tsv", before, leaks)[1].splitlines()
    assert dict(zip(header.split("\t"), line.split("\t"), strict=True)) == row
    [group] = document(run("diff", "--format", "json", before, leaks)[1])["groups"]
    assert (group["key"], group["kept"]["change"], group["zend"]["change"]) == ("/srv/www/index.php", "rose", "same")


def test_recordings_that_differ_are_compared_with_a_line_on_each_difference(run, before, tmp_path):
    worker = Worker(7, 900_107, "www", "8.3.1", None, None, None)
    facts = [*requests(duration_ns=10**10), Loss(1, 13, "requests: the ring was full"), worker]
    after = recording(tmp_path / "after", facts, {**META, "host": "web2", "backend": "ptrace"})

    code, out, _ = run("diff", before, after)
    found = document(run("diff", "--format", "json", before, after)[1])

    assert code == 0
    assert found["cautions"] == [
        "host: web1 before, web2 after",
        "PHP: unknown before, 8.3.1 after",
        "backend: bpf before, ptrace after",
        "lost: 0 before, 13 after",
    ]
    assert [line for line in out.splitlines() if line.startswith("CAUTION")] == [
        f"CAUTION     {line}" for line in found["cautions"]
    ]
    [group] = found["groups"]
    assert (group["duration"]["change"], group["duration"]["why"]) == ("unclear", "not alike")


def test_memory_is_not_estimated_where_a_filter_left_requests_out(run, tmp_path):
    paths = [recording(tmp_path / name, [one._replace(native_kept=None) for one in requests()],
                       {**META, "options": {"uri": "/a*"}}) for name in "ab"]  # fmt: skip

    [group] = document(run("diff", "--format", "json", *paths)[1])["groups"]

    assert (group["kept"]["change"], group["kept"]["why"]) == ("unclear", "not measured")


@pytest.mark.parametrize("schema", [1, 2])
def test_a_recording_of_an_older_schema_is_compared_as_far_as_its_columns_go(run, schema):
    old = RECORDINGS / f"schema-{schema}.phptrace"
    new = RECORDINGS / "schema-3.phptrace"

    for pair in ((old, new), (new, old), (old, old)):
        code, out, _ = run("diff", "--format", "json", "-n", "0", *pair)
        assert code == 0
        found = document(out)
        assert {group["kept"]["change"] for group in found["groups"]} <= {"unclear", "new", "gone"}
        assert any(line.startswith("schema: ") for line in found["cautions"]) is (pair != (old, old))


def test_a_recording_compared_with_itself_is_the_same_and_says_so(run, leaks, tmp_path):
    link = tmp_path / "link"
    link.symlink_to(leaks)

    for other in (leaks, link):
        found = document(run("diff", "--format", "json", "--fail-over", "0", leaks, other)[1])
        assert found["cautions"] == ["both are the same recording"]
        assert {found["groups"][0][figure]["change"] for figure in ("kept", "rise", "zend", "duration")} == {"same"}


def test_an_empty_recording_has_no_rows(run, before, tmp_path):
    empty = recording(tmp_path / "empty", [], META)

    assert run("diff", empty, empty)[0] == 0
    code, out, _ = run("diff", before, empty)
    assert code == 0
    assert "No script is surely worse, of 0 in both recordings; 1 gone.\n" in out


def test_call_stacks_of_both_are_the_next_step(run, tmp_path):
    meta = {**META, "stacks": {"max_depth": 127, "every": 17, "hz": 997}}
    paths = [recording(tmp_path / name, requests(size=size), meta) for name, size in (("a", 0), ("b", 65_552))]

    assert f"Next: phptrace flame --diff {paths[0]}" in run("diff", *paths)[1].replace("\n            ", " ")
