"""record --stacks, flame and report --stacks as a user calls them, on real requests."""

from __future__ import annotations

import json
import os
import re
import stat
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from browser import chromium, press
from command import attached_to, phptrace
from fpm import ONE_WORKER, Fpm
from warm_recorder import WarmRecorder

pytestmark = pytest.mark.needs_bpf
LEAK = "<main> {folder}/leak.php:5;malloc"


@pytest.fixture(scope="module")
def recorded(start_fpm: Callable[..., Fpm], tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Fpm]:
    """A leak of a million bytes a request among requests that take more and give it back."""
    fpm = start_fpm(www=ONE_WORKER)
    path = tmp_path_factory.mktemp("recorded") / "s.phptrace"
    process = phptrace("record", "--stacks", "-c", "60", "-o", str(path), str(fpm.master))
    attached_to(process, "recording to")
    for number in range(20):
        fpm.get("leak.php", QUERY_STRING="1000003", REQUEST_URI=f"/thumbnail/{number}")
        fpm.get("hold.php", QUERY_STRING="10", REQUEST_URI="/report")
        fpm.get("growers.php", QUERY_STRING="small_strings", REQUEST_URI="/list?secret=1")
    _, said = process.communicate(timeout=30)
    assert process.returncode == 0, said
    return path, fpm


def flame(*arguments: str) -> subprocess.CompletedProcess[str]:
    process = phptrace("flame", *arguments)
    out, err = process.communicate(timeout=60)
    return subprocess.CompletedProcess(arguments, process.returncode, out, err)


def towers(folded: str) -> list[tuple[str, int]]:
    """(stack, bytes), the heaviest first."""
    found = [line.rsplit(" ", 1) for line in folded.splitlines()]
    return sorted(((stack, int(size)) for stack, size in found), key=lambda tower: -tower[1])


def test_the_leakers_function_and_line_are_in_each_format(recorded: tuple[Path, Fpm], tmp_path: Path) -> None:
    path, fpm = recorded
    wanted = LEAK.format(folder=fpm.folder)

    folded = flame(str(path), "--format", "folded")
    speedscope = flame(str(path), "--format", "speedscope")
    picture = flame(str(path), "-o", str(tmp_path / "s.svg"))

    assert (folded.returncode, speedscope.returncode, picture.returncode) == (0, 0, 0)
    (leak,) = [size for stack, size in towers(folded.stdout) if stack.endswith(wanted)]
    assert abs(leak - 20 * 1_000_003) <= 0.05 * 20 * 1_000_003
    document = json.loads(speedscope.stdout)
    assert {"<main> " + f"{fpm.folder}/leak.php:5", "malloc"} <= {f["name"] for f in document["shared"]["frames"]}
    drawn = (tmp_path / "s.svg").read_text()
    assert "leak.php:5" in drawn
    assert stat.S_IMODE(os.stat(tmp_path / "s.svg").st_mode) == 0o600
    assert "secret" not in drawn + folded.stdout + speedscope.stdout
    assert "60 requests" in drawn
    assert "60 requests" in folded.stderr


def test_routes_are_folded_and_stand_below_the_root(recorded: tuple[Path, Fpm]) -> None:
    path, _ = recorded

    passing = towers(flame(str(path), "--metric", "rss", "--format", "folded").stdout)
    routes = {stack.split(";")[0] for stack, _ in passing}

    assert routes == {"/thumbnail/{n}", "/report", "/list"}


def test_what_was_kept_is_the_leak(recorded: tuple[Path, Fpm]) -> None:
    path, fpm = recorded

    passing = towers(flame(str(path), "--metric", "rss", "--format", "folded").stdout)
    kept = towers(flame(str(path), "--format", "folded", "--retained").stdout)

    by_default = towers(flame(str(path), "--format", "folded").stdout)
    assert not passing[0][0].startswith("/thumbnail")
    assert by_default[0][0].endswith(LEAK.format(folder=fpm.folder))
    assert kept[0][0].endswith(LEAK.format(folder=fpm.folder))
    assert kept[0][1] >= 0.9 * sum(size for _, size in kept)


