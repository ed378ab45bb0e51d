"""PHP's other servers, of the tests' own: php-cgi on a unix socket, and PHP's own web server on a loopback port."""

from __future__ import annotations

import http.client
import os
import socket
import subprocess
from pathlib import Path

import fastcgi
from waiting import wait_for


class PhpServer:
    """A running parent and its children; its scripts are in `folder`."""

    def __init__(self, folder: Path, command: list[str], **env: str) -> None:
        """The parent leads a process group, which stop() ends: php-cgi's children outlive a killed parent."""
        self.folder = folder
        self._process = subprocess.Popen(
            command, cwd=folder, env={**os.environ, **env}, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
            start_new_session=True,
        )  # fmt: skip

    @property
    def pid(self) -> int:
        return self._process.pid

    def children(self) -> list[int]:
        return [int(pid) for pid in Path(f"/proc/{self.pid}/task/{self.pid}/children").read_text().split()]

    def stop(self) -> None:
        os.killpg(self.pid, 9)
        self._process.wait()

    def wait_for_children(self, count: int) -> None:
        wait_for(lambda: len(self.children()) == count, f"{count} children")


class PhpCgi(PhpServer):
    """php-cgi with one worker."""

    def __init__(self, folder: Path, *ini: str) -> None:
        self._socket = folder / "cgi.sock"
        defines = [word for setting in ini for word in ("-d", setting)]
        super().__init__(folder, ["/usr/bin/php-cgi8.2", *defines, "-b", str(self._socket)], PHP_FCGI_CHILDREN="1")
        wait_for(self._socket.exists, "php-cgi to listen")
        self.wait_for_children(1)

    def get(self, script: str) -> str:
        """Return the answer's body."""
        params = {
            "SCRIPT_FILENAME": f"{self.folder}/{script}",
            "SCRIPT_NAME": f"/{script}",
            "REQUEST_URI": f"/{script}",
            "REQUEST_METHOD": "GET",
            "REDIRECT_STATUS": "200",
        }
        return fastcgi.request(self._socket, params).text


class PhpDashS(PhpServer):
    """PHP's own web server; `workers` is PHP_CLI_SERVER_WORKERS."""

    def __init__(self, folder: Path, *, workers: int = 0) -> None:
        with socket.socket() as trial:
            trial.bind(("127.0.0.1", 0))
            self.port = int(trial.getsockname()[1])
        env = {"PHP_CLI_SERVER_WORKERS": str(workers)} if workers else {}
        command = ["/usr/bin/php8.2", "-d", "ffi.enable=1", "-d", "max_execution_time=30"]
        super().__init__(folder, [*command, "-S", f"127.0.0.1:{self.port}"], **env)
        wait_for(self._listens, "php -S to listen")
        self.wait_for_children(workers)

    def get(self, script: str) -> str:
        """Return the answer's body."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        try:
            connection.request("GET", f"/{script}")
            return connection.getresponse().read().decode()
        finally:
            connection.close()

    def _listens(self) -> bool:
        with socket.socket() as trial:
            return trial.connect_ex(("127.0.0.1", self.port)) == 0
