"""From what the user names to workers, on processes of the tests' own that phptrace takes for php-fpm."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import re
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from elfs import elf
from phps import executable, php_data, php_elf, running, static_php

from tracer.errors import NoTargetError, NotPermittedError, TargetGoneError, UnsupportedError
from tracer.targets import processes
from tracer.targets.containers import surroundings
from tracer.targets.processes import Process
from tracer.targets.resolve import Found, Target, find, targets

NO_PID = 1 << 30  # above any pid_max
# Other masters may run on this host: a name that they have not.
POOL, OTHER_POOL = "phptrace-unit-test", "phptrace-unit-test-2"
WORKERS = (f"php-fpm: pool {POOL}", f"php-fpm: pool {POOL}", f"php-fpm: pool {OTHER_POOL}")


@pytest.fixture
def php(tmp_path: Path) -> Path:
    return executable(tmp_path / "php-fpm", php_elf())


@pytest.fixture
def master(tmp_path: Path, php: Path) -> Iterator[Process]:
    (tmp_path / "fpm.conf").write_text(f"[{POOL}]\n[phptrace-unit-test-idle]\n")
    with running(php, f"php-fpm: master process ({tmp_path}/fpm.conf)", WORKERS) as started:
        yield started


@contextlib.contextmanager
def found(names: Sequence[str]) -> Iterator[list[Target]]:
    """Targets that targets() finds, closed afterwards; skips where another user's master is in the way."""
    try:
        resolved = targets(names)
    except NotPermittedError:
        if os.geteuid() != 0 and any(name.startswith("php-fpm") for name in names):
            pytest.skip("a php-fpm of another user runs here, which only root may look at")
        raise
    yield resolved
    for target in resolved:
        target.php.image.close()


def pools_of(target: Target) -> list[str]:
    return sorted(worker.pool or "" for worker in target.workers)


def test_the_pid_of_a_master_means_its_workers(master):
    with found([str(master.pid)]) as [target]:
        assert target.master == master
        assert pools_of(target) == [POOL, POOL, OTHER_POOL]
        assert (target.named, target.sapi, target.php.version) == (str(master.pid), "fpm-fcgi", (8, 2, 36))


def test_the_pid_of_a_worker_means_that_worker(master):
    with found([str(master.pid)]) as [all_of_them]:
        worker = all_of_them.workers[1]

    with found([str(worker.pid)]) as [target]:
        assert (target.master, target.workers) == (None, (worker,))


def test_a_master_without_workers_is_a_master_nevertheless(php):
    with running(php, "php-fpm: master process (x)") as master, found([str(master.pid)]) as [target]:
        assert (target.master, target.workers) == (master, ())


def test_a_worker_that_still_has_its_masters_title_is_a_worker(php):
    title = "php-fpm: master process (x)"
    with running(php, title, (title,)) as master:
        [worker] = processes.children(master)
        with found([str(worker.pid)]) as [target]:
            assert (target.master, [p.pid for p in target.workers]) == (None, [worker.pid])
        with found(["php-fpm"]) as every:
            masters = {target.master.pid for target in every if target.master}
            assert (master.pid in masters, worker.pid in masters) == (True, False)


def test_the_pid_of_a_php_that_is_not_fpm_means_that_process(tmp_path):
    path = executable(tmp_path / "php", php_elf(data=php_data(sapi="cli")))

    with running(path, "php script.php") as process, found([str(process.pid)]) as [target]:
        assert (target.master, target.workers, target.sapi) == (None, (process,), "cli")
        assert not target.speaks_fastcgi


def test_php_fpm_means_every_master_and_all_its_workers(php, master):
    with running(php, "php-fpm: master process (x)") as idle, found(["php-fpm"]) as all_of_them:
        ours = {t.master: pools_of(t) for t in all_of_them if t.master in (master, idle)}

    assert ours == {master: [POOL, POOL, OTHER_POOL], idle: []}


def test_a_pool_means_only_the_masters_that_have_it(php, master):
    with (
        running(php, "php-fpm: master process (x)", ("php-fpm: pool elsewhere",)),
        found([f"php-fpm:{POOL}"]) as all_of,
    ):
        assert [target.master for target in all_of] == [master]


def test_two_masters_are_two_targets(php, master):
    with running(php, "php-fpm: master process (x)") as other, found([str(master.pid), str(other.pid)]) as both:
        assert [target.master for target in both] == [master, other]


@pytest.mark.parametrize("sapi", ["fpm-fcgi", "cgi-fcgi", "cli", None])
def test_an_unknown_sapi_speaks_fastcgi_if_the_binary_has_its_settings(tmp_path, master, sapi):
    with found([str(master.pid)]) as [target]:
        assert dataclasses.replace(target, sapi=sapi).speaks_fastcgi is (sapi != "cli")
        without = dataclasses.replace(target, sapi=sapi, php=dataclasses.replace(target.php, fastcgi=False))
        assert without.speaks_fastcgi is (sapi in ("fpm-fcgi", "cgi-fcgi"))


