"""Windows that are joined: how far the growth of both together may be off."""

from __future__ import annotations

import math

import pytest

from tracer.analysis.growth_windows import Window


def test_hidden_bytes_cancel_where_windows_of_a_chain_meet():
    first = Window((1, 1), {"a": 1}, 10, 9.0, begins="a", hidden=100.0)
    second = Window((1, 1), {"a": 2, "b": 1}, 20, 9.0, ends="a", hidden=50.0)

    joined = first.joined(second)

    assert first.noise == pytest.approx(math.hypot(3, 100))
    assert (joined.growth, joined.counts, joined.noise) == (30, {"a": 3, "b": 1}, 3)


def test_hidden_bytes_in_windows_of_two_chains_add_up():
    first = Window((1, 1), {"a": 1}, 10, 9.0, begins="a", hidden=100.0)
    second = Window((2, 1), {"a": 2}, 20, 9.0, ends="a", hidden=50.0, young=True)

    joined = first.joined(second)

    assert joined.noise == pytest.approx(math.sqrt(9 + 100**2 + 9 + 50**2))
    assert joined.young
