"""report --stacks: the heaviest stacks below the ranking, and as JSON."""

from __future__ import annotations

import json

import pytest
from samples import COMPLETE
from stack_recordings import MISSING, TAKEN


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
    assert out.count("… and 1 more: -n 0 shows all") == 2


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
             "container": None,
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
