"""Routes: uris with their variable parts folded."""

from __future__ import annotations

import random
import tracemalloc

import pytest
from hypothesis import given
from hypothesis import strategies as st
from samples import PROPERTY, request, within

from tracer.analysis.route_patterns import parse_patterns
from tracer.analysis.routes import OTHER_ROUTES, LiveRoutes, RouteKey, RouteNames, Routes, route_of

KINDS = (Routes, LiveRoutes)
URIS = st.lists(
    st.one_of(
        st.text(st.characters(), max_size=40),
        st.text("/0123456789abcdef-?&=.{}n\n", max_size=60),
        st.builds("/s{}z/{}/b{}?a=v{}w".format, st.integers(0, 99), st.sampled_from("abc"), *[st.integers(0, 70)] * 2),
    ),
    max_size=150,
)


def learned(*uris: str, **options: object) -> Routes:
    routes = Routes(**options)
    for uri in uris:
        routes.learn(uri)
    routes.settle()
    return routes


@pytest.mark.parametrize(
    ("uri", "route"),
    [
        ("/", "/"),
        ("", ""),
        ("/shop/cart", "/shop/cart"),
        ("/user/123/edit?tab=2", "/user/{n}/edit"),
        ("/a?b?c=/1", "/a"),
        ("?x=1", ""),
        ("/1/23/456", "/{n}/{n}/{n}"),
        ("/v2/page3", "/v2/page3"),
        ("/7.html", "/{n}.html"),
        ("/7.8", "/7.8"),
        ("/7,11,13", "/{n}"),
        ("/-7", "/-7"),
        ("//7/", "//{n}/"),
        ("/2026-11-28", "/{date}"),
        ("/2026-11", "/{date}"),
        ("/2026-11-28T10:00:00+01:00/x", "/{date}/x"),
        ("/2026-1", "/2026-1"),
        ("/o/123e4567-e89b-12d3-a456-426614174000", "/o/{uuid}"),
        ("/o/123E4567-E89B-12D3-A456-426614174000.PDF", "/o/{uuid}.PDF"),
        ("/o/123e4567-e89b-12d3-a456-42661417400", "/o/123e4567-e89b-12d3-a456-42661417400"),
        ("/c/0123456789ab", "/c/{hex}"),
        ("/c/0123456789a", "/c/0123456789a"),
        ("/c/ABCDEF012345", "/c/{hex}"),
        ("/c/deadbeefcafe", "/c/deadbeefcafe"),  # no digit: it may be a word
        ("/c/123456789012", "/c/{n}"),
        ("/c/0123456789ag", "/c/0123456789ag"),
        ("/c/" + "0f" * 64, "/c/{hex}"),
        ("/t/01ARZ3NDEKTSV4RRFFQ69G5FAV", "/t/{token}"),
        ("/t/Windows10ProfessionalEdition", "/t/Windows10ProfessionalEdition"),  # two digits
        ("/\udcff/7", "/\udcff/{n}"),
        ("/" + "x" * 80, "/" + "x" * 80),
        ("/a/" + "x" * 81, "/a/{long}"),
        ("/a" * 24, "/a" * 24),
        ("/a" * 25, "/a" * 23 + "/{more}"),
        ("/user/7\n", "/user/7\n"),
    ],
)
def test_values_are_recognized_by_their_form_and_the_query_is_left_out(uri, route):
    assert route_of(uri) == Routes().of(uri) == LiveRoutes().of(uri) == route


@pytest.mark.parametrize("kind", KINDS)
@PROPERTY
@given(uris=URIS)
def test_a_route_is_its_own_route(kind, uris):
    for query in ((), ("a", "x")):
        routes = kind(parse_patterns("/7/{y}\n/abc/*\n/{x}.html"), query)
        for uri in uris:
            routes.learn(uri)
        routes.settle()

        found = [routes.of(uri) for uri in uris]
        found = [routes.of(uri) for uri in uris] if kind is LiveRoutes else found
        assert [Routes.of(routes, route) for route in found] == found


@PROPERTY
@given(uris=URIS, order=st.randoms(use_true_random=False))
def test_routes_do_not_depend_on_the_order_of_requests(uris, order):
    shuffled = list(uris)
    order.shuffle(shuffled)
    one, other = learned(*uris, query=("a",)), learned(*shuffled, query=("a",))

    assert [one.of(uri) for uri in uris] == [other.of(uri) for uri in uris]


