"""The heaviest call stacks: their choice and order, and their form as text and as JSON."""

from __future__ import annotations

import io
import json
from typing import Any

from samples import BLOG, FIND, MAIN, QUERY, SHOP, request

from tracer.analysis.flame.builder import FlameBuilder
from tracer.analysis.flame.growth_table import GrowthByStack
from tracer.analysis.flame.heaviest import Heaviest, HeavyStack, heaviest_stacks
from tracer.analysis.tally import Tally
from tracer.facts import NO_PHP, Metric, Request
from tracer.reporters import json_report, stack_text

SCRIPT = "/srv/www/index.php"


def heaviest(*requests: tuple[Request, GrowthByStack], top: int = 0) -> Heaviest:
    builder = FlameBuilder(Metric.RSS)
    for one, grown in requests:
        builder.add(one, grown)
    return heaviest_stacks(builder.growth, "rss: page faults", ("what is not seen", "LOST 3 x"), top)


def text(of: Heaviest) -> str:
    out = io.StringIO()
    stack_text.render(of, out)
    return out.getvalue()


def document(of: Heaviest | None) -> dict[str, Any]:
    out = io.StringIO()
    json_report.render([], Tally(), out, of)
    out.getvalue().encode()  # no lone surrogates
    return json.loads(out.getvalue())


def test_stacks_are_in_the_order_of_their_bytes_with_the_innermost_frame_first():
    found = heaviest((request(), [((MAIN, FIND), 101, 3), ((MAIN, FIND, QUERY), 1_009, 5), ((NO_PHP,), 503, 7)]))

    assert found == Heaviest(
        "rss: page faults",
        1_613,
        (
            HeavyStack(SCRIPT, ("PDO::query", "Repo::find /srv/app/Repo.php:89", "<main> /srv/www/index.php:3"),
                       ("/index.php",), 1_009, 5),
            HeavyStack(SCRIPT, ("[no php]",), ("/index.php",), 503, 7),
            HeavyStack(SCRIPT, ("Repo::find /srv/app/Repo.php:89", "<main> /srv/www/index.php:3"),
                       ("/index.php",), 101, 3),
        ),
        0,
        ("what is not seen", "LOST 3 x"),
    )  # fmt: skip


def test_a_stack_that_several_routes_lead_to_is_one_with_the_heaviest_route_first():
    stack = (MAIN, FIND)
    requests = [(request(uri=uri), [(stack, size, 1)]) for uri, size in (("/b", 3), ("/c", 7), ("/a", 3), ("/7", 5))]

    [found] = heaviest(*requests).stacks

    assert (found.routes, found.bytes, found.samples) == (("/c", "/{n}", "/a", "/b"), 18, 4)


def test_stacks_of_different_scripts_are_different():
    requests = [(request(script=script), [((NO_PHP,), size, 1)]) for script, size in (("/a.php", 3), ("/b.php", 7))]

    assert [(stack.script, stack.bytes) for stack in heaviest(*requests).stacks] == [("/b.php", 7), ("/a.php", 3)]


def test_stacks_of_equal_bytes_are_in_the_order_of_script_and_frames():
    requests = [
        (request(script="/b.php"), [((FIND,), 7, 1)]), (request(script="/a.php"), [((QUERY,), 7, 1), ((MAIN,), 7, 1)])
    ]  # fmt: skip

    found = heaviest(*requests).stacks

    assert [(stack.script, stack.frames[0].split()[0]) for stack in found] == [
        ("/a.php", "<main>"), ("/a.php", "PDO::query"), ("/b.php", "Repo::find")
    ]  # fmt: skip


def test_only_as_many_as_asked_for_are_shown_and_the_others_counted_in_the_total():
    grown = [((FIND._replace(line=line),), line, 1) for line in (2, 3, 5, 7)]

    found = heaviest((request(), grown), top=3)

    assert [stack.bytes for stack in found.stacks] == [7, 5, 3]
    assert (found.hidden, found.total) == (1, 17)


def test_all_are_shown_where_none_is_the_limit():
    found = heaviest((request(), [((FIND._replace(line=line),), line, 1) for line in range(1, 98)]), top=0)

    assert (len(found.stacks), found.hidden) == (97, 0)


def test_where_nothing_was_added_there_is_no_stack():
    found = heaviest((request(), [((MAIN, FIND), 101, 1), ((MAIN,), -7, 1)]))

    assert [stack.bytes for stack in found.stacks] == [101]


def test_a_stack_has_its_own_samples_and_not_those_of_what_it_calls():
    found = heaviest((request(), [((MAIN, FIND), 101, 11), ((MAIN,), 7, 3)]))

    assert [stack.samples for stack in found.stacks] == [11, 3]


def test_a_stack_does_not_have_the_samples_of_a_callee_that_only_gave_back():
    found = heaviest((request(), [((MAIN,), 101, 2), ((MAIN, FIND), -53, 3)]))

    assert [(stack.bytes, stack.samples) for stack in found.stacks] == [(101, 2)]


