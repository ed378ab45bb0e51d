"""`phptrace sizing`: the arithmetic as text, the block for www.conf, JSON, and what it refuses."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from samples import FOOTPRINT, altered, recording, request

from tracer.facts import Fact, Footprint, Request, Worker

MIB = 1 << 20
SECOND = 10**9
BEGAN = 1_700_000_000_000_000_000
MEMORY = {
    "host": {"MemTotal": 8192 * MIB, "MemFree": 1024 * MIB, "MemAvailable": 6144 * MIB},
    "cpus": 2,
    "cgroups": [{"path": "/fpm.service", "version": 2, "limit": 512 * MIB, "usage": 145 * MIB, "pids": [4001],
                 "stat": {"anon": 60 * MIB, "file": 80 * MIB, "shmem": 30 * MIB, "kernel": 5 * MIB}}],
}  # fmt: skip
META = {"host": "web1", "memory": MEMORY, "options": {"uri": None, "count": 500}}
# 10 MiB of its own; 30 MiB shared with the others, 16 MiB of files.
IDLE = FOOTPRINT._replace(
    pid=4241, start_ticks=7, rss=55 * MIB, pss_shmem=6 * MIB, private_dirty=9 * MIB, anonymous=9 * MIB, shmem=30 * MIB,
    page_tables=MIB,
)  # fmt: skip
MASTER = IDLE._replace(pid=4001, start_ticks=3, private_dirty=2 * MIB, anonymous=2 * MIB, page_tables=0, idle=False)
LABELS = ("budget", "once, however many workers", "each worker", "pm.max_children", "pm.max_requests", "memory_limit")


def served(number: int, **changed: Any) -> Fact:
    """The request of that number: one worker's, 4 MiB above what it had, a quarter of a second of CPU time in one."""
    fields = {
        "pid": 4241, "start_ticks": 7, "pool": "shop", "master_pid": 4001, "nth": number + 1,
        "started_ns": BEGAN + number * 2 * SECOND, "duration_ns": SECOND, "cpu_ns": SECOND // 4, "uri": "/cart",
        "script": "/srv/index.php", "ending": "finished", "anon_before": 10 * MIB, "anon_end": 10 * MIB,
        "anon_after": 10 * MIB, "anon_peak": 14 * MIB, "zend_real_peak": 4 * MIB, "memory_limit": 128 * MIB,
        "native_alloc_bytes": 1000, "native_free_bytes": 1000, "native_kept": 0, "native_released": 0,
        "native_freed_earlier": 0, "native_between_bytes": 0, "notes": None,
    }  # fmt: skip
    return request(**{**fields, **changed})


def facts(count: int = 200, *, samples: tuple[Footprint, ...] = (IDLE, MASTER), **changed: Any) -> list[Fact]:
    return [
        Worker(4241, 7, "shop", "8.2.36", None, None, None),
        *samples,
        *(served(n, **changed) for n in range(count)),
    ]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return recording(tmp_path / "shop.phptrace", facts(), META)


def sections(out: str) -> dict[str, list[str]]:
    """The lines of each section by its title, without indentation, with single spaces."""
    found: dict[str, list[str]] = {}
    title = ""
    for line in out.splitlines():
        if line.startswith("  "):
            found[title].append(" ".join(line.split()))
        else:
            title = line
            found.setdefault(title, [])
    return found


