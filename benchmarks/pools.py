"""php-fpm pools behind nginx that share no probed file: each runs its own copies of PHP and libc."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import subprocess
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

PHP_FPM = "/usr/sbin/php-fpm8.2"
LIBC = "/lib/x86_64-linux-gnu/libc.so.6"
WORKERS = 4
_PORT = 8190

SCRIPTS = {
    "noop.php": "<?php echo 'ok';\n",
    # About 10 ms of work of the usual kinds: arrays, strings, sorting, JSON, a few MB of heap.
    "work.php": """<?php
$rows = [];
for ($i = 0; $i < 12000; $i++) {
    $rows[] = ['id' => $i, 'name' => "name $i", 'score' => crc32((string) $i)];
}
usort($rows, fn ($a, $b) => $a['score'] <=> $b['score']);
$html = '';
foreach (array_slice($rows, 0, 4000) as $row) {
    $html .= '<li>' . htmlspecialchars($row['name']) . '</li>';
}
echo strlen($html), ' ', strlen(json_encode(array_slice($rows, 0, 2000)));
""",
    # The same, reading 22 files on the way: some 110 system calls, as a framework's request makes.
    "files.php": """<?php
for ($i = 0; $i < 22; $i++) {
    file_get_contents(__FILE__);
}
require __DIR__ . '/work.php';
""",
    # Takes 20 MB in two huge blocks and frees them: 7,300 page faults a request, the worst there is for stacks.
    "faults.php": "<?php $a = str_repeat('a', 10_000_019); $b = str_repeat('b', 10_000_079); echo strlen($a . 'x');\n",
    # What a page uses: some 330 native allocations, all freed.
    "page.php": (Path(__file__).parents[1] / "tests/php/native_page.php").read_text(),
    # Some 4,500 native allocations.
    "dom.php": """<?php
$doc = new DOMDocument();
$root = $doc->appendChild($doc->createElement('r'));
for ($i = 0; $i < 500; $i++) {
    $root->appendChild($doc->createElement('item', "text $i"))->setAttribute('id', (string) $i);
}
echo (new DOMXPath($doc))->query('//item')->length, strlen($doc->saveXML());
""",
    # The usual way without phptrace: read /proc/self/status before and after every request, and log the difference.
    "logger.php": """<?php
(function () {
    $rss = function () {
        preg_match('/RssAnon:\\s+(\\d+)/', file_get_contents('/proc/self/status'), $found);
        return (int) $found[1];
    };
    $before = $rss();
    register_shutdown_function(function () use ($rss, $before) {
        $line = getmypid() . "\\t" . ($rss() - $before) . "\\t" . $_SERVER['REQUEST_URI'] . "\\n";
        file_put_contents(__DIR__ . '/logger.log', $line, FILE_APPEND);
    });
})();
""",
}

_NGINX = """
daemon off; worker_processes 1; pid {folder}/nginx.pid; error_log {folder}/nginx.log crit; user www-data;
events {{ worker_connections 512; }}
http {{
    access_log off; keepalive_requests 10000000;
    client_body_temp_path {folder}/t1; proxy_temp_path {folder}/t2; fastcgi_temp_path {folder}/t3;
    uwsgi_temp_path {folder}/t4; scgi_temp_path {folder}/t5;
    {servers}
}}
"""
_SERVER = """
    server {{ listen 127.0.0.1:{port}; location / {{
        include /etc/nginx/fastcgi_params; fastcgi_param SCRIPT_FILENAME {folder}/$fastcgi_script_name;
        fastcgi_pass unix:{folder}/{name}.sock; }} }}
