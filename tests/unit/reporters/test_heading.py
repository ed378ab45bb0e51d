"""The first line of a report."""

from __future__ import annotations

from rich.cells import cell_len

from tracer.analysis.heading import Heading
from tracer.analysis.tally import Tally
from tracer.facts import Loss, Worker
from tracer.reporters import heading

BEGAN_NS = 1_700_000_000_123_456_789  # 2023-11-14 22:13:20 UTC
WORKERS = [Worker(pid, 1, "shop", "8.2.36", None, None, None) for pid in range(4)]


def about(*, seconds: float = 74.0, **changed: object) -> Heading:
    found = Heading()
    meta = {"host": "web1", "targets": ["php-fpm:shop"], **changed}
    found.add("rec.phptrace", meta, WORKERS, (BEGAN_NS, BEGAN_NS + round(seconds * 1e9)))
    return found


def tally(requests: int = 956, lost: int = 0) -> Tally:
    found = Tally()
    found.add_all(WORKERS)
    found.requests = requests
    if lost:
        found.add(Loss(1, lost, "requests: x"))
    return found


def shown(found: Heading, counts: Tally, root: str = "", width: int = 200) -> str:
    return heading.lines(found, counts, root, width).plain


def test_the_line_names_file_host_target_time_and_counts():
    assert shown(about(), tally()) == (
        "rec.phptrace · web1 · php-fpm:shop, 4 workers, PHP 8.2.36 · 2023-11-14 22:13:20–22:14:34 UTC (74 s)"
        " · 956 requests · 0 lost"
    )


def test_a_long_recording_has_its_days_and_hours():
    assert "2023-11-14 22:13:20–2023-11-15 01:00:00 UTC (2:46:40)" in shown(about(seconds=10_000), tally())


def test_scripts_are_in_a_folder_and_a_filter_says_how_many_requests_are_left():
    found, counts = about(), tally(requests=7)
    found.filters += ["--uri '/shop/*'", "--slow 3s"]
    counts.left_out = 1_002

    assert shown(found, counts, "/srv/www/").endswith(
        " · 7 of 1,009 requests · --uri '/shop/*' · --slow 3s · 0 lost · scripts in /srv/www/"
    )


def test_a_line_that_is_too_long_goes_on_in_the_next_one_between_its_parts():
    assert shown(about(), tally(), "/srv/www/", width=60).splitlines() == [
        "rec.phptrace · web1 · php-fpm:shop, 4 workers, PHP 8.2.36",
        "2023-11-14 22:13:20–22:14:34 UTC (74 s) · 956 requests",
        "0 lost · scripts in /srv/www/",
    ]


def test_several_recordings_are_counted_and_span_the_time_from_the_first_to_the_last():
    found = about()
    for number in range(4):
        span = (BEGAN_NS + number * 10**9, BEGAN_NS + (number + 1) * 10**9)
        found.add(f"{number}", {"host": "web2", "targets": ["php-fpm:shop", "php-fpm:blog"]}, WORKERS, span)

    assert shown(found, tally()).startswith(
        "rec.phptrace, 0, 1 and 2 more recordings · web1, web2 · php-fpm:shop, php-fpm:blog, 4 workers, PHP 8.2.36"
        " · 2023-11-14 22:13:20–22:14:34 UTC (78 s) · "
    )


def test_properties_that_a_recording_does_not_have_are_left_out():
    found = Heading()
    found.add("old", {"targets": 7, "host": None}, [], None)

    assert shown(found, Tally()) == "old · 0 requests · 0 lost"


def test_a_hostile_recording_shows_no_control_character_and_not_too_much():
    evil = "\x1b[2J" + "x" * 500
    found = Heading()
    found.add(evil, {"host": evil, "targets": [evil + str(n) for n in range(5_000)]}, WORKERS, (-(1 << 63), 1 << 63))

    text = shown(found, tally(), evil, width=100)
    assert "\x1b" not in text
    assert max(map(cell_len, text.splitlines())) <= 160
    assert len(text.splitlines()) <= 8


def test_losses_stand_out():
    text = heading.lines(about(), tally(lost=13), "", 200)

    assert text.plain.endswith(" · 13 lost")
    assert [text.plain[span.start : span.end] for span in text.spans if "red" in str(span.style)] == ["13 lost"]
