"""Findings as a table, as JSON, live, and the doctor's checklist. Requests one by one: test_exports.py."""

from __future__ import annotations

import dataclasses
import io
import json
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.cells import cell_len
from samples import BLOG, COMPLETE, PROPERTY, SHOP, request

from tracer.analysis.group import Group
from tracer.analysis.ranking import GroupBy, Ranking
from tracer.analysis.tally import Tally
from tracer.doctor import ALL, BPF, PTRACE, Check
from tracer.facts import Fork, Loss, Request, Worker
from tracer.reporters import checklist, json_report, ranking_table, table
from tracer.reporters.checklist import Outcome, Traced
from tracer.reporters.columns import DEFAULT_SORT, column
from tracer.reporters.live import LiveView, Status
from tracer.reporters.ranking_table import TableOptions

# Design, section 6: fields of a group of `report --format json`.
GROUP_FIELDS = {"key", "requests", "growth_bytes", "kept_bytes", "kept_per_request", "kept_low", "kept_high",
                "kept_how", "kept_share", "growth_p95", "anon_peak_max", "zend_peak_max",
                "duration_p95_ns"}  # fmt: skip
LARGE = Group(
    key="/srv/www/releases/20261123T154700Z/public/index.php", requests=9_999_999, incomplete=7,
    growth_bytes=-1_022_999_999_999, growth_p50=-1_022_999, growth_p95=1_022_999_999,
    kept_bytes=-1_022_999_999_999, kept_per_request=-1_022_999_999.5, kept_low=-1_022_999_999.5, kept_high=0.5,
    kept_how="estimated", kept_share=1.0, kept_p50=1_022_999_999, kept_p95=1_022_999_999, warmup_bytes=-7, counted=3,
    anon_peak_max=1_022_999_999, zend_peak_max=1_022_999_999, duration_p95_ns=999_900_000,
    kept_per_hour=-1_022_999_999_999.5, rise_max=1_022_999_999, memory_limit=1_022_999_999, fatal=0, status_5xx=0,
    duration_mean_ns=999_900_000, duration_max_ns=999_900_000, duration_total_ns=999_900_000,
)  # fmt: skip
SMALL = Group("/a.php", 3, 0, 7, 2, 5, 11, 3.5, 3.5, 4.5, "counted", 0.5, 3, 5, 0, 3, 13, 17, 1_000)
NONE = Group(None, 1, 1, *[None] * 12, 0, *[None] * 3)
EVIL = "\x1b[2J\x07\x9b31m\u202e\udcff\n\t\0"
ANY_TEXT = st.text(st.characters(), max_size=20)


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


BY_SCRIPT = TableOptions(GroupBy.SCRIPT, DEFAULT_SORT)


def shown(groups: list[Group], out: io.StringIO, hidden: int = 0, options: TableOptions = BY_SCRIPT) -> str:
    ranking_table.render(groups, Tally(), out, options, hidden=hidden)
    return re.sub(r"\x1b\[[0-9;]*m", "", out.getvalue())  # bold and dim, of a terminal


@pytest.fixture
def terminal(monkeypatch) -> Terminal:
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.setenv("LINES", "24")
    monkeypatch.setenv("TERM", "xterm")
    return Terminal()


def test_on_a_terminal_of_100_columns_nothing_is_wider_and_no_number_is_cut(terminal):
    text = shown([LARGE, SMALL, NONE], terminal)

    assert max(map(len, text.splitlines())) <= 100
    row = next(line for line in text.splitlines() if "9,999,999" in line)
    assert row.split()[1:] == [
        "9,999,999", "~-953", "GiB", "~-953", "GiB", "100", "%", "976M", "976M/976M", "1s", "1s",
    ]  # fmt: skip


def test_sorted_by_growth_a_terminal_of_100_columns_still_has_room(terminal):
    text = shown([LARGE, SMALL, NONE], terminal, options=dataclasses.replace(BY_SCRIPT, sort=column("growth")))

    assert max(map(len, text.splitlines())) <= 100
    assert "-953 GiB" in text


def test_on_a_terminal_a_long_key_keeps_its_end(terminal):
    row = next(line for line in shown([LARGE], terminal).splitlines() if "9,999,999" in line)

    assert row.startswith("…")
    assert row.split()[0].endswith("public/index.php")


