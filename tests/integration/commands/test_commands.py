"""The verbs as a user meets them: on a terminal, in a pipe, without rights, with files and processes gone."""

from __future__ import annotations

import contextlib
import csv
import io
import json
import os
import re
import signal
import sqlite3
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from command import CHECKOUT, attached_to, finish, phptrace, run, run_as_nobody
from fpm import ONE_WORKER, Fpm
from proc_status import state
from waiting import wait_for
from warm_recorder import WarmRecorder

from tracer.facts import Request
from tracer.recording.reader import Reader

pytestmark = [pytest.mark.needs_bpf, pytest.mark.usefixtures("programs_loaded")]


@pytest.fixture(scope="module")
def recording(start_fpm: Callable[..., Fpm], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Made by `phptrace record`: a leaker, a harmless script and a hostile URI."""
    fpm = start_fpm(www=ONE_WORKER)
    path = tmp_path_factory.mktemp("recording") / "r.phptrace"
    process = phptrace("record", "-o", str(path), str(fpm.master))
    attached_to(process)
    for _ in range(12):
        fpm.get("leak.php", QUERY_STRING="524272")
        fpm.get("hello.php")
    fpm.get("hello.php", REQUEST_URI=b"/=1+1\x1b[2J\n\xff\"',\t?q=secret")
    wait_for(lambda: _rows(path) == 25, "the requests to be on disk")
    code, _, said = finish(process)
    assert code == 0, said
    return path


def _rows(path: Path) -> int:
    """Requests on disk so far; 0 also where there is no recording yet."""
    if not path.exists() or path.stat().st_size == 0:
        return 0
    with contextlib.closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as connection:
        return int(connection.execute("SELECT count(*) FROM request").fetchone()[0])


def test_the_leaker_stands_on_top_of_the_report(recording: Path) -> None:
    answer = run("report", str(recording))

    assert answer.returncode == 0
    first = answer.stdout[answer.stdout.index("KEPT↓") :].splitlines()[1]
    assert "leak.php" in first
    assert "+6.0 MiB" in first  # 12 times: malloc maps 512 KiB and its header on pages of their own
    assert "25 requests · 1 worker · 0 incomplete · 0 lost" in answer.stdout


def test_json_has_the_agreed_fields_and_exact_figures(recording: Path) -> None:
    document = json.loads(run("report", "--format", "json", str(recording)).stdout)

    assert {"schema", "requests", "lost", "incomplete", "workers", "groups"} <= set(document)
    assert (document["schema"], document["requests"], document["lost"], document["workers"]) == (2, 25, 0, 1)
    leaker = document["groups"][0]
    assert leaker["key"].endswith("/leak.php")
    assert leaker["kept_p50"] == 528_384
    assert {"growth_bytes", "growth_p95", "anon_peak_max", "zend_peak_max", "duration_p95_ns"} <= set(leaker)


def test_the_info_names_what_was_traced_and_how(recording: Path) -> None:
    answer = run("info", "--format", "json", str(recording))

    document = json.loads(answer.stdout)
    with Reader(str(recording)) as file:
        (worker,) = file.workers()
    assert answer.returncode == 0
    assert (document["requests"], document["incomplete"], document["lost"], document["workers"]) == (25, 0, 0, 1)
    assert (document["php"], document["pools"]) == ([worker.php_version], [worker.pool])
    assert (document["host"], document["closed"]) == (os.uname().nodename, True)
    assert 0 < document["elapsed_s"] < 300
    assert document["options"]["query"] == "strip"


def _pool_and_pid(request: Request) -> str:
    return f"{request.pool}/{request.pid}"


@pytest.mark.parametrize(
    ("by", "key", "groups"),
    [
        ("uri", lambda request: request.uri, 3),
        ("route", lambda request: request.uri, 3),
        ("worker", _pool_and_pid, 1),
        ("pool", lambda request: request.pool, 1),
    ],
    ids=["uri", "route", "worker", "pool"],
)
def test_report_groups_by_what_it_is_asked_for(
    recording: Path, by: str, key: Callable[[Request], str], groups: int
) -> None:
    answer = run("report", "--group-by", by, "--format", "json", str(recording))

    with Reader(str(recording)) as file:
        # Bytes that are not UTF-8 are U+FFFD in JSON.
        truth = Counter(
            key(request).encode(errors="surrogateescape").decode(errors="replace") for request in file.requests()
        )
    assert {group["key"]: group["requests"] for group in json.loads(answer.stdout)["groups"]} == truth
    assert len(truth) == groups


def test_nothing_hostile_reaches_a_terminal_or_a_spreadsheet_raw(recording: Path) -> None:
    table = ["report", "--group-by", "uri"]
    for arguments in (table, [*table, "--format", "tsv"], ["export", "--format", "tsv"], ["export", "--format", "csv"]):
        out = run(*arguments, str(recording)).stdout
        assert "\x1b" not in out
        assert "secret" not in out
        # A table shows the end of a long key.
        assert (r"\x1b[2J\n\xff" if arguments is table else r"/=1+1\x1b[2J\n\xff") in out.replace('""', '"')


def test_export_gives_every_column_of_every_request(recording: Path) -> None:
    rows = [json.loads(line) for line in run("export", "--format", "ndjson", str(recording)).stdout.splitlines()]
    table = list(csv.DictReader(io.StringIO(run("export", "--format", "csv", str(recording)).stdout)))

    assert len(rows) == len(table) == 25
    assert list(rows[0])[: len(Request._fields)] == list(Request._fields)
    assert rows[-1]["uri"] == "/=1+1\x1b[2J\n\ufffd\"',\t"


def test_the_awk_program_of_the_documents_ranks_by_growth(recording: Path) -> None:
    page = (CHECKOUT / "docs/recording.md").read_text()
    match = re.search(r"export --format tsv demo\.phptrace (\| awk.*?)\n\$ ", page, re.DOTALL)
    assert match is not None
    tsv = run("export", "--format", "tsv", str(recording)).stdout
    answer = subprocess.run(f"cat {match[1]}", shell=True, input=tsv, capture_output=True, text=True, check=True)  # noqa: S602 - the page's own command

    growth, script = answer.stdout.splitlines()[0].split(maxsplit=1)
    assert script.endswith("/leak.php")
    assert int(growth) >= 12 * 524_288


def test_a_flame_of_a_recording_without_stacks_says_how_to_make_one_with(recording: Path) -> None:
    answer = run("flame", str(recording), "--format", "folded")

    assert answer.returncode == 2
    assert "record --stacks" in answer.stderr


def test_filters_keep_only_what_was_asked_for(recording: Path) -> None:
    grown = run("export", "--min-growth", "500K", str(recording)).stdout.splitlines()
    scripts = run("export", "--script", "*/hello.php", str(recording)).stdout.splitlines()
    slow = run("export", "--slow", "3s", str(recording)).stdout.splitlines()

    assert len(grown) == 12
    assert len(scripts) == 13
    assert slow == []


def test_a_recording_that_was_open_elsewhere_when_it_ended_can_be_read_by_others(
    fpm: Fpm, tmp_path: Path, public: Path
) -> None:
    path = tmp_path / "r.phptrace"
    process = WarmRecorder("-o", str(path), str(fpm.master))
    attached_to(process)
    fpm.get("hello.php")
    wait_for(lambda: _rows(path) == 1, "the request to be on disk")
    with contextlib.closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as connection:
        connection.execute("SELECT count(*) FROM request").fetchone()
        code, _, said = finish(process)

    assert code == 0, said
    copy = _published(path, public)
    answer = run_as_nobody("report", "--format", "json", str(copy))
    assert answer.returncode == 0, answer.stderr
    assert json.loads(answer.stdout)["requests"] == 1


def test_the_report_says_which_uri_forked_processes(start_fpm: Callable[..., Fpm], tmp_path: Path) -> None:
    fpm = start_fpm(www=ONE_WORKER)
    (worker,) = fpm.workers()
    path = tmp_path / "r.phptrace"
    process = WarmRecorder("-o", str(path), str(fpm.master))
    attached_to(process)
    for end in ("kill", "stay", "kill"):
        fpm.get("fork.php", REQUEST_URI=f"/spawn?end={end}", QUERY_STRING=end)
    fpm.get("spawn.php")  # a program that it executes is not counted
    wait_for(lambda: _rows(path) == 4, "the requests to be on disk")
    code, _, said = finish(process)
    children = Path(f"/proc/{worker}/task/{worker}/children").read_text().split()
    (stayed,) = (int(pid) for pid in children if state(int(pid))[0] != "Z")
    os.kill(stayed, signal.SIGKILL)
    answer = run("report", str(path))

    assert code == 0, said
    assert re.search(r"^3 processes forked by /spawn, 1 alive, [\d.]+ MiB each$", answer.stdout, re.MULTILINE)
    assert "1 worker ·" in answer.stdout


def test_report_needs_neither_root_nor_bcc(recording: Path, public: Path) -> None:
    answer = run_as_nobody("report", "--format", "json", str(_published(recording, public)))

    assert answer.returncode == 0, answer.stderr
    assert json.loads(answer.stdout)["requests"] == 25


@pytest.fixture
def public() -> Iterator[Path]:
    """A folder where everybody may look; pytest's own are closed to others."""
    with tempfile.TemporaryDirectory(prefix="phptrace-test.") as folder:
        Path(folder).chmod(0o755)
        yield Path(folder)


def _published(path: Path, folder: Path) -> Path:
    """A copy that others may read, and nothing else."""
    copy = folder / "public.phptrace"
    copy.write_bytes(path.read_bytes())
    copy.chmod(0o444)
    return copy


def test_a_recording_is_0600_and_belongs_to_who_called_sudo(fpm: Fpm, tmp_path: Path) -> None:
    path = tmp_path / "r.phptrace"
    env = {**os.environ, "SUDO_UID": "65534", "SUDO_GID": "65534"}
    process = phptrace("record", "-d", "1s", "-o", str(path), str(fpm.master), env=env)
    process.communicate(timeout=30)

    stat = path.stat()
    assert (stat.st_mode & 0o777, stat.st_uid, stat.st_gid) == (0o600, 65534, 65534)


def test_in_a_pipe_attach_writes_a_line_a_request(fpm: Fpm) -> None:
    process = phptrace("attach", "-c", "3", str(fpm.master))
    attached_to(process)
    for number in range(3):
        fpm.get("hello.php", REQUEST_URI=f"/{number}\tx\n")
    out, said = process.communicate(timeout=30)

    header, *lines = out.splitlines()
    assert process.returncode == 0, said
    assert header.split("\t")[:3] == ["time", "pid", "pool"]
    uri = header.split("\t").index("uri")
    assert [line.split("\t")[uri] for line in lines] == [rf"/{number}\tx\n" for number in range(3)]
    assert "3 requests · 1 worker · 0 incomplete · 0 lost" in said


def test_attach_fits_a_terminal_of_100_by_30(fpm: Fpm, tmp_path: Path) -> None:
    screen = tmp_path / "screen"
    command = f"stty cols 100 rows 30; exec {sys.executable} -m tracer attach --columns kept,/req -d 2s {fpm.master}"
    process = subprocess.Popen(
        ["script", "-qefc", command, str(screen)], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, cwd=CHECKOUT
    )
    wait_for(lambda: screen.exists() and b"phptrace" in screen.read_bytes(), "the live view")
    while process.poll() is None:
        fpm.get("leak.php", QUERY_STRING="524272")
        fpm.get("hello.php")

    last = screen.read_text(errors="replace").split("\x1b[?1049l")[-1]
    lines = re.sub(r"\x1b\[[?0-9;]*[a-zA-Z]", "", last).replace("\r", "").splitlines()
    assert process.returncode == 0
    assert max(map(len, lines)) <= 100
    assert len(lines) <= 30
    ranked = next(at for at, line in enumerate(lines) if "KEPT↓" in line)
    assert "leak.php" in lines[ranked + 1]
    assert "+516 KiB" in lines[ranked + 1]
    assert re.search(r"bpf · 1 worker · [\d,]+ requests/s · \d+ s · 0 lost", "\n".join(lines))


def test_nothing_seen_for_five_seconds_is_said_with_what_to_do(fpm: Fpm, tmp_path: Path) -> None:
    process = WarmRecorder("-o", str(tmp_path / "r.phptrace"), str(fpm.master))
    said = attached_to(process, "no request seen yet")
    code, _, _ = finish(process)

    assert code == 0
    assert "curl" in said


def test_count_and_filters_work_over_all_workers(start_fpm: Callable[..., Fpm], tmp_path: Path) -> None:
    fpm = start_fpm(www="pm = static\npm.max_children = 3")
    path = tmp_path / "r.phptrace"
    process = WarmRecorder("-c", "7", "--uri", "/kept/*", "-o", str(path), str(fpm.master))
    attached_to(process)
    number = 0
    while process.poll() is None and number < 10_000:
        number += 1
        fpm.get("hello.php", REQUEST_URI=f"/{'kept' if number % 2 else 'other'}/{number}")
    process.communicate()

    assert process.returncode == 0
    assert _rows(path) == 7


def test_a_target_that_ends_leaves_its_recording_and_exit_code_6(start_fpm: Callable[..., Fpm], tmp_path: Path) -> None:
    fpm = start_fpm(www=ONE_WORKER)
    path = tmp_path / "r.phptrace"
    process = phptrace("record", "-o", str(path), str(fpm.master))
    attached_to(process)
    fpm.get("hello.php")
    fpm.stop()
    _, said = process.communicate(timeout=30)

    assert process.returncode == 6
    assert "all its processes have ended. Start PHP, then phptrace, again." in said
    assert _rows(path) == 1


def test_a_full_disk_is_said_at_once_and_what_is_written_can_be_read(fpm: Fpm, tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1500k", "tmpfs", str(disk)], check=True)
    try:
        path = disk / "r.phptrace"
        process = WarmRecorder("-o", str(path), str(fpm.master))
        attached_to(process)
        sent = 0
        while process.poll() is None and sent < 50_000:
            fpm.get("hello.php", REQUEST_URI="/" + "x" * 500)
            sent += 1
        _, said = process.communicate(timeout=30)
        answer = run("report", "--format", "json", str(path))
    finally:
        subprocess.run(["umount", str(disk)], check=True)

    assert process.returncode == 8
    assert "full" in said
    assert "Traceback" not in said
    assert answer.returncode == 0, answer.stderr
    assert 0 < json.loads(answer.stdout)["requests"] < sent


def test_an_unwritable_folder_is_said_before_anything_is_attached(fpm: Fpm) -> None:
    answer = run("record", "-d", "1s", "-o", "/proc/r.phptrace", str(fpm.master))

    assert answer.returncode == 2
    assert answer.stderr.startswith("phptrace: cannot write /proc/r.phptrace")
    assert len(answer.stderr.splitlines()) == 1, "nothing of attaching"


def test_without_rights_the_missing_capability_is_named(fpm: Fpm) -> None:
    answer = run_as_nobody("attach", str(fpm.master))

    assert answer.returncode == 4
    assert "CAP_SYS_PTRACE" in answer.stderr
    assert "sudo" in answer.stderr


def test_pypis_namesake_of_bcc_is_recognised(fpm: Fpm, tmp_path: Path) -> None:
    (tmp_path / "bcc").mkdir()
    (tmp_path / "bcc" / "__init__.py").write_text("'''N-dimensional body-centred cubic lattices'''\n")
    env = {**os.environ, "PYTHONPATH": f"{tmp_path}:{CHECKOUT}"}
    answer = run("attach", "--backend", "bpf", str(fpm.master), env=env)

    assert answer.returncode == 5
    assert "PyPI" in answer.stderr
    assert "apt install python3-bpfcc" in answer.stderr


def test_a_bcc_that_cannot_be_imported_is_named_with_the_fix(fpm: Fpm, tmp_path: Path) -> None:
    (tmp_path / "bcc.py").write_text("raise ImportError('libbcc.so.0: cannot open shared object file')\n")
    env = {**os.environ, "PYTHONPATH": f"{tmp_path}:{CHECKOUT}"}
    answer = run("attach", "--backend", "bpf", str(fpm.master), env=env)

    assert answer.returncode == 5
    assert "libbcc.so.0" in answer.stderr
    assert "--system-site-packages" in answer.stderr


@pytest.mark.parametrize(
    ("arguments", "code"),
    [(["attach", "4194303"], 6), (["attach", str(os.getpid())], 5), (["attach", "apache2"], 3), (["attach"], 2)],
)
def test_an_attach_without_a_valid_target_fails_with_its_exit_code(arguments: list[str], code: int) -> None:
    answer = run(*arguments)

    assert answer.returncode == code
    assert answer.stderr.startswith("phptrace: ")


def test_doctor_finds_everything_in_order_here(fpm: Fpm) -> None:
    answer = run("doctor", "--json", str(fpm.master))

    document = json.loads(answer.stdout)
    assert answer.returncode == 0
    assert document["can_trace"] is True
    assert {"rights", "BTF", "bcc", "request hooks", "REQUEST_URI"} <= {check["name"] for check in document["checks"]}


def test_doctor_names_what_is_missing_and_the_fix(fpm: Fpm, tmp_path: Path) -> None:
    (tmp_path / "bcc.py").write_text("raise ImportError('none here')\n")
    env = {**os.environ, "PYTHONPATH": f"{tmp_path}:{CHECKOUT}"}
    answer = run("doctor", str(fpm.master), env=env)

    assert answer.returncode == 5
    assert "Cannot trace. Fix 1 problem (listed above)." in answer.stdout
    assert re.search(r"FAIL +bcc .*none here", answer.stdout)
    assert "apt install python3-bpfcc" in answer.stdout


def test_a_reader_that_has_had_enough_ends_attach_quietly(fpm: Fpm) -> None:
    process = phptrace("attach", str(fpm.master))
    attached_to(process)
    assert process.stdout is not None
    process.stdout.close()
    while process.poll() is None:
        fpm.get("hello.php")
    process.stdout = None
    _, said = process.communicate()

    assert process.returncode == 0
    assert "Traceback" not in said


def test_a_recording_to_stdout_is_a_recording(fpm: Fpm, tmp_path: Path) -> None:
    with open(tmp_path / "r.phptrace", "wb") as out:
        process = phptrace("record", "-c", "2", "-o", "-", str(fpm.master), stdout=out)
        attached_to(process)
        fpm.get("hello.php")
        fpm.get("hello.php")
        process.communicate(timeout=30)

    assert process.returncode == 0
    assert _rows(tmp_path / "r.phptrace") == 2
