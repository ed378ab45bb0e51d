"""The documents lead to each other: no link is dead, no page is out of reach, and lines fit a screen."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tracer.facts import Request

ROOT = Path(__file__).resolve().parents[2]
DOCUMENTS = sorted(str(path.relative_to(ROOT)) for path in [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")])
_COLUMNS = 128


def links(text: str) -> list[str]:
    """The targets of all links and pictures that are not on the web, outside of code."""
    prose = re.sub(r"^```.*?^```|`[^`\n]*`", "", text, flags=re.MULTILINE | re.DOTALL)
    return [to for to in re.findall(r"\]\(([^)\s]+)\)", prose) if not re.match(r"[a-z]+:", to)]


def anchors(text: str) -> set[str]:
    """The names of a document's headings, as GitHub forms them."""
    headings = re.findall(r"^#+ (.*)$", re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def dead_links(document: Path) -> list[str]:
    found = []
    for link in links(document.read_text()):
        name, _, anchor = link.partition("#")
        to = document.parent / name if name else document
        if not to.exists() or (anchor and anchor not in anchors(to.read_text())):
            found.append(link)
    return found


@pytest.mark.parametrize("name", DOCUMENTS)
def test_each_link_of_a_document_leads_to_a_file_and_to_a_heading(name):
    assert dead_links(ROOT / name) == []


def test_a_link_to_no_file_or_no_heading_is_found(tmp_path):
    (tmp_path / "b.md").write_text("# What it costs, and why\n\n```\n# no heading\n```\n")
    page = tmp_path / "a.md"
    page.write_text(
        "# A\n[1](b.md) [2](b.md#what-it-costs-and-why) [3](#a) [4](https://example.org/c.md) `[5](c.md)`\n"
        "[6](c.md) ![7](c.svg) [8](b.md#no-heading) [9](#b)\n"
    )

    assert dead_links(page) == ["c.md", "c.svg", "b.md#no-heading", "#b"]


def test_every_document_can_be_reached_from_the_readme():
    reached: set[Path] = set()
    waiting = [ROOT / "README.md"]
    while waiting:
        document = waiting.pop()
        reached.add(document)
        pages = {(document.parent / link.partition("#")[0]).resolve() for link in links(document.read_text())}
        waiting += [page for page in pages - reached if page.suffix == ".md"]

    assert {str(path.relative_to(ROOT)) for path in reached} == set(DOCUMENTS)


@pytest.mark.parametrize("name", DOCUMENTS)
def test_no_line_but_a_row_of_a_table_is_wider_than_a_screen(name):
    lines = (ROOT / name).read_text().splitlines()

    assert [f"{name}:{at}" for at, line in enumerate(lines, 1) if len(line) > _COLUMNS and line[:1] != "|"] == []


def test_the_page_on_recordings_names_every_column_of_a_request_in_their_order():
    page = (ROOT / "docs/recording.md").read_text()
    named = re.search(r"one row a request: `([^`]*)`", page)
    # `file_*` stands for file_before and file_after.
    short = dict.fromkeys(re.sub(r"^(file|shmem)_.*", r"\1_*", name) for name in Request._fields)

    assert named is not None
    assert named[1].split() == list(short)