def test_in_a_pipe_long_keys_are_cut_from_the_left_to_fit_100_characters():
    text = shown([Group("/" + "k" * 200 + ".php", *SMALL_VALUES)], io.StringIO())

    row = text.splitlines()[1]
    assert max(map(len, text.splitlines())) <= 100
    assert row.startswith("…k")
    assert row.split()[0].endswith("k.php")


SMALL_VALUES = tuple(getattr(SMALL, name) for name in Group.__slots__[1:])


def test_a_figure_that_was_not_measured_is_a_dash():
    unknown = dataclasses.replace(NONE, key="/a.php")

    row = next(line for line in shown([unknown], io.StringIO()).splitlines() if line.startswith("/a.php"))

    assert row.split() == ["/a.php", "1", "-", "-", "-", "-", "-", "-", "-"]


def test_a_counted_figure_that_may_be_nothing_says_how_much_it_may_be_at_most():
    doubtful = dataclasses.replace(SMALL, kept_low=0.0, kept_bytes=2048, kept_per_hour=1024.0)

    row = next(line for line in shown([doubtful], io.StringIO()).splitlines() if line.startswith("/a.php"))

    assert "≤ 2.0 KiB" in row
    assert "≤ 1.0 KiB" in row


def test_the_column_that_sorts_is_marked():
    header = shown([SMALL], io.StringIO(), options=dataclasses.replace(BY_SCRIPT, sort=column("peak"))).splitlines()[0]

    assert "PEAK↓" in header
    assert header.count("↓") == 1


def test_groups_that_are_not_shown_are_counted():
    assert "… and 7 more: -n 0 shows all" in shown([SMALL], io.StringIO(), hidden=7)
    assert "more" not in shown([SMALL], io.StringIO())


def test_a_key_is_shown_without_anything_that_acts_on_a_terminal(terminal):
    text = shown([Group(EVIL, *SMALL_VALUES)], terminal)

    row = next(line for line in text.splitlines() if line.startswith("…"))
    assert row.split()[0].endswith("\\u009b31m\\u202e\\xff\\n\\t\\x00")
    assert not set(text) & set("\x1b\x07\x9b\u202e\udcff\t\0")


def test_the_summary_counts_seen_incomplete_and_lost_requests():
    tally = Tally()
    tally.add_all([
        COMPLETE, request(anon_after=None, native_kept=None, ending="killed:KILL"),
        request(uri=None), request(ending="fatal"),
        Worker(2, 3, "www", "8.2.36", 5, 7, "exited:0"), Loss(1, 1_009, "requests: the ring buffer was full"),
    ])  # fmt: skip

    assert table.summary(tally).splitlines() == [
        "4 requests · 1 worker · 1 incomplete (1 killed) · 1,009 lost · 1 fatal error · 1 with unknown URI"
        " · workers: 1 born, 1 died · native memory counted in 75 % of the requests",
        "LOST 1,009 requests: the ring buffer was full",
    ]


def test_the_summary_names_who_forked_the_most_processes():
    tally = Tally()
    for number in range(5):
        tally.add_all([Fork(number, 7, number, None, 1_048_576)] * (5 - number))
        tally.add(request(pid=7, started_ns=number, uri=f"/spawn-{number}\x1b"))
    tally.add(Fork(99, 7, 0, 13, None))

    assert table.summary(tally).splitlines()[1:] == [
        "6 processes forked by /spawn-0\\x1b, 5 alive, 1.0 MiB each",
        "4 processes forked by /spawn-1\\x1b, 4 alive, 1.0 MiB each",
        "3 processes forked by /spawn-2\\x1b, 3 alive, 1.0 MiB each",
        "3 processes forked by others",
    ]


def test_the_json_report_names_who_forked():
    tally, out = Tally(), io.StringIO()
    tally.add_all([Fork(31, 7, 11, None, 4_096), request(pid=7, started_ns=11, uri="/\udcff")])
    json_report.render([], tally, out)

    assert json.loads(out.getvalue())["forked"] == [{"by": "/\ufffd", "processes": 1, "alive": 1, "anon": 4_096}]


