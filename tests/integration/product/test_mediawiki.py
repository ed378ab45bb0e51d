"""An application with 5,000 native allocations a page, of which some outlive their request: nobody is accused."""

from __future__ import annotations

import random
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import fastcgi
import pytest
from backend_kinds import BPF, make_backend
from fpm import Fpm
from machine import lacking
from tracing import Tracer

from tracer.analysis.ranking import Group, GroupBy, Ranking
from tracer.facts import Release

pytestmark = [pytest.mark.needs_bpf, pytest.mark.needs_php]

WIKI = Path("/usr/share/mediawiki")
PAGES = (
    "index.php?title=Main_Page",
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
LEAK = 32 * (1040 + 32)


@pytest.fixture(scope="module")
def wiki(start_fpm: Callable[..., Fpm]) -> Iterator[Fpm]:
    """Two workers that have served each page of a wiki on SQLite."""
    if not (WIKI / "maintenance/install.php").exists():
        lacking("there is no MediaWiki. Install the Debian package mediawiki.")
    folder = Path(tempfile.mkdtemp(prefix="phptrace-test."))
    try:
        folder.chmod(0o755)
        subprocess.run(
            ["php", "-d", "memory_limit=-1", WIKI / "maintenance/install.php", "--dbtype", "sqlite", "--dbpath",
             folder / "db", "--confpath", folder, "--scriptpath", "", "--server", "http://localhost", "--pass",
             "long enough for it", "Test", "Admin"],
            check=True, capture_output=True,
        )  # fmt: skip
        (folder / "cache").mkdir()
        with (folder / "LocalSettings.php").open("a") as settings:
            settings.write(f"\n$wgCacheDirectory = '{folder}/cache';\n$wgJobRunRate = 0;\n")
        subprocess.run(["chown", "-R", "www-data:www-data", folder], check=True)
        fpm = start_fpm(www=f"pm = static\npm.max_children = 2\nenv[MW_CONFIG_FILE] = {folder}/LocalSettings.php")
        assert b"<title>" in visit(fpm, PAGES[0]).body
        visit_all(fpm, [page for page in PAGES for _ in range(6)])
        yield fpm
    finally:
        shutil.rmtree(folder)


def visit(fpm: Fpm, page: str) -> fastcgi.Response:
    script, _, query = page.partition("?")
    if script == "native_leak.php":
        return fpm.get(script)
    file, _, path_info = script.partition("/")
    return fpm.get(
        file, SCRIPT_FILENAME=str(WIKI / file), PATH_INFO=f"/{path_info}" if path_info else None, QUERY_STRING=query,
        REQUEST_URI=f"/{page}", HTTP_HOST="localhost", SERVER_NAME="localhost", SERVER_PORT="80",
        REMOTE_ADDR="127.0.0.1",
    )  # fmt: skip


def visit_all(fpm: Fpm, pages: list[str]) -> None:
    with ThreadPoolExecutor(2) as clients:
        list(clients.map(lambda page: visit(fpm, page), pages))


def ranked(fpm: Fpm, pages: list[str]) -> list[Group]:
    """The scripts of these requests, as the live view ranks them."""
    tracer = Tracer(make_backend(BPF), str(fpm.master))
    try:
        for at in range(0, len(pages), 20):
            visit_all(fpm, pages[at : at + 20])
            tracer.next(len(pages[at : at + 20]))
    finally:
        tracer.close()
    assert tracer.lost == 0
    ranking = Ranking(GroupBy.SCRIPT, window=4096)
    for request in tracer.requests:
        ranking.add(request)
    for fact in tracer.facts:
        if isinstance(fact, Release):
            ranking.release(fact)
    return ranking.groups()


def test_where_nobody_leaks_nobody_is_accused(wiki: Fpm) -> None:
    groups = ranked(wiki, random.Random(3).choices(PAGES, k=200))

    assert {Path(group.key or "").name for group in groups} == {"index.php", "api.php", "load.php", "rest.php"}
    assert sum(group.counted for group in groups) == 200
    assert [group.key for group in groups if not -1024 < (group.kept_per_request or 0) < 1024] == []


def test_a_leak_of_34_kb_is_its_scripts_to_2_percent(wiki: Fpm) -> None:
    pages = random.Random(5).choices(PAGES, k=120) + ["native_leak.php"] * 40
    random.Random(7).shuffle(pages)

    leaker, *others = ranked(wiki, pages)

    assert (leaker.key or "").endswith("/native_leak.php")
    assert leaker.kept_per_request == pytest.approx(LEAK, rel=0.02)
    assert leaker.kept_share == 1.0
    assert [group.key for group in others if not -1024 < (group.kept_per_request or 0) < 1024] == []
