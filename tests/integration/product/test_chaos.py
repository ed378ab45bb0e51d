"""A pool of workers that serve five requests each, under reloads, restarts and kills: nothing is lost in silence.

PHPTRACE_TROUBLE_S=600 makes the trouble last ten minutes.
"""

from __future__ import annotations

import contextlib
import datetime
import os
import random
import re
import signal
import socket
import threading
import time
import uuid
from pathlib import Path

import fastcgi
import pytest
from backend_kinds import OPTIONS
from command import attached_to, finish, phptrace
from fpm import Fpm

from tracer.recording.reader import Reader

pytestmark = pytest.mark.slow

SECONDS = float(os.environ.get("PHPTRACE_TROUBLE_S", "60"))
RELOAD_S, KILL_S, RESTART_S = (8.0, 3.0, 20.0) if SECONDS < 300 else (20.0, 7.0, 60.0)
CLIENTS, STREAMS = 3, 2
SETTINGS = "pm = static\npm.max_children = 6\npm.max_requests = 5"


class Clients:
    """Clients that send requests, each with a uri of its own, until they are stopped; some open streams."""

    def __init__(self, fpm: Fpm) -> None:
        self.answered: dict[str, tuple[float, float]] = {}  # by uri, when it was sent and answered
        self.streams: dict[str, tuple[float, float]] = {}  # by uri, when it was sent, and answered for the first time
        self._fpm = fpm
        self._stopped = False
        self._threads = [threading.Thread(target=self._send, args=(number,)) for number in range(CLIENTS)]
        self._threads += [threading.Thread(target=self._stream, args=(number,)) for number in range(STREAMS)]
        for thread in self._threads:
            thread.start()

    def _stream(self, client: int) -> None:
        number = 0
        while not self._stopped:
            uri, sent = f"/stream/{client}/{number}", time.time()
            number += 1
            with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX) as connection:
                connection.settimeout(1.0)
                connection.connect(str(self._fpm.socket()))
                fastcgi.send(connection, self._fpm.params("stream.php", REQUEST_URI=uri))
                while not self._stopped and connection.recv(4096):
                    self.streams.setdefault(uri, (sent, time.time()))
            time.sleep(0.01)  # php-fpm may not listen yet

    def _send(self, client: int) -> None:
        number = 0
        while not self._stopped:
            uri, sent = f"/{client}/{number}", time.time()
            number += 1
            with contextlib.suppress(OSError):
                if self._fpm.get("hello.php", REQUEST_URI=uri).ended:
                    self.answered[uri] = sent, time.time()
            time.sleep(0.01)

    def stop(self) -> None:
        self._stopped = True
        for thread in self._threads:
            thread.join()


def troubled(fpm: Fpm, pool: str) -> tuple[Fpm, int]:
    """Reload, kill and restart for a while; return the php-fpm that runs then, and how often it was restarted."""
    began, restarted, chance = time.monotonic(), 0, random.Random(5)
    reloads, kills, restarts = (seconds for seconds in (RELOAD_S, KILL_S, RESTART_S))
    while (now := time.monotonic() - began) < SECONDS:
        if now > reloads:
            reloads += RELOAD_S
            os.kill(fpm.master, signal.SIGUSR2)
        if now > kills:
            kills += KILL_S
            with contextlib.suppress(OSError, IndexError):
                os.kill(chance.choice(fpm.workers()), signal.SIGKILL)
        if now > restarts:
            restarts += RESTART_S
            fpm.stop()
            restarted += 1
            fpm = Fpm(fpm.binary, fpm.folder, {pool: SETTINGS})
        time.sleep(0.05)
    return fpm, restarted


@pytest.mark.parametrize("backend", OPTIONS)
def test_each_request_is_recorded_or_in_a_gap_that_is_reported(
    php_fpm: str, tmp_path: Path, site: Path, backend: str
) -> None:
    path, pool = tmp_path / "r.phptrace", f"troubled{uuid.uuid4().hex[:8]}"
    fpm = Fpm(php_fpm, site, {pool: SETTINGS})
    process = phptrace("record", "--backend", backend, "-o", str(path), f"php-fpm:{pool}")
    try:
        attached_to(process, until="recording to")
        clients = Clients(fpm)
        try:
            fpm, restarted = troubled(fpm, pool)
        finally:
            clients.stop()
        code, _, err = finish(process)
    finally:
        process.kill()
        fpm.stop()

    with Reader(str(path)) as recording:
        recorded = [request.uri for request in recording.requests() if request.uri is not None]
        losses = recording.losses()
    gaps = [gap for loss in losses if (gap := times(loss.why)) is not None]
    assert code == 8, err
    assert len(gaps) == restarted
    assert len(recorded) == len(set(recorded))
    served = clients.answered | clients.streams
    known = set(recorded)
    missing = {uri: sent for uri, sent in served.items() if uri not in known}
    # The master is seen to have ended, and its successor to be traced, a moment later.
    unreported = [
        uri
        for uri, (sent, answered) in missing.items()
        if not any(begin - 0.5 < answered and sent < end + 0.5 for begin, end in gaps)
    ]
    assert unreported == [], err
    assert len(recorded) > 0.8 * len(clients.answered)


def times(why: str) -> tuple[float, float] | None:
    """The beginning and the end of a gap, in Unix time; None if the reason is another."""
    found = re.search(r"ended at (\S+)Z, and its successor has been traced since (\S+)Z", why)
    if found is None:
        return None
    begin, end = (datetime.datetime.fromisoformat(f"{at}+00:00").timestamp() for at in found.groups())
    return begin, end
