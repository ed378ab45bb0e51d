"""Routes: uris with their variable parts folded."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from samples import PROPERTY

from tracer.analysis.routes import route_of


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
        ("/7.html", "/7.html"),
        ("/-7", "/-7"),
        ("//7/", "//{n}/"),
        ("/o/123e4567-e89b-12d3-a456-426614174000", "/o/{uuid}"),
        ("/o/123E4567-E89B-12D3-A456-426614174000/x", "/o/{uuid}/x"),
        ("/o/123e4567-e89b-12d3-a456-42661417400", "/o/123e4567-e89b-12d3-a456-42661417400"),
        ("/c/0123456789ab", "/c/{hex}"),
        ("/c/0123456789a", "/c/0123456789a"),
        ("/c/ABCDEF012345", "/c/{hex}"),
        ("/c/deadbeefcafe", "/c/deadbeefcafe"),  # no digit: it may be a word
        ("/c/123456789012", "/c/{n}"),
        ("/c/0123456789ag", "/c/0123456789ag"),
        ("/\udcff/7", "/\udcff/{n}"),
    ],
)
def test_numbers_uuids_and_long_hexadecimals_are_folded_and_the_query_left_out(uri, route):
    assert route_of(uri) == route


@PROPERTY
@given(st.text("/0123456789abcdefg-?{}n\n", max_size=60))
def test_a_route_has_as_many_parts_as_the_path_and_is_its_own_route(uri):
    route = route_of(uri)

    assert route.count("/") == uri.split("?")[0].count("/")
    assert route_of(route) == route
