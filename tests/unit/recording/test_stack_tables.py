"""Growth by call stack in a recording comes back as it was written, whatever the writer meets."""

from __future__ import annotations

import gc
import signal
import sqlite3
import tracemalloc
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from samples import COMPLETE, FIND, MAIN, PROPERTY, QUERY, WITH_STACKS, growth, recording, request
from stack_recordings import read
from subprocesses import in_subprocess

from tracer.facts import STACK_LOST, Frame, Metric, Request, Worker
from tracer.recording import stack_tables
from tracer.recording.reader import Reader
from tracer.recording.writer import Writer

WORKER = Worker(4241, 7919, "www", "8.2.36", None, None, None)
# Not UTF-8 becomes lone surrogates (PEP 383), which SQLite does not know.
ANY_BYTES = st.binary(max_size=60).map(lambda raw: raw.decode("utf-8", "surrogateescape"))
FRAMES = st.builds(
    Frame,
    st.sampled_from(["user", "internal", "mark"]),
    ANY_BYTES,
    st.none() | ANY_BYTES,
    st.none() | st.integers(0, (1 << 32) - 1),
)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "r.phptrace"


def rows(path: Path, table: str) -> int:
    connection = sqlite3.connect(path)
    (count,) = connection.execute(f"SELECT count(*) FROM {table}").fetchone()
    connection.close()
    return count


def test_growth_comes_back_with_its_request(path):
    other = request(nth=5, uri="/other")
    recording(path, [COMPLETE, growth(101, MAIN, FIND, samples=3), other, growth(-103, MAIN, QUERY, of=other)])

    with Reader(str(path)) as file:
        found = list(file.grown(Metric.RSS, ("uri",)))

    nothing = Request(**dict.fromkeys(Request._fields))
    assert found == [
        (nothing._replace(uri="/index.php"), [((MAIN, FIND), 101, 3)]),
        (nothing._replace(uri="/other"), [((MAIN, QUERY), -103, 1)]),
    ]


@pytest.mark.parametrize("metric", Metric)
def test_growth_comes_back_by_its_metric_alone(path, metric):
    sizes = {Metric.RSS: 101, Metric.MAPPED: 103, Metric.ZEND: 107, Metric.NATIVE: 109, Metric.RETAINED: 113}
    recording(path, [COMPLETE, *(growth(size, MAIN, metric=of) for of, size in sizes.items())])

    assert read(path, metric) == [[((MAIN,), sizes[metric], 1)]]


def test_growth_of_a_request_comes_back_in_the_order_it_was_added(path):
    facts = [growth(size, *stack) for size, stack in ((3, (MAIN,)), (7, (MAIN, FIND)), (5, (FIND,)), (2, (MAIN,)))]

    recording(path, [COMPLETE, *facts])

    assert [size for _, size, _ in read(path)[0]] == [3, 7, 5, 2]


def test_requests_that_did_not_grow_come_back_too(path):
    recording(path, [COMPLETE, COMPLETE, growth(101, MAIN), COMPLETE, COMPLETE, growth(103, MAIN), COMPLETE])

    assert [[size for _, size, _ in grown] for grown in read(path)] == [[], [101], [], [103], []]


def test_growth_is_its_requests_in_however_many_steps_it_was_written(path):
    """A Writer takes a thousand requests a step."""
    with Writer(str(path), {}) as file:
        facts = [(request(nth=nth), growth(nth + 1, MAIN, FIND._replace(line=nth % 13), of=request(nth=nth)))
                 for nth in range(2503)]  # fmt: skip
        file.add(fact for both in facts for fact in both)

    expected = [[((MAIN, FIND._replace(line=nth % 13)), nth + 1, 1)] for nth in range(2503)]
    assert read(path) == expected


def test_growth_may_come_after_its_request_was_written(path):
    with Writer(str(path), {}) as file:
        file.add([COMPLETE])
        file.flush()
        file.add([WORKER, growth(101, MAIN)])
        file.flush()
        file.add([growth(103, MAIN, FIND), request(nth=5)])

    assert read(path) == [[((MAIN,), 101, 1), ((MAIN, FIND), 103, 1)], []]


