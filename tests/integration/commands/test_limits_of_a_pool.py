"""Requests that php-fpm ends after its timeout, or PHP at its memory limit, from the pool to the report."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
from backend_kinds import OPTIONS
from command import attached_to, finish, phptrace
from fpm import ONE_WORKER, Fpm
from waiting import wait_for


@pytest.mark.parametrize("backend", OPTIONS)
def test_a_request_that_php_fpm_ends_is_reported_with_its_timeout_and_as_the_last_words(
    start_fpm: Callable[..., Fpm], tmp_path: Path, backend: str
) -> None:
    fpm = start_fpm(www=f"{ONE_WORKER}\nrequest_terminate_timeout = 1s")
    path = tmp_path / "r.phptrace"
    process = phptrace("record", "--backend", backend, "-o", str(path), str(fpm.master))
    attached_to(process)
    (worker,) = fpm.workers()
    answer = fpm.get("sleep.php", REQUEST_URI="/slow/7", QUERY_STRING="30")
    wait_for(lambda: worker not in fpm.workers(), "php-fpm to replace the worker")
    fpm.get("limit.php", REQUEST_URI="/export/7")
    finish(process, signal.SIGTERM)

    shown = phptrace("report", "--format", "json", str(path)).communicate()[0]

    assert not answer.ended
    found = json.loads(shown)
    rows = {row["route"]: row for row in found["limits"]["routes"]}
    assert rows["/slow/{n}"]["terminated"] == 1
    assert rows["/slow/{n}"]["request_terminate_timeout"]["limit"] == 1_000_000_000
    assert rows["/slow/{n}"]["request_terminate_timeout"]["used"] >= 900_000_000
    assert rows["/export/{n}"]["fatal"] == 1
    assert found["limits"]["timeouts"] == [{
        "host": found["last_words"]["workers"][0]["host"], "master_pid": fpm.master, "pool": "www",
        "request_terminate_timeout_s": 1.0, "max_execution_time_s": None,
    }]  # fmt: skip
    (last,) = found["last_words"]["workers"]
    assert (last["pid"], last["exit"], last["uri"], last["in_flight"]) == (worker, "killed:TERM", "/slow/7", True)
