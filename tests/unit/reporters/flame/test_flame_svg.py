"""A flame graph as SVG: the drawing without a script, its texts, and that no name becomes markup.

tests/integration/reporters/test_flame_picture.py tests the script, in a browser.
"""

from __future__ import annotations

import io
import xml.etree.ElementTree as ET

import pytest
from flames import HOSTILE, flame, node
from hypothesis import given
from hypothesis import strategies as st
from samples import PROPERTY

from tracer.analysis.flame.node import Flame, Kind
from tracer.reporters.flame import svg

SVG = "{http://www.w3.org/2000/svg}"


def drawn(of: Flame) -> str:
    out = io.StringIO()
    svg.render(of, out)
    return out.getvalue()


def frames(text: str) -> dict[str, ET.Element]:
    """Frames by the first line of the text on hovering, which is the detail."""
    elements = ET.fromstring(text).iter(f"{SVG}svg")
    return {
        (element.findtext(f"{SVG}title") or "").split("\n")[0]: element
        for element in elements
        if element.get("class", "").startswith("frame")
    }


def numbers(text: str, name: str) -> str:
    return (frames(text)[name].findtext(f"{SVG}title") or "").split("\n")[1]


def fill(text: str, name: str) -> tuple[int, int, int]:
    colour = frames(text)[name].find(f"{SVG}rect").get("fill")
    return int(colour[1:3], 16), int(colour[3:5], 16), int(colour[5:7], 16)


def words(text: str) -> list[str]:
    return ["".join(element.itertext()) for element in ET.fromstring(text).iter(f"{SVG}text")]


def test_a_frame_lies_below_its_caller_and_is_as_wide_as_its_bytes():
    text = drawn(flame(node("a", 750, node("b", 375)), node("c", 250)))

    places = {name: [frame.get(key) for key in ("x", "y", "width")] for name, frame in frames(text).items()}
    assert places == {
        "all": ["0.0000%", "0", "100.0000%"],
        "a": ["0.0000%", "18", "75.0000%"],
        "b": ["0.0000%", "36", "37.5000%"],
        "c": ["75.0000%", "18", "25.0000%"],
    }


def test_the_widest_of_a_caller_is_on_the_left_and_equals_are_by_name():
    text = drawn(flame(node("z", 3), node("b", 7), node("a", 3)))

    assert [(name, frame.get("data-start")) for name, frame in frames(text).items()] == [
        ("all", "0"), ("b", "0"), ("a", "7"), ("z", "10"),
    ]  # fmt: skip


def test_hovering_shows_the_whole_path_the_exact_bytes_the_share_and_the_samples():
    called = node("in", 1_048_583)
    hydrate = node(
        "Repo::hydrate repo.php:88", 4_194_319, called, detail="Repo::hydrate /srv/repo.php:88", samples=1009
    )

    text = drawn(flame(hydrate, node("rest", 4_194_319)))

    assert numbers(text, "Repo::hydrate /srv/repo.php:88") == (
        "4.0 MiB (4,194,319 bytes) · 50.00 % · 1,009 samples · 3.0 MiB in the function itself"
    )
    assert numbers(text, "in") == "1.0 MiB (1,048,583 bytes) · 12.50 %"


def test_a_frame_has_a_label_for_screen_readers():
    frame = frames(drawn(flame(node("a", 4096), node("b", 4096))))["a"]

    assert {key: frame.get(key) for key in ("role", "aria-level", "aria-label", "tabindex")} == {
        "role": "treeitem", "aria-level": "2", "aria-label": "a, 4.0 KiB, 50.00 %", "tabindex": "-1",
    }  # fmt: skip


def test_a_label_is_cut_to_what_fits_and_kept_whole_for_zooming():
    text = drawn(flame(node("Repository::find", 70, detail="x"), node("rest", 930)))

    assert frames(text)["x"].findtext(f"{SVG}text") == "Repositor…"
    assert frames(text)["x"].get("data-label") == "Repository::find"
    assert frames(text)["rest"].get("data-label") is None


def test_wide_characters_take_the_room_of_two():
    text = drawn(flame(node("界" * 20, 70, detail="x"), node("rest", 930)))

    assert frames(text)["x"].findtext(f"{SVG}text") == "界界界界…"


