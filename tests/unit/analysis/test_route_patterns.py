"""The user's patterns: what they match, and what is not one."""

from __future__ import annotations

import pytest
from samples import within

from tracer.analysis.route_patterns import RoutePatterns, parse_patterns


@pytest.mark.parametrize(
    ("pattern", "matched", "others"),
    [
        ("/", ["/", ""], ["/a"]),
        ("/*", ["/", "/a", "/a/b/"], []),
        ("/cart", ["/cart", "/cart/"], ["/Cart", "/cart/x", "/"]),
        ("/cart/", ["/cart", "/cart/"], ["/cart//"]),
        ("/shop/*", ["/shop", "/shop/", "/shop/a", "/shop/a/b"], ["/shops", "/"]),
        ("/shop/{category}", ["/shop/a", "/shop/7/", "/shop/{n}"], ["/shop", "/shop/", "/shop/a/b", "/shop//"]),
        ("/{lang}/p-{id}.html", ["/en/p-7.html", "/de/p-{n}.html"], ["/en/p-.html", "/en/p-7.htm", "/en/q-7.html"]),
        ("/{x-y_7}/b", ["/a/b"], ["/a/c", "//b"]),
        ("/.well-known/é+(", ["/.well-known/é+("], ["/xwell-known/é+("]),
    ],
)
def test_a_pattern_matches_a_path_part_by_part(pattern, matched, others):
    patterns = parse_patterns(pattern)

    assert [path for path in matched if patterns.match(path) != pattern] == []
    assert [path for path in others if patterns.match(path) is not None] == []


def test_the_first_line_that_matches_wins():
    patterns = parse_patterns("# shop\n\n  /{x}/new  \r\n/shop/{y}\n/shop/*\n/{z}\n")

    assert [patterns.match(path) for path in ("/shop/new", "/shop/a", "/shop", "/a", "/a/b", "/")] == [
        "/{x}/new", "/shop/{y}", "/shop/*", "/{z}", None, None
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("/a\n\nshop", "line 3: 'shop' does not begin with a slash"),
        ("/a b", "line 1: '/a b' has a space in it"),
        ("/a?b={c}", "line 1: '/a?b={c}' has a query string, for which there is --route-query"),
        ("/*/a", "line 1: '/*/a' has a * that is not its last part"),
        ("/a*", "line 1: '/a*' has a * that is not its last part"),
        ("/{}", "line 1: '/{}' has braces that are not one {name} in a part"),
        ("/{a}{b}", "line 1: '/{a}{b}' has braces that are not one {name} in a part"),
        ("/{a", "line 1: '/{a' has braces that are not one {name} in a part"),
        ("/{7}", "line 1: '/{7}' has braces that are not one {name} in a part"),
        ("/" + "a" * 1000, "line 1: more than 1,000 characters"),
        ("/a\n" * 1001, "line 1001: more than 1,000 patterns"),
    ],
)
def test_a_line_that_is_not_a_pattern_is_named(text, problem):
    with pytest.raises(ValueError, match="line") as raised:
        parse_patterns(text)

    assert str(raised.value) == problem


def test_a_file_without_patterns_matches_nothing():
    for patterns in (RoutePatterns(), parse_patterns("\ufeff# nothing\n")):
        assert not patterns
        assert patterns.match("/") is None


def test_a_thousand_patterns_do_not_explode():
    lines = [f"/{'/'.join(['{a}'] * 20)}/{at}x" for at in range(1000)]
    patterns = parse_patterns("\n".join(lines))

    with within(10):
        for _ in range(100):
            assert patterns.match("/a" * 21) is None
    assert patterns.match("/a" * 20 + "/999x") == lines[-1]
