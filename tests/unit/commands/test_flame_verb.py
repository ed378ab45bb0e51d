"""The verb flame: its output, titles, remarks and errors."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ET

import pytest
from samples import COMPLETE, FIND, MAIN, WITH_STACKS, growth, recording, request
from stack_recordings import FACTS, INDEX, MISSING, TAKEN, unended, without_stacks

from tracer.facts import Loss


def test_a_flame_is_a_picture_by_default(run, path):
    code, out, err = run("flame", path)

    assert (code, err) == (0, "")
    assert ET.fromstring(out).tag == "{http://www.w3.org/2000/svg}svg"
    assert TAKEN in out


def test_a_flame_as_folded_stacks_talks_on_stderr(run, path):
    code, out, err = run("flame", "--format", "folded", path)

    assert code == 0
    assert out.splitlines() == [
        f"{INDEX};Repo::find /srv/app/Repo.php:89 101",
        "/leak/{n};/srv/www/index.php;<main> /srv/www/index.php:3 7",
    ]
    assert err == (
        "phptrace: One in 17 page faults was sampled. Freed memory is not subtracted: a page that is freed and touched"
        " again counts twice.\n"
        "phptrace: 2 requests · 0 workers · 0 incomplete · 0 lost\n"
    )


def test_a_flame_for_speedscope_has_its_title(run, path):
    code, out, _ = run("flame", "--format", "speedscope", path)

    assert code == 0
    assert json.loads(out)["name"] == TAKEN
    assert json.loads(out)["profiles"][0]["weights"] == [101, 7]


@pytest.mark.parametrize(
    ("metric", "title", "lines"),
    [
        ("rss", TAKEN, [101, 7]),
        ("mapped", "Address space mapped by php-fpm:shop, 75 s, 2 requests (mmap, mremap and brk)", [503]),
        (
            "zend",
            "Growth of Zend's heap in php-fpm:shop, 75 s, 2 requests (samples until the script ended)",
            [401_987, 401_980, 7],
        ),
    ],
)
def test_a_flame_is_weighed_as_asked(run, path, metric, title, lines):
    _, out, _ = run("flame", "--metric", metric, "--format", "speedscope", path)

    found = json.loads(out)
    assert (found["name"], found["profiles"][0]["weights"]) == (title, lines)


def test_growth_that_no_look_at_zends_heap_saw_is_shown_as_not_sampled(run, path):
    _, out, err = run("flame", "--metric", "zend", "--format", "folded", path)

    assert "/leak/{n};/srv/www/index.php;[not sampled] 7" in out.splitlines()
    assert "Sampled 997 times per second of CPU time;" in err
    assert "[not sampled]: growth after a request's last sample." in err


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--metric", "zend"], "[not sampled]: growth after a request's last sample{}. Freed by"),
        (["--retained"], "[not sampled]: 0 B kept by requests without a sample{}."),
    ],
)
def test_lost_growth_is_named_as_a_possible_part_of_not_sampled(run, path, tmp_path, options, said):
    lost = [Loss(1, 1_009, "growth events: their ring buffer was full"), Loss(2, 7, "growth events: too late"),
            Loss(3, 13, "requests: the ring was full")]  # fmt: skip
    losing = recording(tmp_path / "losing", [*FACTS, *lost], WITH_STACKS)
    also = {
        "zend": ", and 1,016 lost growth events",
        "--retained": ", or whose samples were lost (1,016 growth events)",
    }

    _, _, without = run("flame", *options, "--format", "folded", path)
    _, _, err = run("flame", *options, "--format", "folded", losing)
    _, report, _ = run("report", "--stacks", *options, losing)

    assert said.format("") in without
    assert said.format(also[options[-1]]) in err
    assert said.format(also[options[-1]]) in report


def test_kept_memory_stands_where_it_was_added(run, path):
    code, out, err = run("flame", "--retained", "--format", "folded", path)

    kept = COMPLETE.native_kept
    assert code == 0
    assert out.splitlines() == [
        f"{INDEX};Repo::find /srv/app/Repo.php:89 {kept}",
        "/leak/{n};/srv/www/index.php;<main> /srv/www/index.php:3 1009",
    ]
    assert "2 of 2 requests kept memory; stack widths are scaled to it. [not sampled]: 0 B kept" in err


@pytest.mark.parametrize("verb", [["flame"], ["report", "--stacks"]])
def test_retained_memory_of_zends_heap_is_refused(run, path, verb):
    code, out, err = run(*verb, "--retained", "--metric", "zend", path)

    assert (code, out) == (2, "")
    assert err.startswith("phptrace: cannot use --retained with --metric zend: ")


@pytest.mark.parametrize("verb", [["flame"], ["report", "--stacks"], ["report", "--stacks", "--format", "json"]])
def test_a_recording_without_stacks_is_refused_with_how_to_have_them(run, tmp_path, verb):
    code, out, err = run(*verb, without_stacks(tmp_path / "old"))

    assert (code, out) == (2, "")
    assert err.startswith(f"phptrace: cannot show call stacks of {tmp_path}/old: it has none. Record again with ")


def test_one_recording_without_stacks_fails_all_and_leaves_no_file(run, path, tmp_path):
    code, _, _ = run("flame", "-o", tmp_path / "o.svg", path, without_stacks(tmp_path / "old"))

    assert code == 2
    assert not (tmp_path / "o.svg").exists()


def test_several_recordings_are_one_flame(run, path, tmp_path):
    other = recording(tmp_path / "other", [COMPLETE, growth(13, MAIN, FIND)], {"stacks": {"every": 3, "hz": 5}})

    _, out, _ = run("flame", "--format", "folded", path, other)
    _, picture, _ = run("flame", path, other)

    assert f"{INDEX};Repo::find /srv/app/Repo.php:89 114" in out.splitlines()
    assert "One in 3 or 17 page faults was sampled." in picture


def test_routes_that_are_one_tower_are_noted_and_the_report_names_them(run, tmp_path):
    slugs = [request(uri=f"/{nth % 2}x/shoe-{nth // 2}-x", nth=nth) for nth in range(101)]
    path = recording(tmp_path / "r", [f for slug in slugs for f in (slug, growth(7, MAIN, of=slug))], WITH_STACKS)

    _, out, err = run("flame", "--format", "folded", path)
    _, report, _ = run("report", "--stacks", path)

    assert out == "(101 other routes);/srv/www/index.php;<main> /srv/www/index.php:3 707\n"
    assert (
        "phptrace: (101 other routes): each has less than 2 % of the total, all of them 707 B."
        " `phptrace report --group-by route` lists them.\n"
    ) in err
    assert "    for /0x/shoe-0-x, /0x/shoe-1-x, /0x/shoe-10-x and 98 more\n" in report
    assert "other routes" not in report


@pytest.mark.parametrize("meta", [{"stacks": {}}, {"stacks": None}, {"stacks": [17]}, {"stacks": {"every": "\x1b"}}])
def test_a_recording_that_does_not_say_how_its_stacks_were_taken_can_be_read(run, tmp_path, meta):
    code, out, _ = run("flame", recording(tmp_path / "r", FACTS, meta))

    assert code == 0
    assert "One in an unknown number of page faults was sampled." in out


@pytest.mark.parametrize(
    ("meta", "title"),
    [
        ({"targets": ["php-fpm", "7"], "ended": {"elapsed_s": 3}}, "Memory taken by php-fpm, 7, 3 s, 2 requests"),
        ({"targets": "php-fpm", "ended": {"elapsed_s": "3"}}, "Memory taken by unnamed workers, 2 requests"),
        ({"targets": [7, None], "ended": [3]}, "Memory taken by unnamed workers, 2 requests"),
        ({"targets": [], "ended": {"elapsed_s": float("nan")}}, "Memory taken by unnamed workers, 2 requests"),
        ({"targets": [], "ended": {"elapsed_s": 1e300}}, "Memory taken by unnamed workers, 2 requests"),
        ({"targets": ["a"], "ended": {}}, "Memory taken by a, 2 requests"),
    ],
)
def test_the_title_has_the_targets_and_duration_of_the_recording(run, tmp_path, meta, title):
    _, out, _ = run("flame", "--format", "speedscope", recording(tmp_path / "r", FACTS, {**WITH_STACKS, **meta}))

    assert json.loads(out)["name"] == f"{title} (sampled page faults)"


def test_a_flame_of_several_recordings_has_their_targets_and_the_sum_of_their_durations(run, tmp_path):
    files = [
        recording(tmp_path / name, [COMPLETE], {**WITH_STACKS, "targets": [name, "x"], "ended": {"elapsed_s": elapsed}})
        for name, elapsed in (("a", 3), ("b", 5.25))
    ]

    _, out, _ = run("flame", "--format", "speedscope", *files)

    assert json.loads(out)["name"] == "Memory taken by a, x, b, 8 s, 2 requests (sampled page faults)"


def test_a_flame_does_not_show_remarks_on_phptraces_own_work(run, tmp_path):
    lacking = ["speed: on_end is slow", "not measured: Zend's heap: it is hidden"]
    _, _, err = run(
        "flame", "--format", "folded", recording(tmp_path / "r", FACTS, {**WITH_STACKS, "lacking": lacking})
    )

    assert "Zend's heap: it is hidden" in err
    assert "on_end is slow" not in err


def test_a_flame_of_a_recording_in_which_nothing_grew_says_so(run, tmp_path):
    empty = recording(tmp_path / "empty", [COMPLETE], WITH_STACKS)

    assert run("flame", "--format", "folded", empty)[:2] == (0, "")
    assert run("flame", empty)[0] == 0


@pytest.mark.parametrize("form", ["folded", "speedscope"])
def test_missing_measurements_are_reported_beside_a_flame_for_other_tools(run, poor, form):
    _, _, err = run("flame", "--format", form, poor)

    assert [missing for missing in MISSING if missing not in err] == []


def test_missing_measurements_are_reported_in_the_picture(run, poor):
    _, out, _ = run("flame", poor)

    words = " ".join("".join(element.itertext()) for element in ET.fromstring(out).iter())
    assert [missing for missing in MISSING if missing not in words] == []


def test_missing_measurements_are_reported_once_however_many_recordings_lack_them(run, poor, tmp_path):
    other = unended(tmp_path / "other", {"lacking": ["not measured: Zend's heap: it is hidden", 7, None]})

    _, _, err = run("flame", "--format", "folded", poor, other)

    assert err.count("it is hidden") == 1
    assert "INCOMPLETE: 2 recordings were not closed" in err
