"""flame --diff: two recordings, and the remarks on each."""

from __future__ import annotations

import pytest
from samples import COMPLETE, FIND, MAIN, WITH_STACKS, growth, recording
from stack_recordings import INDEX, MISSING

from tracer.facts import STACK_LOST


def test_a_difference_shows_the_bytes_before_and_after(run, path, tmp_path):
    after = recording(tmp_path / "after", [COMPLETE, growth(13, MAIN, FIND), growth(17, MAIN)], WITH_STACKS)

    code, out, err = run("flame", "--diff", "--format", "folded", path, after)

    assert code == 0
    assert out.splitlines() == [
        f"{INDEX} 0 17",
        f"{INDEX};Repo::find /srv/app/Repo.php:89 50 13",
        "/leak/{n};/srv/www/index.php;<main> /srv/www/index.php:3 4 0",
    ]
    assert "phptrace: Before has 2 requests, scaled to as many as after: 1.\n" in err


def test_a_difference_says_how_functions_were_matched(run, path, tmp_path):
    moved = FIND._replace(file="/srv/2/app/Repo.php", line=97)
    after = recording(tmp_path / "after", [COMPLETE, growth(50, MAIN, moved)], WITH_STACKS)

    _, out, err = run("flame", "--diff", "--format", "folded", path, after)
    _, _, same = run("flame", "--diff", "--format", "folded", path, path)

    assert f"{INDEX};Repo::find /srv/2/app/Repo.php:97 50 50" in out.splitlines()
    how = (
        "phptrace: Functions are matched by name and file, not by line. The line shown is from after, or from before if"
        " the function is gone."
    )
    assert f"{how} Files in /srv/ before are matched with those in /srv/2/ after.\n" in err
    assert f"{how}\n" in same


def test_a_difference_of_an_empty_recording_has_nothing_before(run, tmp_path):
    before = recording(tmp_path / "before", [], WITH_STACKS)
    after = recording(tmp_path / "after", [COMPLETE, growth(7, MAIN)], WITH_STACKS)

    _, out, _ = run("flame", "--diff", "--format", "folded", before, after)

    assert out == f"{INDEX} 0 7\n"


def test_a_difference_of_kept_memory_counts_the_requests_after_alone(run, path, tmp_path):
    after = recording(tmp_path / "after", [COMPLETE, growth(7, MAIN)], WITH_STACKS)

    _, _, err = run("flame", "--diff", "--retained", "--format", "folded", path, after)

    assert "1 of 1 request kept memory" in err
    assert "Before has 2 requests, scaled to as many as after: 1." in err


def test_stacks_that_were_lost_before_are_reported_with_the_difference(run, tmp_path):
    before = recording(tmp_path / "before", [COMPLETE, growth(103, STACK_LOST)], WITH_STACKS)
    after = recording(tmp_path / "after", [COMPLETE, growth(7, MAIN)], WITH_STACKS)

    _, _, err = run("flame", "--diff", "--format", "folded", before, after)

    assert "phptrace: 103 B belong to stacks that were lost or could not be read to the end.\n" in err


@pytest.mark.parametrize("count", [1, 3])
def test_a_difference_is_of_two_recordings(run, path, count):
    code, out, err = run("flame", "--diff", *[path] * count)

    assert (code, out) == (2, "")
    assert err.startswith("phptrace: cannot compare ")
    assert err.endswith(": --diff takes exactly two. Write `phptrace flame --diff BEFORE AFTER`.\n")


def test_missing_measurements_of_either_recording_are_reported_with_their_difference(run, poor, path):
    for pair in ((poor, path), (path, poor)):
        _, _, err = run("flame", "--diff", "--format", "folded", *pair)

        assert [missing for missing in (MISSING[0], *MISSING[2:4]) if missing not in err] == []
        assert "1 incomplete · 13 lost" in err