@pytest.mark.parametrize(("sapi", "one"), [("cli", True), ("phpdbg", True), ("cli-server", False), ("fpm-fcgi", False)])
def test_a_script_on_the_command_line_is_one_request(tmp_path, sapi, one):
    path = executable(tmp_path / "php", php_elf(data=php_data(sapi=sapi)))

    with running(path, "php queue.php") as process, found([str(process.pid)]) as [target]:
        assert (target.one_request, target.pid) == (one, process.pid)


def test_a_pool_means_its_workers_and_those_it_will_have(master):
    with found([f"php-fpm:{POOL}"]) as [target]:
        assert pools_of(target) == [POOL, POOL]
        assert (target.master, target.pools) == (master, frozenset({POOL}))
        assert (target.wants(POOL), target.wants(OTHER_POOL), target.wants(None)) == (True, False, False)


def test_a_pool_that_has_no_worker_just_now_is_known_from_the_configuration(master):
    with found(["php-fpm:phptrace-unit-test-idle"]) as [target]:
        assert (target.master, target.workers) == (master, ())


def test_two_pools_of_a_master_are_one_target(master):
    with found([f"php-fpm:{POOL}", f"php-fpm:{OTHER_POOL}"]) as [target]:
        assert pools_of(target) == [POOL, POOL, OTHER_POOL]
        assert target.pools == {POOL, OTHER_POOL}


def test_a_pool_and_its_master_are_all_of_the_master(master):
    with found([f"php-fpm:{POOL}", str(master.pid)]) as [target]:
        assert (len(target.workers), target.pools) == (3, None)


def test_a_worker_of_a_target_that_is_there_already_is_not_taken_twice(master):
    with found([str(master.pid)]) as [all_of_them]:
        worker = all_of_them.workers[0]

    with found([str(master.pid), str(worker.pid)]) as both:
        assert len(both) == 1


def test_a_worker_that_was_named_before_its_master_is_not_taken_twice(php, master):
    with (
        running(php, "php-fpm: master process (x)", ("php-fpm: pool elsewhere",)) as other,
        found([str(other.pid), str(master.pid)]) as [with_elsewhere, all_of_them],
    ):
        elsewhere, worker = with_elsewhere.workers[0], all_of_them.workers[0]

        with found([str(elsewhere.pid), str(worker.pid), str(master.pid)]) as merged:
            assert [target.workers for target in merged] == [(elsewhere,), all_of_them.workers]


def test_an_unknown_pool_is_refused_with_the_names_of_the_pools(master):
    with (
        pytest.raises(
            NoTargetError,
            match=rf"^cannot trace pool 'nobody': .* Choose from: (.*, )?{POOL}, {POOL}-2, {POOL}-idle(, .*)?\. If it",
        ),
        found(["php-fpm:nobody"]),
    ):
        pass


@pytest.mark.parametrize("name", ["apache2", "", "php-fpm8.2", "-1", "1.5", "PHP-FPM", " 1"])
def test_an_unknown_name_is_refused_with_the_known_forms(name):
    with pytest.raises(NoTargetError, match="names no target. Write php-fpm"):
        targets([name])


@pytest.mark.parametrize("pid", [0, NO_PID, 10**30])
def test_a_pid_that_does_not_exist_is_a_target_that_is_gone(pid):
    with pytest.raises(TargetGoneError, match=f"cannot trace process {pid}: there is no such process"):
        targets([str(pid)])


def test_a_zombie_is_a_target_that_is_gone():
    with subprocess.Popen(["/bin/true"]) as child:
        os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)

        with pytest.raises(TargetGoneError):
            targets([str(child.pid)])


def test_a_process_that_is_not_php_is_not_supported():
    with pytest.raises(UnsupportedError, match=rf"process {os.getpid()}: it runs .*python.*, which is not PHP"):
        targets([str(os.getpid())])


def test_a_php_that_cannot_be_traced_is_not_supported(tmp_path):
    path = executable(tmp_path / "php-zts", php_elf(data=php_data(api="API20220829,TS")))

    with running(path, "php") as process, pytest.raises(UnsupportedError, match=rf"^cannot trace {path} .*ZTS"):
        targets([str(process.pid)])


def test_a_process_that_only_has_a_masters_title_is_not_a_master(tmp_path, master):
    path = executable(tmp_path / "liar", elf())

    with running(path, "php-fpm: master process (x)") as liar, found(["php-fpm"]) as all_of_them:
        assert liar.pid not in [target.master.pid for target in all_of_them if target.master]


