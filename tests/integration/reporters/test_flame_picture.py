"""A flame graph in headless Chromium: zoom, search and keys; and that a hostile name runs nothing."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from browser import Keys, alert, chromium, click, hover, press

from tracer.analysis.flame.node import Flame, Kind, Node
from tracer.reporters.flame import svg

HOSTILE = [
    "<script>window.__pwned = 1; alert(1)</script>",
    "</title><script>window.__pwned = 2; alert(2)</script>",
    "]]><script>window.__pwned = 3; alert(3)</script><![CDATA[",
    "\" onclick=\"window.__pwned = 4\" onfocus='window.__pwned = 4' onmouseover='alert(4)' x=\"",
    "<img xmlns='http://www.w3.org/1999/xhtml' src='x:' onerror='window.__pwned = 5'/>",
    "*/ window.__pwned = 6; alert(6) //\n`${window.__pwned = 6}`",
]
WIDTHS = """
const shown = [...document.querySelectorAll(".frame")].filter((frame) => frame.style.display !== "none");
return Object.fromEntries(shown.map((frame) => [
  frame.querySelector("title").textContent.split("\\n")[0], Math.round(frame.getBoundingClientRect().width)]));
"""
FOCUSED = 'return document.activeElement?.getAttribute("aria-label")?.split(",")[0] ?? null'
MATCHES = """
return [...document.querySelectorAll(".match")].map((frame) => frame.querySelector("title").textContent.split("\\n")[0])
"""


def node(label: str, size: int, *children: Node, before: int | None = None) -> Node:
    return Node(label, Kind.USER, "", size, 1, before, {child.label: child for child in children})


def tree() -> Node:
    """1,000 KiB: a has three quarters, b half of that."""
    b = node("b", 375 << 10, node("App\\Repo::find", 300 << 10))
    return node(
        "all", 1000 << 10, node("a", 750 << 10, b, node("a2", 125 << 10)), node("c", 250 << 10, node("b", 5 << 10))
    )


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with chromium(width=1220) as started:
        yield started


@pytest.fixture
def show(browser: Any, tmp_path: Path) -> Callable[[Node], Any]:
    """Open a picture of the tree. The window is 1,220 pixels wide, so frames have 1,200."""

    def opened(root: Node) -> Any:
        path = tmp_path / "flame.svg"
        with path.open("w", encoding="utf-8") as out:
            svg.render(Flame(root, "rss: page faults", ("A remark.",)), out)
        browser.get(path.as_uri())
        return browser

    return opened


def text_of(browser: Any, css: str) -> Any:
    return browser.execute_script("return document.querySelector(arguments[0]).textContent", css)


def test_frames_fill_the_window(show):
    browser = show(tree())

    assert browser.execute_script(WIDTHS) == {
        "all": 1200, "a": 900, "b": 6, "App\\Repo::find": 360, "a2": 150, "c": 300,
    }  # fmt: skip


def test_a_click_makes_a_frame_the_whole_and_escape_goes_back(show):
    browser = show(tree())
    before = browser.execute_script(WIDTHS)

    click(browser, '.frame[aria-label^="a,"]')
    zoomed = browser.execute_script(WIDTHS)
    above = text_of(browser, ".frame.above text")
    press(browser, Keys.ESCAPE)

    assert zoomed == {"all": 1200, "a": 1200, "b": 600, "App\\Repo::find": 480, "a2": 200}
    assert above == "all"
    assert browser.execute_script(WIDTHS) == before


def test_a_frame_of_a_few_pixels_has_what_it_called_when_it_is_the_whole(show):
    narrow = node("narrow", 5 << 10, node("b", 3 << 10), node("c", 2 << 10, node("d", 10)))
    browser = show(node("all", 1000 << 10, node("rest", 995 << 10), narrow))
    before = browser.execute_script(WIDTHS)

    click(browser, '.frame[aria-label^="narrow"]')

    assert before == {"all": 1200, "rest": 1194, "narrow": 6, "b": 4, "c": 2}
    assert browser.execute_script(WIDTHS) == {"all": 1200, "narrow": 1200, "b": 720, "c": 480, "d": 2}


def test_the_button_goes_back_too(show):
    browser = show(tree())
    click(browser, '.frame[aria-label^="c,"]')
    zoomed = browser.execute_script(WIDTHS)

    click(browser, '[aria-label="Reset zoom"]')

    assert zoomed == {"all": 1200, "c": 1200, "b": 24}
    assert browser.execute_script(WIDTHS)["c"] == 300


def test_a_label_is_cut_anew_when_there_is_more_room(show):
    browser = show(node("all", 1000, node("Repository::findAllByCustomer", 100), node("rest", 900)))
    cut = text_of(browser, '.frame[aria-label^="Repo"] text')

    click(browser, '.frame[aria-label^="Repo"]')

    assert cut == "Repository::fi…"
    assert text_of(browser, '.frame[aria-label^="Repo"] text') == "Repository::findAllByCustomer"


def test_a_search_says_how_much_matched_and_counts_a_match_inside_of_a_match_once(show):
    browser = show(tree())

    press(browser, "/")
    press(browser, *"^(A2?|REPO|b)$")

    assert browser.execute_script(MATCHES) == ["a", "b", "a2", "b"]
    assert text_of(browser, ".matched") == "matched: 75.5 % (755 KiB) in 4 frames"


def test_ctrl_f_searches_and_escape_ends_it(show):
    browser = show(tree())

    press(browser, "f", hold=Keys.CONTROL)
    press(browser, "c")
    matched = text_of(browser, ".matched")
    press(browser, Keys.ESCAPE)

    assert matched == "matched: 25.0 % (250 KiB) in 1 frame"
    assert text_of(browser, ".matched") == ""
    assert browser.execute_script(MATCHES) == []


@pytest.mark.parametrize("sought", ["repo(", "App\\Repo", "app\\\\repo"])
def test_what_is_no_regular_expression_of_it_is_sought_as_text(show, sought):
    root = node("all", 1000, node("App\\Repo(x)", 500), node("c", 500))
    browser = show(root)

    press(browser, "/")
    press(browser, *sought)

    assert browser.execute_script(MATCHES) == ["App\\Repo(x)"]


def test_in_a_difference_a_search_says_before_and_after(show):
    browser = show(node("all", 3 << 20, node("a", 3 << 20, before=1 << 20), before=1 << 20))

    press(browser, "/")
    press(browser, "a", "$")

    assert text_of(browser, ".matched") == "matched: 100.0 % (before 1.0 MiB, after 3.0 MiB) in 1 frame"


def test_arrows_go_to_callers_and_called_and_to_the_sides_and_enter_zooms(show):
    browser = show(tree())
    went = []

    press(browser, Keys.TAB, Keys.TAB, Keys.TAB)
    went.append(browser.execute_script(FOCUSED))
    for key in (
        Keys.ARROW_DOWN,
        Keys.ARROW_RIGHT,
        Keys.ARROW_RIGHT,
        Keys.ARROW_LEFT,
        Keys.ARROW_DOWN,
        Keys.ARROW_RIGHT,
        Keys.ARROW_UP,
    ):
        press(browser, key)
        went.append(browser.execute_script(FOCUSED))
    press(browser, Keys.ENTER)

    assert went == ["all", "a", "c", "c", "a", "b", "a2", "a"]
    assert browser.execute_script(WIDTHS)["a"] == 1200
    assert (
        browser.execute_script("return getComputedStyle(document.activeElement.querySelector('rect')).strokeWidth")
        == "5px"
    )


def test_space_zooms_and_arrow_up_leads_out_of_the_zoomed_frame(show):
    browser = show(tree())
    press(browser, Keys.TAB, Keys.TAB, Keys.TAB, Keys.ARROW_DOWN, Keys.ARROW_DOWN, " ")
    zoomed = browser.execute_script(WIDTHS)

    press(browser, Keys.ARROW_UP)
    caller = browser.execute_script(FOCUSED)
    press(browser, Keys.ARROW_DOWN)

    assert zoomed == {"all": 1200, "a": 1200, "b": 1200, "App\\Repo::find": 960}
    assert (caller, browser.execute_script(FOCUSED)) == ("a", "b")


def test_details_of_a_frame_are_shown_on_hovering_and_with_the_focus(show):
    browser = show(tree())

    hover(browser, '.frame[aria-label^="a2"]')
    hovered = text_of(browser, ".bar")
    press(browser, Keys.TAB, Keys.TAB, Keys.TAB, Keys.ARROW_DOWN)

    assert hovered == "a2125 KiB (128,000 bytes) · 12.50 % · 1 sample"
    assert text_of(browser, ".bar").startswith("a750 KiB (768,000 bytes) · 75.00 %")


def test_in_a_deep_stack_the_frame_with_the_focus_is_in_sight(show):
    deepest = node("f", 7)
    for _ in range(127):
        deepest = node("f", 7, deepest)
    browser = show(deepest)

    press(browser, Keys.TAB, Keys.TAB, Keys.TAB, *[Keys.ARROW_DOWN] * 100)

    frame, bar = browser.execute_script(
        "return [document.activeElement, document.querySelector('.bar')].map((one) => one.getBoundingClientRect())"
    )
    assert browser.execute_script("return document.activeElement.getAttribute('aria-level')") == "101"
    assert 0 < frame["top"] < frame["bottom"] <= bar["top"] + 1


def test_a_hostile_name_runs_no_script_whatever_is_done_with_it(show):
    browser = show(node("all", 6 << 20, *(node(name, 1 << 20) for name in HOSTILE)))

    for at in range(2, 8):
        css = f".frame:nth-of-type({at})"
        hover(browser, css)
        click(browser, css)
        press(browser, Keys.ESCAPE)
    press(browser, "/")
    press(browser, *HOSTILE[0])

    assert alert(browser) is None
    assert browser.execute_script("return window.__pwned ?? null") is None
    assert text_of(browser, ".matched") == "matched: 16.7 % (1.0 MiB) in 1 frame"
    assert browser.execute_script('return document.querySelectorAll("script, img").length') == 1


def test_nothing_is_fetched(show):
    browser = show(tree())

    assert browser.execute_script('return performance.getEntriesByType("resource").length') == 0


def test_without_scripts_every_frame_is_there(tmp_path):
    path = tmp_path / "flame.svg"
    with path.open("w", encoding="utf-8") as out:
        svg.render(Flame(tree(), "rss: page faults", ()), out)

    with chromium(scripts=False) as browser:
        browser.get(path.as_uri())

        assert browser.execute_script(WIDTHS).keys() == {"all", "a", "b", "App\\Repo::find", "a2", "c"}
        assert browser.execute_script('return document.querySelector(".search")') is None