def test_routes_of_a_site_do_not_depend_on_the_order_of_requests():
    chance = random.Random(11)
    uris = [
        chance.choice((
            "/post-{0}x", "/post-{1}x/feed", "/shop/c{2}c/item-{0}x", "/shop/c{2}c/item-{0}x/reviews/r{1}r", "/login",
            "/api/v1/e{3}e/{0}", "/api/v1/e{3}e/list", "/u{1}u/repo-{0}x/tree/b{2}b", "/u{2}u/repo-{1}x?a=w{1}w",
        )).format(chance.randrange(5000), chance.randrange(700), chance.randrange(30), chance.randrange(80))
        for _ in range(20_000)
    ]  # fmt: skip
    found = []
    for _ in range(4):
        routes = learned(*uris, query=("a",))
        found.append({uri: routes.of(uri) for uri in uris})
        chance.shuffle(uris)

    assert found[0] == found[1] == found[2] == found[3]
    assert set(found[0].values()) >= {"/{slug}", "/{slug}/feed", "/shop/c7c/{slug}", "/login", "/api/v1/{slug}/{n}"}
    assert len(set(found[0].values())) < 1500


@PROPERTY
@given(uris=URIS)
def test_a_route_is_the_same_whether_its_uri_came_before_or_not(uris):
    routes = learned(*uris)

    plain = ["/".join(routes._tree.names(routes._parts(None, uri.partition("?")[0], []))) for uri in uris]
    assert [routes.of(uri) for uri in uris] == [routes.of(uri) for uri in uris] == plain


def test_up_to_64_parts_in_a_place_are_names_and_more_are_values():
    names = [f"/shop/shoe-{at}x" for at in range(64)]

    assert {learned(*names).of(name) for name in names} == set(names)
    assert {learned(*names, "/shop/boot").of(name) for name in names} == {"/shop/{slug}"}


def test_the_parts_behind_a_value_are_learned_for_all_values_together():
    routes = learned(*(f"/shop/shoe-{at}x/{page}" for at in range(65) for page in ("show", "show/7", "reviews")))

    assert routes.of("/shop/shoe-7x/show") == "/shop/{slug}/show"
    assert routes.of("/shop/never-seen/show/11") == "/shop/{slug}/show/{n}"
    assert routes.of("/shop/shoe-7x/reviews") == "/shop/{slug}/reviews"


def test_a_part_that_many_requests_have_or_below_which_is_much_keeps_its_name():
    slugs = [f"/post-{at}x" for at in range(100)]
    few = [f"/tag/t{at}x" for at in range(8)]

    routes = learned(*slugs, *few, *["/login"] * 8, *["/post-3x"] * 6)

    assert routes.of("/login") == "/login"
    assert routes.of("/tag/t3x") == "/tag/t3x"
    assert routes.of("/post-3x") == routes.of("/post-7x") == "/{slug}"
    assert routes.of("/") == "/", "the empty part is no value"
    assert routes.of("/7") == "/{n}"


def test_a_fiftieth_of_the_requests_is_many():
    slugs = [f"/post-{at}x" for at in range(490)]

    assert learned(*slugs, *["/login"] * 10).of("/login") == "/login"
    assert learned(*slugs, "/one", *["/login"] * 9).of("/login") == "/{slug}"


def test_folders_of_which_there_are_too_many_are_values():
    routes = learned(*(f"/user-{at}x/page-{page}" for at in range(65) for page in range(8)))

    assert routes.of("/user-7x/page-3") == "/{slug}/page-3"


def test_named_parameters_are_part_of_the_route_and_the_others_are_not():
    routes = learned(query=("action", "page"))

    assert routes.of("/ajax.php?nonce=1&action=save") == "/ajax.php?action=save"
    assert routes.of("/ajax.php?page=7&action=save&action=list") == "/ajax.php?action=list&page={n}"
    assert routes.of("/ajax.php?page=") == routes.of("/ajax.php?x") == routes.of("/ajax.php") == "/ajax.php"


def test_values_of_a_parameter_are_learned_as_parts_are():
    routes = learned(*(f"/s?q=word-{at}x&page=7" for at in range(65)), query=("q", "page"))

    assert routes.of("/s?q=any") == "/s?q={slug}"
    assert routes.of("/s?page=3&q=any") == "/s?q={slug}&page={n}"
    assert routes.of("/t?q=any") == "/t?q=any"


def test_the_users_patterns_win_and_may_have_parameters():
    patterns = parse_patterns("/shop/{category}/{product}\n/error/404")
    routes = learned(*(f"/shop/a{at}x/7?q=w{at}x" for at in range(65)), patterns=patterns, query=("q",))

    assert routes.of("/shop/a/7") == routes.of("/shop/b/c?x=1") == "/shop/{category}/{product}"
    assert routes.of("/shop/b/c?q=z") == "/shop/{category}/{product}?q={slug}"
    assert (routes.of("/error/404"), routes.of("/error/403")) == ("/error/404", "/error/{n}")


