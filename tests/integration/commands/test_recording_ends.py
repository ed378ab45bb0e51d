"""A recording that is ended by a signal is whole, and the workers go on."""

from __future__ import annotations

import signal
from collections.abc import Callable
from pathlib import Path

import pytest
from command import Running, attached_to, finish, phptrace
from fpm import TWO_WORKERS, Fpm
from load import Load
from warm_recorder import WarmRecorder

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
