"""The command line: exit codes, help, and what reading a recording prints. Nothing here attaches to anything."""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import re
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from samples import COMPLETE, recording
from stack_recordings import ABOUT, FACTS

from tracer import __version__
from tracer.analysis.tally import Tally
from tracer.backends import StackOptions
from tracer.backends.bpf.backend import BpfBackend
from tracer.backends.choose import Choice
from tracer.capture import Filter, Progress, Why
from tracer.commands.attaching import Plan, Session, finish
from tracer.commands.messages import note_limits
from tracer.errors import IncompleteError, PhptraceError, TargetGoneError, UnsupportedError, UsageError
from tracer.facts import Loss
from tracer.targets.resolve import Refused

ROOT = Path(__file__).resolve().parents[2]
VERBS = ("attach", "record", "report", "diff", "flame", "export", "sizing", "info", "heap", "host", "doctor")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return recording(tmp_path / "r.phptrace", [COMPLETE])


def plan(**changed: object) -> Plan:
    options = {"names": ("php-fpm",), "duration_s": None, "count": None, "backend": "auto", "keep": Filter(),
               "keep_query": False, "force": False}  # fmt: skip
    return Plan(**{**options, **changed})


EVIL = "a\x1b]0;owned\x07\u202eb"


@pytest.mark.parametrize(
    "arguments",
    [("report", EVIL), ("export", EVIL), ("flame", EVIL), ("info", EVIL), ("report", f"--{EVIL}"), (EVIL,),
     ("record", "-o", f"/nope{EVIL}/x", "php-fpm"), ("attach", f"php-fpm:{EVIL}"), ("heap", EVIL)],
)  # fmt: skip
def test_no_message_has_what_a_terminal_would_act_on(run, arguments):
    code, out, err = run(*arguments)

    assert code != 0
    assert not [char for char in out + err if not (char.isprintable() or char == "\n")]


def test_the_words_of_sqlite_on_a_crafted_recording_are_escaped(run, path):
    with contextlib.closing(sqlite3.connect(path)) as file:
        file.execute("PRAGMA writable_schema = on")
        file.execute("INSERT INTO sqlite_schema VALUES ('table', ?, 'x', 3, 'CREATE TABLE x(')", (EVIL,))
        file.commit()

    code, _, err = run("report", path)

    assert code == 7
    assert "malformed database schema" in err
    assert not [char for char in err if not (char.isprintable() or char == "\n")]


@pytest.mark.parametrize(
    "arguments", [("export",), ("report",), ("report", "--format", "csv"), ("info",), ("flame", "--format", "folded")]
)
def test_a_stderr_that_cannot_be_written_fails_nothing(tmp_path, arguments):
    path = recording(tmp_path / "r.phptrace", FACTS, ABOUT)
    with open("/dev/full", "w") as full:
        ended = subprocess.run(
            [sys.executable, "-m", "tracer", *arguments, str(path)], stdout=subprocess.PIPE, stderr=full, cwd=ROOT
        )

    assert ended.returncode == 0
    assert ended.stdout