def test_the_arithmetic_is_shown_line_by_line(run, path):
    code, out, err = run("sizing", path, "--budget", "400M")

    found = sections(out)
    assert (code, err) == (0, "")
    assert out.splitlines()[0].endswith(
        "shop.phptrace · web1 · pool shop · 200 requests in 399 s · 1 sample of 1 worker"
    )
    assert found["budget"] == [
        "given with --budget, for this pool alone 400 MiB",
        "- reserve of 5 % for what was not measured 20.0 MiB",
        "= for this pool 380 MiB",
    ]
    assert found["once, however many workers"] == [
        "shared memory (OPcache, APCu), and pages shared with the master 30.0 MiB",
        "+ page cache of programs, libraries and files that a worker maps 16.0 MiB",
        "+ the master's own 2.0 MiB",
        "= once 48.0 MiB",
    ]
    assert found["each worker"] == [
        "its own, between requests: the largest of 1 worker 10.0 MiB",
        "+ growth until it is replaced 0 B",
        "= each, at rest 10.0 MiB",
    ]
    assert found["pm.max_children"][:4] == [
        "48.0 MiB once + 23 x 10.0 MiB 278 MiB",
        "+ in requests, several at their peaks (p99; 4.0 MiB each on average) 92.0 MiB",
        "= 23 workers, all of them busy 370 MiB",
        "24 would need 384 MiB",
    ]
    assert found["pm.max_children"][-1] == "Worst case, all in the heaviest request at once: 370 MiB, which fits."
    assert found["pm.max_requests"] == ["no growth was measured: workers need not be replaced, so 0"]
    assert found["memory_limit"] == [
        "Zend's heap, the largest of any request 4.0 MiB",
        "x 1.25, and up to the next 8 MiB, 32 MiB at least (it was 128 MiB) 32.0 MiB",
        "With all 23 workers at it at once: 1.0 GiB, which does not fit.",
    ]
    (route,) = found["routes that raise a worker most"]
    assert route == "/cart up to +4.0 MiB, 100.0 % of requests, 100.0 % of the time"
    assert found["to know"] == [
        "A request heavier than all of these 200 may still come, once in 66 requests (95 %).",
        "On average, 0.5 of 1 worker were busy.",
        "A busy worker computes 25 % of the time: 8 workers keep the 2 CPUs busy. More only wait.",
        "With pm = dynamic, pm.max_spare_servers must not be more than pm.max_children.",
    ]


def test_the_output_ends_with_what_belongs_into_the_pools_configuration(run, path):
    _, out, _ = run("sizing", path, "--budget", "400M")

    assert out.split("\n\n")[-1].splitlines()[1:] == [
        "[shop]", "pm.max_children = 23", "pm.max_requests = 0", "php_value[memory_limit] = 32M"
    ]  # fmt: skip


def test_the_default_budget_is_that_of_the_recordings_cgroup(run, path):
    _, out, _ = run("sizing", path)

    # 95 MiB are eaten there: 60 anonymous, 30 shared, 5 of the kernel. The pool had 10 + 30 + 2 of them.
    assert sections(out)["budget"] == [
        "limit of cgroup /fpm.service 512 MiB",
        "- eaten there by others than this pool, page cache not counted 53.0 MiB",
        "- reserve of 5 % for what was not measured 25.6 MiB",
        "= for this pool 433 MiB",
    ]
    assert "pm.max_children = 27\n" in out


def test_json_has_the_same_figures_in_bytes(run, path):
    code, out, _ = run("sizing", path, "--budget", "400M", "--format", "json")

    found = json.loads(out)
    assert (code, found["schema"], found["pool"], found["cpus"]) == (0, 1, "shop", 2)
    assert found["budget"] == {"source": "given", "total": 400 * MIB, "others": 0, "cgroup": None,
                               "reserve": 20 * MIB, "usable": 380 * MIB}  # fmt: skip
    assert found["children"]["most"] == 23
    assert found["children"]["needed"] == 48 * MIB + 23 * 14 * MIB
    assert (found["replacement"]["requests"], found["limit"]["bytes"]) == (0, 32 * MIB)
    assert found["www_conf"].endswith(
        "[shop]\npm.max_children = 23\npm.max_requests = 0\nphp_value[memory_limit] = 32M\n"
    )


def test_a_setting_that_is_not_known_is_a_comment_with_exit_code_8(run, tmp_path):
    path = recording(tmp_path / "old.phptrace", facts(samples=()), META)
    code, out, err = run("sizing", path)

    assert code == 8
    assert "; pm.max_children: not known\n" in out
    assert "php_value[memory_limit] = 32M\n" in out
    assert sections(out)["pm.max_children"][0].startswith(
        "not known: the recording has no sample of its workers' memory"
    )
    assert err.startswith("phptrace: cannot recommend pm.max_children: the recording has no sample of its workers'")


