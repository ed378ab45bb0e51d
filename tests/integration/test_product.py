"""What a user gets: the demo, a wheel, nginx in front, and a page that tells the truth."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

from conftest import Fpm, attached_to, finish, phptrace

from tracer.recording.reader import Reader

CHECKOUT = Path(__file__).resolve().parent.parent.parent


def test_the_demo_puts_the_planted_leaker_on_top(tmp_path: Path) -> None:
    env = {**os.environ, "PHPTRACE_DEMO_SECONDS": "10"}
    answer = subprocess.run(
        [str(CHECKOUT / "vagrant/demo/run")], cwd=tmp_path, env=env, capture_output=True, text=True, timeout=180
    )

    assert answer.returncode == 0, answer.stdout + answer.stderr
    live, report = answer.stdout.split("== Which scripts made the workers grow")
    for shown in (live, report):
        header = next(at for at, line in enumerate(shown.splitlines()) if "native growth↓" in line)
        assert "native-leak.php" in shown.splitlines()[header + 1]
    first = next(line for line in report.splitlines() if "native-leak.php" in line)
    requests, kept = (int(found) for found in re.findall(r"native-leak\.php\s+(\d+).*\+(\d+) KiB", first)[0])
    assert requests > 50
    assert abs(kept * 1024 - 524_272) <= 0.02 * 524_272
    assert " 0 lost" in report
    with Reader(str(tmp_path / "demo.phptrace")) as recording:
        scripts = {request.script for request in recording.requests()}
    assert "/usr/share/dokuwiki/doku.php" in scripts
    running = subprocess.run(["pgrep", "-f", "phptrace-demo"], capture_output=True, text=True).stdout
    assert running == ""


def test_a_wheel_brings_the_bpf_programs_along(tmp_path: Path) -> None:
    source = tmp_path / "source"
    subprocess.run(
        [
            "cp",
            "-r",
            *(str(CHECKOUT / name) for name in ("tracer", "bpf", "pyproject.toml", "README.md")),
            str(tmp_path),
        ],
        check=True,
    )
    source.mkdir()
    subprocess.run(
        [
            sys.executable,
            "-m",
            "pip",
            "wheel",
            "-q",
            "--no-index",
            "--no-deps",
            "--no-build-isolation",
            "-w",
            str(source),
            ".",
        ],
        cwd=tmp_path,
        check=True,
        capture_output=True,
    )
    (wheel,) = source.glob("phptrace-*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        archive.extractall(tmp_path / "installed")

    assert {
        "tracer/bpf_source/request.bpf.c",
        "tracer/bpf_source/request_events.h",
        "tracer/bpf_source/kernel/include/linux/ptrace.h",
    } <= names
    answer = subprocess.run(
        [sys.executable, "-c", "from tracer.backends.bpf.programs import bpf_sources; print(bpf_sources())"],
        cwd=tmp_path / "installed",
        env={**os.environ, "PYTHONPATH": str(tmp_path / "installed")},
        capture_output=True,
        text=True,
        check=True,
    )
    assert answer.stdout.strip() == str(tmp_path / "installed/tracer/bpf_source")


def test_as_many_requests_are_recorded_as_the_load_generator_sent(
    start_fpm: Callable[..., Fpm], tmp_path: Path
) -> None:
    fpm = start_fpm(www="pm = static\npm.max_children = 4\nlisten.mode = 0666")
    config = tmp_path / "nginx.conf"
    config.write_text(
        f"daemon off; worker_processes 1; pid {tmp_path}/pid; error_log {tmp_path}/error; user www-data;\n"
        "events { worker_connections 128; }\n"
        f"http {{ access_log off; client_body_temp_path {tmp_path}/1; proxy_temp_path {tmp_path}/2;"
        f" fastcgi_temp_path {tmp_path}/3; uwsgi_temp_path {tmp_path}/4; scgi_temp_path {tmp_path}/5;\n"
        "server { listen 127.0.0.1:8091; location / { include /etc/nginx/fastcgi_params;"
        f" fastcgi_param SCRIPT_FILENAME {fpm.folder}/hello.php; fastcgi_pass unix:{fpm.socket()}; }} }} }}\n"
    )
    nginx = subprocess.Popen(["nginx", "-p", str(tmp_path), "-c", str(config)])
    try:
        path = tmp_path / "r.phptrace"
        process = phptrace("record", "-o", str(path), str(fpm.master))
        attached_to(process)
        url = "http://127.0.0.1:8091/any?n=1"
        out = subprocess.run(["wrk", "-t1", "-c8", "-d3s", url], capture_output=True, text=True, check=True).stdout
        code, _, said = finish(process)
    finally:
        nginx.terminate()
        nginx.wait()

    sent = int(re.findall(r"(\d+) requests in", out)[0])
    with Reader(str(path)) as recording:
        totals = recording.totals()
        uris = {request.uri for request in recording.requests(["uri"])}
    assert code == 0, said
    assert totals.lost == 0
    # wrk stops without waiting for the answers to its last requests, one a connection.
    assert sent <= totals.requests <= sent + 8
    assert uris <= {"/any"} | {None}
