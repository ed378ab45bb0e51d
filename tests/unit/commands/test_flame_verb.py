"""Growth by call stack on the command line: flame and report --stacks; the output, files and errors."""

from __future__ import annotations

import json
import os
import stat
import xml.etree.ElementTree as ET
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from samples import COMPLETE, FIND, MAIN, QUERY, WITH_STACKS, growth, recording, request

from tracer.cli import main
from tracer.facts import STACK_LOST, Frame, Growth, Loss, Metric, Request, Retained
from tracer.recording.writer import Writer

Run = Callable[..., tuple[int, str, str]]

TAKEN = "Memory taken by php-fpm:shop, 75 s, 2 requests (sampled page faults)"
ABOUT = {**WITH_STACKS, "targets": ["php-fpm:shop"], "ended": {"why": "duration elapsed", "elapsed_s": 75.2}}
INDEX = "/index.php;/srv/www/index.php;<main> /srv/www/index.php:3"
LEAK = request(uri="/leak/7", nth=5, native_kept=1_009)
FACTS = [
    COMPLETE, growth(101, MAIN, FIND, samples=3), growth(503, MAIN, metric=Metric.MAPPED),
    growth(401_987, MAIN, QUERY, metric=Metric.ZEND, samples=5),
    LEAK, growth(7, MAIN, of=LEAK), growth(401_980, MAIN, of=LEAK, metric=Metric.ZEND),
]  # fmt: skip


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    """The exit code, stdout and stderr of `phptrace` with these arguments, in this process."""

    def call(*arguments: object) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as ended:
            main([str(argument) for argument in arguments])
        said = capsys.readouterr()
        return ended.value.code, said.out, said.err

    return call


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return recording(tmp_path / "r.phptrace", FACTS, ABOUT)


def without_stacks(path: Path) -> Path:
    return recording(path, [COMPLETE])


def unended(path: Path, meta: dict[str, Any], *facts: Request | Growth | Loss) -> Path:
    """A recording that came to no end."""
    file = Writer(str(path), {**WITH_STACKS, **meta})
    file.add(facts)
    file.close(ended=False)
    return path


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
    slugs = [request(uri=f"/shoe-{nth}-x", nth=nth) for nth in range(101)]
    path = recording(tmp_path / "r", [f for slug in slugs for f in (slug, growth(7, MAIN, of=slug))], WITH_STACKS)

    _, out, err = run("flame", "--format", "folded", path)
    _, report, _ = run("report", "--stacks", path)

    assert out == "(101 other routes);/srv/www/index.php;<main> /srv/www/index.php:3 707\n"
    assert (
        "phptrace: (101 other routes): each has less than 2 % of the total, all of them 707 B."
        " `phptrace report --group-by uri` lists them.\n"
    ) in err
    assert "    for /shoe-0-x, /shoe-1-x, /shoe-10-x and 98 more\n" in report
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


@pytest.mark.parametrize(
    ("name", "options", "begins"),
    [
        ("o.svg", [], "<"),
        ("o.folded", [], "/index.php;"),
        ("o.txt", [], "/index.php;"),
        ("o.json", [], '{"$schema"'),
        ("o.xyz", [], "<"),
        ("o.svg", ["--format", "folded"], "/index.php;"),
    ],
)
def test_the_format_of_a_flame_follows_the_option_or_the_file_name(run, path, tmp_path, name, options, begins):
    code, out, _ = run("flame", *options, path, "-o", tmp_path / name)

    assert (code, out) == (0, "")
    assert (tmp_path / name).read_text().startswith(begins)
    assert stat.S_IMODE((tmp_path / name).stat().st_mode) == 0o600


def test_a_flame_does_not_overwrite_unless_forced(run, path, tmp_path):
    (tmp_path / "o.svg").write_text("precious")

    code, _, err = run("flame", "-o", tmp_path / "o.svg", path)

    assert (code, (tmp_path / "o.svg").read_text()) == (2, "precious")
    assert "overwrite it with -f" in err
    assert run("flame", "-f", "-o", tmp_path / "o.svg", path)[0] == 0
    assert (tmp_path / "o.svg").read_text().endswith("</svg>\n")


