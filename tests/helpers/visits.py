"""Requests that stay under way while a test does something else."""

from __future__ import annotations

import socket
import threading

import fastcgi
from fpm import Fpm


class Visit:
    """A request under way in a thread of its own."""

    def __init__(self, fpm: Fpm, script: str, **params: str) -> None:
        self.answer: fastcgi.Response | None = None
        self._thread = threading.Thread(target=self._run, args=(fpm, script, params))
        self._thread.start()

    def _run(self, fpm: Fpm, script: str, params: dict[str, str]) -> None:
        self.answer = fpm.get(script, **params)

    def text(self) -> str:
        """Wait for the answer, and return its text."""
        self._thread.join()
        assert self.answer is not None
        return self.answer.text


class KeptConnection:
    """One connection to a worker, which waits on it for the next request."""

    def __init__(self, fpm: Fpm, pool: str | None = None) -> None:
        self._fpm = fpm
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.connect(str(fpm.socket(pool)))

    def get(self, uri: str, script: str = "pid.php") -> str:
        """Run one request, and return the text of its answer."""
        self._socket.sendall(fastcgi.message(self._fpm.params(script, REQUEST_URI=uri), keep=True))
        return fastcgi.receive(self._socket).text

    def close(self) -> None:
        self._socket.shutdown(socket.SHUT_RDWR)  # a process that traces has inherited a copy
        self._socket.close()
