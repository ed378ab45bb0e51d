"""Many small routes as one tower: their choice, number and memory, and that no byte of them is missing."""

from __future__ import annotations

import io

import pytest
from flames import built, difference, every, sizes
from hypothesis import given
from hypothesis import strategies as st
from samples import FIND, MAIN, PROPERTY, QUERY, request

from tracer.analysis.flame import growth_table
from tracer.analysis.flame.node import Flame, Kind
from tracer.reporters.flame import folded, speedscope, svg

SLUGS = [(request(uri=f"/product/blue-shoe-N{number}-x"), [((MAIN, FIND), 7, 3)]) for number in range(2003)]
SCRIPT = "/srv/www/index.php"


def of_sizes(*grown: int) -> dict[str, int]:
    """Bytes of each tower of routes with these bytes."""
    root = built(*((request(uri=f"/r{at}"), [((MAIN,), size, 1)]) for at, size in enumerate(grown))).finish()
    return {name: node.bytes for name, node in root.children.items()}


def test_many_small_routes_are_one_tower_of_what_they_have_in_common():
    builder = built(*SLUGS)

    root = builder.finish()

    tower = f"(2,003 other routes) > {SCRIPT} > <main> index.php:3"
    assert sizes(root)[f"{tower} > Repo::find Repo.php:89"] == sizes(root)["(2,003 other routes)"] == 2003 * 7
    assert len(every(root)) == 4
    assert root.children["(2,003 other routes)"].kind is Kind.ROUTE
    assert (root.samples, builder.others, builder.others_bytes) == (2003 * 3, 2003, 2003 * 7)


@pytest.mark.parametrize("render", [svg.render, folded.render, speedscope.render])
def test_a_site_with_a_uri_for_each_product_is_not_blank_in_any_format(render):
    out = io.StringIO()

    render(Flame(built(*SLUGS).finish(), "rss", ()), out)

    assert "Repo::find /srv/app/Repo.php:89" in out.getvalue()
    assert len(out.getvalue()) < 30_000


def test_a_route_with_a_fiftieth_of_the_whole_is_a_tower_of_its_own():
    assert of_sizes(*[5] * 156, 19, 20, 181) == {"(157 other routes)": 799, "/r158": 181, "/r157": 20}


@pytest.mark.parametrize(("small", "towers"), [(10, 11), (11, 2)])
def test_a_few_small_routes_are_shown_one_by_one(small, towers):
    assert len(of_sizes(10_007, *[3] * small)) == towers


def test_routes_of_which_none_is_small_are_shown_one_by_one():
    assert len(of_sizes(*[3] * 50)) == 50
    assert of_sizes(*[3] * 51) == {"(51 other routes)": 153}


def test_routes_that_added_nothing_are_not_counted():
    assert of_sizes(10_007, *[3] * 11, *[0] * 13, *[-5] * 17) == {"/r0": 10_007, "(11 other routes)": 33}


def test_scripts_of_routes_in_one_tower_stay_apart():
    requests = [
        (request(uri=f"/{script}/{at}x", script=script), [((MAIN,), size, 1)])
        for at in range(53) for script, size in (("/a.php", 3), ("/b.php", 7))
    ]  # fmt: skip

    found = sizes(built(*requests).finish())

    assert (found["(106 other routes) > /a.php"], found["(106 other routes) > /b.php"]) == (159, 371)


def test_small_routes_of_both_sides_of_a_difference_are_one_tower():
    before = [(request(uri=f"/old-{at}"), [((MAIN, FIND), 7, 1)]) for at in range(101)]
    after = [(request(uri=f"/new-{at}"), [((MAIN, FIND), 7, 1)]) for at in range(101)]

    root = difference(before, after).finish()

    assert {(node.before, node.bytes) for node in (root, *every(root).values())} == {(707, 707)}
    assert list(root.children) == ["(202 other routes)"]


def test_a_route_that_was_heavy_before_is_a_tower_of_its_own():
    rest = [(request(uri=f"/{at}x"), [((MAIN,), 7, 1)]) for at in range(101)]

    root = difference([*rest, (request(uri="/old"), [((MAIN,), 503, 1)])], rest).finish()

    assert [(name, node.bytes) for name, node in root.children.items()] == [("(101 other routes)", 707), ("/old", 0)]


def test_where_there_are_too_many_places_the_routes_with_least_are_put_together_at_once(monkeypatch):
    monkeypatch.setattr(growth_table, "_MAX_ROWS", 100)
    leak = request(uri="/leak"), [((MAIN, QUERY), 101, 1)]

    builder = built(*(one for slug in SLUGS for one in (slug, leak)))

    assert len(list(builder.growth.rows())) <= 102
    found = sizes(builder.finish())
    assert (found["/leak"], found["(2,003 other routes)"], builder.others) == (2003 * 101, 2003 * 7, 2003)


def test_routes_that_added_nothing_are_not_counted_when_they_are_put_together(monkeypatch):
    monkeypatch.setattr(growth_table, "_MAX_ROWS", 7)
    nothing = [(request(uri=f"/{at}x"), [((MAIN,), 0, 1), ((FIND,), -3, 1)]) for at in range(23)]
    gone = [(request(uri=f"/{at}y"), [((MAIN,), -5, 1)]) for at in range(1009)]

    builder = built(*nothing, *gone, (request(uri="/leak"), [((MAIN, QUERY), 101, 1)]))

    assert len(list(builder.growth.rows())) <= 7
    assert list(sizes(builder.finish()).values()) == [101] * 4
    assert (builder.others, builder.given_back) == (0, 23 * 3 + 1009 * 5)


def test_routes_that_need_more_room_than_there_is_and_are_not_small_stay_exact(monkeypatch):
    monkeypatch.setattr(growth_table, "_MAX_ROWS", 7)
    stacks = [(MAIN, FIND._replace(line=line)) for line in range(23)]
    requests = [(request(uri=f"/{name}"), [(stack, 3, 1)]) for stack in stacks for name in "abc"]

    builder = built(*requests)

    assert [node.bytes for node in builder.finish().children.values()] == [69, 69, 69]
    assert builder.others == 0


def test_a_route_that_was_put_together_and_grows_later_is_a_tower_of_its_own(monkeypatch):
    monkeypatch.setattr(growth_table, "_MAX_ROWS", 100)
    late = request(uri=SLUGS[0][0].uri), [((MAIN,), 10_007, 1)]

    builder = built(*SLUGS, late)

    root = builder.finish()
    assert [(name, node.bytes) for name, node in root.children.items()] == [
        ("(2,002 other routes)", 2003 * 7), (SLUGS[0][0].uri, 10_007)
    ]  # fmt: skip


@PROPERTY
@given(
    st.lists(st.tuples(st.integers(0, 101), st.integers(0, 3), st.integers(0, 1009)), max_size=101),
    st.sampled_from([1, 7, 1009]),
)
def test_no_byte_is_missing_however_routes_are_put_together(grown, most):
    requests = [(request(uri=f"/r{at}"), [((MAIN, FIND._replace(line=line)), size, 1)]) for at, line, size in grown]
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(growth_table, "_MAX_ROWS", most)
        builder = built(*requests)

    root = builder.finish()

    assert root.bytes == sum(size for _, _, size in grown) == sum(row.bytes for row in builder.growth.rows())
    assert root.samples == len(grown)
