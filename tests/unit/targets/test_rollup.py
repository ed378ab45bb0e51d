"""/proc/PID/smaps_rollup, of this process and of texts."""

from __future__ import annotations

import mmap
import os

import pytest
from proc_status import rollup_bytes

from tracer.errors import UnsupportedError
from tracer.targets import rollup as module
from tracer.targets.rollup import kilobytes, rollup

PID_MAX = 1 << 22


def test_the_figures_are_those_of_the_kernel():
    with mmap.mmap(-1, 64 << 20) as shared:
        shared.write(b"x" * (64 << 20))
        found = rollup(os.getpid())

    assert found.pss_shmem is not None
    assert found.shmem is not None
    assert 64 << 20 <= found.pss_shmem <= found.shmem < 65 << 20
    assert found.private_dirty >= 64 << 20
    assert found.anonymous == pytest.approx(rollup_bytes(os.getpid(), "Anonymous"), abs=1 << 20)
    assert found.private_clean + found.private_dirty <= found.pss <= found.rss
    assert found.page_tables is not None
    assert found.page_tables > 64 << 10


def test_a_process_that_has_ended_is_an_error():
    with pytest.raises(OSError, match="No such"):
        rollup(PID_MAX)


def test_only_lines_in_kb_are_values():
    text = b"5581 ---p 00000 00:00 0 [rollup]\nRss:  12 kB\nPss:   x kB\nLocked: 5\n"
    text += b"Anonymous: 99999999999999999 kB\n\xff: 1 kB"

    assert kilobytes(text) == {"Rss": 12_288, "\ufffd": 1024}


def test_a_kernel_without_a_figure_that_is_needed_is_named(monkeypatch):
    monkeypatch.setattr(module, "_read", lambda _: b"Rss: 12 kB\nPss: 7 kB\n")

    with pytest.raises(UnsupportedError, match="smaps_rollup has no line 'Private_Clean'"):
        rollup(os.getpid())