def test_a_frame_too_narrow_for_text_has_none():
    assert frames(drawn(flame(node("narrow", 10), node("rest", 990))))["narrow"].findtext(f"{SVG}text") == ""


def test_frames_under_a_thousandth_of_their_caller_are_left_out_and_counted_with_what_they_called():
    text = drawn(flame(node("a", 99_800), node("b", 100), node("c", 97, node("d", 89)), node("e", 3)))

    assert set(frames(text)) == {"all", "a", "b"}
    assert "Not drawn: 3 frames, 100 B (0.1 %). Each is narrower than 0.1 % of its caller." in words(text)


def test_a_narrow_tower_that_can_be_zoomed_has_its_callees():
    tower = node("tower", 5_000, *(node(f"part{at}", 499, node(f"deep{at}", 41)) for at in range(10)), node("dust", 4))

    text = drawn(flame(node("rest", 995_000), tower))

    assert set(frames(text)) == {
        "all", "rest", "tower", *(f"{name}{at}" for name in ("part", "deep") for at in range(10))
    }  # fmt: skip
    assert "Not drawn: 1 frame, 4 B (0.0 %). It is narrower than 0.1 % of its caller." in words(text)


def test_the_widest_of_too_many_frames_are_drawn_and_the_others_are_counted():
    groups = [
        node(f"g{low}", sum(range(low, low + 100)), *(
            node(f"t{size}", size, node(f"in{size}", size)) for size in range(low, low + 100)
        ))
        for low in range(10_000, 13_500, 100)
    ]  # fmt: skip

    text = drawn(flame(*groups))

    shown = {name for name in frames(text) if name[0] in "ti"}
    assert shown == {f"{kind}{size}" for kind in ("t", "in") for size in range(10_518, 13_500)}
    assert len(frames(text)) == 6_000
    assert words(text)[2] == (
        "Not drawn: 1,036 frames, 5.1 MiB (12.9 %). Each is narrower than 0.1 % of its caller, or not among"
        " the 6,000 widest."
    )
    assert len(text) < 4_000_000


def test_title_total_and_notes_are_on_top():
    text = drawn(flame(node("a", 1_048_583, samples=7), title="rss: faults", notes=("First.", "13 lost.")))

    assert ET.fromstring(text).findtext(f"{SVG}title") == "rss: faults"
    assert words(text)[:4] == ["rss: faults", "Total: 1.0 MiB (1,048,583 bytes)", "First.", "13 lost."]


def test_a_long_note_is_wrapped():
    text = drawn(flame(node("a", 1), notes=("word " * 50,)))

    assert max(map(len, words(text))) <= 130


def test_the_legend_names_the_kinds_that_are_drawn():
    kinds = [Kind.ROUTE, Kind.SCRIPT, Kind.USER, Kind.INTERNAL]

    legend = words(drawn(flame(*(node(kind.value, 1, kind=kind) for kind in kinds))))[2]

    assert legend.startswith("■route■script■PHP code■internal function")
    assert "no PHP function" not in legend


def test_kinds_have_colours_of_their_own_that_black_is_read_on():
    text = drawn(flame(*(node(kind.value, 1, kind=kind) for kind in Kind if kind is not Kind.ROOT)))

    colours = [fill(text, kind.value) for kind in Kind if kind is not Kind.ROOT]
    assert len(set(colours)) == 5
    assert min(0.2126 * red + 0.7152 * green + 0.0722 * blue for red, green, blue in colours) > 140


def test_a_name_has_the_same_colour_in_every_picture():
    assert fill(drawn(flame(node("Repo::find", 7))), "Repo::find") == (243, 176, 105)
    assert fill(drawn(flame(node("x", 13), node("Repo::find", 7))), "Repo::find") == (243, 176, 105)


def test_an_empty_flame_says_so_with_its_notes():
    text = drawn(Flame(node("all", 0, kind=Kind.ROOT), "rss: page faults", ("No request was seen.",)))

    assert words(text) == ["rss: page faults", "Total: 0 bytes", "No request was seen.", "nothing to show"]
    assert frames(text) == {}
    assert "<script" not in text