ZTS = php_elf(data=php_data(api="API20220829,TS"))
# Refused by every backend.
NAMELESS = php_elf(data={name: data for name, data in php_data().items() if name != "texts"})


@contextlib.contextmanager
def everything(*names: str) -> Iterator[Found]:
    """All that find() finds, closed afterwards."""
    resolved = find(names)
    yield resolved
    resolved.close()


@pytest.mark.parametrize(
    ("content", "why"), [(static_php(), r"it is a static build"), (ZTS, r"it is a thread-safe \(ZTS\) build")]
)
def test_a_master_without_usable_symbols_is_a_target_beside_others(tmp_path, master, content, why):
    path = executable(tmp_path / "other", content)

    with (
        running(path, "php-fpm: master process (x)", (f"php-fpm: pool {POOL}",)) as other,
        everything(f"php-fpm:{POOL}") as whole,
    ):
        ours = {target.pid: target for target in whole.targets if target.pid in (master.pid, other.pid)}
        assert set(ours) == {master.pid, other.pid}
        assert (pools_of(ours[other.pid]), ours[other.pid].speaks_fastcgi) == ([POOL], True)
        assert re.search(why, ours[other.pid].php.unhooked or "")
        assert ours[master.pid].php.unhooked is None


@pytest.mark.parametrize("name", ["php-fpm", f"php-fpm:{POOL}"])
def test_a_master_that_cannot_be_traced_is_named_beside_others(tmp_path, master, name):
    path = executable(tmp_path / "nameless", NAMELESS)

    with (
        running(path, "php-fpm: master process (x)", (f"php-fpm: pool {POOL}",)) as other,
        everything(name, "php-fpm") as whole,
    ):
        assert master.pid in [target.pid for target in whole.targets]
        [refused] = [one for one in whole.refused if one.pid == other.pid]
        assert refused.named == name
        assert str(refused).startswith(f"process {other.pid} is not traced: cannot trace {path}: ")
        assert "it has no X-Powered-By text" in str(refused)


def test_a_master_that_cannot_be_traced_is_not_named_for_a_pool_that_it_has_not(tmp_path, master):
    path = executable(tmp_path / "nameless", NAMELESS)

    with (
        running(path, "php-fpm: master process (x)", (f"php-fpm: pool {OTHER_POOL}-4",)) as other,
        everything(f"php-fpm:{POOL}") as whole,
    ):
        assert other.pid not in [one.pid for one in whole.refused]


def test_the_pool_of_a_master_that_cannot_be_traced_is_refused_for_that_reason(tmp_path, master):
    path = executable(tmp_path / "nameless", NAMELESS)

    with (
        running(path, "php-fpm: master process (x)", ("php-fpm: pool phptrace-unit-test-3",)),
        pytest.raises(UnsupportedError, match="it has no X-Powered-By text"),
    ):
        find(["php-fpm:phptrace-unit-test-3"])


def test_all_masters_that_cannot_be_traced_are_named_in_the_refusal(tmp_path):
    path = executable(tmp_path / "nameless", NAMELESS)
    workers = ("php-fpm: pool phptrace-unit-test-3",)
    title = "php-fpm: master process (x)"

    with (
        running(path, title, workers) as first,
        running(path, title, workers) as second,
        pytest.raises(UnsupportedError) as refusal,
    ):
        find(["php-fpm:phptrace-unit-test-3"])

    later = max(first.pid, second.pid)
    assert f"Also, process {later} is not traced: cannot trace {path}" in str(refusal.value)


def test_apache_with_mod_php_is_refused_by_the_name_of_its_library(tmp_path):
    library = executable(tmp_path / "libphp8.2.so", php_elf())
    program = (
        f"import mmap, signal; file = open({str(library)!r}, 'rb');"
        "mapped = mmap.mmap(file.fileno(), 0, mmap.MAP_PRIVATE, mmap.PROT_READ | mmap.PROT_EXEC);"
        "print(flush=True); signal.pause()"
    )
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE) as apache:
        try:
            assert apache.stdout is not None
            apache.stdout.readline()
            with pytest.raises(UnsupportedError) as refusal:
                targets([str(apache.pid)])
        finally:
            apache.kill()

    assert re.match(
        rf"cannot trace process {apache.pid}: its PHP is the library {library}, loaded into /.*python.*, as Apache's"
        r" mod_php is, .*\. Serve the site with php-fpm\.$",
        str(refusal.value),
    )
    assert "not PHP" not in str(refusal.value)


def test_one_name_that_means_nothing_fails_all(master):
    with pytest.raises(NoTargetError):
        targets([str(master.pid), "nonsense"])