def test_a_folder_that_was_removed_is_named(tmp_path, path):
    gone = tmp_path / "gone"
    gone.mkdir()

    ended = subprocess.run(
        ["/bin/sh", "-c", f"cd {gone}; rmdir {gone}; exec {sys.executable} -m tracer report {path}"],
        capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip

    assert ended.returncode == 2
    assert "cannot use the current directory: No such file or directory." in ended.stderr


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_has_help(run, verb):
    code, out, err = run(verb, "--help")

    assert (code, err) == (0, "")
    assert out.startswith(f"Usage: phptrace {verb} [OPTIONS]")


@pytest.mark.parametrize("verb", VERBS)
def test_the_short_help_of_a_verb_is_the_first_sentence_of_its_help(run, verb):
    _, listed, _ = run("--help")
    _, out, _ = run(verb, "--help")

    first = " ".join(out.split("\n\n")[1].split()).partition(". ")[0].removesuffix(".") + "."
    assert f"\n  {verb:<6}  {first}\n" in listed


def test_the_help_imports_no_verb():
    program = (
        "import sys; from tracer.cli import main\n"
        "try: main(['--help'])\n"
        "except SystemExit: sys.exit(any(name.startswith('tracer.commands') for name in sys.modules))"
    )

    assert subprocess.run([sys.executable, "-c", program], stdout=subprocess.DEVNULL, cwd=ROOT).returncode == 0


def test_the_help_names_every_verb_and_the_exit_codes(run):
    code, out, _ = run("-h")

    assert code == 0
    assert all(f"\n  {verb} " in out for verb in VERBS)
    kinds = [PhptraceError, *PhptraceError.__subclasses__()]
    listed = re.findall(r"^ +(\d+)  \w", out, re.MULTILINE)
    assert [int(code) for code in listed] == [0, *sorted({kind.exit_code for kind in kinds}), 130]


@pytest.mark.parametrize("option", ["-v", "-q", "--verbose"])
def test_an_option_for_all_verbs_given_behind_the_verb_is_refused_with_its_place(run, option):
    code, _, err = run("report", option, "x")

    assert code == 2
    assert f"No such option: {option} of this verb. Write it before the verb." in err


def test_an_option_that_no_verb_has_is_refused_without_a_place(run):
    assert run("report", "--nonsense", "x")[2].endswith("No such option: --nonsense\n")


def test_the_version_is_printed(run):
    assert run("--version") == (0, f"phptrace, version {__version__}\n", "")


@pytest.mark.parametrize(
    "arguments",
    [
        ["nonsense"],
        ["--nonsense"],
        ["report"],
        ["report", "--sort", "nonsense", "x"],
        ["report", "-n", "-1", "x"],
        ["record"],
        ["attach", "--duration", "soon", "php-fpm"],
        ["attach", "--min-growth", "-1", "php-fpm"],
        ["attach", "--count", "0", "php-fpm"],
        ["record", "--backend", "nonsense", "php-fpm"],
        ["record", "-p", "0"],
        ["export", "--format", "nonsense", "x"],
        ["flame"],
        ["heap"],
        ["heap", "php-fpm"],
        ["heap", "0"],
        ["heap", "--again", "soon", "1"],
        ["heap", "--format", "csv", "1"],
        ["heap", "--limit", "much", "1"],
        ["flame", "--format", "nonsense", "x"],
        ["flame", "--metric", "nonsense", "x"],
        ["report", "--stacks", "--metric", "nonsense", "x"],
        ["record", "--stacks", "--every", "0", "php-fpm"],
        ["record", "--stacks", "--max-depth", "3", "php-fpm"],
        ["record", "--stacks", "--max-depth", "1025", "php-fpm"],
        ["record", "--stacks", "--hz", "0", "php-fpm"],
    ],
)
def test_a_usage_error_is_exit_code_2_and_leaves_stdout_empty(run, arguments):
    code, out, err = run(*arguments)

    assert (code, out) == (2, "")
    assert err != ""


@pytest.mark.parametrize(
    ("verb", "option", "value"),
    [
        ("report", "--retained", []),
        ("report", "--metric", ["zend"]),
        ("report", "--metric", ["rss"]),
        ("record", "--max-depth", ["127"]),
        ("record", "--every", ["3"]),
        ("record", "--hz", ["997"]),
        ("record", "--retained-after", ["7"]),
    ],
)
def test_an_option_that_requires_stacks_is_a_usage_error_without_it(run, path, tmp_path, verb, option, value):
    # Where no recording can be, so that nothing is traced whatever becomes of the option.
    target = ["-o", tmp_path / "no" / "r.phptrace", "php-fpm"] if verb == "record" else [path]

    code, out, err = run(verb, option, *value, *target)

    assert (code, out, err) == (2, "", f"phptrace: cannot use {option}: it requires --stacks. Add --stacks.\n")


@pytest.mark.parametrize("options", [[], ["--stacks"], ["--stacks", "--max-depth", "127", "--every", "3", "--hz", "7"]])
def test_options_about_stacks_are_taken_with_stacks(run, tmp_path, options):
    """phptrace reports the next mistake: there is no such directory."""
    code, _, err = run("record", *options, "-o", tmp_path / "no" / "r.phptrace", "php-fpm")

    assert code == 2
    assert "there is no directory" in err


@pytest.mark.parametrize(("option", "allowed"), [("--max-depth", "4 to 1024"), ("--every", "1 to 65536"),
                                                 ("--hz", "1 to 20000")])  # fmt: skip
def test_the_help_states_the_range_that_an_option_allows(run, option, allowed):
    _, text, _ = run("record", "--help")
    _, _, below = run("record", option, "0", "php-fpm")
    _, _, above = run("record", option, "65537", "php-fpm")

    assert f"({allowed})" in " ".join(text.split())
    assert f"0 is out of range. Write {allowed}.\n" in below
    assert f"65537 is out of range. Write {allowed}.\n" in above


def test_a_text_that_is_not_a_number_is_refused(run):
    assert "'seven' is not a whole number" in run("record", "-c", "seven", "php-fpm")[2]


@pytest.mark.parametrize("verb", ["report", "flame", "export"])
def test_a_file_that_is_not_a_recording_is_exit_code_7(run, verb, tmp_path):
    (tmp_path / "x").write_text("not a recording")

    code, out, err = run(verb, tmp_path / "x")

    assert (code, out) == (7, "")
    assert err.startswith(f"phptrace: cannot read {tmp_path}/x: it is not a phptrace recording. ")


def test_one_file_that_is_not_there_fails_all(run, path, tmp_path):
    code, out, err = run("report", path, tmp_path / "gone")

    assert (code, out) == (7, "")
    assert err == f"phptrace: cannot read {tmp_path}/gone: there is no such file. Check its name.\n"


def drop_capability() -> None:
    """Drop CAP_SYS_PTRACE in a child about to run phptrace, as root (prctl(2), capability.h)."""
    ctypes.CDLL(None).prctl(24, 19, 0, 0, 0)


@pytest.fixture
def undumpable() -> Iterator[int]:
    """The PID of a process that nobody may look into without CAP_SYS_PTRACE, not even its own user (prctl(2))."""
    program = "import ctypes, signal; ctypes.CDLL(None).prctl(4, 0, 0, 0, 0); print(flush=True); signal.pause()"
    process = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE)
    assert process.stdout is not None
    process.stdout.readline()
    yield process.pid
    process.kill()
    process.communicate()


