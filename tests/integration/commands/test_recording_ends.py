"""A recording that is ended by a signal is whole, and the workers go on."""

from __future__ import annotations

import contextlib
import os
import pty
import select
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
from command import Running, attached_to, finish, phptrace
from fpm import TWO_WORKERS, Fpm
from load import Load
from waiting import wait_for
from warm_recorder import WarmRecorder

from tracer.errors import RecordingError
from tracer.recording.reader import Reader

SIGNALS = [signal.SIGINT, signal.SIGTERM, signal.SIGHUP]


@pytest.fixture(scope="module")
def pool(start_fpm: Callable[..., Fpm]) -> Fpm:
    return start_fpm(www=TWO_WORKERS)


@pytest.mark.parametrize("number", SIGNALS)
@pytest.mark.parametrize(
    "options",
    [
        pytest.param(("--backend", "bpf"), marks=pytest.mark.needs_bpf, id="bpf"),
        pytest.param(("--backend", "ptrace"), marks=pytest.mark.needs_ptrace, id="ptrace"),
    ],
)
def test_a_signal_ends_a_recording_cleanly(
    pool: Fpm, tmp_path: Path, number: signal.Signals, options: tuple[str, ...]
) -> None:
    path = tmp_path / "r.phptrace"
    process = phptrace("record", *options, "-o", str(path), str(pool.master))

    _assert_it_ends_cleanly(pool, process, number, path, options[1])


@pytest.mark.needs_bpf
@pytest.mark.usefixtures("programs_loaded")
@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_ends_a_recording_with_stacks_cleanly(pool: Fpm, tmp_path: Path, number: signal.Signals) -> None:
    path = tmp_path / "r.phptrace"
    process = WarmRecorder("--backend", "bpf", "--stacks", "-o", str(path), str(pool.master))

    _assert_it_ends_cleanly(pool, process, number, path, "bpf")


def _assert_it_ends_cleanly(pool: Fpm, process: Running, number: signal.Signals, path: Path, backend: str) -> None:
    said = attached_to(process)
    with Load(pool) as load:
        load.wait_for_more(200)
        code, _, more = finish(process, number)

    assert f"backend {backend} (asked for)" in said
    assert code == 0, more
    assert load.failed == 0
    assert sorted(p.name for p in path.parent.iterdir()) == ["r.phptrace"]
    with Reader(str(path)) as recording:
        assert recording.ended
        assert recording.totals().requests > 100
        assert recording.totals().lost == 0
        assert recording.meta["ended"]["why"] == "asked to stop"


@pytest.mark.parametrize(
    "options",
    [
        pytest.param(("--backend", "bpf"), marks=pytest.mark.needs_bpf, id="bpf"),
        pytest.param(("--backend", "ptrace"), marks=pytest.mark.needs_ptrace, id="ptrace"),
    ],
)
@pytest.mark.parametrize("verb", ["record", "attach"])
def test_a_terminal_that_goes_away_ends_a_recording_cleanly(
    pool: Fpm, tmp_path: Path, verb: str, options: tuple[str, ...]
) -> None:
    path = tmp_path / "r.phptrace"
    ours, theirs = pty.openpty()
    # Not its controlling terminal: no SIGHUP comes.
    process = phptrace(verb, *options, "-o", str(path), str(pool.master), stdin=theirs, stdout=theirs, stderr=theirs)
    os.close(theirs)
    with Load(pool) as load:
        wait_for(lambda: _requests_in(path, ours) > 100, "requests on disk")
        os.close(ours)
        code = process.wait(60)

    assert code == 0
    assert load.failed == 0
    assert sorted(p.name for p in path.parent.iterdir()) == ["r.phptrace"]
    with Reader(str(path)) as recording:
        assert recording.ended
        assert recording.totals().lost == 0


def _requests_in(path: Path, terminal: int) -> int:
    """Requests that are recorded; also reads what was written to the terminal, so that nobody waits for that."""
    while select.select([terminal], [], [], 0)[0]:
        os.read(terminal, 1 << 16)
    if not path.exists() or path.stat().st_size == 0:
        return 0
    with contextlib.suppress(RecordingError), Reader(str(path)) as recording:
        return recording.totals().requests
    return 0