@pytest.mark.parametrize(
    ("text", "width", "short"),
    [
        ("abcdef", 4, "…def"),
        ("abcd", 4, "abcd"),
        ("/srv/www/app/index.php", 21, "…/www/app/index.php"),
        ("/srv/www/app/index.php", 19, "…/www/app/index.php"),
        ("/srv/www/app/index.php", 18, "…/app/index.php"),
        ("/srv/www/app/index.php", 10, "…index.php"),
        ("/srv/界界/", 6, "…界界/"),
        ("/srv/界界/界", 6, "…/界"),
        ("界界界", 6, "界界界"),
        ("界界界", 5, "…界界"),
        ("界界界", 4, "…界"),  # half a character cannot be shown
        ("e\u0301" * 3, 3, "e\u0301" * 3),  # an accent of its own takes no room
        ("e\u0301" * 3, 2, "…e\u0301"),
    ],
)
def test_a_text_is_shortened_from_the_left_to_that_many_cells(text, width, short):
    assert table.shorten(text, width) == short


def test_a_long_key_of_wide_characters_keeps_its_end_and_the_columns_aligned():
    text = shown([Group("/" + "界" * 101 + ".php", *SMALL_VALUES), SMALL], io.StringIO())

    header, wide, narrow = text.splitlines()[:3]
    assert wide.split()[0].endswith("界.php")
    assert cell_len(header) == cell_len(wide) == cell_len(narrow) <= 100


def test_the_json_report_has_the_fields_of_the_design():
    tally = Tally()
    tally.add_all([COMPLETE, request(anon_after=None), Worker(2, 3, None, None, None, None, None), Loss(1, 13, "x")])
    out = io.StringIO()

    json_report.render([SMALL, NONE], tally, out)

    document = json.loads(out.getvalue())
    numbers = {name: document[name] for name in ("schema", "requests", "lost", "incomplete", "workers")}
    assert numbers == {"schema": 2, "requests": 2, "lost": 13, "incomplete": 1, "workers": 1}
    assert [group.keys() >= GROUP_FIELDS for group in document["groups"]] == [True, True]
    of_verdict = {"verdict": None, "verdict_why": None, "evidence": None, "next": None}
    assert document["groups"][0] == {name: getattr(SMALL, name) for name in Group.__slots__} | of_verdict
    assert document["groups"][1]["key"] is None


@PROPERTY
@given(ANY_TEXT.filter(lambda text: not re.search("[\ud800-\udc7f\udd00-\udfff]", text)))
def test_json_keeps_text_and_replaces_what_was_not_utf8(text):
    out = io.StringIO()

    json_report.render([Group(text, *SMALL_VALUES)], Tally(), out)

    key = json.loads(out.getvalue())["groups"][0]["key"]
    assert key == text.encode("utf-8", "surrogateescape").decode("utf-8", "replace")


def test_the_live_view_leaves_its_last_state_on_the_screen(terminal):
    ranking, tally = Ranking(GroupBy.SCRIPT), Tally()
    ranking.add(COMPLETE)
    tally.add(COMPLETE)
    status = Status("php-fpm", "bpf", 7, 61.0, 1009.0, "a note")

    with LiveView(terminal, options=BY_SCRIPT, top=None) as view:
        view.update(ranking, tally, status)

    text = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", terminal.getvalue())
    last = text[text.rindex("phptrace") :]
    assert "php-fpm · bpf · 7 workers · 1,009 requests/s · 61 s · 0 lost" in last
    assert "a note" in last
    assert "/srv/www/index.php" in last


def test_the_live_view_names_the_requests_that_run_and_leaves_room_for_them(terminal):
    ranking = Ranking(GroupBy.SCRIPT)
    for nth in range(40):
        ranking.add(COMPLETE._replace(script=f"/{nth}.php"))
    status = Status("php-fpm", "bpf", 7, 61.0, 1009.0, None)
    running = [in_flight(16 << 20, f"/events/{nth}", nth) for nth in range(4)]

    with LiveView(terminal, options=BY_SCRIPT, top=None) as view:
        view.update(ranking, Tally(), status, running)

    text = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", terminal.getvalue())
    last = text[text.rindex("phptrace") :]
    assert "IN FLIGHT: /events/0 in worker 0: +16.0 MiB in 16.0 s, +3.5 GiB an hour" in last
    assert last.count("IN FLIGHT") == 3
    assert len(last.splitlines()) <= 24