def test_growth_that_comes_last_of_all_is_written(path):
    with Writer(str(path), {}) as file:
        file.add([COMPLETE])
        file.flush()
        file.add([growth(101, MAIN)])

    assert read(path) == [[((MAIN,), 101, 1)]]


@pytest.mark.parametrize(
    "facts",
    [
        [growth(101, MAIN)],
        [COMPLETE, growth(101, MAIN, of=request(nth=5))],
        [COMPLETE, growth(101, MAIN, of=request(pid=5))],
        [COMPLETE, request(nth=5), growth(101, MAIN)],
    ],
)
def test_growth_that_does_not_follow_its_request_is_an_error(path, facts):
    with Writer(str(path), {}) as file, pytest.raises(ValueError, match="does not follow its request"):
        file.add(facts)


@PROPERTY
@given(stacks=st.lists(st.lists(FRAMES, min_size=1, max_size=5), min_size=1, max_size=7))
def test_frames_of_any_bytes_come_back_as_they_were(path, stacks):
    with Writer(str(path), {}, force=True) as file:
        file.add([COMPLETE, *(growth(101, *stack) for stack in stacks)])

    assert read(path) == [[(tuple(stack), 101, 1) for stack in stacks]]


@pytest.mark.parametrize("size", [-(1 << 63), -1, (1 << 63) - 1])
def test_sizes_of_64_bits_come_back(path, size):
    recording(path, [COMPLETE, growth(size, MAIN, samples=(1 << 32) - 1)])

    assert read(path) == [[((MAIN,), size, (1 << 32) - 1)]]


def test_a_stack_as_deep_as_can_be_asked_for_comes_back(path):
    stack = tuple(FIND._replace(line=line) for line in range(1025))

    recording(path, [COMPLETE, growth(101, *stack)])

    assert read(path) == [[(stack, 101, 1)]]


def test_stacks_share_what_they_have_in_common(path):
    recording(path, [COMPLETE, growth(2, MAIN, FIND), growth(3, MAIN, FIND, QUERY), growth(5, MAIN, FIND)])

    assert (rows(path, "frame"), rows(path, "stack"), rows(path, "growth")) == (3, 3, 3)


def test_stacks_of_a_later_flush_share_those_that_are_written(path):
    with Writer(str(path), {}) as file:
        for nth in (2, 3, 5):
            file.add([request(nth=nth), growth(101, MAIN, FIND, of=request(nth=nth))])
            file.flush()

    assert (rows(path, "frame"), rows(path, "stack"), rows(path, "growth")) == (2, 2, 3)


def test_a_recursion_is_a_stack_of_its_own_at_each_depth(path):
    recording(path, [COMPLETE, *(growth(depth, *[FIND] * depth) for depth in (1, 2, 3))])

    assert [len(stack) for stack, _, _ in read(path)[0]] == [1, 2, 3]


def test_stacks_without_room_are_lost_and_counted(path, monkeypatch):
    monkeypatch.setattr(stack_tables, "_MOST", 3)
    frames = [FIND._replace(line=line) for line in range(7)]

    recording(path, [COMPLETE, *(growth(size, frames[size]) for size in range(7)), growth(101, frames[1])])

    with Reader(str(path)) as file:
        [loss] = file.losses()
    assert [(stack[0], size) for stack, size, _ in read(path)[0]] == [
        (frames[0], 0), (frames[1], 1), (frames[2], 2), *((STACK_LOST, size) for size in (3, 4, 5, 6)), (frames[1], 101)
    ]  # fmt: skip
    assert (loss.lost, loss.why.split(":")[0]) == (4, "call stacks")


def test_frames_of_stacks_without_room_are_not_kept(path, monkeypatch):
    monkeypatch.setattr(stack_tables, "_MOST", 3)
    frames = [FIND._replace(name=f"f{number}") for number in range(101)]

    recording(path, [COMPLETE, *(growth(7, frame) for frame in frames), *(growth(5, MAIN, frame) for frame in frames)])

    # Three, and [stack lost].
    assert (rows(path, "frame"), rows(path, "stack"), rows(path, "growth")) == (4, 4, 202)