def test_the_routes_with_the_most_requests_are_kept_apart_and_the_rest_is_one():
    uris = [f"/{a}x/{b}x/{c}x" for a in range(60) for b in range(20) for c in range(5)]
    routes = learned(*uris, *uris[::2])

    found = {uri: routes.of(uri) for uri in uris}
    assert len(set(found.values())) == 5001
    assert [uri for uri in uris[::2] if found[uri] == OTHER_ROUTES] == []
    assert routes.of(OTHER_ROUTES) == OTHER_ROUTES
    assert sum(route == OTHER_ROUTES for route in found.values()) == 1000


@pytest.mark.parametrize("kind", KINDS)
def test_hostile_uris_take_bounded_time_and_memory(kind):
    """No request is like another: long, deep, wide, or not text."""
    chance = random.Random(7)
    letters = "".join(map(chr, range(1, 256))) + "\udc80\udcff\u202e"

    def uri(at: int) -> str:
        shape = at % 5
        if shape == 0:
            return f"/{at}-x" + "/y" * (at % 40)
        if shape == 1:
            return "/" + "/".join(f"{chance.randrange(9)}z" for _ in range(24))
        if shape == 2:
            return "/" + "".join(chance.choices(letters, k=30)) + f"/{at}q/{at}r?a={at}s"
        if shape == 3:
            return f"/p/{at}w" + "é" * 600
        return f"{at}" + ("/" * 100_000 if at % 1000 == 4 else "x")

    tracemalloc.start()
    with within(60):
        routes = kind(query=("a",))
        for at in range(10_000):
            routes.learn(uri(at))
        routes.settle()
        chance.seed(7)
        found = {routes.of(uri(at)) for at in range(10_000)}
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()

    assert len(found) <= 5001
    assert max(map(len, found)) < 2100
    assert peak < 60e6


def test_a_uri_of_100_kilobytes_is_as_quick_as_another():
    routes = Routes(query=("a",))
    with within(5):
        for at in range(1000):
            assert routes.of(f"/{at}/" + "x" * 100_000) == "/{n}/{more}"
            assert routes.of("/7?a=" + "y" * 100_000) == "/{n}?a={long}"
            assert routes.of("/" + "1," * 50_000) == "/{more}"


def test_while_it_is_learned_a_route_keeps_its_name_until_there_are_too_many():
    routes = LiveRoutes()

    first = [routes.of(f"/shoe-{at}x") for at in range(64)]
    later = [routes.of(f"/shoe-{at}x") for at in (64, 65, 3)]

    assert first == [f"/shoe-{at}x" for at in range(64)]
    assert later == ["/{slug}"] * 3


def test_while_it_is_learned_a_part_that_many_requests_have_gets_its_name_back():
    routes = LiveRoutes()
    for at in range(65):
        routes.of(f"/shoe-{at}x")

    found = [routes.of("/cart") for _ in range(200)]

    assert found.index("/cart") == 64
    assert found == ["/{slug}"] * 64 + ["/cart"] * 136


def test_a_route_of_several_scripts_is_a_group_for_each():
    names = RouteNames(Routes())
    scripts = ["/srv/a/public/index.php", "/srv/b/public/index.php", "/srv/a/public/index.php"]

    keys = [names.key(request(uri="/user/7", script=script)) for script in scripts]
    cart = names.key(request(uri="/cart", script=scripts[0]))

    assert keys[0] == keys[2] != keys[1]
    assert names.names([*keys[:2], cart]) == {
        keys[0]: "/user/{n} (a)", keys[1]: "/user/{n} (b)", cart: "/cart"
    }  # fmt: skip


def test_scripts_that_differ_by_more_than_a_folder_are_named_in_full():
    keys = [RouteKey("/", script) for script in ("/srv/index.php", "/srv/b/index.php", None)]

    assert RouteNames.names(keys[:2]) == {keys[0]: "/ (/srv/index.php)", keys[1]: "/ (/srv/b/index.php)"}
    assert RouteNames.names(keys[2:]) == {keys[2]: "/"}


def test_a_request_without_a_script_has_no_route_and_one_without_a_uri_that_of_its_script():
    names = RouteNames(Routes())

    assert names.key(request(script=None)) is None
    assert names.key(request(uri=None)) == ("(unknown uri)", "/srv/www/index.php")


def test_the_rest_of_the_routes_is_one_group_over_all_scripts():
    routes = Routes()
    for at in range(5001):
        last = routes.of(f"/{at}x")
    names = RouteNames(routes)

    assert last == OTHER_ROUTES
    assert names.key(request(uri="/new")) == names.key(request(uri="/newer", script="/b")) == (OTHER_ROUTES, None)