def test_the_live_view_names_the_folder_of_scripts_and_requests_without_one_whatever_fits(terminal):
    ranking = Ranking(GroupBy.SCRIPT)
    for nth in range(40):
        ranking.add(COMPLETE._replace(script=f"/srv/www/{nth}.php", native_kept=nth))
    ranking.add(COMPLETE._replace(script=None, native_kept=0))
    options = dataclasses.replace(BY_SCRIPT, legend=True)

    with LiveView(terminal, options=options, top=None) as view:
        view.update(ranking, Tally(), Status("php-fpm", "bpf", 7, 61.0, 1009.0, None))

    text = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", terminal.getvalue())
    last = text[text.rindex("phptrace") :]
    assert "0 lost · scripts in /srv/www/" in last
    assert "(none): 1 request that ran no script (404), or whose script was not seen" in last
    assert "VERDICT: what the requests do to memory" in last
    assert len(last.splitlines()) <= 24


def check(name: str, *, ok: bool, needed: bool = True) -> Check:
    return Check(name, ok, f"found {EVIL}", "do this", needed)


def test_the_checklist_has_each_fix_and_the_verdict():
    out = io.StringIO()

    found = [check("kernel", ok=True), check("bcc", ok=False), check("heap", ok=False, needed=False)]
    checklist.render(found, out, Outcome((), error=f"cannot import {EVIL}"), preferred="bpf")

    assert [line.split("  ")[0] for line in out.getvalue().splitlines() if line[:1].strip()][:4] == [
        "ok", "FAIL", "warn", "Cannot trace. Fix 1 problem (listed above).",
    ]  # fmt: skip
    assert "\nattach would end with: cannot import " in out.getvalue()
    assert out.getvalue().count("fix: do this") == 2
    assert "\x1b" not in out.getvalue()


def test_the_checklist_asks_to_fix_only_what_the_preferred_backend_needs():
    out = io.StringIO()

    found = [Check("bcc", False, "", by=BPF), Check("tracees", False, "", by=PTRACE), Check("host", True, "", by=ALL)]
    checklist.render(found, out, Outcome((Traced("third", (7919,), ", which is new"),)), preferred="bpf")

    lines = out.getvalue().splitlines()
    assert [line.split()[0] for line in lines[:3]] == ["FAIL", "warn", "ok"]
    assert lines[-1] == "Can trace, with backend third, which is new. To use bpf, fix the failed check above."


def test_the_checklist_names_the_processes_of_each_backend_and_those_of_none():
    out = io.StringIO()

    traced = (Traced("bpf", (7919,)), Traced("ptrace", (13, 17), ", which slows requests down"))
    outcome = Outcome(traced, ((19, f"cannot trace {EVIL}"),))
    checklist.render([check("kernel", ok=True)], out, outcome, preferred="bpf")

    *_, first, second, left_out = out.getvalue().splitlines()
    assert first == "  with backend bpf: process 7919"
    assert second == "  with backend ptrace, which slows requests down: process 13, 17"
    assert left_out.startswith("Not traced: process 19: cannot trace ")
    assert "\x1b" not in left_out


def test_a_process_that_was_left_out_is_in_the_summary_and_in_the_json_report():
    tally, out = Tally(), io.StringIO()
    tally.not_traced.append("process 19 is not traced: \x1b[2J")

    json_report.render([], tally, out)

    assert table.summary(tally).splitlines()[1] == r"LEFT OUT: process 19 is not traced: \x1b[2J"
    assert json.loads(out.getvalue())["not_traced"] == ["process 19 is not traced: \x1b[2J"]


def test_the_checklist_as_json_has_the_verdict_and_the_fixes():
    out = io.StringIO()

    heap = dataclasses.replace(check("heap", ok=False, needed=False), by=ALL)
    outcome = Outcome((Traced("bpf", (7919,)), Traced("ptrace", (13, 17))), ((19, "it is ARM"),))
    checklist.render_json([check("kernel", ok=True), heap], out, outcome)

    document = json.loads(out.getvalue())
    assert (document["can_trace"], document["backend"], document["error"]) == (True, "bpf", None)
    assert document["traced"] == [{"backend": "bpf", "pids": [7919]}, {"backend": "ptrace", "pids": [13, 17]}]
    assert document["not_traced"] == [{"pid": 19, "why": "it is ARM"}]
    assert [one["by"] for one in document["checks"]] == ["bpf", "both"]
    assert [(one["name"], one["ok"], one["fix"]) for one in document["checks"]] == [
        ("kernel", True, None), ("heap", False, "do this"),
    ]  # fmt: skip