def test_the_caller_of_a_stack_that_is_kept_needs_no_room(path, monkeypatch):
    monkeypatch.setattr(stack_tables, "_MOST", 2)

    recording(path, [COMPLETE, growth(101, MAIN, FIND), growth(103, MAIN)])

    assert read(path) == [[((MAIN, FIND), 101, 1), ((MAIN,), 103, 1)]]


@pytest.mark.parametrize(("most", "together"), [(3, True), (2, False)])
def test_stacks_that_are_read_are_kept_together_up_to_a_limit(path, monkeypatch, most, together):
    monkeypatch.setattr(stack_tables, "_MOST_KNOWN", most)
    recording(path, [COMPLETE, *(growth(7, frame) for frame in (MAIN, FIND, QUERY, MAIN, QUERY))])

    [found] = read(path)

    assert [stack for stack, _, _ in found] == [(MAIN,), (FIND,), (QUERY,), (MAIN,), (QUERY,)]
    assert (found[0][0] is found[3][0]) == together
    assert found[2][0] is found[4][0]


@pytest.fixture
def forgetful(monkeypatch) -> None:
    """Make writers that cache next to nothing."""
    for name in ("_MOST_STACK_NUMBERS", "_MOST_FRAME_NUMBERS", "_MOST_STACKED"):
        monkeypatch.setattr(stack_tables, name, 2)


MANY = [(MAIN, FIND._replace(name=f"f{number}"), QUERY) for number in range(101)]


@pytest.mark.usefixtures("forgetful")
def test_stacks_that_a_writer_has_forgotten_are_found_again(path):
    recording(path, [COMPLETE, *(growth(size, *stack) for stack in MANY for size in (2, 3)),
                     *(growth(5, *stack) for stack in reversed(MANY))])  # fmt: skip

    assert read(path) == [[*((stack, size, 1) for stack in MANY for size in (2, 3)),
                           *((stack, 5, 1) for stack in reversed(MANY))]]  # fmt: skip
    assert (rows(path, "frame"), rows(path, "stack")) == (103, 203)


@pytest.mark.usefixtures("forgetful")
@PROPERTY
@given(stacks=st.lists(st.lists(FRAMES, min_size=1, max_size=5), min_size=1, max_size=23))
def test_frames_of_any_bytes_are_found_again_and_distinguished(path, stacks):
    with Writer(str(path), {}, force=True) as file:
        file.add([COMPLETE, *(growth(101, *stack) for stack in [*stacks, *stacks])])

    assert read(path) == [[(tuple(stack), 101, 1) for stack in [*stacks, *stacks]]]
    assert rows(path, "frame") == len({frame for stack in stacks for frame in stack})
    assert rows(path, "stack") == len({tuple(stack[:end]) for stack in stacks for end in range(1, len(stack) + 1)})


@pytest.mark.usefixtures("forgetful")
def test_stacks_without_room_are_as_many_however_little_a_writer_caches(path, monkeypatch):
    monkeypatch.setattr(stack_tables, "_MOST", 23)

    recording(path, [COMPLETE, *(growth(7, *stack) for stack in [*MANY, *MANY])])

    with Reader(str(path)) as file:
        [loss] = file.losses()
    # MAIN, eleven times two, and [stack lost].
    assert (rows(path, "stack"), loss.lost) == (24, 2 * 90)
    assert sum(stack == (STACK_LOST,) for stack, _, _ in read(path)[0]) == 2 * 90


@pytest.mark.usefixtures("forgetful")
@pytest.mark.parametrize("where", ["/nowhere/at/all", "/dev/full", "/proc/version"])
def test_without_a_temporary_file_stacks_are_written_twice_and_read_all_the_same(path, monkeypatch, where):
    monkeypatch.setattr(stack_tables, "_TEMPORARY", where)

    recording(path, [COMPLETE, *(growth(7, *stack) for stack in [*MANY, *MANY])])

    assert read(path) == [[(stack, 7, 1) for stack in [*MANY, *MANY]]]
    assert rows(path, "stack") > 203


