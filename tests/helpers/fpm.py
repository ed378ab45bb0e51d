"""A php-fpm master of the tests' own, with pools on unix sockets."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
from pathlib import Path

import fastcgi
from waiting import wait_for

SCRIPTS = Path(__file__).resolve().parents[1] / "php"
ONE_WORKER = "pm = static\npm.max_children = 1"
TWO_WORKERS = "pm = static\npm.max_children = 2"


class Fpm:
    """A running master. Its scripts are in `folder`, and each pool listens on a socket there."""

    def __init__(
        self,
        binary: str,
        folder: Path,
        pools: dict[str, str],
        ini: tuple[str, ...] = (),
        *,
        daemonize: bool = False,
        prefix: tuple[str, ...] = (),
    ) -> None:
        """`prefix` is a command that prepares something and then executes php-fpm in its own place."""
        self.binary = binary
        self.folder = folder
        self._config = folder / "php-fpm.conf"
        self._pid_file = folder / "php-fpm.pid"
        sections = [f"[global]\nerror_log = {folder}/error.log\npid = {self._pid_file}\n"]
        for name, settings in pools.items():
            sections.append(
                f"[{name}]\nuser = www-data\ngroup = www-data\nlisten = {folder}/{name}.sock\n"
                f"php_admin_value[ffi.enable] = true\n{settings.replace('{folder}', str(folder))}\n"
            )
        self._config.write_text("\n".join(sections))
        self.pools = tuple(pools)
        defines = [word for setting in ini for word in ("-d", setting)]
        self._daemonized = daemonize
        command = [
            *prefix,
            binary,
            "--daemonize" if daemonize else "--nodaemonize",
            "--fpm-config",
            str(self._config),
            *defines,
        ]
        self.process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        wait_for(lambda: all(self.socket(pool).exists() for pool in pools), "php-fpm to listen")
        if daemonize:  # it listens before it writes its PID
            wait_for(lambda: self._pid_file.exists() and self._pid_file.read_text(), "the master's PID")
        static = re.findall(r"pm = static\s+pm\.max_children = (\d+)", "\n".join(pools.values()))
        wait_for(lambda: len(self.workers()) >= sum(map(int, static)), "the static workers")

    @property
    def master(self) -> int:
        """The master's pid, which a reload changes if it is daemonized."""
        if not self._daemonized:
            return self.process.pid
        found = ""

        def is_there() -> bool:
            nonlocal found
            found = self._written_pid()
            return bool(found)

        wait_for(is_there, "the master's PID")  # the file is empty for a moment while a reload writes it anew
        return int(found)

    def _written_pid(self) -> str:
        with contextlib.suppress(FileNotFoundError):
            return self._pid_file.read_text().strip()
        return ""

    def socket(self, pool: str | None = None) -> Path:
        return self.folder / f"{pool or self.pools[0]}.sock"

    def workers(self) -> list[int]:
        return [int(pid) for pid in Path(f"/proc/{self.master}/task/{self.master}/children").read_text().split()]

    def get(self, script: str, *, pool: str | None = None, **params: str | bytes | None) -> fastcgi.Response:
        """Run one request for tests/php/SCRIPT. Parameters override the usual FastCGI ones; None leaves one out."""
        return fastcgi.request(self.socket(pool), self.params(script, **params))

    def params(self, script: str, **params: str | bytes | None) -> dict[str, str | bytes]:
        """The FastCGI parameters that get() sends."""
        every: dict[str, str | bytes | None] = {
            "SCRIPT_FILENAME": f"{self.folder}/{script}",
            "SCRIPT_NAME": f"/{script}",
            "REQUEST_URI": f"/{script}",
            "REQUEST_METHOD": "GET",
            "QUERY_STRING": "",
            **params,
        }
        return {name: value for name, value in every.items() if value is not None}

    def answers(self) -> bool:
        """True if a request is answered now: not while a reload closes the socket."""
        try:
            return self.get("hello.php").ended
        except OSError:
            return False

    def stop(self) -> None:
        if self._daemonized:
            os.kill(self.master, signal.SIGTERM)
            wait_for(lambda: not self._pid_file.exists(), "php-fpm to end")
        self.process.terminate()
        try:
            self.process.wait(10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
