"""Behind each web server, script, uri and method are those that PHP itself sees in $_SERVER."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import web_servers
from backend_kinds import NOTES, notes
from fpm import ONE_WORKER, Fpm
from machine import require
from tracing import Tracer
from web_servers import WebServer

_SCRIPTS = ("served.php", "front.php", "sub/näme with space.php", "sub/100% 2+2.php")
_PLAIN = (
    ("GET", "/served.php"),
    ("POST", "/served.php"),
    ("OPTIONS", "/served.php"),
    ("GET", "/served.php?a=b&c=%2F%3F"),
    ("GET", "/served.php/path/info"),
    ("GET", "/served.php/path%20info/%C3%BC%3F?a=b"),
    ("GET", "/%73erved.php"),
)
_ENCODED = (
    ("GET", "/sub/n%C3%A4me%20with%20space.php"),
    ("GET", "/sub/n%C3%A4me%20with%20space.php/and/info%2521?x=%20"),
    ("GET", "/sub/100%25%202+2.php?y=1"),
)
_FALLBACK = (
    ("GET", "/product/17/pdf"),
    ("DELETE", "/pr%C3%B6duct/17?a=b"),
    ("GET", "/"),
)
_PRETTY = (("GET", "/pretty/product/17?a=b"), ("GET", "/pretty/pr%C3%B6duct"))
_PROXIED = (("GET", "/proxied/product/17?a=b"), ("GET", "/proxied/x"))
# By server: its program, how it is started, and the requests by virtual host.
_SERVERS: dict[str, tuple[str, Callable[[Path, Path, Path], WebServer], dict[str, tuple[tuple[str, str], ...]]]] = {
    "nginx": ("nginx", web_servers.nginx, {"localhost": _PLAIN + _ENCODED + _FALLBACK}),
    "apache": (
        "apache2",
        web_servers.apache,
        {
            "handler": _PLAIN + _ENCODED + _FALLBACK,
            "match": _PLAIN,
            "rewrite": _PLAIN + _PRETTY + _PROXIED,
            "balancer": _PLAIN,
        },
    ),
    "lighttpd": ("lighttpd", web_servers.lighttpd, {"localhost": _PLAIN + _ENCODED + _PRETTY}),
    "caddy": ("caddy", web_servers.caddy, {"localhost": _PLAIN + _ENCODED + _FALLBACK}),
}


@pytest.mark.parametrize("server", _SERVERS)
def test_names_are_those_that_php_sees(
    start_fpm: Callable[..., Fpm], trace: Callable[..., Tracer], backend: str, tmp_path: Path, server: str
) -> None:
    program, start, requests = _SERVERS[server]
    require(program)
    fpm = start_fpm(www=f"{ONE_WORKER}\nlisten.mode = 0666")
    site = fpm.folder / "site"
    for script in _SCRIPTS:
        (site / script).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(fpm.folder / "served.php", site / script)
    tmp_path.chmod(0o755)
    running = start(tmp_path, site, fpm.socket())
    try:
        tracer = trace(str(fpm.master), keep_query=True)
        bodies = {
            (host, method, path): running.get(path, method=method, host=host)
            for host, of_host in requests.items()
            for method, path in of_host
        }
        seen = tracer.next(len(bodies))
    finally:
        running.stop()

    sent = list(bodies)
    assert [request for request, body in bodies.items() if len(body.split()) != 3] == []  # not answered by served.php
    truth = [tuple(bytes.fromhex(word.decode()) for word in body.split()) for body in bodies.values()]
    recorded = [tuple(map(_as_bytes, (request.script, request.uri, request.method))) for request in seen]
    assert list(zip(sent, recorded, strict=True)) == list(zip(sent, truth, strict=True))
    assert {script for script, _, _ in truth} <= {f"{site}/{name}".encode() for name in _SCRIPTS}
    assert all(notes(request) == NOTES[backend] for request in seen)


def _as_bytes(name: str | None) -> bytes | None:
    return None if name is None else name.encode("utf-8", "surrogateescape")
