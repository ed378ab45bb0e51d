"""The workers and the requests that raised them, as text."""

from __future__ import annotations

import dataclasses
import io

from tracer.analysis.high_water import PoolWeight, Step, WithoutRoute, WorkerMarks
from tracer.reporters import worker_text

MIB = 1 << 20
AT = 1_700_000_000_123_456_789  # 2023-11-14 22:13:20
DAY = 86_400_000_000_000
STEP = Step("/export", "/srv/www/index.php", "/export", AT, 29 * MIB, 93 * MIB, starts=False)
WORKER = WorkerMarks("www/4241", None, 93 * MIB, 121 * MIB, True, (STEP,), 0, 0, None)


def shown(*workers: WorkerMarks, pools: tuple[PoolWeight, ...] = (), hidden: int = 0) -> list[str]:
    out = io.StringIO()
    worker_text.render(workers, pools, out, hidden=hidden)
    return [line.rstrip() for line in out.getvalue().splitlines()]


def test_a_worker_has_its_sizes_and_a_line_for_each_step():
    start = dataclasses.replace(STEP, uri="/a", started_ns=AT - 61 * 10**9, before=8 * MIB, after=29 * MIB, starts=True)
    worker = dataclasses.replace(WORKER, steps=(start, STEP), other_steps=2, other_bytes=69_632, other_route="/a/{n}")

    assert shown(worker) == [
        "",
        "worker        now     peak     from       to at (UTC) raised by",
        "www/4241 93.0 MiB  121 MiB  8.0 MiB 29.0 MiB 22:12:19 /a (its first)",
        "                           29.0 MiB 93.0 MiB 22:13:20 /export",
        "                                                      2 smaller: +68.0 KiB, mostly /a/{n}",
    ]


def test_a_worker_that_many_small_steps_raised_has_one_line():
    worker = dataclasses.replace(WORKER, steps=(), other_steps=132, other_bytes=3_700_000)

    assert shown(worker)[-1].endswith(" 132 steps: +3.5 MiB")


def test_a_worker_that_no_request_raised_has_a_line_all_the_same():
    assert shown(dataclasses.replace(WORKER, steps=()))[-1].endswith("none raised it")


def test_a_worker_that_ended_is_marked():
    assert shown(dataclasses.replace(WORKER, alive=False))[-1].startswith("www/4241 ended ")


def test_a_worker_in_a_container_with_a_long_name_keeps_its_own():
    workers = [
        dataclasses.replace(WORKER, worker=name, container="registry/teams/shop:/srv/jail", alive=False)
        for name in ("www/4241", "checkout/4243")
    ]

    assert [" ".join(line.split()[:3]) for line in shown(*workers)[-2:]] == [
        "www/4241 …/srv/jail ended",
        "checkout/4243 …/srv/jail ended",
    ]


def test_steps_of_several_days_have_their_date():
    other = dataclasses.replace(WORKER, steps=(dataclasses.replace(STEP, started_ns=AT + DAY),))

    text = "\n".join(shown(WORKER, other))

    assert "2023-11-14 22:13:20" in text
    assert "2023-11-15 22:13:20" in text


def test_a_step_whose_time_is_not_known_has_none():
    assert " MiB - " in shown(dataclasses.replace(WORKER, steps=(dataclasses.replace(STEP, started_ns=None),)))[-1]


def test_workers_that_are_not_shown_are_counted():
    assert shown(WORKER, hidden=1_009)[-1] == "… and 1,009 more workers: -n 0 shows all"


def test_a_pool_is_shown_with_its_weight_without_a_route():
    pool = PoolWeight(None, "www", None, 4, 372 * MIB, (WithoutRoute("/export", 4, 116 * MIB),))

    assert shown(WORKER, pools=(pool,))[-1] == (
        "www: 4 workers have 372 MiB; about 116 MiB without /export, which raised 4 of them"
    )


def test_a_route_without_which_a_pool_would_weigh_little_less_is_not_shown():
    little = PoolWeight(None, "www", None, 4, 400 * MIB, (WithoutRoute("/a", 4, 381 * MIB),))
    small = PoolWeight(None, "www", None, 4, 4 * MIB, (WithoutRoute("/a", 4, 3 * MIB + 1),))

    assert shown(WORKER, pools=(little, small)) == shown(WORKER)


def test_pools_of_several_hosts_and_containers_have_their_names():
    pool = PoolWeight("web1", "www", "shop", 1, 40 * MIB, (WithoutRoute("/a", 1, 30 * MIB),))

    assert shown(WORKER, pools=(pool,))[-1].startswith("www web1 shop: 1 worker has 40.0 MiB;")


def test_nothing_is_shown_where_there_is_no_worker():
    assert shown() == []


def test_texts_of_a_hostile_recording_are_escaped_and_cut():
    evil = "/\x1b[31m\u202e" + "x" * 200
    step = dataclasses.replace(STEP, uri=evil)
    worker = dataclasses.replace(WORKER, worker="\x1b]0;owned\x07" * 9, container="\x1b", steps=(step,))
    pool = PoolWeight("\x1b", "\x1b", "\x1b", 1, 40 * MIB, (WithoutRoute(evil, 1, 1 * MIB),))

    lines = shown(worker, pools=(pool,))

    assert not [char for line in lines for char in line if ord(char) < 0x20 or char == "\u202e"]
    assert max(map(len, lines)) <= 140
