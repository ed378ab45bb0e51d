"""phptrace heap on real processes."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from c_programs import compiled
from command import phptrace, run, run_as_nobody
from fpm import ONE_WORKER, TWO_WORKERS, Fpm
from machine import require
from proc_status import rollup_bytes, state, waits_for_a_request
from waiting import wait_for

pytestmark = pytest.mark.needs_php


def test_a_worker_is_shown_with_its_size_classes(fpm: Fpm) -> None:
    (worker,) = fpm.workers()
    fpm.get("heap.php", QUERY_STRING="binds=5000")

    answer = run("heap", "-n", "1", str(worker))

    assert (answer.returncode, answer.stderr) == (0, "")
    lines = answer.stdout.splitlines()
    assert lines[0] == f"process {worker} (php-fpm: pool www)"
    assert [line.split()[0] for line in lines[lines.index("") + 2 :]] == ["1,040", "…"]
    assert re.search(r"unexplained +\d", answer.stdout)
    assert state(worker)[1] == 0


def test_a_master_means_each_of_its_workers(start_fpm: Callable[..., Fpm]) -> None:
    fpm = start_fpm(www=TWO_WORKERS)
    wait_for(lambda: all(waits_for_a_request(worker) for worker in fpm.workers()), "the workers to rest")

    answer = run("heap", "--format", "json", str(fpm.master))

    assert (answer.returncode, answer.stderr) == (0, "")
    processes = json.loads(answer.stdout)["processes"]
    assert [one["pid"] for one in processes] == sorted(fpm.workers())
    for one in processes:
        assert one["anon_bytes"] == one["native_bytes"] + one["zend_resident_bytes"]
        assert abs(one["anon_bytes"] - rollup_bytes(one["pid"], "Anonymous")) < 64 << 10
        assert one["settled"] is True
        assert one["malloc_in_use_bytes"] == sum(each["bytes"] for each in _all_classes(one["pid"]))


def _all_classes(pid: int) -> list[dict[str, int]]:
    answer = run("heap", "-n", "0", "--format", "json", str(pid))
    classes: list[dict[str, int]] = json.loads(answer.stdout)["processes"][0]["size_classes"]
    return classes


def test_two_looks_show_the_leaking_size_class_to_the_chunk(fpm: Fpm) -> None:
    (worker,) = fpm.workers()
    for _ in range(3):
        fpm.get("heap.php", QUERY_STRING="binds=32")
    wait_for(lambda: waits_for_a_request(worker), "the worker to rest")
    process = phptrace("heap", "--again", "4s", "--format", "json", str(worker))
    assert process.stderr is not None
    assert process.stderr.readline() == "phptrace: looking again in 4 s; press Ctrl-C to look now\n"
    for _ in range(10):
        fpm.get("heap.php", QUERY_STRING="binds=32")
    out, _ = process.communicate()

    assert process.returncode == 0
    (found,) = json.loads(out)["processes"]
    assert [(one["chunk_bytes"], one["chunks_change"]) for one in found["size_classes"]] == [(1040, 320), (32, 320)]
    assert found["malloc_in_use_bytes_change"] == 343_040
    assert found["elapsed_s"] >= 4


def test_a_worker_that_ends_between_two_looks_is_exit_code_6(start_fpm: Callable[..., Fpm]) -> None:
    fpm = start_fpm(www=ONE_WORKER)
    (worker,) = fpm.workers()
    process = phptrace("heap", "--again", "2s", str(worker))
    assert process.stderr is not None
    process.stderr.readline()
    os.kill(worker, signal.SIGKILL)
    out, err = process.communicate()

    assert (process.returncode, out) == (6, "")
    assert err == f"phptrace: cannot look at process {worker}: it has ended. Check the PID.\n"


def test_a_master_without_a_worker_is_exit_code_3(start_fpm: Callable[..., Fpm]) -> None:
    fpm = start_fpm(www="pm = ondemand\npm.max_children = 2")

    answer = run("heap", str(fpm.master))

    assert (answer.returncode, answer.stdout) == (3, "")
    assert "it is a php-fpm master without workers. Send it a request, then try again." in answer.stderr


@pytest.fixture
def script() -> Iterator[int]:
    """A script that PHP's command line runs, and that waits."""
    require("php")
    program = "echo 'ready'; fgets(STDIN);"
    started = subprocess.Popen(["php", "-r", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert started.stdout is not None
    started.stdout.read(5)
    yield started.pid
    started.communicate()


def test_any_php_process_is_shown(script: int) -> None:
    answer = run("heap", "--format", "json", str(script))

    assert (answer.returncode, answer.stderr) == (0, "")
    (found,) = json.loads(answer.stdout)["processes"]
    assert (found["pid"], found["pool"], found["settled"]) == (script, None, True)
    assert found["zend_resident_bytes"] > 0


def test_a_process_that_is_not_php_is_exit_code_5() -> None:
    answer = run("heap", str(os.getpid()))

    assert (answer.returncode, answer.stdout) == (5, "")
    assert "not PHP" in answer.stderr


def test_without_the_rights_it_is_exit_code_4(fpm: Fpm) -> None:
    (worker,) = fpm.workers()

    answer = run_as_nobody("heap", str(worker))

    assert (answer.returncode, answer.stdout) == (4, "")
    assert "sudo" in answer.stderr


def test_a_heap_of_another_allocator_is_exit_code_8_and_zend_s_part_is_shown(
    start_fpm: Callable[..., Fpm], monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder: Path = tmp_path_factory.mktemp("malloc")
    monkeypatch.setenv("LD_PRELOAD", str(compiled("int it;", folder / "libjemalloc.so.2", "-shared", "-fPIC")))
    fpm = start_fpm(www=ONE_WORKER)
    monkeypatch.delenv("LD_PRELOAD")

    answer = run("heap", str(fpm.master))

    assert answer.returncode == 8
    assert re.search(r"malloc: in use +-\n", answer.stdout)
    assert re.search(r"Zend, resident +\d", answer.stdout)
    assert "note: malloc: unknown, since its malloc is jemalloc, not glibc's\n" in answer.stdout
    assert answer.stderr == (
        "phptrace: cannot show every figure: the reasons are above."
        " Use --limit for a larger heap, --swap-in for one in swap.\n"
    )


def test_without_zend_s_allocator_native_is_all(start_fpm: Callable[..., Fpm], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("USE_ZEND_ALLOC", "0")
    fpm = start_fpm(www=ONE_WORKER)

    answer = run("heap", "--format", "json", str(fpm.master))

    assert answer.returncode == 0
    (found,) = json.loads(answer.stdout)["processes"]
    assert (found["zend_resident_bytes"], found["native_bytes"]) == (0, found["anon_bytes"])
    assert found["notes"] == ["Zend: PHP uses malloc instead of Zend's allocator (USE_ZEND_ALLOC=0)"]


def test_ctrl_c_while_waiting_is_the_second_look(fpm: Fpm) -> None:
    process = phptrace("heap", "--again", "10m", "--format", "json", str(fpm.workers()[0]))
    assert process.stderr is not None
    process.stderr.readline()
    process.send_signal(signal.SIGINT)
    out, _ = process.communicate(timeout=60)

    assert process.returncode == 0
    (found,) = json.loads(out)["processes"]
    assert (found["elapsed_s"] < 60, found["malloc_in_use_bytes_change"], found["size_classes"]) == (True, 0, [])
