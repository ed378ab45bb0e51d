"""Verbs run in this process, and recordings to run them on; a file may have its own."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from samples import growth, recording, request
from stack_recordings import ABOUT, FACTS, unended

from tracer.cli import main
from tracer.facts import STACK_LOST, Loss

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    """The exit code, stdout and stderr of `phptrace` with these arguments, in this process."""

    def call(*arguments: object) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as ended:
            main([str(argument) for argument in arguments])
        said = capsys.readouterr()
        return ended.value.code, said.out, said.err

    return call


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return recording(tmp_path / "r.phptrace", FACTS, ABOUT)


@pytest.fixture
def poor(tmp_path: Path) -> Path:
    """A recording that lacks whatever one can lack."""
    cut = request(anon_after=None)
    return unended(
        tmp_path / "poor", {"lacking": ["not measured: Zend's heap: it is hidden"]},
        cut, growth(103, STACK_LOST, of=cut), Loss(1, 13, "growth events: the ring was full"),
    )  # fmt: skip
