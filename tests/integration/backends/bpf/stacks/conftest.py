"""Fixtures that several of these files need."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from fpm import ONE_WORKER, Fpm


@pytest.fixture(scope="module")
def uncached(start_fpm: Callable[..., Fpm]) -> Fpm:
    """Without opcache, whose shared memory would give every function an address of its own."""
    fpm = start_fpm("opcache.enable=0", www=ONE_WORKER)
    fpm.folder.chmod(0o777)  # its scripts write files to include
    return fpm
