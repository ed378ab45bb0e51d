"""The lines above the table: leaks first, at most five, and one line if there is none."""

from __future__ import annotations

import dataclasses
import io

import pytest
from rich.cells import cell_len

from tracer.analysis.group import Group
from tracer.analysis.ranking import GroupBy
from tracer.analysis.tally import Tally
from tracer.analysis.verdict.judge import Kind, Verdict, Why
from tracer.analysis.verdict.memory import HighWater
from tracer.reporters import findings, ranking_table
from tracer.reporters.columns import COLUMNS
from tracer.reporters.ranking_table import TableOptions
from tracer.reporters.verdict_text import Source

MIB = 1 << 20
SMALL = Group("/a.php", 3, 0, 7, 2, 5, 11, 3.5, 3.5, 4.5, "counted", 0.5, 3, 5, 0, 3, 13, 17, 1_000)
LEAK = Verdict(Kind.LEAK, requests=40, kept=MIB, per_request=26_214.0, share=1.0, workers=4, agree=4)
HIGH = Verdict(Kind.HIGH_WATER, kept=0, high_water=HighWater(4, 64 * MIB, 29 * MIB, 93 * MIB, 256 * MIB))
WARM = Verdict(Kind.WARM_UP, kept=7 * MIB, workers=4, late=0.0)
STEADY = Verdict(Kind.STEADY, kept=0, requests=3)
FEW = Verdict(Kind.UNCLEAR, Why.FEW, requests=3, kept=0, needed=69)


def group(key: str | None, verdict: Verdict | None) -> Group:
    return dataclasses.replace(SMALL, key=key, verdict=verdict)


def lines(*groups: Group, by: GroupBy = GroupBy.SCRIPT) -> list[str]:
    out = io.StringIO()
    findings.render(groups, out, by=by, source=Source(("r.phptrace",)))
    return out.getvalue().splitlines()


def test_the_report_opens_with_the_leak_and_then_with_what_is_none():
    assert lines(group("/w", WARM), group("/s", STEADY), group("/h", HIGH), group("/l", LEAK)) == [
        "LEAK        /l keeps 25.6 KiB a request (4 of 4 workers): 1.0 MiB in 40 requests.",
        "            Next: phptrace record --stacks -d 60s php-fpm",
        "HIGH-WATER  /h raised 4 workers, one of them from 29.0 MiB to 93.0 MiB, and they stayed there: free",
        "            memory that malloc keeps, not a leak.",
        "            Next: phptrace report --group-by worker --sort peak r.phptrace",
        "WARM-UP     /w kept 7.0 MiB in the first requests of 4 workers, and then no more.",
        "            Next: phptrace record -d 10m php-fpm",
        "",
    ]


def test_on_a_terminal_the_verdict_alone_has_a_colour(monkeypatch):
    for name, value in (("COLUMNS", "100"), ("TERM", "xterm")):
        monkeypatch.setenv(name, value)
    out = io.StringIO()
    out.isatty = lambda: True

    findings.render([group("/l", LEAK)], out, by=GroupBy.SCRIPT, source=Source(("r.phptrace",)))

    assert out.getvalue().startswith("\x1b[1;31mLEAK        \x1b[0m/l keeps 25.6 KiB a request")


def test_the_folder_of_all_scripts_is_in_no_finding():
    out = io.StringIO()

    findings.render([group("/srv/l", LEAK)], out, by=GroupBy.SCRIPT, source=Source(("r.phptrace",)), root="/srv/")

    assert out.getvalue().startswith("LEAK        l keeps 25.6 KiB a request")


def test_larger_leaks_come_first_and_five_lines_are_enough():
    leaks = [group(f"/{n}", dataclasses.replace(LEAK, kept=n * MIB)) for n in range(1, 8)]

    found = lines(*leaks)

    assert [line.split()[1] for line in found if line.startswith("LEAK")] == ["/7", "/6", "/5", "/4", "/3"]
    assert found[-2:] == ["            and 2 more", ""]


@pytest.mark.parametrize(
    ("verdicts", "line"),
    [
        ([STEADY], "No leak found in 3 requests of 1 script."),
        ([STEADY] * 4, "No leak found in 12 requests of 4 scripts."),
        ([FEW], "No leak found in 3 requests of 1 script, but the verdict is unclear."),
        ([FEW, STEADY], "No leak found in 6 requests of 2 scripts, but 1 of 2 verdicts is unclear."),
        ([FEW, FEW, STEADY], "No leak found in 9 requests of 3 scripts, but 2 of 3 verdicts are unclear."),
    ],
)
def test_where_nothing_is_found_one_line_says_how_much_was_looked_at(verdicts, line):
    assert lines(*[group(f"/{at}", verdict) for at, verdict in enumerate(verdicts)]) == [line, ""]


@pytest.mark.parametrize(("kept", "shown"), [(MIB - 1, False), (MIB, True)])
def test_an_unclear_group_that_kept_much_is_a_finding(kept, shown):
    found = lines(group("/f", dataclasses.replace(FEW, kept=kept)))

    assert found[0].startswith("UNCLEAR     /f kept 1.0 MiB in 3 requests, which are too few") is shown


def test_groups_without_a_verdict_have_no_findings():
    assert lines(group("www/4241", None), by=GroupBy.WORKER) == []
    assert lines() == []


def test_no_line_is_wider_than_100_cells_and_no_key_acts_on_the_terminal():
    found = lines(group("/" + "界" * 200, LEAK), group("/\x1b[2J\u202e" + "k" * 300, WARM), group(None, HIGH))

    assert max(map(cell_len, found)) <= 100
    assert "\x1b" not in "".join(found)
    assert any(line.startswith("HIGH-WATER  (none) raised") for line in found)


@pytest.mark.parametrize("sort", [one for one in COLUMNS if one.sorts], ids=lambda one: one.name)
def test_the_table_has_a_column_for_the_verdict_and_stays_within_100_columns(sort):
    out = io.StringIO()
    large = dataclasses.replace(
        SMALL, key="/" + "k" * 200, requests=9_999_999, growth_bytes=-1_022_999_999_999, kept_bytes=-1_022_999_999_999,
        anon_peak_max=1_022_999_999, zend_peak_max=1_022_999_999, duration_p95_ns=999_900_000, verdict=HIGH,
    )  # fmt: skip

    ranking_table.render([large, group("/l", LEAK)], Tally(), out, TableOptions(GroupBy.SCRIPT, sort), hidden=0)

    header, first, second = out.getvalue().splitlines()[:3]
    assert max(map(cell_len, (header, first, second))) <= 100
    assert header.split()[1] == "VERDICT"
    assert first.split()[1:3] == ["high-water", "9,999,999"]
    assert second.split()[1:3] == ["leak", "3"]
