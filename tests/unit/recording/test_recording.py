"""One recording: facts that are written come back. test_recording_file.py tests the file."""

from __future__ import annotations

import contextlib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from records import record
from samples import COMPLETE, MAIN, PROPERTY, WITH_STACKS, recording, request

from tracer.backends.records.request_decoder import RequestDecoder
from tracer.facts import Fork, Growth, Look, Loss, Metric, Release, Request, Retained, Worker
from tracer.recording.reader import Reader, Totals
from tracer.recording.schema import SCHEMA
from tracer.recording.writer import Writer

NOTHING_MEASURED = Request(**{**dict.fromkeys(Request._fields), "host": "h", "pid": 2, "nth": 1, "ending": "cut_off"})
WORKER = Worker(4241, 7919, "www", "8.2.36", None, None, None)
TEXTS = ("pool", "method", "uri", "script")
# Not UTF-8 becomes lone surrogates (PEP 383), which SQLite does not know.
ANY_BYTES = st.binary(max_size=60).map(lambda raw: raw.decode("utf-8", "surrogateescape"))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "r.phptrace"


def read(path: Path) -> list[Request]:
    with Reader(str(path)) as file:
        return list(file.requests())


def test_a_request_comes_back_with_every_field(path):
    recording(path, [COMPLETE])

    assert read(path) == [COMPLETE]


def test_a_request_of_which_nothing_was_measured_comes_back(path):
    recording(path, [NOTHING_MEASURED])

    assert read(path) == [NOTHING_MEASURED]


def test_requests_come_back_in_the_order_they_were_added(path):
    expected = [request(nth=nth) for nth in range(2503)]

    recording(path, expected)

    assert [one.nth for one in read(path)] == list(range(2503))


@pytest.mark.parametrize("field", TEXTS)
@pytest.mark.parametrize(
    "text",
    ["", "\x1b[2J\x1b]0;x\x07", "'; DROP TABLE request; --", '"`$(id)`', "a\0b", "\0", "a\nb\r\n", "\udcff\udc80",
     "日本語 🐘", "\u202e", "x" * 12_000, "\udcff" * 12_000],
    ids=["empty", "escapes", "sql", "quotes", "nul within", "nul", "newlines", "not utf-8", "utf-8", "bidi", "long",
         "long and not utf-8"],
)  # fmt: skip
def test_hostile_text_comes_back_as_it_was(path, field, text):
    recording(path, [request(**{field: text})])

    assert read(path) == [request(**{field: text})]


@PROPERTY
@given(pool=ANY_BYTES, method=ANY_BYTES, uri=ANY_BYTES, script=ANY_BYTES)
def test_text_of_any_bytes_comes_back_as_it_was(path, pool, method, uri, script):
    expected = request(pool=pool, method=method, uri=uri, script=script)
    with Writer(str(path), {}, force=True) as file:
        file.add([expected])

    assert read(path) == [expected]


@pytest.mark.parametrize("number", [-(1 << 63), -1, 0, (1 << 63) - 1])
def test_numbers_of_64_bits_come_back(path, number):
    recording(path, [request(memory_limit=number, brk_bytes=number)])

    assert read(path) == [request(memory_limit=number, brk_bytes=number)]


@pytest.mark.parametrize("field", ["map_bytes", "unmap_bytes"])
def test_memory_that_a_hostile_worker_unmaps_over_and_over_can_be_recorded(path, field):
    decoder = RequestDecoder("h", 0, keep_query=False, calls=True)

    recording(path, [decoder.request(record(**{field: -(1 << 63)}), None), COMPLETE])

    assert COMPLETE in read(path)


def test_only_the_columns_asked_for_are_read(path):
    recording(path, [COMPLETE])

    with Reader(str(path)) as file:
        [found] = file.requests(["script", "anon_after"])

    assert found == NOTHING_MEASURED._replace(
        host=None, pid=None, nth=None, ending=None, script=COMPLETE.script, anon_after=COMPLETE.anon_after
    )


