"""`phptrace info`: what a recording is, of every schema, whole or not, and crafted."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from samples import COMPLETE, recording, request
from stack_recordings import unended

from tracer.facts import Loss, Worker
from tracer.recording.writer import Writer

RECORDINGS = Path(__file__).parents[2] / "recordings"
BEGAN = 1_700_000_000_000_000_000
GAP = "gaps in tracing: master 7 of php-fpm:shop ended at 2023-11-14T22:13:30.0Z, and its successor is traced since X"
META = {
    "phptrace": "0.1.0", "host": "web1", "kernel": "6.1.0", "machine": "x86_64", "backend": "bpf",
    "backend_why": "preferred", "targets": ["php-fpm:shop", "4241"], "php": ["8.2.36", "8.4.1"],
    "lacking": ["not measured: Zend's heap", "speed: on_end is slow"], "not_traced": ["process 7919 is not traced: x"],
    "options": {"duration_s": 90.0, "count": None, "query": "keep", "uri": "/a b*", "slow_ns": 250_000_000,
                "min_growth": 4096, "script": None},
    "clock": {"unix_ns": BEGAN, "monotonic_ns": 3}, "stacks": {"max_depth": 127, "every": 17, "hz": 997},
    "native": {"budget": 0.005},
}  # fmt: skip
FACTS = [
    COMPLETE, request(anon_after=None), request(native_kept=None),
    Worker(2, 3, "shop", "8.2.36", 5, 7, "killed:KILL"), Worker(3, 3, "www", "8.3.7", None, 7, "exited:0"),
    Worker(4, 3, None, None, None, None, None),
    Loss(BEGAN + 3_000_000_000, 13, "requests: the ring buffer was full"),
    Loss(BEGAN + 1_000_000_000, 4, "requests: the ring buffer was full"),
    Loss(BEGAN + 2_000_000_000, 19, "workers: too many"), Loss(BEGAN, 1, GAP),
]  # fmt: skip


def whole(path: Path) -> Path:
    with Writer(str(path), META) as file:
        file.add(FACTS)
        file.note("ended", {"why": "duration elapsed", "elapsed_s": 4211.7, "seen": 9})
    return path


def lines(out: str) -> dict[str, list[str]]:
    """The lines of each property."""
    found: dict[str, list[str]] = {}
    label = ""
    for line in out.splitlines()[1:]:
        label = line[2:13].strip() or label
        found.setdefault(label, []).append(line[14:])
    return found


def test_a_recording_is_described_in_a_line_for_each_property(run, tmp_path):
    path = whole(tmp_path / "r.phptrace")

    code, out, err = run("info", path)

    assert (code, err) == (0, "")
    assert out.splitlines()[0] == str(path)
    size = f"{path.stat().st_size / 1024:.0f}"
    assert lines(out) == {
        "recorded": ["since 2023-11-14 22:13:20 UTC, for 4211.7 s (1:10:12)"],
        "host": ["web1, kernel 6.1.0 x86_64"],
        "targets": ["php-fpm:shop, 4241"],
        "PHP": ["8.2.36, 8.3.7, 8.4.1"],
        "backend": ["bpf (preferred)"],
        "options": [
            "--duration 90s --query keep --uri '/a b*' --slow 0.25s --min-growth 4096 --stacks --max-depth 127 --every"
            " 17 --hz 997 --native-budget 0.5%"
        ],
        "requests": ["3, 1 incomplete, native memory counted in 66 %"],
        "workers": ["3: 1 born, 2 died (1 killed by a signal); pools: shop, www"],
        "lost": [
            "19 workers: too many (at 2023-11-14 22:13:22 UTC)",
            "17 requests: the ring buffer was full (from 2023-11-14 22:13:21 UTC to 2023-11-14 22:13:23 UTC)",
        ],
        "gaps": [GAP],
        "not traced": ["process 7919 is not traced: x"],
        "lacking": ["not measured: Zend's heap"],
        "file": [f"{size} KiB, schema 3, written by phptrace 0.1.0"],
        "closed": ["yes: duration elapsed"],
    }


def test_the_same_as_json(run, tmp_path):
    path = whole(tmp_path / "r.phptrace")

    code, out, _ = run("info", "--format", "json", path)

    document = json.loads(out)
    assert code == 0
    assert (document["schema"], document["recording_schema"], document["bytes"]) == (1, 3, path.stat().st_size)
    assert (document["started_ns"], document["elapsed_s"], document["closed"]) == (BEGAN, 4211.7, True)
    assert (document["requests"], document["incomplete"], document["counted"]) == (3, 1, 2)
    assert [document[f"workers{which}"] for which in ("", "_born", "_died", "_killed")] == [3, 1, 2, 1]
    assert document["lost"] == 37
    times = {"first_ns": BEGAN + 10**9, "last_ns": BEGAN + 3 * 10**9}
    assert document["losses"][1] == {"why": "requests: the ring buffer was full", "lost": 17, **times}
    assert document["gaps"] == [{"at_ns": BEGAN, "why": GAP}]
    assert document["options"]["slow_ns"] == 250_000_000
    assert document["lacking"] == ["not measured: Zend's heap"]


@pytest.mark.parametrize(("budget", "shown"), [(None, "--native off"), ({"budget": 1.0}, "--native on")])
def test_native_memory_may_have_been_counted_at_any_cost_or_not_at_all(run, tmp_path, budget, shown):
    meta = {"options": {"query": "strip"}, **({} if budget is None else {"native": budget})}

    _, out, _ = run("info", recording(tmp_path / "r", [], meta))

    assert lines(out)["options"] == [f"--query strip {shown}"]


@pytest.mark.parametrize("schema", [1, 2, 3])
def test_every_schema_can_be_described(run, schema):
    code, out, err = run("info", RECORDINGS / f"schema-{schema}.phptrace")

    found = lines(out)
    assert (code, err) == (0, "")
    assert found["file"][0].endswith(f", schema {schema}, written by phptrace 0.1.0")
    assert found["requests"][0].startswith("4, 2 incomplete")
    assert found["recorded"] == ["since 2023-11-14 22:13:20 UTC, for 0.0 s"]
    assert found["lacking"] == ["-"]


def test_a_recording_that_was_not_closed_lasts_until_its_last_request(run, tmp_path):
    last = request(started_ns=BEGAN + 7_000_000_000, duration_ns=500_000_000)
    path = unended(tmp_path / "r", {"clock": {"unix_ns": BEGAN}}, COMPLETE, last)

    _, out, _ = run("info", path)

    assert lines(out)["recorded"] == ["since 2023-11-14 22:13:20 UTC, for 7.5 s"]
    assert lines(out)["closed"] == [
        "no (phptrace is still recording, was killed, or the disk was full); the last second of 2 requests may be"
        " missing"
    ]
    assert json.loads(run("info", "--format", "json", path)[1])["closed"] is False


def test_an_empty_recording_has_only_dashes_and_zeros(run, tmp_path):
    code, out, _ = run("info", recording(tmp_path / "r"))

    found = lines(out)
    assert code == 0
    assert {name: shown for name, shown in found.items() if name not in ("file", "closed")} == {
        **{name: ["-"] for name in ("recorded", "host", "targets", "PHP", "backend", "options", "lacking")},
        "requests": ["0, 0 incomplete"], "workers": ["0: 0 born, 0 died"], "lost": ["0"], "gaps": ["0"],
        "not traced": ["0"],
    }  # fmt: skip


EVIL = "\x1b[2J\udcff\u202e\n"
UGLY = "\x1b[2J\u202e\n"


@pytest.mark.parametrize(
    "meta",
    [
        {name: EVIL for name in META},
        {name: [EVIL, 7, None, [EVIL]] for name in META},
        {name: {EVIL: EVIL, "unix_ns": EVIL, "uri": EVIL, "why": EVIL} for name in META},
        dict.fromkeys(META, 10**400),
        {name: dict.fromkeys(("slow_ns", "duration_s", "budget", "unix_ns"), 10**400) for name in META},
        {name: dict.fromkeys(("slow_ns", "duration_s", "budget", "elapsed_s"), float("nan")) for name in META},
        {"clock": {"unix_ns": (1 << 63) - 1}, "options": {"duration_s": float("-inf"), "count": True}},
        {"clock": {"unix_ns": -(1 << 63)}},
    ],
)
@pytest.mark.parametrize("form", ["text", "json"])
def test_a_crafted_recording_neither_ends_it_nor_reaches_the_terminal(run, tmp_path, meta, form):
    path = tmp_path / "r"
    with Writer(str(path), meta) as file:
        file.add([request(started_ns=(1 << 63) - 1, duration_ns=(1 << 63) - 1),
                  Worker(2, 3, EVIL, UGLY, -5, (1 << 63) - 1, UGLY), Loss(-(1 << 63), 7, UGLY),
                  Loss((1 << 63) - 1, 7, "gaps in tracing" + UGLY)])  # fmt: skip
        file.note("ended", meta.get("options"))

    code, out, err = run("info", "--format", form, path)

    assert (code, err) == (0, "")
    if form == "json":
        json.loads(out, parse_constant=pytest.fail)
        out.encode()
    else:
        assert out.replace("\n", "").isprintable()
        assert r"\x1b[2J\xff\u202e\n" in out


def test_a_file_that_is_not_a_recording_has_no_description(run, tmp_path):
    (tmp_path / "x").write_text("x" * 200)

    code, out, err = run("info", tmp_path / "x")

    assert (code, out) == (7, "")
    assert "it is not a phptrace recording" in err
