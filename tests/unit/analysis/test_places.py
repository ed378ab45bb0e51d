"""Names of the places where workers run: short, and all different."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st
from samples import PROPERTY

from tracer.analysis.places import place_name, place_names
from tracer.facts import Place

ONE, OTHER = "3f2a91b04c77" + "1" * 52, "3f2a91b04c77" + "2" * 52
SHOP = Place("shop", ONE, f"/docker/{ONE}", None, "/")


@pytest.mark.parametrize(
    ("place", "name"),
    [
        (SHOP, "shop"),
        (SHOP._replace(container=None), "3f2a91b04c77"),
        (Place("web", None, "/lxc/web", None, "/"), "web"),
        (Place(None, None, "/system.slice/php8.2-fpm.service", None, "/"), "php8.2-fpm.service"),
        (Place(None, None, "/", "mnt:4026532768", "/"), "mnt:4026532768"),
        (Place(None, None, "/", None, "/"), "(host)"),
        (Place(None, None, "/", None, "/srv/jail"), "/srv/jail"),
        (SHOP._replace(root="/srv/jail"), "shop:/srv/jail"),
        (Place(), "(unknown)"),
    ],
)
def test_a_place_has_the_shortest_name_there_is(place, name):
    assert place_name(place) == name
    assert place_names([place, place]) == {place: name}


def test_two_containers_of_one_name_are_distinguished_by_their_ids():
    other = SHOP._replace(container_id="7" * 64)

    assert place_names([SHOP, other]) == {SHOP: "shop (3f2a91b04c77)", other: "shop (777777777777)"}


def test_two_ids_that_begin_alike_are_written_out():
    first, second = (SHOP._replace(container=None, container_id=one) for one in (ONE, OTHER))

    assert place_names([first, second]) == {first: ONE, second: OTHER}


def test_two_units_of_one_name_are_distinguished_by_their_paths():
    system, user = (Place(None, None, f"/{part}.slice/php.service", None, "/") for part in ("system", "user"))

    assert place_names([system, user]) == {system: "/system.slice/php.service", user: "/user.slice/php.service"}


_TEXTS = st.none() | st.sampled_from(["/", "a", "b", "a:/b", "a (b)", "(host)", ONE, OTHER, "\udcff"])


@PROPERTY
@given(st.lists(st.builds(Place, _TEXTS, _TEXTS, _TEXTS, _TEXTS, _TEXTS), max_size=12))
def test_any_places_have_different_names(places):
    names = place_names(places)

    assert set(names) == set(places)
    assert all(one != other for one, other in itertools.combinations(names.values(), 2))
