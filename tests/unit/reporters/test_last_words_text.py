"""The last requests of workers that did not end in order, as lines."""

from __future__ import annotations

import dataclasses
import io

import pytest

from tracer.analysis.last_words import LastWords
from tracer.reporters import last_words_text

AT = 1_700_000_000_123_456_789  # 2023-11-14 22:13:20
SECOND = 1_000_000_000
SCRIPT = "/srv/www/index.php"
OOM = LastWords(
    "web1", 4711, "shop", "killed:KILL", AT, True, None, True,
    "/import", SCRIPT, AT - 37 * SECOND, 37 * SECOND, 19 << 20,
)  # fmt: skip
SEGV = LastWords(
    "web1", 4711, "shop", "killed:SEGV", AT, False, None, False, "/a", SCRIPT, AT - 5 * SECOND, 2 * SECOND, 29 << 20
)
START = "DIED shop/4711 at 2023-11-14 22:13:20"


def shown(*deaths: LastWords, more: int = 0) -> list[str]:
    out = io.StringIO()
    last_words_text.render(deaths, more, out)
    return out.getvalue().splitlines()


def text_of(death: LastWords) -> str:
    return " ".join(" ".join(shown(death)).split())


@pytest.mark.parametrize(
    ("death", "line"),
    [
        (
            OOM,
            " by the kernel's OOM killer, in /import (/srv/www/index.php), which had run for 37.00 s; it had at least"
            " 19.0 MiB",
        ),
        (
            SEGV,
            " by SIGSEGV, between requests; the last request, /a (/srv/www/index.php), ended 3.00 s before and left it"
            " with 29.0 MiB",
        ),
        (
            dataclasses.replace(SEGV, in_flight=None),
            " by SIGSEGV, the last recorded request, /a (/srv/www/index.php), ended 3.00 s before and left it with"
            " 29.0 MiB",
        ),
        (
            LastWords("web1", 4711, "shop", "killed:KILL", AT, False),
            " by SIGKILL, not of the kernel's OOM killer, and none of its requests is recorded",
        ),
        (
            LastWords("web1", 4711, "shop", "killed:KILL", AT, None),
            " by SIGKILL, possibly of the kernel's OOM killer, and none of its requests is recorded",
        ),
        (
            dataclasses.replace(OOM, exit="exited:7", by_oom_killer=False, uri=None, duration_ns=None, size=None),
            " with exit status 7, in /srv/www/index.php",
        ),
    ],
)  # fmt: skip
def test_a_death_is_a_line_with_its_cause_and_the_last_request(death, line):
    assert text_of(death) == START + line


def test_a_worker_without_a_pool_and_in_a_container_is_named_by_these():
    assert text_of(dataclasses.replace(OOM, pool=None, container="web")).startswith("DIED worker 4711 in web at ")


def test_nothing_is_written_where_no_worker_died():
    assert shown() == []


def test_the_last_five_deaths_are_shown_and_those_before_counted():
    lines = shown(*(dataclasses.replace(OOM, pid=pid) for pid in range(4001, 4008)), more=13)

    died = [line.split()[1] for line in lines if line.startswith("DIED")]
    assert died == ["shop/4003", "shop/4004", "shop/4005", "shop/4006", "shop/4007"]
    assert lines[-1].strip() == "and 15 before"


def test_texts_of_a_hostile_recording_are_escaped_and_cut():
    evil = "\x1b[31m\u202e" + "x" * 2000

    lines = shown(
        dataclasses.replace(OOM, pool=evil, uri=evil, script=evil, container=evil),
        dataclasses.replace(SEGV, exit="killed:" + evil),
        dataclasses.replace(SEGV, exit="exited:" + evil),
    )

    assert not [char for line in lines for char in line if ord(char) < 0x20 or char == "\u202e"]
    assert max(map(len, lines)) <= 100
    assert len(lines) < 30