@pytest.mark.parametrize("verb", ["attach", "record"])
def test_tracing_without_the_rights_is_exit_code_4(verb, tmp_path, undumpable):
    ended = subprocess.run(
        [sys.executable, "-m", "tracer", verb, "-o", tmp_path / "r.phptrace", str(undumpable)],
        capture_output=True, text=True, cwd=ROOT, preexec_fn=drop_capability,
    )  # fmt: skip

    assert (ended.returncode, ended.stdout) == (4, "")
    assert "CAP_SYS_PTRACE" in ended.stderr
    assert "sudo" in ended.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_target_that_is_unknown_is_exit_code_3(run, tmp_path):
    code, out, err = run("record", "-o", tmp_path / "r.phptrace", "nonsense")

    assert (code, out) == (3, "")
    assert err.startswith("phptrace: cannot trace 'nonsense': it names no target")
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_behind_stdout_is_reported_without_a_traceback(path):
    with open("/dev/full", "wb") as full:
        ended = subprocess.run(
            [sys.executable, "-m", "tracer", "report", path], stdout=full, stderr=subprocess.PIPE, text=True, cwd=ROOT
        )

    assert ended.returncode != 0
    assert "Traceback" not in ended.stderr


def test_a_terminal_that_knows_only_ascii_causes_no_traceback(path):
    ended = subprocess.run(
        [sys.executable, "-m", "tracer", "report", "-n", "1", path],
        capture_output=True, cwd=ROOT, env={**os.environ, "PYTHONIOENCODING": "ascii", "PYTHONPATH": str(ROOT)},
    )  # fmt: skip

    assert b"Traceback" not in ended.stderr


def test_the_doctor_reports_an_unknown_target_with_the_exit_code_of_an_attach(tmp_path):
    ended = subprocess.run(
        [sys.executable, "-m", "tracer", "doctor", "--json", "nonsense"], capture_output=True, text=True, cwd=ROOT
    )

    checks = {check["name"]: check for check in json.loads(ended.stdout)["checks"]}
    assert "names no target" in checks["nonsense"]["found"]
    assert ended.returncode == 3
    assert "Traceback" not in ended.stderr


def test_a_plan_needs_a_target():
    with pytest.raises(UsageError, match="cannot trace: no target is given. Name php-fpm"):
        Plan.of(targets=(), pids=(), duration=None, count=None, backend="auto", uri=None, script=None, slow=None,
                min_growth=None, query="strip", force=False)  # fmt: skip


