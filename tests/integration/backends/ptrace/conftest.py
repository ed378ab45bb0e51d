"""These tests are about the ptrace backend alone, in both of its modes."""

from __future__ import annotations

import pytest
from backend_kinds import PTRACE_PARAMS


@pytest.fixture(scope="module", params=PTRACE_PARAMS)
def backend(request: pytest.FixtureRequest) -> str:
    return str(request.param)