"""


class Pool:
    """One pool: its master, and the address at which nginx serves it."""

    def __init__(self, folder: Path, name: str, port: int, settings: str, workers: int) -> None:
        self.name, self.address = name, f"http://127.0.0.1:{port}"
        self.folder, self.socket = folder, folder / f"{name}.sock"
        self.served = 0
        home = folder / name
        home.mkdir()
        home.chmod(0o755)
        shutil.copy(PHP_FPM, home / "php-fpm")
        shutil.copy(LIBC, home / "libc.so.6")
        config = home / "php-fpm.conf"
        config.write_text(
            f"[global]\nerror_log = {home}/error.log\n[{name}]\nuser = www-data\ngroup = www-data\n"
            f"listen = {self.socket}\nlisten.mode = 0666\npm = static\npm.max_children = {workers}\n{settings}\n"
        )
        self.process = subprocess.Popen(
            [str(home / "php-fpm"), "-F", "-y", str(config)],
            env={**os.environ, "LD_LIBRARY_PATH": str(home)},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )

    @property
    def master(self) -> int:
        return self.process.pid

    def workers(self) -> list[int]:
        return [int(pid) for pid in Path(f"/proc/{self.master}/task/{self.master}/children").read_text().split()]

    def cpu_ns(self) -> int:
        """CPU time of all workers so far (schedstat: nanoseconds, not ticks)."""
        return sum(int(Path(f"/proc/{pid}/schedstat").read_text().split()[0]) for pid in self.workers())

    def load(self, script: str, seconds: float, connections: int = WORKERS, pause_ms: int = 0) -> float:
        """Requests/s of one run of wrk: a closed loop, with a pause before each request if one is given."""
        pace = self.folder / f"pause-{pause_ms}.lua"
        pace.write_text(f"function delay() return {pause_ms} end\n")
        options = ["-s", str(pace)] if pause_ms else []
        out = subprocess.run(
            ["wrk", "-t1", f"-c{connections}", f"-d{seconds}s", *options, f"{self.address}/{script}"],
            check=True,
            capture_output=True,
            text=True,
        ).stdout
        found = re.search(r"(\d+) requests in.*Requests/sec:\s+([\d.]+)", out, re.DOTALL)
        if found is None or "Non-2xx" in out or "Socket errors" in out:
            raise RuntimeError(f"the load on pool {self.name} met errors:\n{out}")
        self.served += int(found[1])
        return float(found[2])


@contextlib.contextmanager
def pools(*names: str, workers: int = WORKERS, settings: str = "") -> Iterator[dict[str, Pool]]:
    """Start pools of these names with these settings; the pool `logger` also logs by auto_prepend_file."""
    folder = Path(tempfile.mkdtemp(prefix="phptrace-bench."))
    folder.chmod(0o755)
    with contextlib.ExitStack() as stack:
        stack.callback(shutil.rmtree, folder, ignore_errors=True)
        for name, text in SCRIPTS.items():
            (folder / name).write_text(text)
        (folder / "logger.log").touch()
        (folder / "logger.log").chmod(0o666)
        found = {}
        for number, name in enumerate(names):
            logs = f"\nphp_admin_value[auto_prepend_file] = {folder}/logger.php" if name == "logger" else ""
            found[name] = Pool(folder, name, _PORT + number, settings + logs, workers)
            stack.callback(found[name].process.wait)
            stack.callback(found[name].process.terminate)
        servers = "".join(_SERVER.format(port=_PORT + n, folder=folder, name=name) for n, name in enumerate(names))
        (folder / "nginx.conf").write_text(_NGINX.format(folder=folder, servers=servers))
        nginx = subprocess.Popen(["nginx", "-p", str(folder), "-c", str(folder / "nginx.conf")])
        stack.callback(nginx.wait)
        stack.callback(nginx.terminate)
        for pool in found.values():
            _wait_until_up(pool.address)
        yield found


def _wait_until_up(address: str) -> None:
    for _ in range(200):
        try:
            with urllib.request.urlopen(f"{address}/noop.php", timeout=1) as answer:
                if answer.read() == b"ok":
                    return
        except OSError:
            time.sleep(0.05)
    raise RuntimeError(f"nothing answers on {address}")
