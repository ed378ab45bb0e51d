"""A difference across a release: functions are matched by name and file, in any folder and on any line."""

from __future__ import annotations

import pytest
from flames import difference, every
from hypothesis import given
from hypothesis import strategies as st
from samples import MAIN, PROPERTY, QUERY, request

from tracer.analysis.flame.file_matching import FileMapping
from tracer.analysis.flame.growth_table import GrowthByStack
from tracer.analysis.flame.node import Node
from tracer.facts import Frame, Request

LOADER = Frame("user", "Loader::load", "/usr/share/php/Loader.php", 7)


def released(root: str, added_lines: int = 0) -> tuple[Request, GrowthByStack]:
    """A request to a release in that folder, with so many lines added at the top of each file."""
    main = Frame("user", "<main>", f"{root}/public/index.php", 3 + added_lines)
    find = Frame("user", "Repo::find", f"{root}/src/Repo.php", 89 + added_lines)
    return request(script=f"{root}/public/index.php"), [((main, LOADER, find, QUERY), 101, 1), ((main, find), 7, 1)]


def sides(root: Node) -> dict[str, tuple[int | None, int]]:
    """Bytes before and after, by the detail of a node; the last place counts."""
    found, pending = {}, list(root.children.values())
    for node in pending:
        found[node.detail] = node.before, node.bytes
        pending += node.children.values()
    return found


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (released("/srv/rel/1"), released("/srv/rel/2")),
        (released("/srv/rel/1"), released("/srv/rel/1", added_lines=13)),
        (released("/srv/rel/20260101"), released("/var/www/shop/current", added_lines=2)),
        (released(""), released("/srv/rel/2")),
    ],
)
def test_a_release_that_moved_or_has_other_lines_is_not_a_change(before, after):
    root = difference([before], [after]).finish()

    assert {(node.before, node.bytes) for node in (root, *every(root).values())} <= {(108, 108), (101, 101), (7, 7)}
    assert len(every(root)) == 7


def test_files_and_lines_are_those_after():
    root = difference([released("/srv/rel/1")], [released("/srv/rel/2", added_lines=13)]).finish()

    assert sides(root).keys() == {
        "/index.php", "/srv/rel/2/public/index.php", "<main> /srv/rel/2/public/index.php:16",
        "Loader::load /usr/share/php/Loader.php:7", "Repo::find /srv/rel/2/src/Repo.php:102", "PDO::query",
    }  # fmt: skip


def test_a_function_that_is_gone_has_the_file_and_the_line_it_had():
    gone = Frame("user", "Old::way", "/srv/rel/1/src/Old.php", 5)
    one, grown = released("/srv/rel/1")

    root = difference([(one, [*grown, ((gone,), 13, 1)])], [released("/srv/rel/2")]).finish()

    assert sides(root)["Old::way /srv/rel/1/src/Old.php:5"] == (13, 0)


def test_the_folders_that_were_matched_are_reported():
    moved = difference([released("/srv/rel/1")], [released("/srv/rel/2")])
    stayed = difference([released("/srv/rel/1")], [released("/srv/rel/1", added_lines=13)])

    moved.finish(), stayed.finish()

    assert (moved.moved, stayed.moved) == (("/srv/rel/1", "/srv/rel/2"), None)


def test_a_function_at_several_lines_is_one_with_the_lines_after():
    def at(*lines: int) -> list[tuple[Request, GrowthByStack]]:
        return [(request(), [((MAIN._replace(line=line), QUERY), 7, 1) for line in lines])]

    few = difference(at(1, 2), at(9, 3)).finish()
    many = difference(at(1), at(9, 3, 13, 5)).finish()

    assert sides(few)["<main> /srv/www/index.php:3,9"] == (14, 14)
    assert sides(many)["<main> /srv/www/index.php:3,5,9,…"] == (7, 28)


def test_files_of_one_name_in_two_folders_stay_apart():
    def both(root: str) -> list[tuple[Request, GrowthByStack]]:
        frames = [Frame("user", "run", f"{root}/{part}/Controller.php", 5) for part in ("cart", "shop")]
        return [(request(), [((frame,), size, 1) for frame, size in zip(frames, (3, 7), strict=True)])]

    root = difference(both("/srv/rel/1"), both("/srv/rel/2")).finish()

    assert sides(root)["run /srv/rel/2/cart/Controller.php:5"] == (3, 3)
    assert sides(root)["run /srv/rel/2/shop/Controller.php:5"] == (7, 7)


def test_evaluated_code_is_the_same_wherever_its_file_has_it():
    def evaluated(root: str, line: int) -> list[tuple[Request, GrowthByStack]]:
        return [(request(), [((Frame("user", "eval", f"{root}/a.php({line}) : eval()'d code", 1),), 7, 1)])]

    root = difference(evaluated("/srv/1", 12), evaluated("/srv/2", 17)).finish()

    assert sides(root)["eval /srv/2/a.php(17) : eval()'d code:1"] == (7, 7)


@pytest.mark.parametrize(
    ("before", "after", "folders"),
    [
        ([], ["/srv/a.php"], None),
        (["/srv/a.php"], ["/srv/a.php"], None),
        (["/srv/a.php"], ["/srv/b.php"], None),
        (["/srv/old/a.php", "/srv/b/a.php"], ["/srv/b/a.php"], None),  # that one was there before
        (["/srv/1/a.php"], ["/srv/2/a.php"], ("/srv/1", "/srv/2")),
        (["/srv/1/x/a.php"], ["/srv/2/x/a.php"], ("/srv/1", "/srv/2")),
        (["/x/a.php"], ["/srv/x/a.php"], ("", "/srv")),
        (["a.php"], ["b/a.php"], ("", "b")),
        (["/1/x/a.php", "/1/y/a.php"], ["/2/x/a.php", "/2/y/a.php"], ("/1", "/2")),
    ],
)
def test_the_folder_is_the_one_that_most_files_agree_on(before, after, folders):
    assert FileMapping(before, after).folders == folders


def test_thousands_of_files_of_one_name_are_compared_in_no_time():
    names = [f"part{number}/index.php" for number in range(5003)]

    moved = FileMapping([f"/srv/1/{name}" for name in names], [f"/srv/2/{name}" for name in names])

    assert moved.folders == ("/srv/1", "/srv/2")
    assert moved.new_name("/srv/1/part5002/index.php") == "/srv/2/part5002/index.php"


@PROPERTY
@given(st.lists(st.tuples(st.text("/ab", min_size=1, max_size=7), st.integers(1, 101), st.booleans()), max_size=13))
def test_no_byte_is_missing_however_files_are_matched(grown):
    stacks = [((Frame("user", "f", file, size),), size, was) for file, size, was in grown]
    before, after = ([(stack, size, 1) for stack, size, was in stacks if was is side] for side in (True, False))

    root = difference([(request(), before)], [(request(), after)]).finish()

    assert root.before == sum(size for _, size, _ in before)
    assert root.bytes == sum(size for _, size, _ in after)