def test_a_flame_is_never_written_through_a_link(run, path, tmp_path):
    (tmp_path / "precious").write_text("precious")
    (tmp_path / "o.svg").symlink_to(tmp_path / "precious")

    codes = [run("flame", *force, "-o", tmp_path / "o.svg", path)[0] for force in ([], ["-f"])]

    assert codes == [2, 0]
    assert (tmp_path / "precious").read_text() == "precious"
    assert not (tmp_path / "o.svg").is_symlink()


@pytest.mark.parametrize("other_name", [False, True])
def test_a_recording_is_not_overwritten_by_its_own_flame(run, path, tmp_path, other_name):
    output = path
    if other_name:
        output = tmp_path / "link.svg"
        output.hardlink_to(path)
    before = path.read_bytes()

    code, out, err = run("flame", "-f", "-o", output, path)

    assert (code, out) == (2, "")
    assert err == f"phptrace: cannot write {output}: it is also an input file. Choose another name with -o.\n"
    assert path.read_bytes() == before


def test_a_flame_in_a_missing_folder_is_a_usage_error(run, path, tmp_path):
    code, _, err = run("flame", "-o", tmp_path / "no" / "o.svg", path)

    assert code == 2
    assert "No such file or directory" in err


def test_a_file_that_cannot_be_overwritten_is_a_usage_error(run, path):
    code, out, err = run("flame", "-f", "-o", "/proc/version", path)

    assert (code, out) == (2, "")
    assert err.startswith("phptrace: cannot overwrite /proc/version: ")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file away")
def test_under_sudo_a_flame_belongs_to_the_user(run, path, tmp_path, monkeypatch):
    monkeypatch.setenv("SUDO_UID", "65531")
    monkeypatch.setenv("SUDO_GID", "65521")

    run("flame", "-o", tmp_path / "o.svg", path)

    made = (tmp_path / "o.svg").stat()
    assert (made.st_uid, made.st_gid) == (65531, 65521)


def test_a_flame_of_a_recording_in_which_nothing_grew_says_so(run, tmp_path):
    empty = recording(tmp_path / "empty", [COMPLETE], WITH_STACKS)

    assert run("flame", "--format", "folded", empty)[:2] == (0, "")
    assert run("flame", empty)[0] == 0


MISSING = [
    "not measured: Zend's heap: it is hidden",
    "1 request · 0 workers · 1 incomplete · 13 lost",
    "LOST 13 growth events: the ring was full",
    "INCOMPLETE: 1 recording was not closed",
    "103 B belong to stacks that were lost or could not be read to the end.",
]


@pytest.fixture
def poor(tmp_path: Path) -> Path:
    """A recording that lacks whatever one can lack."""
    cut = request(anon_after=None)
    return unended(
        tmp_path / "poor", {"lacking": ["not measured: Zend's heap: it is hidden"]},
        cut, growth(103, STACK_LOST, of=cut), Loss(1, 13, "growth events: the ring was full"),
    )  # fmt: skip


@pytest.mark.parametrize("form", ["folded", "speedscope"])
def test_missing_measurements_are_reported_beside_a_flame_for_other_tools(run, poor, form):
    _, _, err = run("flame", "--format", form, poor)

    assert [missing for missing in MISSING if missing not in err] == []


def test_missing_measurements_are_reported_in_the_picture(run, poor):
    _, out, _ = run("flame", poor)

    words = " ".join("".join(element.itertext()) for element in ET.fromstring(out).iter())
    assert [missing for missing in MISSING if missing not in words] == []


def test_missing_measurements_of_either_recording_are_reported_with_their_difference(run, poor, path):
    for pair in ((poor, path), (path, poor)):
        _, _, err = run("flame", "--diff", "--format", "folded", *pair)

        assert [missing for missing in (MISSING[0], *MISSING[2:4]) if missing not in err] == []
        assert "1 incomplete · 13 lost" in err


