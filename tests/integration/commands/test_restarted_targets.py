"""A pool that is named is traced on when its php-fpm was restarted, and the gap is reported."""

from __future__ import annotations

import contextlib
import json
import os
import re
import uuid
from collections import Counter
from pathlib import Path

import pytest
from backend_kinds import OPTIONS
from command import attached_to, finish, phptrace, run
from fpm import TWO_WORKERS, Fpm
from waiting import wait_for

from tracer.recording.reader import Reader

POOL = f"restarted{uuid.uuid4().hex[:8]}"  # of no other php-fpm on this machine


@pytest.mark.parametrize("backend", OPTIONS)
def test_a_master_that_is_started_anew_is_traced_and_the_gap_is_reported(
    php_fpm: str, tmp_path: Path, site: Path, backend: str
) -> None:
    path = tmp_path / "r.phptrace"
    fpm = Fpm(php_fpm, site, {POOL: TWO_WORKERS})
    process = phptrace("record", "--backend", backend, "-o", str(path), f"php-fpm:{POOL}")
    assert process.stderr is not None
    first = fpm.master
    try:
        attached_to(process, until="recording to")
        fpm.get("hello.php", REQUEST_URI="/before")
        wait_for(lambda: len(uris(path)) == 1, "the request to be recorded")
        fpm.stop()
        ended = attached_to(process, until="waiting for php-fpm to be started again")
        assert f"master {first} of php-fpm:{POOL} has ended" in ended
        fpm = Fpm(php_fpm, site, {POOL: TWO_WORKERS})
        found = attached_to(process, until=f"started after master {first} ended")
        assert f"now tracing master {fpm.master} of php-fpm:{POOL}, started after" in found
        for number in range(5):
            fpm.get("hello.php", REQUEST_URI=f"/after/{number}")
        wait_for(lambda: len(uris(path)) == 6, "the requests to be recorded")
        code, _, err = finish(process)
    finally:
        process.kill()
        fpm.stop()

    assert code == 8, err
    assert sorted(uris(path)) == ["/after/0", "/after/1", "/after/2", "/after/3", "/after/4", "/before"]
    gap = re.search(rf"1 gap in tracing: master {first} of php-fpm:{POOL} ended at \S+Z, and its successor has", err)
    assert gap is not None, err
    assert gap[0] in " ".join(run("report", str(path)).stdout.split())
    losses = json.loads(run("report", "--format", "json", str(path)).stdout)["losses"]
    assert [why.partition(":")[0] for why in losses] == ["gaps in tracing"]


def uris(path: Path) -> list[str | None]:
    with Reader(str(path)) as recording:
        return [request.uri for request in recording.requests()]


@pytest.mark.needs_bpf
def test_a_master_that_is_not_started_again_is_reported_at_the_end(php_fpm: str, tmp_path: Path, site: Path) -> None:
    path = tmp_path / "r.phptrace"
    fpm = Fpm(php_fpm, site, {POOL: TWO_WORKERS})
    process = phptrace("record", "-o", str(path), f"php-fpm:{POOL}")
    try:
        attached_to(process, until="recording to")
        fpm.stop()
        attached_to(process, until="waiting for php-fpm to be started again")
        code, _, err = finish(process)
    finally:
        process.kill()
        fpm.stop()

    assert code == 8, err
    assert re.search(
        rf"1 gap in tracing: master {fpm.master} of php-fpm:{POOL} ended at \S+Z, and no new master was", err
    )


@pytest.mark.needs_bpf
def test_ten_restarts_leave_no_descriptor_behind(php_fpm: str, tmp_path: Path, site: Path) -> None:
    path = tmp_path / "r.phptrace"
    fpm = Fpm(php_fpm, site, {POOL: TWO_WORKERS})
    process = phptrace("record", "--backend", "bpf", "--stacks", "-o", str(path), f"php-fpm:{POOL}")
    opened: list[Counter[str]] = []
    try:
        attached_to(process, until="recording to")
        for number in range(11):
            fpm.get("hello.php", REQUEST_URI=f"/{number}")
            wait_for(lambda number=number: len(uris(path)) == number + 1, "the request to be recorded")
            # The links of the workers before are closed in the background.
            opened.append(descriptors(process.pid))
            wait_for(lambda: links(process.pid) == opened[0][_LINK], "the links of the workers before to be closed")
            opened[-1] = descriptors(process.pid)
            if number < 10:
                fpm.stop()
                attached_to(process, until="waiting for php-fpm to be started again")
                fpm = Fpm(php_fpm, site, {POOL: TWO_WORKERS})
                attached_to(process, until="started after master")
        code, _, err = finish(process)
    finally:
        process.kill()
        fpm.stop()

    assert code == 8, err
    assert sorted(uris(path)) == sorted(f"/{number}" for number in range(11))
    # The first workers were there when tracing began: each has events of its own. Later ones inherit their master's.
    assert opened[1:] == [opened[1]] * 10
    assert opened[1]["anon_inode:bpf-prog"] == opened[0]["anon_inode:bpf-prog"]


_LINK = "anon_inode:bpf_link"


def links(pid: int) -> int:
    return descriptors(pid)[_LINK]


def descriptors(pid: int) -> Counter[str]:
    """Number of open descriptors of that process, by kind of file."""
    found: Counter[str] = Counter()
    for fd in os.listdir(f"/proc/{pid}/fd"):
        with contextlib.suppress(FileNotFoundError):
            found[os.readlink(f"/proc/{pid}/fd/{fd}").partition(":[")[0]] += 1
    return found
