"""A flame as folded stacks, for flamegraph.pl and others."""

from __future__ import annotations

import io
import re

import pytest
from flames import HOSTILE, flame, node
from hypothesis import given
from hypothesis import strategies as st
from samples import PROPERTY

from tracer.analysis.flame.node import Flame, Kind
from tracer.reporters.flame import folded


def lines(of: Flame) -> list[str]:
    out = io.StringIO()
    folded.render(of, out)
    return out.getvalue().splitlines()


def test_a_node_with_bytes_of_its_own_is_a_line_with_the_path_to_it():
    tree = flame(node("a", 31, node("b", 13, node("c", 13)), node("d", 7)), node("e", 5))

    assert lines(tree) == ["a 11", "a;b;c 13", "a;d 7", "e 5"]


def test_a_name_is_the_detail_where_there_is_one():
    assert lines(flame(node("f repo.php:88", 7, detail="f /srv/my app/repo.php:88"))) == ["f /srv/my app/repo.php:88 7"]


def test_the_root_is_in_no_line_not_even_with_bytes_of_its_own():
    assert lines(Flame(node("all", 20, node("a", 7), kind=Kind.ROOT), "t", ())) == ["a 7"]


def test_a_difference_has_two_numbers_a_line():
    tree = flame(
        node("a", 17, node("b", 13, before=3), before=3), node("gone", 0, before=11), node("new", 5),
        node("through", 2, node("c", 2, before=2), before=2),
    )  # fmt: skip

    assert lines(tree) == ["a 0 4", "a;b 3 13", "gone 11 0", "new 0 5", "through;c 2 2"]


def test_children_with_more_than_their_caller_leave_it_nothing():
    assert lines(flame(node("a", 5, node("b", 7)))) == ["a;b 7"]


def test_nothing_gives_no_line():
    assert lines(flame()) == []


def test_a_hostile_name_is_one_part_of_one_line():
    assert lines(flame(node("a;b\n\x1b\udcff\u202e c", 7, node("d", 7)))) == ["a:b\\n\\x1b\\xff\\u202e c;d 7"]
    assert len(lines(flame(*(node(name, 7) for name in HOSTILE)))) == len(HOSTILE)


def by_flamegraph(line: str) -> tuple[str, ...]:
    """The stack and the columns that flamegraph.pl reads: the last number, and one before it if there is one."""
    stack, last = re.fullmatch(r"(.*)\s+?(\d+(?:\.\d*)?)", line).groups()
    second = re.fullmatch(r"(.*)\s+?(\d+(?:\.\d*)?)", stack)
    return (*second.groups(), last) if second else (stack, last)


@pytest.mark.parametrize("name", ["f /srv/x 12", "f /srv/x 1.5", "f /srv/x 12.", " 7", "f /srv/x  12"])
def test_a_number_at_the_end_of_a_name_is_not_a_column(name):
    alone, both = flame(node(name, 100)), flame(node(name, 100, before=3))

    written = name[: name.rindex(" ")] + "\\x20" + name[name.rindex(" ") + 1 :]
    assert by_flamegraph(lines(alone)[0]) == (written, "100")
    assert by_flamegraph(lines(both)[0]) == (written, "3", "100")


@pytest.mark.parametrize("name", ["f /srv/x 12:7", "12", "f 12 g", "f 12x", "f 12 "])
def test_a_number_elsewhere_in_a_name_stays(name):
    assert by_flamegraph(lines(flame(node(name, 100)))[0]) == (name, "100")


@PROPERTY
@given(
    st.text(st.characters(), max_size=40), st.text(st.characters() | st.sampled_from(" 1."), min_size=1, max_size=40)
)
def test_any_name_leaves_a_line_with_as_many_parts_as_functions(first, second):
    (line,) = lines(flame(node(first, 7, node(second, 7))))

    stack, number = line.rsplit(" ", 1)
    assert (stack.count(";"), number) == (1, "7")
    assert by_flamegraph(line) == (stack, "7")


def test_a_stack_of_5003_levels_is_written():
    deepest = node("f", 7)
    for _ in range(5002):
        deepest = node("f", 7, deepest)

    assert lines(flame(deepest)) == [";".join(["f"] * 5003) + " 7"]