def test_workers_and_losses_come_back(path):
    other = Worker(
        4243, None, "\udcff\x1b", "8.2.36", 1_700_000_000_000_000_003, 1_700_000_000_000_000_019, "killed:SEGV"
    )
    losses = [Loss(1_700_000_000_000_000_007, 13, "requests: the ring buffer was full"), Loss(17, 19, "x")]

    recording(path, [WORKER, losses[0], other, losses[1]])

    with Reader(str(path)) as file:
        assert (file.workers(), file.losses()) == ([WORKER, other], losses)


def test_bytes_freed_of_a_request_later_come_back_with_it(path):
    other = request(nth=4, started_ns=17)
    of_both = [Release(COMPLETE.pid, COMPLETE.started_ns, 600, 3), Release(COMPLETE.pid, 17, 70, 1),
               Release(COMPLETE.pid, COMPLETE.started_ns, 8, 1), Release(99, 17, 1_000, 1)]  # fmt: skip
    with Writer(str(path), {}) as file:
        file.add([COMPLETE, of_both[0], other])
        file.flush()
        file.add(of_both[1:])

    assert read(path) == [COMPLETE._replace(native_released=608), other._replace(native_released=70)]
    assert read(path)[0].native_retained == COMPLETE.native_kept - 608


def test_a_request_comes_back_with_what_it_freed_of_earlier_ones(path):
    second, third = request(nth=2, started_ns=17), request(nth=3, started_ns=19, pid=5)
    freed = [Release(COMPLETE.pid, 13, 600, 3, 17), Release(COMPLETE.pid, 13, 8, 1, 17),
             Release(COMPLETE.pid, 13, 70, 1, 17, resized=True), Release(5, 11, 100, 1, 19),
             Release(5, 11, 1_000, 1), Release(COMPLETE.pid, 13, 5, 1, 16),
             Release(5, 0, 30, 1, 19, resized=True)]  # fmt: skip

    recording(path, [COMPLETE, *freed, second, third, request(nth=4, started_ns=23)])

    with Reader(str(path)) as file:
        [first, *others, last] = [
            (one.nth, found) for one, found in file.requests_and_freed(["pid", "nth", "started_ns"])
        ]
    assert (first, last) == ((COMPLETE.nth, []), (4, []))
    assert others == [
        (2, [Release(COMPLETE.pid, 13, 608, 0, 17), Release(COMPLETE.pid, 13, 70, 0, 17, resized=True)]),
        (3, [Release(5, 0, 30, 0, 19, resized=True), Release(5, 11, 100, 0, 19)]),
    ]


MOST = (1 << 63) - 1


@pytest.mark.parametrize(("freed", "released"), [(1 << 62, MOST), (-(1 << 62) - 1, -(1 << 63)), (7, 21)])
def test_releases_of_a_hostile_worker_can_be_recorded(path, freed, released):
    releases = [Release(COMPLETE.pid, COMPLETE.started_ns, freed, 1 << 62)] * 3

    recording(path, [COMPLETE, *releases[:2], request(nth=4), releases[2]])

    assert read(path) == [COMPLETE._replace(native_released=released), request(nth=4, native_released=released)]


@pytest.mark.parametrize(
    ("kept", "released", "retained"), [(-MOST, MOST, -(1 << 63)), (MOST, -(1 << 63), MOST), (-7, 11, -18)]
)
def test_the_retained_bytes_of_a_hostile_worker_fit_in_64_bits(kept, released, retained):
    assert request(native_kept=kept, native_released=released).native_retained == retained


