"""Routes in report, flame, export and attach: the default group, the user's patterns, and query parameters."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable
from pathlib import Path

import pytest
from samples import COMPLETE, MAIN, altered, growth, json_lines, recording, request

from tracer.facts import Request
from tracer.recording.reader import Reader

RECORDINGS = Path(__file__).parents[2] / "recordings"
KEPT_QUERY = {"options": {"query": "keep"}}


def of_uris(path: Path, uris: Iterable[str | None], script: str | None = "/srv/www/index.php", **meta: object) -> Path:
    return recording(path, [request(uri=uri, nth=nth, script=script) for nth, uri in enumerate(uris, 1)], meta)


def groups(out: str) -> tuple[str, dict[str | None, int]]:
    """By what a JSON report is grouped, and the requests of each group."""
    document = json.loads(out)
    return document["group_by"], {group["key"]: group["requests"] for group in document["groups"]}


def test_a_report_is_by_route_where_one_script_serves_several(run, tmp_path):
    path = of_uris(tmp_path / "r", ["/user/7/edit", "/user/11/edit?a=1", "/cart"])

    _, out, _ = run("report", "--format", "json", path)

    assert groups(out) == ("route", {"/user/{n}/edit": 2, "/cart": 1})


@pytest.mark.parametrize("uris", [["/user/7", "/user/11"], ["/a", None], []])
def test_a_report_is_by_script_where_each_serves_one_route(run, tmp_path, uris):
    path = of_uris(tmp_path / "r", uris)

    _, out, _ = run("report", "--format", "json", path)

    assert groups(out) == ("script", {"/srv/www/index.php": len(uris)} if uris else {})


def test_a_report_is_by_route_where_two_recordings_have_different_ones_of_a_script(run, tmp_path):
    paths = [of_uris(tmp_path / "a", ["/a"]), of_uris(tmp_path / "b", ["/b"])]

    _, out, _ = run("report", "--format", "json", *paths)

    assert groups(out) == ("route", {"/a": 1, "/b": 1})


def test_by_what_a_report_is_grouped_can_be_chosen(run, tmp_path):
    path = of_uris(tmp_path / "r", ["/a", "/b"])

    for by in ("script", "route"):
        assert groups(run("report", "--format", "json", "--group-by", by, path)[1])[0] == by
    assert "\nROUTE " in run("report", path)[1]


@pytest.mark.parametrize("form", ["table", "csv", "tsv"])
def test_every_format_has_the_routes(run, tmp_path, form):
    path = of_uris(tmp_path / "r", ["/user/7", "/cart"])

    _, out, _ = run("report", "--format", form, path)

    assert "/user/{n}" in out
    assert "/srv/www" not in out


def test_slugs_are_learned_from_the_whole_recording_before_the_first_request_is_ranked(run, tmp_path):
    path = of_uris(tmp_path / "r", [f"/post-{at}x" for at in range(65)])

    assert groups(run("report", "--format", "json", path)[1]) == ("script", {"/srv/www/index.php": 65})
    assert groups(run("report", "--format", "json", "--group-by", "route", path)[1]) == ("route", {"/{slug}": 65})
    assert {row["route"] for row in json_lines(run("export", path)[1])} == {"/{slug}"}


def test_a_route_is_text_for_the_terminal(run, tmp_path):
    path = of_uris(tmp_path / "r", ["/\x1b[2J\udcff\u202e", "/b"])

    _, out, _ = run("report", path)

    assert "/\\x1b[2J\\xff\\u202e" in out


def test_the_users_routes_win_in_every_verb(run, tmp_path):
    slugs = [request(uri=f"/shop/{at}x/7", nth=at) for at in range(1, 4)]
    path = recording(tmp_path / "r", [fact for one in slugs for fact in (one, growth(7, MAIN, of=one))], {"stacks": {}})
    (tmp_path / "routes").write_text("# the shop\n/shop/{category}/*\n")

    _, report, _ = run("report", "--group-by", "route", "--routes", tmp_path / "routes", path)
    _, flame, _ = run("flame", "--format", "folded", "--routes", tmp_path / "routes", path)
    _, export, _ = run("export", "--format", "csv", "--routes", tmp_path / "routes", path)
    _, stacks, _ = run("report", "--stacks", "--routes", tmp_path / "routes", path)

    [row] = [line for line in report.splitlines() if line.startswith("/shop/")]
    assert row.split()[0] == "/shop/{category}/*"
    assert "3" in row.split()
    assert flame == "/shop/{category}/*;/srv/www/index.php;<main> /srv/www/index.php:3 21\n"
    assert [row["route"] for row in csv.DictReader(io.StringIO(export, newline=""))] == ["/shop/{category}/*"] * 3
    assert "    for /shop/{category}/*\n" in stacks


@pytest.mark.parametrize("verb", ["report", "flame", "export", "attach"])
@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"/a\n/b c", "cannot use --routes {}: line 2: '/b c' has a space in it. Correct that line."),
        (b"/\xff{", "cannot use --routes {}: line 1: '/\\udcff{{' has braces that are not one {{name}} in a part."),
        (b"#" * 262_145, "cannot use --routes {}: it has more than 256 KiB. Leave some patterns out."),
        (None, "cannot read {}: No such file or directory. Check the file that --routes names."),
    ],
)
def test_a_file_that_has_no_patterns_is_a_usage_error(run, tmp_path, verb, content, problem):
    file = tmp_path / "routes"
    if content is not None:
        file.write_bytes(content)

    code, out, err = run(verb, "--routes", file, "php-fpm:none" if verb == "attach" else of_uris(tmp_path / "r", []))

    assert (code, out) == (2, "")
    assert problem.format(file) in err


def test_query_parameters_are_part_of_the_route_where_they_were_kept(run, tmp_path):
    uris = ["/ajax.php?action=save&n=1", "/ajax.php?n=2&action=save", "/ajax.php?action=list"]
    path = of_uris(tmp_path / "r", uris, **KEPT_QUERY)

    code, out, err = run("report", "--format", "json", "--route-query", "action, page", path)

    assert (code, err) == (0, "")
    assert groups(out) == ("route", {"/ajax.php?action=save": 2, "/ajax.php?action=list": 1})


@pytest.mark.parametrize("meta", [{}, {"options": {"query": "strip"}}, {"options": 7}])
def test_phptrace_warns_that_a_recording_has_no_query_strings(run, tmp_path, caplog, meta):
    path = of_uris(tmp_path / "r", ["/ajax.php"], **meta)

    code, _, _ = run("report", "--route-query", "action", path)

    assert code == 0
    assert caplog.messages == [
        f"--route-query has no effect on {path}: query strings were removed. Record with --query keep."
    ]


@pytest.mark.parametrize(
    ("names", "problem"),
    [
        ("a,,b", "cannot use --route-query 'a,,b': a name is empty. Write names such as action,page."),
        ("", "cannot use --route-query '': a name is empty. Write names such as action,page."),
        ("a,b,c,d,e,f,g,h,i", "cannot use --route-query with 9 names: 8 are allowed. Leave some out."),
    ],
)
def test_names_that_are_none_are_a_usage_error(run, tmp_path, names, problem):
    code, out, err = run("report", "--route-query", names, of_uris(tmp_path / "r", []))

    assert (code, out, err) == (2, "", f"phptrace: {problem}\n")


def test_attach_needs_the_query_strings_that_a_route_has(run):
    code, out, err = run("attach", "--route-query", "action", "php-fpm:none")

    problem = "cannot use --route-query: it requires --query keep. Add --query keep."
    assert (code, out, err) == (2, "", f"phptrace: {problem}\n")


def test_the_pages_of_a_recording_come_with_their_requests(tmp_path):
    facts: list[Request] = [COMPLETE, request(uri=None), COMPLETE, request(method="POST"), request(script=None)]
    path = recording(tmp_path / "r", facts)

    with Reader(str(path)) as reader:
        pages = list(reader.pages())

    uri, script = COMPLETE.uri, COMPLETE.script
    assert pages == [(uri, script, 2), (None, script, 1), (uri, script, 1), (uri, None, 1)]


@pytest.mark.parametrize("schema", [1, 2, 3])
def test_the_pages_of_every_schema_are_those_of_its_requests(schema):
    with Reader(str(RECORDINGS / f"schema-{schema}.phptrace")) as reader:
        pages = list(reader.pages())
        requests = [(one.uri, one.script) for one in reader.requests(("uri", "script"))]

    assert sorted(str((uri, script)) for uri, script, count in pages for _ in range(count)) == sorted(
        map(str, requests)
    )
    assert requests


def test_a_page_that_no_request_names_has_no_route(run, tmp_path):
    path = altered(of_uris(tmp_path / "r", ["/a"]), "INSERT INTO page VALUES (2, 'GET', '/b', 1)")

    assert groups(run("report", "--format", "json", path)[1])[0] == "script"