def test_a_writer_needs_no_more_memory_for_more_stacks(path, monkeypatch):
    for name in ("_MOST_STACK_NUMBERS", "_MOST_FRAME_NUMBERS", "_MOST_STACKED"):
        monkeypatch.setattr(stack_tables, name, 503)

    def most(stacks: int) -> int:
        """Bytes, at the most."""
        with Writer(str(path), {}, force=True) as file:
            gc.freeze()  # what other tests left takes no part in collections, which are quick then
            tracemalloc.start()
            for number in range(stacks):
                file.add([COMPLETE, growth(7, *(FIND._replace(name=f"{number}:{depth}") for depth in range(17)))])
                file.flush()
                if number % 17 == 0:
                    gc.collect()
            _, peak = tracemalloc.get_traced_memory()
            tracemalloc.stop()
            gc.unfreeze()
            return peak

    few, many = most(503), most(1009)

    assert rows(path, "stack") == 1009 * 17
    assert many < 1.2 * few


def test_stacks_without_room_are_reported_once(path, monkeypatch):
    monkeypatch.setattr(stack_tables, "_MOST", 1)
    with Writer(str(path), {}) as file:
        for size in (2, 3, 5):
            file.add([COMPLETE, growth(size, FIND._replace(line=size))])
            file.flush()
            file.flush()

    with Reader(str(path)) as found:
        assert [loss.lost for loss in found.losses()] == [1, 1]


def test_a_recording_with_stacks_says_so_even_if_there_were_none(path):
    with Reader(str(recording(path, [COMPLETE], WITH_STACKS))) as file:
        assert file.has_stacks


def test_a_recording_without_stacks_says_so_and_no_request_grew(path):
    with Reader(str(recording(path, [COMPLETE, COMPLETE]))) as file:
        assert not file.has_stacks
    assert read(path) == [[], []]


def test_a_writer_that_is_killed_leaves_the_stacks_it_flushed(path):
    ended = in_subprocess(
        "w = Writer(path, {'stacks': {}})\n"
        "frame = Frame('user', 'f', '/a.php', 3)\n"
        "w.add([request, Growth(request.pid, request.nth, 'rss', (frame, frame), 101, 1)]); w.flush()\n"
        "w.add([request, Growth(request.pid, request.nth, 'rss', (frame,), 103, 1)])\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n",
        path,
    )

    frame = Frame("user", "f", "/a.php", 3)
    assert ended.returncode == -signal.SIGKILL
    assert read(path) == [[((frame, frame), 101, 1)]]


def test_a_disk_that_is_full_in_the_midst_of_many_requests_has_no_growth_without_its_request(path):
    ended = in_subprocess(
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, 300_000))\n"
        "growth = Growth(request.pid, request.nth, 'rss', (Frame('user', 'f', '/a.php', 3),), 101, 1)\n"
        "try:\n"
        "    with Writer(path, {}) as w:\n"
        "        w.add([request, growth] * 3001)\n"
        "except IncompleteError:\n"
        "    print('told')\n",
        path,
    )

    found = read(path)
    assert ended.stdout == "told\n"
    assert 0 < len(found) < 3001
    assert {len(grown) for grown in found} == {1}


def test_rows_that_a_full_disk_refused_are_there_once_when_there_is_room_again(path):
    ended = in_subprocess(
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "_, most = resource.getrlimit(resource.RLIMIT_FSIZE)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 18, most))\n"
        "told = 0\n"
        "with Writer(path, {}) as w:\n"
        "    for n in range(1, 53):\n"
        "        stack = tuple(Frame('user', f'f{n}', '/a.php', line) for line in range(13))\n"
        "        w.add([request, Growth(request.pid, request.nth, 'rss', stack, n, 1)])\n"
        "        try:\n"
        "            w.flush()\n"
        "        except IncompleteError:\n"
        "            told += 1\n"
        "    resource.setrlimit(resource.RLIMIT_FSIZE, (most, most))\n"
        "print(told)\n",
        path,
    )

    found = [one for grown in read(path) for one in grown]
    assert int(ended.stdout) > 13
    assert [size for _, size, _ in found] == list(range(1, 53))
    assert {tuple({frame.name for frame in stack}) for stack, _, _ in found} == {(f"f{n}",) for n in range(1, 53)}