def test_a_figure_of_more_than_64_bits_saturates_and_does_not_end_the_recording(path):
    look = Look(7, 11, 13, 17, 1 << 64, 19, 0, 23, 29, settled=True, in_accept=True, requests=None, why=None)
    facts = [
        request(cpu_ns=1 << 63, memory_limit=-(1 << 70)),
        Growth(COMPLETE.pid, COMPLETE.nth, "rss", (MAIN,), 1 << 64, 1),
        Retained(COMPLETE.pid, COMPLETE.nth, (MAIN._replace(line=1 << 63),), -(1 << 64), 1),
        Release(COMPLETE.pid, COMPLETE.started_ns, 1 << 63, 1 << 64),
        look,
        Fork(7, 11, 1 << 64, None, 13),
        WORKER._replace(born_ns=1 << 63),
        Loss(1 << 64, 3, "x"),
    ]
    with Writer(str(path), WITH_STACKS) as file:
        file.add(facts)
        file.flush()
        file.add([COMPLETE])

    first = request(cpu_ns=MOST, memory_limit=-(1 << 63), native_released=MOST)
    assert read(path) == [first, COMPLETE._replace(native_released=MOST)]
    with Reader(str(path)) as found:
        assert (found.workers(), found.losses()) == ([WORKER._replace(born_ns=MOST)], [Loss(MOST, 3, "x")])
        assert found.looks() == [look._replace(anon=MOST)]
        assert found.forks() == [Fork(7, 11, MOST, None, 13)]
        assert [grown[0][1] for _, grown in found.grown(Metric.RSS, ["pid"]) if grown] == [MOST]
        assert [grown[0][:2] for _, grown in found.grown(Metric.RETAINED, ["pid"]) if grown] == [
            ((MAIN._replace(line=MOST),), -(1 << 63))
        ]


def test_a_later_fact_of_a_worker_replaces_the_earlier(path):
    died = WORKER._replace(died_ns=1_700_000_000_000_000_003, exit="exited:0")
    reborn = WORKER._replace(start_ticks=7927)

    recording(path, [WORKER, reborn, died])

    with Reader(str(path)) as file:
        assert sorted(file.workers(), key=lambda worker: worker.start_ticks or 0) == [died, reborn]


def test_the_totals_say_how_much_there_is_and_how_much_is_missing(path):
    cut = [request(anon_after=None), request(anon_before=None), request(ending="cut_off"), NOTHING_MEASURED]
    workers = [WORKER, WORKER._replace(pid=2, exit="killed:KILL"), WORKER._replace(pid=3, exit="exited:1")]

    recording(path, [COMPLETE, COMPLETE, *cut, *workers, Loss(1, 3, "x"), Loss(2, 4, "y")])

    with Reader(str(path)) as file:
        assert file.totals() == Totals(requests=6, incomplete=4, counted=5, lost=7, workers=3, workers_died=1)


def test_the_meta_data_comes_back_with_the_schema(path):
    meta = {"host": "web1", "options": {"count": None, "uri": "/\udcff*"}, "targets": ["php-fpm"], "elapsed_s": 0.5}
    recording(path, meta=meta)

    with Reader(str(path)) as file:
        assert file.meta == {"schema": SCHEMA, **meta, "ended": {}}


def test_a_note_is_added_and_replaced(path):
    with Writer(str(path), {}) as file:
        file.note("ended", {"why": "too early"})
        file.note("ended", {"why": "asked to stop"})

    with Reader(str(path)) as found:
        assert found.meta["ended"] == {"why": "asked to stop"}


def test_a_recording_that_came_to_no_end_says_so(path):
    with contextlib.suppress(KeyboardInterrupt), Writer(str(path), {}) as writer:
        writer.add([COMPLETE])
        raise KeyboardInterrupt

    with Reader(str(path)) as file:
        assert not file.ended
        assert list(file.requests()) == [COMPLETE]


def test_a_recording_that_came_to_its_end_says_so(path):
    recording(path, [COMPLETE])

    with Reader(str(path)) as file:
        assert file.ended


def test_the_reason_of_a_loss_may_hold_bytes_that_are_not_text(path):
    recording(path, [Loss(1, 7, "php \udcff")])

    with Reader(str(path)) as file:
        assert file.losses() == [Loss(1, 7, "php \udcff")]


def test_texts_that_repeat_and_more_than_a_reader_keeps_are_read_as_they_were(tmp_path):
    requests = [request(nth=n, uri=f"/{n % 5003}/" + "x" * (n % 700), script="/a\udcff.php") for n in range(1, 6007)]
    path = recording(tmp_path / "r", requests)

    with Reader(str(path)) as found:
        assert list(found.requests()) == requests
