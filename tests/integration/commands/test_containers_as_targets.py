"""The command line with two containers: recorded together, shown apart, and one of them as target."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from backend_kinds import OPTIONS
from command import attached_to, finish, phptrace, run
from containers import SCRIPT, Container, container
from fpm import ONE_WORKER
from waiting import wait_for

from tracer.recording.reader import Reader

WWW = {"www": ONE_WORKER}


@pytest.fixture(scope="module")
def two(php_fpm: str) -> Iterator[tuple[Container, Container]]:
    with container(php_fpm, "shop", WWW) as shop, container(php_fpm, "blog", WWW) as blog:
        yield shop, blog


def recorded(path: Path, backend: str, *names: str, of: tuple[Container, Container], most: int) -> tuple[int, str, str]:
    """Record while the first serves 3 requests and the second 5, until that many are in the file."""
    process = phptrace("record", "--backend", backend, "-o", str(path), *names)
    try:
        attached_to(process, until="recording to")
        for one, number in zip(of, (3, 5), strict=True):
            one.get(number)

        def there() -> bool:
            with Reader(str(path)) as recording:
                return recording.totals().requests == most

        wait_for(there, "the requests to be recorded")
        return finish(process)
    finally:
        process.kill()


def table_of(first: str, report: str) -> list[list[str]]:
    """The words of each line from the table's header on, whose first column has that name."""
    lines = [line.split() for line in report.splitlines()]
    return lines[next(at for at, line in enumerate(lines) if line[:1] in ([first], [first + "↓"])) :]


@pytest.mark.parametrize("backend", OPTIONS)
def test_every_output_shows_two_containers_apart(
    two: tuple[Container, Container], tmp_path: Path, backend: str
) -> None:
    path, names = tmp_path / "r.phptrace", [str(one.fpm.master) for one in two]

    code, _, err = recorded(path, backend, *names, of=two, most=8)

    assert code == 0, err
    document = json.loads(run("report", "--format", "json", str(path)).stdout)
    groups = {(group["container"], group["key"]): group["requests"] for group in document["groups"]}
    assert groups == {("shop", SCRIPT): 3, ("blog", SCRIPT): 5}
    assert {(one["name"], one["container_id"], one["cgroup"]) for one in document["containers"]} == {
        (one.name, one.id, one.cgroup) for one in two
    }
    header, *rows = table_of("SCRIPT", run("report", str(path)).stdout)
    assert {"CONTAINER", "REQS"} < set(header)
    at, count = header.index("CONTAINER"), header.index("REQS")
    assert {(row[at], row[count]) for row in rows[:2]} == {("shop", "3"), ("blog", "5")}
    _, *rows = table_of("CONTAINER", run("report", "--group-by", "container", "--sort", "key", str(path)).stdout)
    assert [row[:2] for row in rows[:2]] == [["blog", "5"], ["shop", "3"]]
    exported = [json.loads(line) for line in run("export", str(path)).stdout.splitlines()]
    assert sorted(row["container"] for row in exported) == ["blog"] * 5 + ["shop"] * 3


@pytest.mark.parametrize("backend", OPTIONS)
def test_a_container_is_recorded_alone(two: tuple[Container, Container], tmp_path: Path, backend: str) -> None:
    path = tmp_path / "r.phptrace"

    code, _, err = recorded(path, backend, "container:blog", of=two, most=5)

    assert code == 0, err
    with Reader(str(path)) as recording:
        assert {(one.container, one.master_pid) for one in recording.requests()} == {("blog", two[1].fpm.master)}


@pytest.mark.needs_bpf
def test_attach_in_a_pipe_names_the_container_of_each_request(two: tuple[Container, Container]) -> None:
    process = phptrace("attach", "-c", "5", "container:blog")
    try:
        attached_to(process)
        for one in two:
            one.get(5)
        out, err = process.communicate(timeout=60)
    finally:
        process.kill()

    header, *lines = [line.split("\t") for line in out.splitlines()]
    assert (process.returncode, len(lines)) == (0, 5), err
    assert {line[header.index("container")] for line in lines} == {"blog"}


@pytest.mark.parametrize("target", ["container:nowhere", "cgroup:/nowhere"])
@pytest.mark.parametrize("verb", ["attach", "record", "doctor"])
def test_a_container_or_cgroup_that_is_not_there_is_refused_with_those_that_are(
    two: tuple[Container, Container], verb: str, target: str
) -> None:
    ended = run(verb, target)

    said = " ".join((ended.stdout + ended.stderr).split())
    assert ended.returncode == 3, said
    kind = target.partition(":")[0]
    assert f"cannot trace {kind} '{target.removeprefix(kind + ':')}': no php-fpm master here is in it." in said
    for one in two:
        assert (one.cgroup if kind == "cgroup" else f"{one.name} ({one.id[:12]})") in said


def test_a_name_that_two_containers_have_is_refused_with_their_ids(php_fpm: str) -> None:
    with container(php_fpm, "twin", WWW) as first, container(php_fpm, "twin", WWW) as second:
        ended = run("attach", "container:twin")
        by_id = run("doctor", "--json", f"container:{second.id[:12]}")

    assert ended.returncode == 3
    assert "2 containers with a php-fpm master have that name or id. Write a longer part of the id" in ended.stderr
    for one in (first, second):
        assert f"twin ({one.id[:12]})" in ended.stderr
    found = [check["found"] for check in json.loads(by_id.stdout)["checks"]]
    assert any(f"master {second.fpm.master} in container twin ({second.id[:12]})" in text for text in found)


def test_doctor_shows_the_container_of_a_master(two: tuple[Container, Container]) -> None:
    shop, _ = two

    found = run("doctor", str(shop.fpm.master)).stdout

    assert f"master {shop.fpm.master} in container shop ({shop.id[:12]}), 1 worker, pools: www" in found
