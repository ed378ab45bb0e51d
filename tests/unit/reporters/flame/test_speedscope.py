"""A flame as a file for speedscope."""

from __future__ import annotations

import io
import json
import re
from typing import Any

from flames import HOSTILE, flame, node
from hypothesis import given
from hypothesis import strategies as st
from samples import PROPERTY

from tracer.analysis.flame.node import Flame, Kind
from tracer.reporters.flame import speedscope


def document(of: Flame) -> dict[str, Any]:
    out = io.StringIO()
    speedscope.render(of, out)
    out.getvalue().encode()  # no lone surrogates
    return json.loads(out.getvalue())


def stacks(of: Flame) -> dict[tuple[str, ...], int]:
    found = document(of)
    profile = found["profiles"][0]
    names = [frame["name"] for frame in found["shared"]["frames"]]
    samples = [tuple(names[at] for at in sample) for sample in profile["samples"]]
    return dict(zip(samples, profile["weights"], strict=True))


def test_it_is_one_sampled_profile_in_bytes():
    found = document(flame(node("a", 31, node("b", 13)), title="rss: page faults"))

    assert found == {
        "$schema": "https://www.speedscope.app/file-format-schema.json",
        "exporter": "phptrace",
        "name": "rss: page faults",
        "activeProfileIndex": 0,
        "shared": {"frames": [{"name": "a"}, {"name": "b"}]},
        "profiles": [
            {
                "type": "sampled", "name": "rss: page faults", "unit": "bytes", "startValue": 0, "endValue": 31,
                "samples": [[0], [0, 1]], "weights": [18, 13],
            }
        ],
    }  # fmt: skip


def test_a_function_in_two_places_is_one_frame():
    tree = flame(node("a", 13, node("b", 13)), node("b", 7, node("a", 7)))

    assert stacks(tree) == {("a", "b"): 13, ("b", "a"): 7}
    assert len(document(tree)["shared"]["frames"]) == 2


def test_a_name_is_the_detail_where_there_is_one():
    assert stacks(flame(node("f repo.php:88", 7, detail="f /srv/repo.php:88"))) == {("f /srv/repo.php:88",): 7}


def test_the_root_is_in_no_sample_not_even_with_bytes_of_its_own():
    assert stacks(Flame(node("all", 20, node("a", 7), kind=Kind.ROOT), "t", ())) == {("a",): 7}


def test_a_profile_of_a_difference_shows_the_bytes_after_and_states_it():
    tree = flame(node("a", 13, before=3), node("gone", 0, before=11), title="rss")

    assert stacks(tree) == {("a",): 13}
    assert document(tree)["profiles"][0]["name"] == "rss (after; speedscope shows no differences)"


def test_nothing_gives_a_profile_without_samples():
    assert document(flame())["profiles"][0]["samples"] == []


def test_hostile_names_stay_text():
    names = [name for name in HOSTILE if not re.search("[\ud800-\udc7f\udd00-\udfff]", name)]

    found = [frame["name"] for frame in document(flame(*(node(name, 7) for name in names)))["shared"]["frames"]]

    assert found == [name.replace("\udcff", "\ufffd") for name in names]


@PROPERTY
@given(st.text(st.characters(), max_size=40).filter(lambda text: not re.search("[\ud800-\udc7f\udd00-\udfff]", text)))
def test_any_name_is_kept_but_for_what_was_not_utf8(name):
    found = document(flame(node(name, 7)))

    kept = name.encode("utf-8", "surrogateescape").decode("utf-8", "replace")
    assert found["shared"]["frames"] == [{"name": kept}]


def test_a_stack_of_5003_levels_is_written():
    deepest = node("f", 7)
    for _ in range(5002):
        deepest = node("f", 7, deepest)

    assert stacks(flame(deepest)) == {("f",) * 5003: 7}
