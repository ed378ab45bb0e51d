"""Debian's MediaWiki on SQLite, in a folder of its own: an application with 5,000 native allocations a page."""

from __future__ import annotations

import contextlib
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

_WIKI = Path("/usr/share/mediawiki")
MISSING = (
    None
    if (_WIKI / "maintenance/install.php").exists()
    else "there is no MediaWiki. Install the Debian package mediawiki."
)
MAIN_PAGE = "index.php?title=Main_Page"
PAGES = (
    MAIN_PAGE,
    "index.php?title=Special:RecentChanges",
    "index.php?title=Special:AllPages",
    "index.php?title=Special:Search&search=foo",
    "index.php?title=Special:Version",
    "index.php?title=Main_Page&action=history",
    "index.php?title=Main_Page&action=edit",
    "index.php?title=Special:UserLogin",
    "api.php?action=query&meta=siteinfo&format=json",
    "load.php?modules=startup&only=scripts&lang=en&skin=vector",
    "rest.php/v1/page/Main_Page",
)


@contextlib.contextmanager
def installed() -> Iterator[str]:
    """Install a wiki for the time of the context; the settings of a php-fpm pool that serves it. MISSING is None."""
    folder = Path(tempfile.mkdtemp(prefix="phptrace-test."))
    try:
        folder.chmod(0o755)
        subprocess.run(
            ["php", "-d", "memory_limit=-1", _WIKI / "maintenance/install.php", "--dbtype", "sqlite", "--dbpath",
             folder / "db", "--confpath", folder, "--scriptpath", "", "--server", "http://localhost", "--pass",
             "long enough for it", "Test", "Admin"],
            check=True, capture_output=True,
        )  # fmt: skip
        (folder / "cache").mkdir()
        with (folder / "LocalSettings.php").open("a") as settings:
            settings.write(f"\n$wgCacheDirectory = '{folder}/cache';\n$wgJobRunRate = 0;\n")
        subprocess.run(["chown", "-R", "www-data:www-data", folder], check=True)
        yield f"env[MW_CONFIG_FILE] = {folder}/LocalSettings.php"
    finally:
        shutil.rmtree(folder)


def params(page: str) -> dict[str, str]:
    """The FastCGI parameters of a request for one of the pages."""
    script, _, query = page.partition("?")
    file, _, path_info = script.partition("/")
    found = {
        "SCRIPT_FILENAME": str(_WIKI / file),
        "SCRIPT_NAME": f"/{file}",
        "QUERY_STRING": query,
        "REQUEST_URI": f"/{page}",
        "REQUEST_METHOD": "GET",
        "HTTP_HOST": "localhost",
        "SERVER_NAME": "localhost",
        "SERVER_PORT": "80",
        "REMOTE_ADDR": "127.0.0.1",
    }
    return {**found, "PATH_INFO": f"/{path_info}"} if path_info else found