def test_the_total_of_what_was_kept_is_that_of_the_ranking(recorded: tuple[Path, Fpm]) -> None:
    path, _ = recorded
    process = phptrace("report", "--format", "json", "--stacks", "--retained", str(path))
    out, _ = process.communicate(timeout=60)

    report = json.loads(out)

    kept = sum((group["kept_bytes"] or 0) + (group["warmup_bytes"] or 0) for group in report["groups"])
    assert report["stacks"]["total_bytes"] == pytest.approx(kept, rel=0.01)
    assert report["stacks"]["heaviest"][0]["frames"][0] == "malloc"


@pytest.mark.parametrize("metric", ["mapped", "zend"])
def test_each_weight_has_its_flame_of_the_same_recording(recorded: tuple[Path, Fpm], metric: str) -> None:
    path, _ = recorded

    found = towers(flame(str(path), "--format", "folded", "--metric", metric).stdout)

    assert found[0][0].startswith("/list;")
    assert any("small_strings" in stack for stack, _ in found[:5])


def test_the_heaviest_stacks_are_text_for_a_ticket(recorded: tuple[Path, Fpm]) -> None:
    path, fpm = recorded
    process = phptrace("report", "--stacks", "--retained", "-n", "1", str(path))
    out, _ = process.communicate(timeout=60)

    assert re.search(r"\n\d+\.\d MiB \(\d+\.\d%, \d+ samples\) .*/leak\.php\n", out)
    assert "    for /thumbnail/{n}\n    #0 malloc\n" in out
    assert f"    #1 <main> {fpm.folder}/leak.php:5\n" in out


@pytest.mark.usefixtures("programs_loaded")
def test_a_difference_shows_what_grew(recorded: tuple[Path, Fpm], tmp_path: Path) -> None:
    path, fpm = recorded
    later = tmp_path / "later.phptrace"
    process = WarmRecorder("--stacks", "-c", "20", "-o", str(later), str(fpm.master))
    attached_to(process, "recording to")
    for number in range(20):
        fpm.get("leak.php", QUERY_STRING="3000017", REQUEST_URI=f"/thumbnail/{number}")
    process.communicate(timeout=30)

    answer = flame("--diff", str(path), str(later), "--format", "folded")
    picture = flame("--diff", str(path), str(later), "-o", str(tmp_path / "d.svg"))

    lines = [line.rsplit(" ", 2) for line in answer.stdout.splitlines()]
    before, after = next((int(b), int(a)) for stack, b, a in lines if stack.endswith(LEAK.format(folder=fpm.folder)))
    assert abs(after - 20 * 3_000_017) <= 0.05 * after
    assert abs(before - 20 / 3 * 1_000_003) <= 0.05 * before  # 20 requests of 60, scaled to 20 in all
    assert picture.returncode == 0, picture.stderr


def test_the_picture_of_a_recording_zooms_and_is_searched(recorded: tuple[Path, Fpm], tmp_path: Path) -> None:
    path, _ = recorded
    picture = tmp_path / "kept.svg"
    assert flame(str(path), "--retained", "-o", str(picture)).returncode == 0

    with chromium(width=1220) as browser:
        browser.get(picture.as_uri())
        leaker = 'return [...document.querySelectorAll(".frame")].find((f) => f.textContent.includes("leak.php:5"))'
        width = f"{leaker}.getBoundingClientRect().width"
        before = browser.execute_script(width)
        browser.execute_script(
            f"{leaker.removeprefix('return ')}.dispatchEvent(new MouseEvent('click', {{bubbles: true}}))"
        )
        zoomed = browser.execute_script(width)
        press(browser, "/")
        press(browser, *"malloc")
        matches = browser.execute_script('return document.querySelectorAll(".match").length')
        shown = browser.execute_script("return document.documentElement.textContent")

    assert before < zoomed == 1200
    assert matches >= 1
    assert re.search(r"matched: \d+\.\d %", shown)