def test_missing_measurements_are_reported_once_however_many_recordings_lack_them(run, poor, tmp_path):
    other = unended(tmp_path / "other", {"lacking": ["not measured: Zend's heap: it is hidden", 7, None]})

    _, _, err = run("flame", "--format", "folded", poor, other)

    assert err.count("it is hidden") == 1
    assert "INCOMPLETE: 2 recordings were not closed" in err


def test_the_report_shows_the_heaviest_stacks_below_the_ranking(run, path):
    code, out, err = run("report", "--stacks", path)

    assert (code, err) == (0, "")
    assert out[out.index("\nMemory taken") :] == (
        f"\n{TAKEN}: 108 B\n"
        "\n"
        "101 B (93.5%, 3 samples) /srv/www/index.php\n"
        "    for /index.php\n"
        "    #0 Repo::find /srv/app/Repo.php:89\n"
        "    #1 <main> /srv/www/index.php:3\n"
        "\n"
        "7 B (6.5%, 1 sample) /srv/www/index.php\n"
        "    for /leak/{n}\n"
        "    #0 <main> /srv/www/index.php:3\n"
        "One in 17 page faults was sampled. Freed memory is not subtracted: a page that is freed and touched again"
        " counts twice.\n"
    )


def test_the_report_shows_as_many_stacks_as_groups_are_asked_for(run, path):
    _, out, _ = run("report", "--stacks", "-n", "1", path)

    assert "#0 Repo::find" in out
    assert "7 B" not in out[out.index("\nMemory taken") :]
    assert out.count("… and 1 more: -n 0 shows all") == 1


def test_the_report_as_json_has_the_stacks_as_weighed(run, path):
    code, out, _ = run("report", "--stacks", "--metric", "mapped", "--format", "json", path)

    document = json.loads(out)
    assert code == 0
    assert document["requests"] == 2
    assert document["stacks"] == {
        "title": "Address space mapped by php-fpm:shop, 75 s, 2 requests (mmap, mremap and brk)",
        "total_bytes": 503,
        "remarks": [
            "Address space that a request unmaps is subtracted where it was mapped. Also freed, at the end of requests"
            " or left by earlier ones: 0 B. Address space need not be in use: Zend maps 2 MiB at a time."
        ],
        "heaviest": [
            {"bytes": 503, "samples": 1, "routes": ["/index.php"], "script": "/srv/www/index.php",
             "frames": ["<main> /srv/www/index.php:3"]}
        ],
    }  # fmt: skip


def test_the_report_can_show_kept_memory(run, path):
    _, out, _ = run("report", "--stacks", "--retained", "--format", "json", path)

    stacks = json.loads(out)["stacks"]
    assert stacks["title"] == "Memory kept by php-fpm:shop, 75 s, 2 requests (sampled page faults)"
    assert stacks["total_bytes"] == COMPLETE.native_kept + 1_009


@pytest.mark.parametrize("form", ["csv", "tsv"])
def test_a_table_of_rows_has_no_place_for_stacks(run, path, form):
    code, out, err = run("report", "--stacks", "--format", form, path)

    assert (code, out) == (2, "")
    assert err == (
        f"phptrace: cannot use --stacks with --format {form}: it has no place for call stacks."
        " Use --format table or json, or `phptrace flame --format folded`.\n"
    )


def test_a_report_without_stacks_shows_none_even_where_there_are_some(run, path):
    _, out, _ = run("report", path)
    _, as_json, _ = run("report", "--format", "json", path)

    assert "Memory taken" not in out
    assert "stacks" not in json.loads(as_json)


def test_missing_measurements_are_reported_with_the_heaviest_stacks(run, poor):
    _, out, _ = run("report", "--stacks", poor)

    assert [missing for missing in MISSING if missing not in out] == []


