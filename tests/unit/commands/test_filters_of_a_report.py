"""`report` about some of the requests: --uri, --script, --slow, --since and --until."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from planted import traffic
from samples import COMPLETE, MAIN, WITH_STACKS, growth, recording, request

from tracer.commands.filtering import Moment
from tracer.facts import Request

BEGAN_NS = 1_700_000_000_000_000_000  # 2023-11-14 22:13:20 UTC
SECOND = 10**9


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Ten requests, one a second, of alternating scripts and uris, each 10 ms longer than the one before."""
    return recording(
        tmp_path / "r.phptrace",
        [
            request(
                nth=nth, script=f"/{'ab'[nth % 2]}.php", uri=f"/shop/{nth}" if nth < 5 else f"/blog/{nth}",
                started_ns=BEGAN_NS + nth * SECOND, duration_ns=nth * 10_000_000, native_kept=1_000,
            )
            for nth in range(10)
        ],
        {"clock": {"unix_ns": BEGAN_NS}, "ended": {"elapsed_s": 10.0}},
    )  # fmt: skip


@pytest.mark.parametrize(
    ("options", "requests"),
    [
        (["--uri", "/shop/*"], {"/a.php": 3, "/b.php": 2}),
        (["--script", "/a.*"], {"/a.php": 5}),
        (["--slow", "70ms"], {"/a.php": 1, "/b.php": 2}),
        (["--since", "3s"], {"/a.php": 3, "/b.php": 4}),
        (["--until", "22:13:23"], {"/a.php": 2, "/b.php": 1}),
        (["--since", "2023-11-14T22:13:22", "--until", "2023-11-14 23:13:24+01:00"], {"/a.php": 1, "/b.php": 1}),
        (["--uri", "/shop/*", "--script", "/b.*", "--slow", "20ms", "--since", "2s", "--until", "1m"], {"/b.php": 1}),
        (["--uri", "/nothing"], {}),
        (["--since", "3h"], {}),
    ],
)
def test_a_report_is_about_the_requests_that_are_asked_for(run, path, options, requests):
    code, out, _ = run("report", "--format", "json", "--group-by", "script", *options, path)

    document = json.loads(out)
    assert code == 0
    assert {group["key"]: group["requests"] for group in document["groups"]} == requests
    left = sum(requests.values())
    assert (document["requests"], document["left_out"], document["growth"]) == (left, 10 - left, None)


def test_the_table_names_the_filter_and_the_requests_that_it_leaves_out(run, path):
    _, out, _ = run("report", "--uri", "/shop/[12]", "--since", "1s", path)

    assert "· 2 of 10 requests · --uri '/shop/[12]'\n--since 1s · 0 lost\n\n" in out
    assert "\n2 requests · 8 left out by a filter · " in out
    assert "grew" not in out


def test_the_figures_of_a_script_are_the_same_with_and_without_the_others(run, tmp_path):
    """First requests and levels go by all requests of a worker."""
    file = recording(tmp_path / "planted", traffic("a page frees next to a leak"))

    _, every, _ = run("report", "--format", "json", file)
    groups = {group["key"]: group for group in json.loads(every)["groups"]}
    for script in groups:
        _, out, _ = run("report", "--format", "json", "--script", script, file)
        assert json.loads(out)["groups"] == [groups[script]]


def test_nothing_is_estimated_of_a_part_of_the_requests(run, tmp_path):
    uncounted = {"native_kept": None, "native_alloc_bytes": None, "native_free_bytes": None}
    file = recording(tmp_path / "r", [one._replace(**uncounted) for one in traffic("large leak")])

    how = []
    for options in ([], ["--script", "/leak.php"]):
        _, out, _ = run("report", "--format", "json", *options, file)
        how += [group["kept_how"] for group in json.loads(out)["groups"] if group["key"] == "/leak.php"]
    assert how == ["estimated", None]


