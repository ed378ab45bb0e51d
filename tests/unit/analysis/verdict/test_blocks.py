"""Blocks of equal count."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from samples import PROPERTY

from tracer.analysis.verdict.blocks import block_means


@pytest.mark.parametrize(
    ("values", "blocks", "means"),
    [
        ([1, 2, 3, 4, 5, 6], 3, [1.5, 3.5, 5.5]),
        ([9, 1, 2, 3, 4, 5, 6], 3, [1.5, 3.5, 5.5]),
        ([1, 2], 3, [1.0, 2.0]),
        ([], 3, []),
    ],
)
def test_blocks_have_equal_lengths_and_the_last_values_are_in_them(values, blocks, means):
    assert block_means(values, blocks) == means


@PROPERTY
@given(st.lists(st.integers(-99, 99), max_size=200), st.integers(1, 64))
def test_fewer_values_than_would_fill_another_block_are_left_out(values, blocks):
    means = block_means(values, blocks)

    length = max(1, len(values) // blocks)
    assert len(means) == min(blocks, len(values))
    assert sum(means) * length == pytest.approx(sum(values[len(values) - len(means) * length :]))
