"""The table of a ranking: rows, room, the common folder of scripts, and what has no row of its own."""

from __future__ import annotations

import dataclasses
import io
import re

import pytest
from rich.cells import cell_len

from tracer.analysis.group import Group
from tracer.analysis.ranking import GroupBy
from tracer.analysis.tally import Tally
from tracer.reporters import ranking_table
from tracer.reporters.columns import DEFAULT_SORT, column
from tracer.reporters.ranking_table import TableOptions, common_root, without_key

SMALL = Group("/a.php", 3, 0, 7, 2, 5, 0, 0.0, 0.0, 0.0, "counted", 0.0, 0, 0, 0, 3, 13, 17, 1_000)
NONE = dataclasses.replace(SMALL, key=None, requests=85, incomplete=5, kept_bytes=1 << 20, kept_low=5.0)
UNSEEN = Group(None, 2, 2, 4096, *[None] * 11, 0, *[None] * 3)
BY_SCRIPT = TableOptions(GroupBy.SCRIPT, DEFAULT_SORT)


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def raw(groups: list[Group], out: io.StringIO, options: TableOptions = BY_SCRIPT, tally: Tally | None = None) -> str:
    ranking_table.render(groups, tally or Tally(), out, options, hidden=0)
    return out.getvalue()


def lines(groups: list[Group], options: TableOptions = BY_SCRIPT) -> list[str]:
    return raw(groups, io.StringIO(), options).splitlines()


@pytest.fixture
def terminal(monkeypatch):
    def of(columns: int) -> Terminal:
        monkeypatch.setenv("COLUMNS", str(columns))
        monkeypatch.setenv("LINES", "24")
        monkeypatch.setenv("TERM", "xterm")
        return Terminal()

    return of


def test_zeros_are_dim_on_a_terminal_and_plain_in_a_pipe(terminal):
    on_terminal = next(line for line in raw([SMALL], terminal(100)).splitlines() if "/a.php" in line)

    assert re.search(r"\x1b\[2m *0\x1b\[0m", on_terminal)
    assert lines([SMALL])[1].split() == ["/a.php", "3", "0", "-", "0", "-", "17", "1µs", "-"]


def test_figures_that_need_attention_have_a_colour_on_a_terminal(terminal):
    alarming = dataclasses.replace(SMALL, fatal=7, zend_peak_max=99, memory_limit=100)

    text = raw([alarming], terminal(100))

    assert re.search(r"\x1b\[31m *7\x1b\[0m", text)
    assert re.search(r"\x1b\[33m *99/100\x1b\[0m", text)


def test_requests_without_a_key_are_a_line_below_the_table_and_no_row():
    found = lines([NONE, SMALL])

    assert [line.split()[0] for line in found[:2]] == ["SCRIPT", "/a.php"]
    assert " ".join(map(str.strip, found[2:4])) == (
        "(none): 85 requests that ran no script (404), or whose script was not seen, 5 incomplete, kept +1.0 MiB"
    )


@pytest.mark.parametrize(
    ("groups", "by", "line"),
    [
        ([UNSEEN], GroupBy.URI, "(none): 2 requests whose URI was not seen, 2 incomplete, their workers grew +4.0 KiB"),
        ([NONE, UNSEEN], GroupBy.POOL, "(none): 87 requests of no known pool, 7 incomplete, kept +1.0 MiB, their"
         " workers grew +4.0 KiB"),
        ([dataclasses.replace(NONE, growth_bytes=4096), UNSEEN], GroupBy.POOL, "(none): 87 requests of no known pool,"
         " 7 incomplete, kept +1.0 MiB, their workers grew +8.0 KiB"),
        ([dataclasses.replace(NONE, incomplete=0, kept_bytes=None, kept_low=None, kept_high=1024.0)], GroupBy.POOL,
         "(none): 85 requests of no known pool, kept ≤ 85.0 KiB, their workers grew +7 B"),
    ],
)  # fmt: skip
def test_the_line_on_requests_without_a_key_loses_nothing(groups, by, line):
    assert without_key([*groups, SMALL], by) == [line]


def test_a_ranking_in_which_all_have_a_key_has_no_line_on_others():
    assert without_key([SMALL], GroupBy.SCRIPT) == []


def test_a_narrow_terminal_drops_spare_columns_and_names_them(terminal):
    plain = re.sub(r"\x1b\[[0-9;]*m", "", raw([SMALL], terminal(60))).splitlines()

    assert plain[0].split() == ["SCRIPT", "REQS", "KEPT↓", "/HOUR", "KEEP", "p95"]
    assert plain[-1] == "no room for RISE, ZEND/LIMIT, max: --columns chooses"
    assert max(map(cell_len, plain)) <= 60


def test_the_columns_that_were_chosen_are_those_that_are_shown_in_their_order():
    options = dataclasses.replace(BY_SCRIPT, columns=(column("total"), column("key"), column("kept"), column("fatal")))

    assert lines([SMALL], options)[0].split() == ["SCRIPT", "total", "KEPT↓", "FATAL"]


def test_of_the_columns_that_were_chosen_the_last_ones_give_way_on_a_terminal(terminal):
    options = dataclasses.replace(BY_SCRIPT, columns=tuple(map(column, ("max", "reqs", "kept", "peak"))))

    plain = re.sub(r"\x1b\[[0-9;]*m", "", raw([SMALL], terminal(40), options)).splitlines()

    assert plain[0].split() == ["SCRIPT", "max", "REQS"]
    assert " ".join(map(str.strip, plain[-2:])) == "no room for KEPT, PEAK: --columns chooses"


def test_in_a_pipe_there_is_room_for_all_columns():
    options = dataclasses.replace(BY_SCRIPT, columns=ranking_table.COLUMNS)

    assert len(lines([SMALL], options)[0].split()) == len(ranking_table.COLUMNS)


def test_the_legend_is_shown_where_it_is_asked_for():
    assert not any("KEPT: " in line for line in lines([SMALL]))
    assert any(line.startswith("REQS: ") for line in lines([SMALL], dataclasses.replace(BY_SCRIPT, legend=True)))


def of_script(key: str | None) -> Group:
    return dataclasses.replace(SMALL, key=key)


@pytest.mark.parametrize(
    ("keys", "root"),
    [
        (["/srv/www/a/x.php", "/srv/www/b.php", None], "/srv/www/"),
        (["/srv/www/a.php", "/srv/wwx/a.php"], "/srv/"),
        (["/srv/a.php"], ""),
        (["/a.php", "/srv/a.php"], ""),
        (["/srv/a.php", "srv/a.php"], ""),
        (["srv/a.php", "srv/b.php"], ""),
        ([None, None], ""),
        ([], ""),
    ],
)
def test_the_folder_of_all_scripts_is_found_part_by_part(keys, root):
    assert common_root([of_script(key) for key in keys], GroupBy.SCRIPT) == root


def test_only_scripts_have_a_folder():
    groups = [of_script("/srv/a.php"), of_script("/srv/b.php")]

    assert common_root(groups, GroupBy.URI) == ""
    found = lines(groups, dataclasses.replace(BY_SCRIPT, root="/srv/"))
    assert [line.split()[0] for line in found[1:3]] == ["a.php", "b.php"]