def test_a_plan_has_the_values_of_the_options():
    made = Plan.of(targets=("php-fpm:www",), pids=(4241,), duration=30.0, count=7, backend="bpf", uri="/a*",
                   script=None, slow=0.25, min_growth=4096, query="keep", force=True)  # fmt: skip

    keep = Filter(uri="/a*", slow_ns=250_000_000, min_growth=4096)
    assert made == Plan(("php-fpm:www", "4241"), 30.0, 7, "bpf", keep, True, True)
    assert made.stacks is None


@pytest.mark.parametrize(
    ("asked", "made"), [(True, StackOptions(max_depth=127, every=17, hz=997, retained_after=7)), (False, None)]
)
def test_a_plan_has_stacks_only_where_they_are_asked_for(asked, made):
    found = Plan.of(targets=("php-fpm",), pids=(), duration=None, count=None, backend="auto", uri=None, script=None,
                    slow=None, min_growth=None, query="strip", force=False, stacks=asked, max_depth=127, every=17,
                    hz=997, retained_after=7)  # fmt: skip

    assert found.stacks == made


def test_a_recording_says_how_its_stacks_were_taken():
    backend = BpfBackend()
    running = Session(Choice(backend, "asked for", (), (), ()), backend, "php-fpm")

    options = StackOptions(max_depth=127, every=17, hz=997, retained_after=7, block_bytes=4099)
    with_stacks = running.meta(plan(stacks=options))
    without = running.meta(plan())

    assert with_stacks["stacks"] == {
        "max_depth": 127,
        "every": 17,
        "hz": 997,
        "retained_after": 7,
        "block_bytes": 4099,
    }
    assert set(with_stacks) - set(without) == {"stacks"}


def test_a_recording_names_who_was_meant_and_is_not_traced():
    refused = Refused("php-fpm", 7919, UnsupportedError("cannot trace /x: it is ARM. Use another."))
    backend = BpfBackend()
    running = Session(Choice(backend, "asked for", (), (refused,), ()), backend, "php-fpm")

    assert running.meta(plan())["not_traced"] == [
        "process 7919 is not traced: cannot trace /x: it is ARM. Use another."
    ]


def test_remarks_on_phptraces_own_work_are_printed_only_when_asked_for(capsys, caplog):
    with caplog.at_level("INFO"):
        note_limits(["speed: on_end is slow", "not measured: Zend's heap"])

    assert capsys.readouterr().err == "phptrace: note: not measured: Zend's heap\n"
    assert caplog.messages == ["note: speed: on_end is slow"]


def test_a_run_that_ended_as_asked_is_fine():
    finish(Why.COUNT, Progress(), Tally(), plan())


def test_how_many_requests_a_filter_kept_is_printed(capsys):
    finish(Why.COUNT, Progress(seen=1_009, kept=7), Tally(), plan(keep=Filter(min_growth=1)))
    finish(Why.COUNT, Progress(seen=1_009, kept=1_009), Tally(), plan())

    assert capsys.readouterr().err == "phptrace: kept 7 of 1,009 requests\n"


def test_a_run_whose_target_ended_is_exit_code_6():
    with pytest.raises(TargetGoneError, match="cannot go on tracing php-fpm: all its processes have ended") as ended:
        finish(Why.TARGET_GONE, Progress(), Tally(), plan())

    assert ended.value.exit_code == 6


def test_a_run_that_lost_something_is_exit_code_8_and_states_the_losses():
    tally = Tally()
    tally.add_all([Loss(1, 13, "requests: the ring buffer was full"), Loss(2, 1, "workers: too many")])

    with pytest.raises(
        IncompleteError,
        match=r"phptrace lost some of it \(13 requests: the ring buffer was full; 1 worker: too many\)\.",
    ) as ended:
        finish(Why.DURATION, Progress(), tally, plan())

    assert ended.value.exit_code == 8


@pytest.mark.parametrize(("closed", "code"), [(">&-", 8), ("2>&-", 0), ("<&-", 0)])
def test_a_standard_stream_that_is_closed_is_no_traceback(closed, code):
    command = f"exec {sys.executable} -m tracer --help {closed}"

    ended = subprocess.run(["sh", "-c", command], cwd=ROOT, capture_output=True, text=True)

    assert ended.returncode == code
    assert "Traceback" not in ended.stderr
    assert ("stdout is closed" in ended.stderr) is (closed == ">&-")