@pytest.mark.parametrize(
    ("count", "meta", "why"),
    [
        (99, META, "99 requests are too few; it takes 100"),
        (200, {**META, "options": {"uri": "/x*"}}, "requests were left out by a filter when it was recorded"),
        (200, {"host": "web1"}, "the recording does not have the memory of its host. Use --budget 4G"),
    ],
)
def test_a_recording_that_does_not_carry_it_is_refused_with_the_reason(run, tmp_path, count, meta, why):
    code, out, err = run("sizing", recording(tmp_path / "r.phptrace", facts(count), meta))

    assert (code, why in out, why in err) == (8, True, True)


def test_several_pools_need_a_choice(run, tmp_path):
    other = [
        Worker(5003, 9, "blog\x1b", "8.2.36", None, None, None),
        served(0, pid=5003, start_ticks=9, pool="blog\x1b"),
    ]
    path = recording(tmp_path / "r.phptrace", [*facts(), *other], META)

    code, _, err = run("sizing", path)
    assert (code, "Use --pool with one of blog\\x1b, shop." in err) == (2, True)
    code, out, _ = run("sizing", path, "--pool", "shop", "--budget", "400M")
    assert (code, "other pools" in out) == (0, False)
    assert "to hold the other pools of the recording, too (blog\\x1b)." in run("sizing", path, "--pool", "shop")[1]
    code, _, err = run("sizing", path, "--pool", "nonsense")
    assert (code, "it is not in the recording. Choose one of blog\\x1b, shop." in err) == (2, True)


def test_a_pool_in_several_containers_is_refused(run, tmp_path):
    path = recording(tmp_path / "r.phptrace", [*facts(), served(0, container_id="b1" * 32)], META)
    code, _, err = run("sizing", path)

    assert (code, "the recording has it in several containers" in err) == (2, True)


def test_texts_of_a_recording_are_escaped(run, tmp_path):
    evil = "www]\n[global]\x1b[31m"
    some = [fact._replace(pool=evil) if hasattr(fact, "pool") else fact for fact in facts(uri="/\x1b[2J")]
    path = recording(tmp_path / "r.phptrace", some, {**META, "host": "w\x07"})
    for options in ([], ["--format", "json"]):
        _, out, _ = run("sizing", path, "--budget", "400M", *options)

        assert not any(char in out for char in "\x1b\x07")
        assert "\n[global]" not in out


@pytest.mark.parametrize(
    "memory",
    [7, [], {"host": 7}, {"host": {"MemTotal": -1}}, {"cgroups": [{"path": 7}]}, {**MEMORY, "cpus": "x"},
     {"host": {"MemTotal": 1 << 62, "MemFree": 1}}],
)  # fmt: skip
def test_a_crafted_memory_entry_does_no_harm(run, tmp_path, memory):
    path = recording(tmp_path / "r.phptrace", facts(), {**META, "memory": memory})

    assert run("sizing", path)[0] in (0, 8)


def test_footprints_of_the_largest_numbers_do_no_harm(run, path):
    altered(path, "UPDATE footprint SET private_dirty = 9223372036854775807, anonymous = -9223372036854775808")
    code, out, _ = run("sizing", path)

    assert code == 8
    assert "not one worker fits into the budget" in out


def test_a_limit_that_is_not_lowered_has_its_reason(run, tmp_path):
    died = [served(200 + n, ending="fatal", zend_real_peak=40 * MIB) for n in range(3)]
    path = recording(tmp_path / "died", [*facts(), *died], META)

    _, out, _ = run("sizing", path)

    assert "as it was: 3 requests ended by a fatal error, possibly of it 128 MiB" in sections(out)["memory_limit"]
    assert out.endswith("\nphp_value[memory_limit] = 128M\n")


def test_the_name_of_a_pool_adds_no_setting_to_the_block_for_its_configuration(run, tmp_path):
    evil = "x]php_admin_value[auto_prepend_file]=/tmp/evil;"
    changed = [fact._replace(pool=evil) if isinstance(fact, Request | Worker) else fact for fact in facts()]
    path = recording(tmp_path / "evil", changed, META)

    for options in ([], ["--format", "json"]):
        _, out, _ = run("sizing", *options, path)
        block = json.loads(out)["www_conf"] if options else out[out.index("; phptrace sizing") :]
        assert block.splitlines()[1] == f"; in the section of the pool {evil}"
        assert "\n[" not in block
