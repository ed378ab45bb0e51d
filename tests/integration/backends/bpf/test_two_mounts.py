"""One PHP in two overlay mounts, as two containers of one image have it: each request is seen once."""

from __future__ import annotations

import contextlib
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from fpm import ONE_WORKER, SCRIPTS, Fpm
from machine import lacking
from tracing import Tracer

from tracer.backends import StackOptions
from tracer.targets import processes


@pytest.fixture
def two_containers(php_fpm: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Fpm]]:
    """Two masters, of which each runs the same PHP and C library of an image by a mount of its own."""
    top = Path(tempfile.mkdtemp(prefix="phptrace-test."))  # where other users may read
    top.chmod(0o755)
    image = top / "image"
    image.mkdir()
    shutil.copy(php_fpm, image / "php-fpm")
    shutil.copy("/lib/x86_64-linux-gnu/libc.so.6", image)
    with contextlib.ExitStack() as undo:
        undo.callback(shutil.rmtree, top)
        masters = []
        for name in ("one", "two"):
            folders = {part: top / name / part for part in ("upper", "work", "root")}
            for folder in folders.values():
                folder.mkdir(parents=True)
            layers = f"lowerdir={image},upperdir={folders['upper']},workdir={folders['work']}"
            command = ["mount", "-t", "overlay", "overlay", "-o", layers, folders["root"]]
            if subprocess.run(command, capture_output=True).returncode:
                lacking("this kernel mounts no overlay. Load the module overlay.")
            undo.callback(subprocess.run, ["umount", "--lazy", folders["root"]], check=True)
            site = top / name / "site"
            shutil.copytree(SCRIPTS, site)
            monkeypatch.setenv("LD_LIBRARY_PATH", str(folders["root"]))
            masters.append(Fpm(str(folders["root"] / "php-fpm"), site, {"www": ONE_WORKER}))
            undo.callback(masters[-1].stop)
        monkeypatch.delenv("LD_LIBRARY_PATH")
        yield masters


@pytest.mark.parametrize("stacks", [None, StackOptions()], ids=["without stacks", "with stacks"])
def test_a_request_is_seen_once_and_its_calls_are_counted_once(
    two_containers: list[Fpm], trace: Callable[..., Tracer], stacks: StackOptions | None
) -> None:
    executables = [processes.process(fpm.master) for fpm in two_containers]
    assert executables[0] is not None
    assert executables[1] is not None
    assert executables[0].executable != executables[1].executable
    tracer = trace(*(str(fpm.master) for fpm in two_containers), stacks=stacks)

    for number in range(5):
        for fpm in two_containers:
            fpm.get("native_calls.php", QUERY_STRING="mapped", REQUEST_URI=f"/{fpm.master}/{number}")
    requests = tracer.next(10)
    tracer.close()

    assert tracer.requests == requests
    assert sorted(one.uri or "" for one in requests) == sorted(
        f"/{fpm.master}/{number}" for fpm in two_containers for number in range(5)
    )
    assert all(one.complete for one in requests)
    assert sorted(one.nth for one in requests) == sorted([*range(1, 6)] * 2)
    # A block of 3,000,017 bytes is a mapping of its own. FFI maps more in the first two of a worker.
    assert {(one.map_calls, one.map_bytes, one.unmap_calls) for one in requests[4:]} == {(1, 3_002_368, 0)}
    assert {(one.native_alloc_calls, one.native_kept) for one in requests[4:]} == {(1, 3_002_368)}
