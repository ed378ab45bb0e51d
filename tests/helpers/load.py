"""Requests without end, to see whether tracing harms one."""

from __future__ import annotations

import threading

from fpm import Fpm
from waiting import wait_for


class Load:
    """Requests from two threads while the context lasts; `failed` counts those that were not answered in full."""

    def __init__(self, fpm: Fpm, script: str = "hello.php", body: bytes = b"hello") -> None:
        self._fpm = fpm
        self._script = script
        self._body = body
        self._stop = threading.Event()
        self.done = 0
        self.failed = 0
        self._threads = [threading.Thread(target=self._run) for _ in range(2)]

    def _run(self) -> None:
        while not self._stop.is_set():
            try:
                answer = self._fpm.get(self._script)
                self.failed += answer.body != self._body
            except OSError:
                self.failed += 1
            self.done += 1

    def wait_for_more(self, count: int) -> None:
        """Wait until `count` more requests are done."""
        before = self.done
        wait_for(lambda: self.done >= before + count, f"{count} requests")

    def __enter__(self) -> Load:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()
