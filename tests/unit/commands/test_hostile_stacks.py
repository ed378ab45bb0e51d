"""Recordings whose names, lines and figures no writer wrote, shown by flame and report --stacks."""

from __future__ import annotations

from pathlib import Path

import pytest
from samples import COMPLETE, FIND, MAIN, QUERY, WITH_STACKS, growth, recording, request

from tracer.facts import Frame, Loss

EVIL = "\x1b[2J\x07\x9b31m\u202e\udcff\n\t"


def named(path: Path, name: str, said: str) -> Path:
    """A recording in which all untrusted text is that name, and the reason of every loss is `said`."""
    one = request(uri=f"/{name}", script=name)
    frames = [MAIN._replace(name=name, file=name), QUERY._replace(name=name), Frame("mark", name, None, None)]
    facts = [one, growth(101, *frames, of=one), Loss(1, 2, said)]
    return recording(path, facts, {**WITH_STACKS, "targets": [said, "\udcff"], "lacking": [said, "\udcff"]})


@pytest.fixture
def hostile(tmp_path: Path) -> Path:
    return named(tmp_path / "evil", EVIL, "\x1b]0;owned\x07\u202e\n\t")


@pytest.mark.parametrize(
    "verb",
    [
        *(["flame", "--format", form] for form in ("svg", "folded", "speedscope")),
        *(["flame", "--diff", "--format", form] for form in ("svg", "folded", "speedscope")),
        *(["report", "--stacks", "--format", form] for form in ("table", "json")),
    ],
)
def test_nothing_of_a_hostile_recording_is_shown_raw(run, hostile, tmp_path, verb):
    harmless = named(tmp_path / "harmless", "name", "said")
    twice = 1 + ("--diff" in verb)

    code, out, err = run(*verb, *[hostile] * twice)
    _, plain_out, plain_err = run(*verb, *[harmless] * twice)

    out.encode()
    assert code == 0
    assert raw(out + err) == set()
    # Every line is one of ours: none was begun by a name. Names may make the heading of a table longer by a line.
    if verb[-1] == "table":
        out, plain_out = (text.partition("\n\n")[2] for text in (out, plain_out))
    assert (out.count("\n"), err.count("\n")) == (plain_out.count("\n"), plain_err.count("\n"))


def raw(text: str) -> set[str]:
    """Characters on which a terminal or an editor acts, without the ends of lines."""
    return {char for char in text if char != "\n" and not char.isprintable()}


@pytest.mark.parametrize("char", sorted(set(EVIL) - set("[2J31m\n")))
def test_raw_characters_are_found(char):
    assert raw(f"a{char}b\n") == {char}


@pytest.mark.parametrize("form", ["svg", "folded", "speedscope"])
def test_a_lack_that_is_not_unicode_is_made_safe_in_a_flame(run, tmp_path, form):
    path = recording(tmp_path / "r", [COMPLETE, growth(7, MAIN)], {**WITH_STACKS, "lacking": ["\ud800 \udcff"]})

    code, _, _ = run("flame", "--format", form, "-o", tmp_path / "o", path)

    assert code == 0
    assert "\ud800" not in (tmp_path / "o").read_text(encoding="utf-8")


def test_a_reader_of_folded_stacks_gets_one_line_a_stack_whatever_its_names(run, hostile):
    _, out, _ = run("flame", "--format", "folded", hostile)

    [line] = out.splitlines()
    assert line.count(";") == 4
    assert line.endswith(" 101")


@pytest.mark.parametrize(
    "verb",
    [
        *(["flame", "--format", form] for form in ("svg", "folded", "speedscope")),
        *(["report", "--stacks", "--format", form] for form in ("table", "json")),
    ],
)
def test_figures_that_no_writer_wrote_are_shown(run, tmp_path, verb):
    """More than 64 bits together, a line and samples below zero."""
    crafted = [growth((1 << 63) - 1, FIND._replace(line=line), samples=-3) for line in (-5, 2, 3)]
    path = recording(tmp_path / "crafted", [COMPLETE, *crafted], WITH_STACKS)

    code, out, _ = run(*verb, path)

    assert code == 0
    assert "Repo::find" in out