def test_a_stack_as_text_is_as_php_shows_one():
    found = heaviest((request(), [((MAIN, FIND, QUERY), 3 << 20, 1_009), ((NO_PHP,), 1 << 20, 3)]))

    assert text(found) == (
        "\n"
        "rss: page faults: 4.0 MiB\n"
        "\n"
        "3.0 MiB (75.0%, 1,009 samples) /srv/www/index.php\n"
        "    for /index.php\n"
        "    #0 PDO::query\n"
        "    #1 Repo::find /srv/app/Repo.php:89\n"
        "    #2 <main> /srv/www/index.php:3\n"
        "\n"
        "1.0 MiB (25.0%, 3 samples) /srv/www/index.php\n"
        "    for /index.php\n"
        "    #0 [no php]\n"
        "what is not seen\n"
        "LOST 3 x\n"
    )


def test_a_stack_without_samples_does_not_mention_them_as_text():
    assert "\n7 B (100.0%) /srv/www/index.php\n" in text(heaviest((request(), [((NO_PHP,), 7, 0)])))


def test_three_routes_are_named_as_text_and_the_others_are_counted():
    three = [(request(uri=f"/{name}"), [((NO_PHP,), size, 1)]) for name, size in (("a", 7), ("b", 5), ("c", 3))]
    five = [*three, *((request(uri=f"/{name}"), [((NO_PHP,), 2, 1)]) for name in "de")]

    assert "    for /a, /b, /c\n" in text(heaviest(*three))
    assert "    for /a, /b, /c and 2 more\n" in text(heaviest(*five))


def test_the_number_of_stacks_that_are_not_shown_is_printed():
    grown = [((FIND._replace(line=line),), line, 1) for line in (2, 3, 5, 7)]

    assert "\n… and 3 more: -n 0 shows all\n" in text(heaviest((request(), grown), top=1))
    assert "more:" not in text(heaviest((request(), grown), top=4))


def test_an_empty_report_has_a_total_of_zero_and_all_remarks_as_text():
    assert text(heaviest()) == "\nrss: page faults: 0 B\nwhat is not seen\nLOST 3 x\n"


def test_names_are_escaped_as_text_and_namespaces_are_not():
    evil = "\x1b[2J\udcff\n"
    frame = FIND._replace(name=f"App\\Repo::{evil}", file=f"/{evil}.php")

    shown = text(heaviest((request(uri=f"/{evil}", script=f"/{evil}"), [((frame,), 7, 1)])))

    assert "    for /\\x1b[2J\\xff\\n\n    #0 App\\Repo::\\x1b[2J\\xff\\n /\\x1b[2J\\xff\\n.php:89\n" in shown
    assert "\x1b" not in shown


def test_a_stack_as_json_has_its_exact_figures_and_all_remarks():
    found = document(heaviest((request(), [((MAIN, FIND), 1_000_003, 11), ((NO_PHP,), 7, 3)]), top=1))

    assert found["stacks"] == {
        "title": "rss: page faults",
        "total_bytes": 1_000_010,
        "remarks": ["what is not seen", "LOST 3 x"],
        "heaviest": [
            {
                "bytes": 1_000_003, "samples": 11, "routes": ["/index.php"], "script": SCRIPT,
                "frames": ["Repo::find /srv/app/Repo.php:89", "<main> /srv/www/index.php:3"],
                "container": None,
            }
        ],
    }  # fmt: skip


def test_a_report_without_stacks_has_none_as_json():
    assert "stacks" not in document(None)


def test_bytes_that_are_not_utf8_are_replaced_in_json():
    evil = FIND._replace(name="\udcff", file=None)

    [stack] = document(heaviest((request(uri="/\udcff", script="/\udcff"), [((evil,), 7, 1)])))["stacks"]["heaviest"]

    assert (stack["frames"], stack["routes"], stack["script"]) == (["\ufffd"], ["/\ufffd"], "/\ufffd")


def test_a_remark_that_is_not_utf8_is_replaced_in_json():
    assert document(Heaviest("t", 0, (), 0, ("lost: \udcff",)))["stacks"]["remarks"] == ["lost: \ufffd"]


def test_a_stack_of_two_containers_is_two_stacks():
    sizes = {SHOP: 503, BLOG: 7}
    found = heaviest(*((request(**place._asdict()), [((MAIN,), size, 1)]) for place, size in sizes.items()), top=0)
    out = io.StringIO()

    stack_text.render(found, out)

    assert [(stack.container, stack.script, stack.bytes) for stack in found.stacks] == [
        ("shop", SCRIPT, 503),
        ("blog", SCRIPT, 7),
    ]
    assert f"503 B (98.6%, 1 sample) shop: {SCRIPT}\n" in out.getvalue()
