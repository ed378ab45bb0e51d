"""The columns of a ranking: one table for headers, sorting, the options and the legend."""

from __future__ import annotations

import dataclasses

import pytest

from tracer.analysis.group import Group
from tracer.analysis.ranking import GroupBy
from tracer.analysis.verdict.judge import Kind, Verdict, Why
from tracer.reporters.columns import COLUMNS, DEFAULT_SORT, column, default_columns, legend, near_limit

MIB = 1 << 20
GROUP = Group(
    key="/a.php", requests=1_009, incomplete=0, growth_bytes=0, growth_p50=0, growth_p95=0, kept_bytes=7 * MIB,
    kept_per_request=7_275.0, kept_low=7_000.0, kept_high=7_500.0, kept_how="counted", kept_share=1 / 3, kept_p50=0,
    kept_p95=0, warmup_bytes=0, counted=1_009, anon_peak_max=93 * MIB, zend_peak_max=749 * 1024,
    duration_p95_ns=1_400_000, verdict=Verdict(Kind.LEAK), kept_per_hour=177.0 * MIB, rise_max=160 * 1024,
    memory_limit=128 * MIB, fatal=0, status_5xx=13, duration_mean_ns=850_000, duration_max_ns=12_000_000,
    duration_total_ns=2_040_000_000_000,
)  # fmt: skip
UNKNOWN = Group(None, 1, 1, *[None] * 12, 0, *[None] * 3)


def cells(group: Group) -> dict[str, str]:
    return {one.name: one.cell(group) for one in COLUMNS}


def test_each_column_shows_its_figure_in_the_unit_of_its_kind():
    assert cells(GROUP) == {
        "key": "/a.php", "verdict": "leak", "reqs": "1,009", "kept": "+7.0 MiB", "/hour": "+177 MiB",
        "/req": "+7.1 KiB", "keep": "33 %", "growth": "0", "peak": "93.0 MiB", "rise": "160K",
        "zend/limit": "749K/128M", "fatal": "0", "5xx": "13", "mean": "850µs", "p95": "1.4ms", "max": "12ms",
        "total": "34min",
    }  # fmt: skip


def test_a_figure_that_was_not_measured_is_a_dash_in_each_column_but_requests():
    assert set(cells(dataclasses.replace(UNKNOWN, key="-", requests=7)).values()) == {"-", "7"}


@pytest.mark.parametrize(
    ("changed", "name", "shown"),
    [
        ({"kept_share": 0.004}, "keep", "<1 %"),
        ({"kept_share": 0.0}, "keep", "0"),
        ({"kept_share": 1.0}, "keep", "100 %"),
        ({"memory_limit": -1}, "zend/limit", "749K/none"),
        ({"memory_limit": None}, "zend/limit", "749K"),
        ({"kept_bytes": 0}, "kept", "0"),
        ({"kept_per_request": 0.4}, "/req", "0"),
        ({"kept_how": "estimated"}, "/hour", "~+177 MiB"),
        ({"kept_low": 0.0}, "/hour", "≤ 177 MiB"),
        ({"kept_bytes": None, "kept_high": 1024.0, "requests": 3}, "kept", "≤ 3.0 KiB"),
        ({"kept_per_hour": None}, "/hour", "-"),
        ({"verdict": Verdict(Kind.WARM_UP, fades=True)}, "/hour", "fades"),
        ({"verdict": Verdict(Kind.UNCLEAR, Why.FALLS)}, "/hour", "fades"),
        ({"verdict": Verdict(Kind.WARM_UP)}, "/hour", "stopped"),
        ({"verdict": Verdict(Kind.CACHE)}, "verdict", "cache"),
    ],
)
def test_a_cell_is_never_surer_than_its_figure(changed, name, shown):
    assert column(name).cell(dataclasses.replace(GROUP, **changed)) == shown


@pytest.mark.parametrize(
    ("old", "name"),
    [("native", "kept"), ("zend", "zend/limit"), ("requests", "reqs"), ("duration", "p95"), ("peak", "peak"),
     ("growth", "growth"), ("key", "key"), ("KEPT", "kept"), (" /HOUR", "/hour"), ("script", "key")],
)  # fmt: skip
def test_a_column_is_found_by_its_header_and_by_the_former_words_of_sort(old, name):
    assert column(old).name == name


def test_no_two_columns_share_a_name_and_a_header_is_a_name():
    names = [name for one in COLUMNS for name in (one.name, *one.aliases)]

    assert len(set(names)) == len(names)
    assert [column(one.header) for one in COLUMNS] == list(COLUMNS)


def test_an_unknown_column_is_refused_with_all_there_are():
    with pytest.raises(ValueError, match=r"^'p96' is not a column. Write one of key, verdict, reqs, kept, /hour, "):
        column("p96")


@pytest.mark.parametrize(
    ("by", "sort", "errors", "names"),
    [
        (GroupBy.ROUTE, "kept", False, "verdict reqs kept /hour keep rise zend/limit p95 max"),
        (GroupBy.SCRIPT, "kept", True, "verdict reqs kept /hour keep rise zend/limit fatal 5xx p95 max"),
        (GroupBy.URI, "key", False, "verdict reqs kept /hour keep rise zend/limit p95 max"),
        (GroupBy.WORKER, "growth", False, "reqs growth kept /hour keep peak rise zend/limit p95 max"),
    ],
)
def test_the_default_columns_are_those_of_the_group_of_the_sort_and_of_errors(by, sort, errors, names):
    assert " ".join(one.name for one in default_columns(by, column(sort), errors=errors)) == names


def test_the_legend_explains_the_columns_that_are_shown():
    text = legend((DEFAULT_SORT, column("max")))

    assert text.startswith("KEPT: memory outside PHP's own heap")
    assert "; max: longest duration. -: not measured" in text
    assert "RISE" not in text


@pytest.mark.parametrize(
    ("peak", "limit", "near"),
    [(116 * MIB, 128 * MIB, True), (115 * MIB, 128 * MIB, False), (MIB, -1, False), (MIB, None, False)],
)
def test_a_group_is_near_its_limit_from_nine_tenths_on(peak, limit, near):
    assert near_limit(dataclasses.replace(GROUP, zend_peak_max=peak, memory_limit=limit)) is near
