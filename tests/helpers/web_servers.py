"""Web servers of the tests' own in front of a php-fpm: on a loopback port, with all files in a temporary folder."""

from __future__ import annotations

import http.client
import os
import socket
import subprocess
from pathlib import Path

from waiting import wait_for

_MODULES = "/usr/lib/apache2/modules"


class WebServer:
    """A running server; `start` with one of the functions below. stop() leaves nothing behind."""

    def __init__(self, command: list[str], port: int, env: dict[str, str] | None = None) -> None:
        """`command` stays in the foreground and listens on 127.0.0.1:`port`."""
        self.port = port
        self._process = subprocess.Popen(
            command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env={**os.environ, **(env or {})}
        )
        try:
            wait_for(lambda: self._process.poll() is not None or self._listens(), f"{command[0]} to listen")
            assert self._process.poll() is None, f"{command[0]} did not start"
        except BaseException:
            self.stop()
            raise

    def get(self, path: str, *, method: str = "GET", host: str = "localhost") -> bytes:
        """Return the body of the answer to a request for exactly this path, which is not encoded again."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        try:
            connection.putrequest(method, path, skip_host=True, skip_accept_encoding=True)
            connection.putheader("Host", host)
            connection.putheader("Content-Length", "0")
            connection.endheaders()
            return connection.getresponse().read()
        finally:
            connection.close()

    def stop(self) -> None:
        self._process.terminate()
        try:
            self._process.wait(20)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def _listens(self) -> bool:
        with socket.socket() as trial:
            return trial.connect_ex(("127.0.0.1", self.port)) == 0


def nginx(folder: Path, site: Path, fpm: Path) -> WebServer:
    """nginx with `try_files`: a path that is not a file goes to front.php."""
    port = _free_port()
    params = Path("/etc/nginx/fastcgi_params")
    config = folder / "nginx.conf"
    temporary = " ".join(
        f"{name}_temp_path {folder}/{name};" for name in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    config.write_text(
        f"daemon off; worker_processes 1; pid {folder}/nginx.pid; error_log {folder}/nginx.log; user www-data;\n"
        "events { worker_connections 64; }\n"
        f"http {{ access_log off; {temporary}\nserver {{ listen 127.0.0.1:{port}; root {site};\n"
        "location / { try_files $uri /front.php$is_args$args; }\n"
        "location ~ ^(?<script>.+?\\.php)(?<path_info>/.*)?$ {\n"
        f"include {params}; fastcgi_param SCRIPT_FILENAME $document_root$script; fastcgi_param PATH_INFO $path_info;\n"
        f"fastcgi_pass unix:{fpm}; }} }} }}\n"
    )
    return WebServer(["/usr/sbin/nginx", "-p", str(folder), "-c", str(config)], port)


def apache(folder: Path, site: Path, fpm: Path) -> WebServer:
    """Apache with mod_proxy_fcgi, and a virtual host for each way to configure it.

    `handler`: SetHandler and FallbackResource. `match`: ProxyPassMatch. `rewrite`: RewriteRule to a file, and with
    [P], which leaves a query string in SCRIPT_FILENAME. `balancer`: ProxyPassMatch to a balancer.
    """
    port = _free_port()
    modules = ("mpm_event", "authz_core", "dir", "proxy", "proxy_fcgi", "rewrite", "slotmem_shm", "proxy_balancer",
               "lbmethod_byrequests")  # fmt: skip
    handler = f'<FilesMatch "\\.php$">\nSetHandler "proxy:unix:{fpm}|fcgi://localhost"\n</FilesMatch>'
    hosts = {
        "handler": f"{handler}\nFallbackResource /front.php",
        "match": f'ProxyPassMatch "^/(.*\\.php(/.*)?)$" "unix:{fpm}|fcgi://localhost{site}/$1"',
        "rewrite": (
            f"{handler}\nRewriteEngine On\nRewriteRule ^/pretty/(.*)$ /front.php?p=$1 [L,QSA]\n"
            f'RewriteRule ^/proxied/(.*)$ "unix:{fpm}|fcgi://localhost{site}/front.php?p=$1" [P,QSA]'
        ),
        "balancer": (
            f'<Proxy "balancer://pool">\nBalancerMember "unix:{fpm}|fcgi://member"\n</Proxy>\n'
            f'ProxyPassMatch "^/(.*\\.php(/.*)?)$" "balancer://pool{site}/$1"'
        ),
    }
    config = folder / "apache.conf"
    config.write_text(
        "\n".join([
            f"ServerRoot {folder}\nDefaultRuntimeDir {folder}\nPidFile {folder}/apache.pid\nServerName localhost",
            f"ErrorLog {folder}/apache.log\nListen 127.0.0.1:{port}\nUser www-data\nGroup www-data",
            *(f"LoadModule {name}_module {_MODULES}/mod_{name}.so" for name in modules),
            "StartServers 1\nThreadsPerChild 4\nMinSpareThreads 1\nMaxSpareThreads 8\nMaxRequestWorkers 8",
            f"DocumentRoot {site}\n<Directory {site}>\nRequire all granted\n</Directory>",
            *(
                f"<VirtualHost 127.0.0.1:{port}>\nServerName {name}\nDocumentRoot {site}\n{text}\n</VirtualHost>"
                for name, text in hosts.items()
            ),
            "",
        ])
    )  # fmt: skip
    return WebServer(["/usr/sbin/apache2", "-f", str(config), "-DFOREGROUND"], port)


def lighttpd(folder: Path, site: Path, fpm: Path) -> WebServer:
    """lighttpd with mod_fastcgi, and mod_rewrite for /pretty/."""
    port = _free_port()
    config = folder / "lighttpd.conf"
    config.write_text(
        f'server.document-root = "{site}"\nserver.port = {port}\nserver.bind = "127.0.0.1"\n'
        f'server.errorlog = "{folder}/lighttpd.log"\nserver.modules = ("mod_rewrite", "mod_fastcgi")\n'
        'url.rewrite-once = ("^/pretty/([^?]*)(?:\\?(.*))?" => "/front.php?p=$1&$2")\n'
        f'fastcgi.server = (".php" => (("socket" => "{fpm}", "broken-scriptfilename" => "enable")))\n'
    )
    return WebServer(["/usr/sbin/lighttpd", "-D", "-f", str(config)], port)


def caddy(folder: Path, site: Path, fpm: Path) -> WebServer:
    """Caddy with php_fastcgi: a path that is not a file goes to front.php."""
    port = _free_port()
    config = folder / "Caddyfile"
    config.write_text(
        "{\nadmin off\nauto_https off\n}\n"
        f"http://:{port} {{\nbind 127.0.0.1\nroot * {site}\nphp_fastcgi unix/{fpm} {{\nindex front.php\n}}\n}}\n"
    )
    home = {"HOME": str(folder), "XDG_CONFIG_HOME": str(folder), "XDG_DATA_HOME": str(folder)}
    return WebServer(["/usr/bin/caddy", "run", "--config", str(config), "--adapter", "caddyfile"], port, home)


def _free_port() -> int:
    with socket.socket() as trial:
        trial.bind(("127.0.0.1", 0))
        return int(trial.getsockname()[1])
