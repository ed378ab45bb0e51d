"""Requirements of the tests on this machine. A test without it is skipped, with the reason and the fix."""

from __future__ import annotations

import functools
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

import pytest

from tracer.backends.bpf.requirements import unmet_requirements
from tracer.backends.ptrace.permissions import obstacle

# Each test that starts a php-fpm runs once for each of these; PHPTRACE_TEST_PHP_FPM=PATH:PATH replaces them.
PHP_FPMS = tuple(os.environ.get("PHPTRACE_TEST_PHP_FPM", "/usr/sbin/php-fpm8.2").split(":"))

_PROVISION = "Run vagrant/provision.sh --tests."


def lacking(reason: str) -> NoReturn:
    """Skip with the reason; under PHPTRACE_REQUIRE=1, fail: CI must not pass by testing nothing."""
    if os.environ.get("PHPTRACE_REQUIRE") == "1":
        pytest.fail(f"PHPTRACE_REQUIRE is set, and {reason}", pytrace=False)
    pytest.skip(reason)


def require(path: str) -> None:
    """Skip the test, or fail it as lacking() does, if there is no such program: a path, or a name on PATH."""
    if shutil.which(path) is None:
        lacking(f"there is no {path}. {_PROVISION}")


def _without_bpf() -> str | None:
    missing = unmet_requirements()
    return str(missing[0]) if missing else None


def _without_ptrace() -> str | None:
    refused = obstacle()
    return None if refused is None else f"{refused}. Run where ptrace is allowed."


def _without_php() -> str | None:
    return None if any(Path(path).exists() for path in PHP_FPMS) else f"there is no {PHP_FPMS[0]}. {_PROVISION}"


_CHECKS: dict[str, Callable[[], str | None]] = {
    "needs_bpf": _without_bpf,
    "needs_ptrace": _without_ptrace,
    "needs_php": _without_php,
}


@functools.cache
def missing_for(marker: str) -> str | None:
    """Reason why tests with this marker cannot run here, and the fix; None if they can, or the marker needs nothing."""
    check = _CHECKS.get(marker)
    return None if check is None else check()