def test_the_call_stacks_are_those_of_the_requests_that_are_left(run, tmp_path):
    other = COMPLETE._replace(script="/other.php", nth=4)
    facts = [COMPLETE, growth(7 << 20, MAIN), other, growth(5 << 20, MAIN, of=other)]
    file = recording(tmp_path / "r", facts, WITH_STACKS)

    _, out, _ = run("report", "--format", "json", "--stacks", "--metric", "rss", "--script", "/other.php", file)

    assert json.loads(out)["stacks"]["total_bytes"] == 5 << 20


def test_times_between_which_there_is_none_are_a_usage_error(run, path):
    code, out, err = run("report", "--since", "5s", "--until", "22:13:25", path)

    assert (code, out) == (2, "")
    assert err == (
        "phptrace: cannot use --since 5s with --until 22:13:25: no time is left. Write an earlier --since.\n"
    )


def test_a_recording_past_midnight_may_end_before_the_time_until_which_it_is_shown(run, tmp_path):
    """It began at 23:59:50, and ends ten seconds after midnight."""
    began_ns = 1_700_006_390 * SECOND
    facts = [request(nth=nth, started_ns=began_ns + nth * SECOND) for nth in range(1, 20)]
    meta = {"clock": {"unix_ns": began_ns}, "ended": {"elapsed_s": 20.0}}
    file = recording(tmp_path / "r", facts, meta)

    shown = [
        json.loads(run("report", "--format", "json", *options, file)[1])["requests"]
        for options in (["--until", "00:01"], ["--since", "23:59:55", "--until", "00:01"])
    ]
    assert shown == [19, 15]


@pytest.mark.parametrize("text", ["", "soon", "25:00", "2023-02-30T00:00", "-5s", "9" * 400, "12:00Z"])
def test_a_text_that_is_not_a_time_is_a_usage_error(run, path, text):
    code, out, err = run("report", f"--since={text}", path)

    assert (code, out) == (2, "")
    assert "is not a time. Write 5m (after the start of the recording), 14:02" in err


@pytest.mark.parametrize(
    ("text", "began", "ended", "seconds"),
    [
        ("90s", 100, 200, 190),
        ("+1.5m", 100, 200, 190),
        ("00:03", 100, 200, 180),
        ("00:01:00.5", 100, 200, 60.5),  # before it began: of the first day all the same
        ("00:01", 86_000, 87_000, 86_460),  # it goes on past midnight, and only the second day has that time
        ("23:59:50", 86_000, 87_000, 86_390),
        ("1970-01-02", 100, 200, 86_400),
        ("1970-01-01T01:00+01:00", 100, 200, 0),
    ],
)
def test_a_moment_is_found_in_the_time_of_a_recording(text, began, ended, seconds):
    assert Moment.parse(text).of(began * SECOND, ended * SECOND) == round(seconds * SECOND)


def filled_cache(nth: int, pid: int) -> Request:
    """One of 400 requests of a worker, of which the first 150 fill a cache."""
    kept = 2_000 if nth <= 150 else 0
    return request(
        nth=nth, pid=pid, start_ticks=pid, script="/search.php", uri="/search", native_kept=kept,
        native_alloc_bytes=9_000 + kept, native_free_bytes=9_000, started_ns=BEGAN_NS + nth * SECOND // 10,
    )  # fmt: skip


@pytest.mark.parametrize("options", [["--until", "14s"], ["--since", "3s", "--until", "13s"], ["--since", "1s"]])
def test_a_cache_that_fills_is_no_leak_in_a_part_of_the_recording_either(run, tmp_path, options):
    file = recording(
        tmp_path / "r", [filled_cache(nth, pid) for nth in range(1, 401) for pid in (11, 12, 13)],
        {"clock": {"unix_ns": BEGAN_NS}, "ended": {"elapsed_s": 40.0}},
    )  # fmt: skip

    (every,) = json.loads(run("report", "--format", "json", file)[1])["groups"]
    (part,) = json.loads(run("report", "--format", "json", *options, file)[1])["groups"]

    assert every["verdict"] == part["verdict"] == "warm-up"
    assert part["requests"] < every["requests"]


def test_a_filter_that_no_request_fits_is_named(run, path):
    code, _, err = run("report", "--since", "3h", path)

    assert (code, "no request fits the filter: --since 3h" in err) == (0, True)