def test_missing_measurements_are_reported_with_the_heaviest_stacks_as_json(run, poor):
    _, out, _ = run("report", "--stacks", "--format", "json", poor)

    document = json.loads(out)
    assert (document["incomplete"], document["lost"], document["unended"]) == (1, 13, 1)
    assert document["stacks"]["remarks"] == [
        "One in 17 page faults was sampled. Freed memory is not subtracted: a page that is freed and touched again"
        " counts twice.",
        "103 B belong to stacks that were lost or could not be read to the end.",
        "not measured: Zend's heap: it is hidden",
    ]


EVIL = "\x1b[2J\x07\x9b31m\u202e\udcff\n\t"


def named(path: Path, name: str, said: str) -> Path:
    """A recording in which all untrusted text is that name, and the reason of every loss is `said`."""
    one = request(uri=f"/{name}", script=name)
    frames = [MAIN._replace(name=name, file=name), QUERY._replace(name=name), Frame("mark", name, None, None)]
    facts = [one, growth(101, *frames, of=one), Loss(1, 2, said)]
    return recording(path, facts, {**WITH_STACKS, "targets": [said, "\udcff"], "lacking": [said, "\udcff"]})


@pytest.fixture
def hostile(tmp_path: Path) -> Path:
    return named(tmp_path / "evil", EVIL, "\x1b]0;owned\x07\u202e\n\t")


@pytest.mark.parametrize(
    "verb",
    [
        *(["flame", "--format", form] for form in ("svg", "folded", "speedscope")),
        *(["flame", "--diff", "--format", form] for form in ("svg", "folded", "speedscope")),
        *(["report", "--stacks", "--format", form] for form in ("table", "json")),
    ],
)
def test_nothing_of_a_hostile_recording_is_shown_raw(run, hostile, tmp_path, verb):
    harmless = named(tmp_path / "harmless", "name", "said")
    twice = 1 + ("--diff" in verb)

    code, out, err = run(*verb, *[hostile] * twice)
    _, plain_out, plain_err = run(*verb, *[harmless] * twice)

    out.encode()
    assert code == 0
    assert raw(out + err) == set()
    # Every line is one of ours: none was begun by a name.
    assert (out.count("\n"), err.count("\n")) == (plain_out.count("\n"), plain_err.count("\n"))


def raw(text: str) -> set[str]:
    """Characters on which a terminal or an editor acts, without the ends of lines."""
    return {char for char in text if char != "\n" and not char.isprintable()}


@pytest.mark.parametrize("char", sorted(set(EVIL) - set("[2J31m\n")))
def test_raw_characters_are_found(char):
    assert raw(f"a{char}b\n") == {char}


@pytest.mark.parametrize("form", ["svg", "folded", "speedscope"])
def test_a_lack_that_is_not_unicode_is_made_safe_in_a_flame(run, tmp_path, form):
    path = recording(tmp_path / "r", [COMPLETE, growth(7, MAIN)], {**WITH_STACKS, "lacking": ["\ud800 \udcff"]})

    code, _, _ = run("flame", "--format", form, "-o", tmp_path / "o", path)

    assert code == 0
    assert "\ud800" not in (tmp_path / "o").read_text(encoding="utf-8")


def test_a_reader_of_folded_stacks_gets_one_line_a_stack_whatever_its_names(run, hostile):
    _, out, _ = run("flame", "--format", "folded", hostile)

    [line] = out.splitlines()
    assert line.count(";") == 4
    assert line.endswith(" 101")


@pytest.mark.parametrize(
    "verb",
    [
        *(["flame", "--format", form] for form in ("svg", "folded", "speedscope")),
        *(["report", "--stacks", "--format", form] for form in ("table", "json")),
    ],
)
def test_figures_that_no_writer_wrote_are_shown(run, tmp_path, verb):
    """More than 64 bits together, a line and samples below zero."""
    forged = [growth((1 << 63) - 1, FIND._replace(line=line), samples=-3) for line in (-5, 2, 3)]
    path = recording(tmp_path / "forged", [COMPLETE, *forged], WITH_STACKS)

    code, out, _ = run(*verb, path)

    assert code == 0
    assert "Repo::find" in out


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