def test_of_some_masters_those_are_found_that_any_of_the_names_means(php, master):
    pools = [f"php-fpm:{POOL}", "php-fpm:phptrace-unit-test-3"]
    with running(php, "php-fpm: master process (x)", ("php-fpm: pool phptrace-unit-test-3",)) as other:
        for names in (pools, pools[::-1]):
            meant = find(names, only=[other.pid])
            meant.close()
            assert [target.master for target in meant.targets] == [other]

        before = descriptors()
        with pytest.raises(NoTargetError):
            find(["php-fpm:nobody", f"php-fpm:{OTHER_POOL}"], only=[other.pid])
        assert descriptors() == before


def test_digits_that_are_not_a_number_are_refused():
    with pytest.raises(NoTargetError):
        targets(["²"])


def test_a_pid_of_thousands_of_digits_is_refused():
    with pytest.raises((NoTargetError, TargetGoneError)):
        targets(["9" * 5000])


def test_a_refusal_escapes_the_executable_of_another_user(tmp_path):
    path = executable(tmp_path / "\x1b]0;owned\x07", elf())

    with running(path, "anything") as process, pytest.raises(UnsupportedError) as refusal:
        targets([str(process.pid)])

    assert str(refusal.value).isprintable()


def test_a_refusal_escapes_the_pools_of_another_user(tmp_path, php):
    (tmp_path / "fpm.conf").write_text("[\x1b]0;owned\x07]\n")

    with (
        running(php, f"php-fpm: master process ({tmp_path}/fpm.conf)"),
        pytest.raises(NoTargetError) as refusal,
        found(["php-fpm:nobody"]),
    ):
        pass

    assert str(refusal.value).isprintable()


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


def test_the_files_of_masters_without_the_pool_are_closed(php, master):
    with running(php, "php-fpm: master process (x)", ("php-fpm: pool elsewhere",)):
        before = descriptors()
        with found([f"php-fpm:{POOL}"]) as resolved:
            assert descriptors() == before + len(resolved)

        assert descriptors() == before


def test_the_files_of_all_masters_are_closed_if_none_has_the_pool(master):
    before = descriptors()
    with pytest.raises(NoTargetError), found(["php-fpm:nobody"]):
        pass

    assert descriptors() == before


@pytest.mark.parametrize(
    "order", [("master", "master"), ("master", "worker"), ("worker", "worker"), ("worker", "master")]
)
def test_the_file_of_a_target_that_is_merged_into_another_is_closed(master, order):
    with found([str(master.pid)]) as [all_of_them]:
        pids = {"master": master.pid, "worker": all_of_them.workers[0].pid}
    before = descriptors()

    with found([str(pids[name]) for name in order]) as resolved:
        assert descriptors() == before + len(resolved) == before + 1

    assert descriptors() == before


def test_the_files_of_targets_found_before_a_name_that_means_nothing_are_closed(master):
    before = descriptors()
    with pytest.raises(NoTargetError):
        targets([str(master.pid), "nonsense"])

    assert descriptors() == before


def test_a_php_that_is_refused_is_closed(tmp_path):
    path = executable(tmp_path / "php-zts", php_elf(data=php_data(api="API20220829,TS")))
    with running(path, "php") as process:
        before = descriptors()
        with pytest.raises(UnsupportedError):
            targets([str(process.pid)])

        assert descriptors() == before


def test_a_cgroup_means_the_masters_in_it_and_below_it(master):
    cgroups = surroundings(master.pid).cgroups

    for path in cgroups:
        with found([f"cgroup:{path}"]) as every:
            assert master in [target.master for target in every]
            assert {target.named for target in every} == {f"cgroup:{path}"}


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (
            "container:phptrace-unit-test",
            "cannot trace container 'phptrace-unit-test': no php-fpm master here is in it. ",
        ),
        ("container:\x1b[2J", r"cannot trace container '\x1b[2J': no php-fpm master here is in it. "),
        ("cgroup:/phptrace-unit-test", "cannot trace cgroup '/phptrace-unit-test': no php-fpm master here is in it. "),
    ],
)
def test_a_container_or_cgroup_without_a_master_is_refused_with_those_that_have_one(master, name, message):
    with pytest.raises(NoTargetError) as error:
        targets([name])

    assert str(error.value).startswith(message)
    if name.startswith("cgroup"):
        assert (surroundings(master.pid).cgroup or "") in str(error.value)


@pytest.mark.parametrize("name", ["container:", "cgroup:", "container", "cgroup"])
def test_a_container_without_a_name_is_not_a_target(name):
    with pytest.raises(NoTargetError, match=r"it names no target\. Write .*container:NAME, container:ID, cgroup:PATH"):
        targets([name])