def in_flight(growth: int, uri: str | None, pid: int) -> Request:
    """A request of 16 s that tracing cut off, and that had grown so much by then."""
    return request(
        pid=pid, uri=uri, script="/srv/\x1b[2J.php", duration_ns=16_000_000_000, anon_before=1_000_003,
        anon_after=1_000_003 + growth, ending="cut_off", notes="end_not_seen",
    )  # fmt: skip


def test_requests_in_flight_that_grew_most_are_named_with_their_growth_an_hour():
    tally = Tally()
    tally.add_all([in_flight(size << 20, f"/events/{size}", size) for size in (1, 16, 2, 3, 4, 5)])
    tally.add(in_flight(-8 << 20, None, 19))
    out = io.StringIO()

    json_report.render([], tally, out)

    lines = [line for line in table.summary(tally).splitlines() if line.startswith("IN FLIGHT")]
    assert (tally.incomplete, len(lines)) == (7, 5)
    assert lines[0] == "IN FLIGHT: /events/16 in worker 16: +16.0 MiB in 16.0 s, +3.5 GiB an hour"
    found = json.loads(out.getvalue())["in_flight"]
    assert [one["uri"] for one in found] == [f"/events/{size}" for size in (16, 5, 4, 3, 2)]
    assert (found[0]["growth_bytes"], found[0]["duration_ns"], found[0]["pid"]) == (16 << 20, 16_000_000_000, 16)
    assert found[0]["growth_per_hour"] == 3600 << 20


def test_a_request_in_flight_whose_growth_is_not_known_has_its_age():
    running = in_flight(0, "/" + "x" * 100, 19)._replace(anon_after=None)

    assert table.in_flight(running) == f"IN FLIGHT: …{'x' * 39} in worker 19 for 16.0 s"


def test_a_request_in_flight_without_a_uri_is_named_by_its_script_and_escaped():
    tally = Tally()
    tally.add(in_flight(-8 << 20, None, 19)._replace(duration_ns=1_500_000_000))

    assert table.summary(tally).splitlines()[1] == r"IN FLIGHT: /srv/\x1b[2J.php in worker 19: -8.0 MiB in 1.5 s"


def test_a_request_that_ended_or_was_cut_off_at_once_is_not_in_flight():
    tally = Tally()
    tally.add(in_flight(8 << 20, "/ended", 19)._replace(notes="start_not_seen"))
    tally.add(in_flight(8 << 20, "/short", 19)._replace(duration_ns=999_999_999))

    assert (tally.in_flight, tally.incomplete) == ([], 2)


def test_a_table_of_several_containers_has_a_column_for_them(terminal):
    groups = [
        dataclasses.replace(SMALL, container="shop"),
        dataclasses.replace(SMALL, container=EVIL),
        dataclasses.replace(LARGE, container="k" * 40),
    ]

    lines = shown(groups, terminal).splitlines()

    assert max(map(cell_len, lines)) <= 100
    assert lines[0].split()[:3] == ["SCRIPT", "CONTAINER", "REQS"]
    assert lines[1].split()[:3] == ["/a.php", "shop", "3"]
    assert "\x1b" not in lines[2]
    assert "…" + "k" * 27 in lines[3]


def test_a_table_of_one_container_has_no_column_for_it():
    assert shown([SMALL, NONE], io.StringIO()).splitlines()[0].split()[:2] == ["SCRIPT", "REQS"]


def test_json_has_every_container_and_that_of_each_group():
    ranking, out = Ranking(GroupBy.SCRIPT), io.StringIO()
    for place in (SHOP, BLOG._replace(container="\udcff")):
        ranking.add(request(script="/a.php", **place._asdict()))

    json_report.render(ranking.groups(), Tally(), out, places=ranking.places())

    found = json.loads(out.getvalue())
    assert [(one["key"], one["container"]) for one in found["groups"]] == [("/a.php", "shop"), ("/a.php", "\ufffd")]
    assert found["containers"][0] == {
        "name": "shop", "container": "shop", "container_id": SHOP.container_id, "cgroup": SHOP.cgroup,
        "namespaces": None, "root": "/",
    }  # fmt: skip


def test_a_request_in_flight_names_its_container_where_there_are_several():
    tally = Tally()
    tally.add(in_flight(16 << 20, "/events", 16)._replace(**SHOP._asdict()))
    tally.add(request(**BLOG._asdict()))

    assert "IN FLIGHT: /events in worker 16 of shop: +16.0 MiB in 16.0 s" in table.summary(tally)
