"""Verbs run in this process, and recordings to run them on; a file may have its own."""

from __future__ import annotations

from pathlib import Path

import pytest
from samples import growth, recording, request
from stack_recordings import ABOUT, FACTS, unended

from tracer.facts import STACK_LOST, Loss


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
