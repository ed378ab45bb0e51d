"""Comparisons as a table, Markdown, JSON, CSV and TSV: what they show, and what hostile keys cannot do."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
import re
import time

import pytest
from deploys import rows
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console
from samples import PROPERTY, request

from tracer.analysis.contents import Contents, Counts, contents
from tracer.analysis.diff import Row
from tracer.analysis.diff_alike import not_alike
from tracer.analysis.diff_change import Figure, Kind, Why
from tracer.analysis.verdict.judge import Kind as VerdictKind
from tracer.analysis.verdict.judge import Verdict
from tracer.facts import Loss, Worker
from tracer.reporters import diff_json, diff_md, diff_table
from tracer.reporters.delimited import render_csv
from tracer.reporters.diff_rows import HEADER, cells
from tracer.reporters.diff_table import Diff
from tracer.reporters.diff_text import busier, cell, conclusion, doubts, findings, sentence

HOSTILE = "/a|b`c`<script>alert(1)</script>\n| x |\x1b[31m@everyone \u202e[l](http://x) \udcff"
BASE = 1_700_000_000_000_000_000


def about(path: str = "before.phptrace", requests: int = 200, counted: int = 200, **meta: object) -> Contents:
    known = {"host": "web1", "backend": "bpf", "targets": ["php-fpm:shop"], "ended": {"why": "Ctrl-C"},
             "clock": {"unix_ns": BASE}, "options": {"query": "strip"}, "native": {"budget": 0.02}}  # fmt: skip
    worker = Worker(7, 1, "shop", "8.2.36", None, None, None)
    return contents(path, 9, 3, {**known, **meta}, Counts(requests, 0, counted, None, None), [worker], [], [], [])


def requests(size: int = 0, script: str = "/a.php", **changed: object) -> list:
    fixed = {"script": script, "native_kept": size, "native_alloc_bytes": size, "native_free_bytes": 0,
             "native_freed_earlier": 0}  # fmt: skip
    return [request(**{**fixed, "pid": pid, "nth": nth, "started_ns": BASE + nth * 10**9, **changed})
            for nth in range(1, 101) for pid in (7, 8)]  # fmt: skip


def diff(every: list[Row], **changed: object) -> Diff:
    fixed = {"before": about(), "after": about("after.phptrace"), "rows": every, "every": every, "moved": None,
             "metric": Figure.KEPT, "group_by": "script", "left_out": 0, "stacks": False, "same": False}  # fmt: skip
    return Diff(**{**fixed, **changed})


def compared(before: list, after: list) -> list[Row]:
    return list(rows(before, after).values())


def shown(render: object, one: Diff) -> str:
    out = io.StringIO()
    render(one, out)
    return out.getvalue()


LEAKS = compared(requests() + requests(script="/old.php"), requests(65_552) + requests(script="/new.php"))


def test_the_table_opens_with_the_recordings_and_the_largest_rise():
    lines = shown(diff_table.render, diff(LEAKS)).splitlines()

    assert lines[:2] == [
        "before.phptrace: 200 requests, 1 worker, 0 lost, web1, PHP 8.2.36, backend bpf",
        "after.phptrace: 200 requests, 1 worker, 0 lost, web1, PHP 8.2.36, backend bpf",
    ]
    assert " ".join(line.strip() for line in lines[3:6]) == (
        "WORSE       /a.php keeps 64.0 KiB more a request: 0 B before, 64.0 KiB after (200 and 200 requests)."
        " Next: phptrace record --stacks -d 60s php-fpm:shop"
        " 1 script is surely worse, of 1 in both recordings; 1 new; 1 gone."
    )


def test_the_table_has_a_row_for_each_group_with_a_sign_where_it_surely_changed():
    lines = shown(diff_table.render, diff(LEAKS)).splitlines()
    at = next(number for number, line in enumerate(lines) if line.startswith("script "))

    assert [line.split() for line in lines[at : at + 4]] == [
        ["script", "outcome", "requests", "kept", "rise", "zend", "peak", "duration"],
        ["/a.php", "worse", "200", "→", "200", "+64.0", "KiB", "=", "=", "="],
        ["/new.php", "new", "-", "→", "200", "0", "B", "19.1", "MiB", "2.8", "MiB", "12.3", "ms"],
        ["/old.php", "gone", "200", "→", "-", "0", "B", "19.1", "MiB", "2.8", "MiB", "12.3", "ms"],
    ]
    assert max(map(len, lines)) <= 100


@pytest.mark.parametrize(
    ("width", "columns"),
    [
        (160, ["requests", "kept", "rise", "zend peak", "duration"]),
        (80, ["kept", "rise", "zend peak", "duration"]),
        (70, ["kept", "rise", "duration"]),
        (60, ["kept", "duration"]),
    ],
)
def test_a_narrow_terminal_has_fewer_columns(monkeypatch, width, columns):
    monkeypatch.setattr(diff_table, "console_for", lambda out: Console(file=out, width=width))

    lines = shown(diff_table.render, diff(LEAKS)).splitlines()

    header = next(line for line in lines if line.startswith("script "))
    assert re.split(r"  +|(?<=outcome) ", header.strip()) == ["script", "outcome", *columns]
    assert max(map(len, lines)) <= width
    assert any("+64.0 KiB" in line for line in lines)


def test_hidden_rows_are_counted_and_folders_that_moved_are_named():
    text = shown(diff_table.render, diff(LEAKS, rows=LEAKS[:1], moved=("/srv/41", "/srv/42\n"), left_out=1_009))

    assert "… and 2 more: -n 0 shows all\n" in text
    assert "Scripts in /srv/41/ before are matched with those in /srv/42\\n/ after.\n" in text
    assert "1,009 requests of further keys are not compared" in text


def test_where_both_have_call_stacks_the_next_step_is_their_difference():
    assert diff(LEAKS, stacks=True).next_step == "phptrace flame --diff before.phptrace after.phptrace -o diff.svg"
    hostile = diff(LEAKS, stacks=True, after=about("a; rm -rf $HOME\x1b"))
    assert hostile.next_step == "phptrace flame --diff before.phptrace 'a; rm -rf $HOME\\x1b' -o diff.svg"


def test_without_a_rise_of_memory_there_is_no_next_step():
    slower = compared(requests(), requests(duration_ns=10**9))

    assert diff(slower).next_step is None
    assert diff(compared(requests(), requests())).next_step is None


def test_markdown_has_the_findings_and_a_table():
    text = shown(diff_md.render, diff(LEAKS))

    assert text == (
        "### phptrace: 1 script is surely worse, of 1 in both recordings; 1 new; 1 gone.\n\n"
        "* **Worse**: `/a.php` keeps 64.0 KiB more a request: 0 B before, 64.0 KiB after (200 and 200 requests).\n"
        "* Next: `phptrace record --stacks -d 60s php-fpm:shop`\n"
        "* `before.phptrace: 200 requests, 1 worker, 0 lost, web1, PHP 8.2.36, backend bpf`\n"
        "* `after.phptrace: 200 requests, 1 worker, 0 lost, web1, PHP 8.2.36, backend bpf`\n\n"
        "| script | outcome | requests | kept | rise | zend peak | duration |\n"
        "|---|---|---:|---:|---:|---:|---:|\n"
        "| `/a.php` | worse | 200 → 200 | +64.0 KiB | = | = | = |\n"
        "| `/new.php` | new | - → 200 | 0 B | 19.1 MiB | 2.8 MiB | 12.3 ms |\n"
        "| `/old.php` | gone | 200 → - | 0 B | 19.1 MiB | 2.8 MiB | 12.3 ms |\n\n"
        "Changes are per request. A figure with a sign is sure at 99.9 %; = no change that matters, ? unclear, - not"
        " measured.\n"
    )


def test_a_hostile_key_has_no_effect_in_markdown():
    every = compared(requests(script=HOSTILE), requests(65_552, script=HOSTILE))

    text = shown(diff_md.render, diff(every, after=about(HOSTILE, host=HOSTILE)))

    code = re.sub(r"`[^`\n]*`", "", text)
    assert not re.search(r"script>|@everyone|\]\(|\x1b|\u202e", code)
    assert {line.count("|") for line in text.splitlines() if line.startswith("|")} == {8}
    assert text.isprintable() or all(line.isprintable() for line in text.splitlines())


@PROPERTY
@given(st.text(st.characters(), max_size=40))
def test_any_key_is_one_code_span_of_one_line(key):
    every = [dataclasses.replace(LEAKS[0], key=key, container=key)]

    text = shown(diff_md.render, diff(every))

    row = next(line for line in text.splitlines() if line.endswith(" worse | 200 → 200 | +64.0 KiB | = | = | = |"))
    assert re.fullmatch(r"\| `[^`|]+` in `[^`|]+` \| worse \|.*", row)


@PROPERTY
@given(st.text(st.characters(), max_size=40))
def test_no_key_reaches_a_terminal_unescaped(key):
    every = [dataclasses.replace(LEAKS[0], key=key, container=key)]

    text = shown(diff_table.render, diff(every, before=about(key, host=key)))

    assert all(line.isprintable() for line in text.splitlines())


def test_json_has_every_figure():
    document = json.loads(shown(diff_json.render, diff(LEAKS)))

    assert (document["schema"], document["group_by"], document["metric"], document["confidence"]) == (
        1, "script", "kept", 0.999,
    )  # fmt: skip
    assert (document["before"]["path"], document["after"]["requests"], document["hidden"]) == (
        "before.phptrace",
        200,
        0,
    )
    [finding] = document["findings"]
    assert (finding["label"], finding["key"], finding["figure"]) == ("worse", "/a.php", "kept")
    assert finding["sentence"].startswith("/a.php keeps 64.0 KiB more a request: ")
    worse, new, gone = document["groups"]
    assert (worse["outcome"], new["outcome"], gone["outcome"]) == ("worse", "new", "gone")
    kept = worse["kept"]
    evidence = kept.pop("evidence")
    assert evidence == finding["sentence"].removeprefix("/a.php ").removesuffix(".")
    assert kept == {
        "change": "rose", "why": None, "before": 0.0, "after": 65_552.0, "shift": 65_552.0, "low": 65_552.0,
        "high": 65_552.0, "estimated": False, "requests_before": 200, "requests_after": 200,
    }  # fmt: skip
    assert new["zend"]["before"] is None


def test_json_holds_what_is_not_utf_8():
    every = compared(requests(script=HOSTILE), requests(65_552, script=HOSTILE))

    document = json.loads(shown(diff_json.render, diff(every)).encode())

    assert document["groups"][0]["key"] == HOSTILE.replace("\udcff", "\ufffd")


def test_recordings_that_are_alike_give_no_doubt():
    assert doubts(about(), about("after.phptrace", clock={"unix_ns": BASE + 10**9})) == []


def test_each_way_in_which_recordings_differ_is_a_line():
    after = about(
        "after.phptrace", requests=50, counted=20, host="web\x1b2", backend="ptrace", targets=["php-fpm"], ended=None,
        clock={"unix_ns": BASE - 10**9}, options={"query": "strip", "slow_ns": 3 * 10**9, "duration_s": 60},
    )  # fmt: skip
    after = dataclasses.replace(
        after, php=("8.3.1", "8.2.36"), lost=1_013, gaps=(Loss(1, 1, "gaps in tracing"),), schema=2
    )

    assert doubts(about(), after) == [
        "host: web1 before, web\\x1b2 after",
        "PHP: 8.2.36 before, 8.3.1, 8.2.36 after",
        "backend: bpf before, ptrace after",
        "targets: php-fpm:shop before, php-fpm after",
        "options: --query strip --native-budget 2% before, --query strip --slow 3s --native-budget 2% after",
        "schema: 3 before, 2 after",
        "requests: 200 before, 50 after",
        "lost: 0 before, 1,013 after",
        "gaps in tracing: 0 before, 1 after",
        "closed: yes before, no after",
        "native memory counted in: 100 % before, 40 % after",
        f"order: BEFORE began at {time.strftime('%Y-%m-%dT%H:%M:%SZ', time.gmtime(BASE // 10**9))}, which is later than"
        " AFTER",
    ]


@pytest.mark.parametrize(
    ("changed", "figures"),
    [
        ({}, set()),
        ({"backend": "ptrace"}, {Figure.DURATION, Figure.RISE}),
        ({"backend": None}, set()),
        ({"options": {"slow_ns": 10**9}}, set(Figure)),
        ({"options": {"min_growth": 1}}, set(Figure)),
        ({"options": {"uri": "/a*", "duration_s": 60}}, set()),
        ({"options": {"native_budget": 1}, "native": {"budget": 1}}, {Figure.DURATION}),
        ({"native": None}, {Figure.DURATION}),
        ({"options": None, "native": None}, set()),
    ],
)
def test_figures_that_differ_by_how_recordings_were_made_are_not_compared(changed, figures):
    assert not_alike(about(), about(**changed)) == not_alike(about(**changed), about()) == figures


def test_if_nearly_every_script_is_slower_the_machine_may_be_the_cause():
    def site(duration: int, slow: int) -> list:
        return [
            one for at in range(5) for one in requests(script=f"/{at}.php", duration_ns=slow if at < 4 else duration)
        ]

    before = site(10**7, 10**7)

    assert busier(compared(before, site(10**7, 10**8))) == (
        "4 of 5 take longer: the load or the machine may be the cause"
    )
    assert busier(compared(site(10**7, 10**8), before)) == (
        "4 of 5 take less long: the load or the machine may be the cause"
    )
    assert busier(compared(before, before)) is None
    assert busier(compared(requests(), requests(duration_ns=10**9))) is None


def test_the_largest_rise_of_each_figure_is_named_the_metrics_first():
    before = requests() + requests(script="/b.php") + requests(9 * 65_536, script="/c.php")
    after = requests(65_552) + requests(131_088, script="/b.php", duration_ns=10**9) + requests(script="/c.php")

    every = compared(before, after)

    found = [(label, row.key, change.figure) for label, row, change in findings(every, Figure.DURATION)]
    assert found == [("WORSE", "/b.php", Figure.DURATION), ("WORSE", "/b.php", Figure.KEPT)]
    assert [label for label, *_ in findings(every, Figure.KEPT)] == ["WORSE", "WORSE", "BETTER"]
    assert conclusion(every, Figure.KEPT, "script") == "2 scripts are surely worse, of 3 in both recordings."


def test_the_rows_whose_metric_is_unclear_have_their_reason_under_the_table():
    few = [requests(script=f"/{at}.php")[: 4 + at] for at in range(5)]
    every = compared(*[requests() + [one for part in few for one in part]] * 2)

    lines = shown(diff_table.render, diff(every)).splitlines()

    assert [line.rstrip() for line in lines if line.startswith("? ")] == [
        f"? /{count - 4}.php: kept: too few requests ({count} before, {count} after)." for count in (8, 7, 6)
    ]


def test_pids_of_masters_are_no_other_targets():
    assert doubts(about(targets=["5086", "php-fpm:shop"]), about(targets=["5111", "php-fpm:shop"])) == []


def test_without_a_rise_no_group_is_worse_and_the_unclear_ones_are_counted():
    few = [one for one in requests(script="/few.php") if one.nth < 3]

    every = compared(requests() + few, requests() + few)

    assert findings(every, Figure.KEPT) == []
    assert conclusion(every, Figure.KEPT, "route") == (
        "No route is surely worse, of 2 in both recordings; kept is unclear in 1 of them."
    )


def sentences(before: list, after: list) -> list[str]:
    [row] = compared(before, after)
    return [sentence(change) for change in row.changes.values()]


def test_sentences_on_what_rose_and_fell():
    changed = {"anon_peak": 30_000_001 + (1 << 20), "zend_peak": 2_921_293 + (1 << 20), "duration_ns": 2_012_345_701}

    assert sentences(requests(), requests(65_552, **changed)) == [
        "keeps 64.0 KiB more a request: 0 B before, 64.0 KiB after (200 and 200 requests)",
        "raises its worker by 1.0 MiB more while it runs: 19.1 MiB before, 20.1 MiB after (198 and 198 requests)",
        "needs 1.0 MiB more of PHP's heap: 2.8 MiB before, 3.8 MiB after (198 and 198 requests)",
        "takes 2.00 s more: 12.3 ms before, 2.01 s after (198 and 198 requests)",
    ]
    assert [text.partition(":")[0] for text in sentences(requests(65_552, **changed), requests())] == [
        "keeps 64.0 KiB less a request",
        "raises its worker by 1.0 MiB less while it runs",
        "needs 1.0 MiB less of PHP's heap",
        "takes 2.00 s less",
    ]


def test_sentences_on_what_is_the_same_or_not_known():
    assert sentences(requests(), requests())[0] == "kept is the same: it changed by 0 B, which is too little to matter"
    assert sentences(requests()[:6], requests())[3] == ("duration: too few requests (4 before, 198 after)")
    assert sentences(requests(), requests(zend_peak=None))[2] == "zend peak was not measured in both recordings"
    assert sentences(requests()[:60], requests(65_552)[:60])[0] == (
        "kept changed by +64.0 KiB, but the verdict after is unclear: kept 3.8 MiB in 60 requests, which"
        " are too few: 12 more decide"
    )


@pytest.mark.parametrize("kind", list(Kind))
@pytest.mark.parametrize("why", [None, *Why])
def test_every_change_has_a_cell_and_a_sentence(kind, why):
    verdict = Verdict(VerdictKind.WARM_UP, kept=1 << 20, workers=4)
    change = dataclasses.replace(LEAKS[0].changes[Figure.KEPT], kind=kind, why=why, verdict=verdict)

    assert cell(change)
    assert sentence(change)


def test_rows_for_spreadsheets_have_as_many_cells_as_the_header():
    every = compared(requests(script="=1+1"), requests(65_552, script="=1+1"))
    out = io.StringIO()
    render_csv(HEADER, map(cells, every), out)

    [row] = csv.DictReader(io.StringIO(out.getvalue()))
    assert (row["key"], row["outcome"], row["kept_change"], row["kept_shift"]) == ("'=1+1", "worse", "rose", "65552.0")
