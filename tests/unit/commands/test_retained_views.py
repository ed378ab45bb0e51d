"""Blocks that outlived their request, as flame and report show them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from samples import COMPLETE, FIND, MAIN, WITH_STACKS, growth, recording
from stack_recordings import ABOUT, FACTS, INDEX, LEAK

from tracer.facts import Loss, Metric, Retained


def retaining(path: Path) -> Path:
    """A recording of blocks that were retained, 503 bytes, though its requests kept 102,337 together."""
    of_complete = Retained(COMPLETE.pid, COMPLETE.nth, (MAIN, FIND), 401, 1)
    of_leak = Retained(LEAK.pid, LEAK.nth, (MAIN,), 102, 1)
    facts = [*FACTS[:3], growth(3, MAIN, FIND, metric=Metric.NATIVE), LEAK, of_complete, of_leak]
    return recording(path, facts, {**ABOUT, "stacks": {**ABOUT["stacks"], "retained_after": 7}})


def test_retained_blocks_are_shown_where_they_were_recorded(run, tmp_path):
    path = retaining(tmp_path / "retained")

    code, out, err = run("flame", "--format", "folded", path)
    _, report, _ = run("report", "--stacks", path)

    assert code == 0
    assert out.splitlines() == [
        f"{INDEX};Repo::find /srv/app/Repo.php:89 {COMPLETE.native_kept}",
        "/leak/{n};/srv/www/index.php;<main> /srv/www/index.php:3 1009",
    ]
    assert "2 of 2 requests kept native memory; the allocations of 2 were counted, and only those are shown." in err
    assert "held when 7 more requests of their worker had ended" in err
    assert "[not sampled]: 0 B kept" in err
    assert "Memory kept by php-fpm:shop, 75 s, 2 requests (sampled native blocks)" in report


def test_retained_blocks_that_were_lost_are_reported(run, tmp_path):
    path = retaining(tmp_path / "retained")
    lost = Loss(1, 7, "growth events of retained memory: the table of sampled blocks was full")
    losing = recording(tmp_path / "losing", [COMPLETE, Retained(COMPLETE.pid, COMPLETE.nth, (MAIN,), 3, 1), lost],
                       ABOUT)  # fmt: skip

    _, _, err = run("flame", "--format", "folded", losing)
    _, _, without = run("flame", "--format", "folded", path)

    assert "7 growth events lost." in err
    assert "lost." not in without


@pytest.mark.parametrize(
    ("options", "title", "total"),
    [
        (["--metric", "rss"], "Memory taken by php-fpm:shop, 75 s, 2 requests (sampled page faults)", 101),
        (
            ["--metric", "native"],
            "Native memory taken by php-fpm:shop, 75 s, 2 requests (sampled page faults outside Zend's heap)",
            3,
        ),
        (
            ["--metric", "native", "--retained"],
            "Memory kept by php-fpm:shop, 75 s, 2 requests (sampled page faults outside Zend's heap)",
            COMPLETE.native_kept + 1_009,
        ),
        (
            ["--metric", "retained"],
            "Memory kept by php-fpm:shop, 75 s, 2 requests (sampled native blocks)",
            COMPLETE.native_kept + 1_009,
        ),
    ],
)
def test_the_other_metrics_of_a_recording_with_retained_blocks_can_be_asked_for(run, tmp_path, options, title, total):
    _, out, _ = run("report", "--stacks", *options, "--format", "json", retaining(tmp_path / "retained"))

    stacks = json.loads(out)["stacks"]
    assert (stacks["title"], stacks["total_bytes"]) == (title, total)


UNCOUNTED = COMPLETE._replace(native_kept=None, native_alloc_calls=None, native_free_calls=None)


@pytest.mark.parametrize(
    ("first", "second", "options", "view"),
    [
        # Of two recordings, one had nothing to retain.
        ([COMPLETE, Retained(COMPLETE.pid, COMPLETE.nth, (MAIN,), 3, 1)], [COMPLETE], [], "sampled native blocks"),
        # One was not counted: then what both have.
        (
            [COMPLETE, growth(7, MAIN, metric=Metric.NATIVE), Retained(COMPLETE.pid, COMPLETE.nth, (MAIN,), 3, 1)],
            [UNCOUNTED, growth(7, MAIN, metric=Metric.NATIVE)],
            [],
            "Native memory taken by unnamed workers, 2 requests (sampled page faults outside Zend's heap)",
        ),
        (
            [UNCOUNTED, growth(7, MAIN, metric=Metric.NATIVE)],
            [UNCOUNTED, growth(7, MAIN, metric=Metric.NATIVE)],
            ["--retained"],
            "Memory kept by unnamed workers, 2 requests (sampled page faults outside Zend's heap)",
        ),
        (
            [COMPLETE, growth(7, MAIN, metric=Metric.NATIVE)],
            [COMPLETE, growth(7, MAIN, metric=Metric.NATIVE)],
            [],
            "Memory kept by unnamed workers, 2 requests (sampled page faults outside Zend's heap)",
        ),
        # One is older than both.
        ([COMPLETE, growth(7, MAIN, metric=Metric.NATIVE)], [COMPLETE, growth(7, MAIN)], [], "(sampled page faults)"),
        ([COMPLETE, growth(7, MAIN)], [UNCOUNTED], ["--retained"], "Memory kept by"),
    ],
)
def test_the_default_metric_is_one_that_all_recordings_have(run, tmp_path, first, second, options, view):
    paths = [recording(tmp_path / name, facts, WITH_STACKS) for name, facts in (("a", first), ("b", second))]

    _, out, _ = run("report", "--stacks", *options, *paths)

    assert view in out
