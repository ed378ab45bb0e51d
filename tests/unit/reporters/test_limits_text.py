"""Fatal errors and near misses of limits, as lines."""

from __future__ import annotations

import io

import pytest

from tracer.analysis.limits import RouteLimits, Worst
from tracer.reporters import limits_text

MIB = 1 << 20
AT = 1_700_000_000_123_456_789  # 2023-11-14 22:13:20
SCRIPT = "/srv/www/index.php"
WORST = Worst(13, 0.953125, 122 * MIB, 128 * MIB, "/export/7", AT)


def shown(*rows: RouteLimits) -> list[str]:
    out = io.StringIO()
    limits_text.render(rows, out)
    return out.getvalue().splitlines()


def text_of(*rows: RouteLimits) -> str:
    return " ".join(" ".join(shown(*rows)).split())


def test_nothing_is_written_where_there_is_nothing_to_report():
    assert shown() == []


def test_a_near_miss_of_memory_limit_is_a_line():
    assert text_of(RouteLimits("/export/{n}", SCRIPT, memory_limit=WORST)) == (
        "MEMORY /export/{n} (/srv/www/index.php) used up to 122 MiB of 128 MiB (memory_limit) at 2023-11-14 22:13:20;"
        " 13 requests came to 80 % or more"
    )


@pytest.mark.parametrize(
    ("row", "line"),
    [
        (RouteLimits("/cart", "/srv/cart", fatal=1), "FATAL /cart: 1 fatal error"),
        (
            RouteLimits("/cart", SCRIPT, "shop", 1_009, 7, "/cart?a", AT),
            "FATAL /cart (/srv/www/index.php) in shop: 1,009 fatal errors, 7 of them with 80 % of memory_limit or more"
            " in use; the last at 2023-11-14 22:13:20 by /cart?a",
        ),
        (
            RouteLimits("/cart", "/srv/cart", fatal=2, fatal_near_memory_limit=2),
            "FATAL /cart: 2 fatal errors, with 80 % of memory_limit or more in use",
        ),
        (RouteLimits(fatal=2, fatal_at_ns=AT), "FATAL (none): 2 fatal errors; the last at 2023-11-14 22:13:20"),
    ],
)
def test_fatal_errors_of_a_route_are_a_line(row, line):
    assert text_of(row) == line


def test_a_request_near_a_timeout_is_a_line():
    terminate = Worst(3, 1.1, 33_000_000_000, 30_000_000_000, "/slow", None)
    execution = Worst(1, 0.82, 4_100_000_000, 5_000_000_000, "/slow", AT)
    row = RouteLimits(
        "/slow", "/srv/slow", terminated=2, request_terminate_timeout=terminate, max_execution_time=execution
    )

    assert text_of(row) == (
        "TIME /slow ran for up to 33.00 s of 30.00 s (request_terminate_timeout); 3 requests came to 80 % or more;"
        " php-fpm ended 2 of them"
        " TIME /slow used CPU time of up to 4.10 s of 5.00 s (max_execution_time) at 2023-11-14 22:13:20;"
        " 1 request came to 80 % or more"
    )


def test_at_most_five_routes_of_a_kind_are_shown_the_worst_first():
    lines = shown(*(RouteLimits(f"/{n}", f"/srv/{n}", fatal=n) for n in range(1, 8)))

    assert lines[1:] == [*(f"FATAL       /{n}: {n} fatal errors" for n in (7, 6, 5, 4, 3)), "            and 2 more"]


def test_texts_of_a_hostile_recording_are_escaped_and_cut():
    evil = "/\x1b[31m\u202e" + "x" * 2000
    row = RouteLimits(evil, evil, evil, 1, 0, evil, AT, memory_limit=WORST)

    lines = shown(row)

    assert not [char for line in lines for char in line if ord(char) < 0x20 or char == "\u202e"]
    assert max(map(len, lines)) <= 100