def test_a_frame_of_a_difference_is_as_wide_as_the_larger_side_and_states_both():
    text = drawn(flame(node("grew", 2_097_152, before=1_048_576), node("gone", 0, before=2_097_152)))

    assert numbers(text, "grew") == (
        "before 1.0 MiB (1,048,576 bytes), after 2.0 MiB (2,097,152 bytes): +1.0 MiB (+1,048,576 bytes)"
        " · 50.00 % of the width"
    )
    assert frames(text)["gone"].get("width") == "50.0000%"
    assert frames(text)["gone"].get("data-before") == "2097152"
    assert frames(text)["gone"].get("data-bytes") == "0"
    assert "before 3.0 MiB (3,145,728 bytes), after 2.0 MiB (2,097,152 bytes): -1.0 MiB" in words(text)[1]


def test_a_frame_of_a_difference_that_grew_is_red_one_that_shrank_is_blue_and_others_are_nearly_white():
    text = drawn(
        flame(
            node("much", 500, before=0), node("little", 110, before=100), node("same", 100, before=100),
            node("less", 0, before=290),
        )
    )  # fmt: skip

    red, green, blue = fill(text, "much")
    assert red - green > 100
    assert red - blue > 100
    assert fill(text, "same") == (247, 247, 247)
    assert 247 > fill(text, "little")[1] > green
    red, green, blue = fill(text, "less")
    assert blue > green > red
    assert words(text)[2].startswith("■shrank by 50 % of the total■by 5 %■same as before■grew by 5 %■by 50 %")


def test_a_frame_without_a_before_in_a_difference_was_nothing():
    text = drawn(flame(node("new", 13), node("old", 7, before=7)))

    assert numbers(text, "new") == "before 0 bytes, after 13 bytes: +13 B · 65.00 % of the width"


@pytest.mark.parametrize("name", HOSTILE, ids=range(len(HOSTILE)))
def test_a_hostile_name_is_text_and_nothing_else(name):
    harmless = drawn(flame(node("x", 7)))

    text = drawn(Flame(flame(node(name, 7, detail=name)).root, name[:50], (name[:50],)))

    assert markup(text) == markup(harmless)
    assert text.count("<script>") == 1
    assert all(char.isprintable() for char in text if char != "\n")


def markup(text: str) -> list[tuple[str, list[str]]]:
    """Elements and their attributes, but for lines of text, of which there may be more."""
    found = [(element.tag, sorted({*element.keys()} - {"data-label"})) for element in ET.fromstring(text).iter()]
    return [one for one in found if one[0] != f"{SVG}text"]


def test_a_name_of_10_kb_keeps_its_ends():
    text = drawn(flame(node("a" + "N" * 10_007 + "z", 7)))

    name = list(frames(text))[1]
    assert (len(name), name[0], name[-1]) == (1001, "a", "z")
    assert len(text) < len(drawn(flame(node("a", 7)))) + 4000


@PROPERTY
@given(st.text(st.characters(), max_size=40), st.text(st.characters(), max_size=40), st.booleans())
def test_any_text_gives_well_formed_xml_with_the_same_frames(label, detail, difference):
    before = 5 if difference else None

    text = drawn(Flame(flame(node(label, 7, node("in", 3), detail=detail, before=before)).root, label, (detail,)))

    ids = [element.get("data-width") for element in ET.fromstring(text).iter(f"{SVG}svg")]
    assert ids == [None, None, "7", "7", "3"]


def test_nothing_is_fetched_from_elsewhere():
    text = drawn(flame(node("a", 7)))

    for word in ("href", "src=", "@import", "url(", "innerHTML", "fetch(", "import("):
        assert word not in text
    assert {part.split('"')[0] for part in text.split("http")[1:]} == {
        "://www.w3.org/2000/svg", "://www.w3.org/1999/xhtml",
    }  # fmt: skip


def test_a_stack_of_5003_levels_is_drawn():
    deepest = node("f5002", 7)
    for level in reversed(range(5002)):
        deepest = node(f"f{level}", 7, deepest)

    assert len(frames(drawn(flame(deepest)))) == 5004


def test_20_000_nodes_make_a_file_of_reasonable_size():
    leaves = [node(f"f{at}", 1 + 4096 * (at % 97 == 0)) for at in range(20_011)]

    text = drawn(flame(*leaves))

    assert len(frames(text)) == 1 + 207
    assert len(text) < 200_000
