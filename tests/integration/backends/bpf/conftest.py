"""These tests are about the BPF backend alone."""

from __future__ import annotations

import pytest
from backend_kinds import BPF_PARAM


@pytest.fixture(scope="module", params=[BPF_PARAM])
def backend(request: pytest.FixtureRequest) -> str:
    return str(request.param)
