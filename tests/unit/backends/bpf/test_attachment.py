"""Attaching to real processes; the kernel's maps and probes are kept in memory."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import signal
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path

import elfs
import pytest
from phps import executable, php_elf, running

from tracer.backends.bpf.attachment import UPROBES_ON_PHP, Attachment
from tracer.backends.records.request_decoder import RequestDecoder
from tracer.backends.records.worker_table import WorkerTable
from tracer.errors import PhptraceError, TargetGoneError, UnsupportedError
from tracer.facts import Fact, Loss, Worker
from tracer.targets import php as php_binary
from tracer.targets.elf import Image, open_image
from tracer.targets.processes import Process, children, process
from tracer.targets.resolve import Target

TITLE = "php-fpm: master process (x)"
DIED = Worker(4001, 7, "www", "8.2.36", None, 11, "exited:0")


class Entries(dict[int, bytes]):
    """A BPF map."""

    def add(self, key: int, value: bytes) -> None:
        self.setdefault(key, value)

    def remove(self, key: int) -> None:
        self.pop(key, None)


class Kernel:
    """Maps and probes, as loaded programs have them. A probe opens its file, and fails if that is closed."""

    def __init__(self) -> None:
        self.maps: dict[str, Entries] = defaultdict(Entries)
        self.uprobes: list[str] = []
        self.refused: int | None = None  # the number of probes after which none can be set
        self.tracepoints: list[str] = []
        self.without: str | None = None  # a tracepoint that this kernel lacks

    def map(self, name: str) -> Entries:
        return self.maps[name]

    def on_raw_tracepoint(self, tracepoint: str, function: str, until: contextlib.ExitStack) -> None:
        if tracepoint == self.without:
            raise UnsupportedError(f"cannot attach to the tracepoint {tracepoint}: it is absent. Use --backend ptrace.")
        self.tracepoints.append(tracepoint)

    def on_uprobe(self, function: str, image: Image, offset: int, *, at_return: bool = False) -> int:
        if len(self.uprobes) == self.refused:
            raise PhptraceError(
                f"cannot set a probe on {image.path}+{offset:#x}: Too many open files. Raise the limit."
            )
        self.uprobes.append(function)
        return os.open(image.path, os.O_RDONLY)


def nothing() -> list[Fact]:
    return []


def attachment(
    kernel: Kernel, table: WorkerTable, read: Callable[[], list[Fact]] = nothing, lacking: list[str] | None = None
) -> Attachment:
    return Attachment(
        kernel,
        contextlib.ExitStack(),
        table,
        RequestDecoder("host", 0, keep_query=False, calls=True),
        None,
        read=read,
        lacking=[] if lacking is None else lacking,
        calls_by_tracepoint=False,
    )


@pytest.fixture
def kernel() -> Kernel:
    return Kernel()


@pytest.fixture
def table() -> WorkerTable:
    return WorkerTable(0)


@pytest.fixture
def master(tmp_path: Path) -> Iterator[Process]:
    with running(executable(tmp_path / "php-fpm", php_elf()), TITLE, ("php-fpm: pool www",)) as started:
        yield started


@pytest.fixture
def target(tmp_path: Path, master: Process) -> Iterator[Target]:
    image = open_image(str(tmp_path / "php-fpm"))
    yield Target("php-fpm", php_binary.inspect(image), "fpm-fcgi", master, tuple(children(master)), None)
    image.close()


def before_upgrade(target: Target) -> Target:
    """The target as it was when its master ran another file."""
    assert target.master is not None
    return dataclasses.replace(target, master=dataclasses.replace(target.master, executable=(3, 5)))


def open_files(name: str) -> int:
    """Number of descriptors of this process that are of a file of that name."""
    links = []
    for fd in os.listdir("/proc/self/fd"):
        with contextlib.suppress(FileNotFoundError):
            links.append(os.readlink(f"/proc/self/fd/{fd}"))
    return sum(os.path.basename(link) == name for link in links)


def test_the_probe_on_the_start_of_a_request_comes_last(kernel, table, target):
    made = attachment(kernel, table)
    made.attach([target])
    made.close()

    assert kernel.uprobes == [name for name in UPROBES_ON_PHP if name != "on_output_end"]


def test_the_last_error_is_looked_at_where_it_may_be_an_earlier_requests(kernel, table, target):
    made = attachment(kernel, table)
    made.attach([dataclasses.replace(target, sapi="cgi-fcgi")])
    made.close()

    assert kernel.uprobes == list(UPROBES_ON_PHP)


def test_master_and_workers_are_entered(kernel, table, target, master):
    made = attachment(kernel, table)
    made.attach([target])
    made.close()

    assert set(kernel.maps["workers"]) == {master.pid, *(worker.pid for worker in children(master))}
    assert [fact.pool for fact in made.take_pending()] == ["www"]


def test_the_oom_killer_is_watched(kernel, table, target):
    lacking: list[str] = []

    made = attachment(kernel, table, lacking=lacking)
    made.attach([target])
    made.close()

    assert ("mark_victim" in kernel.tracepoints, table.sees_oom) == (True, True)
    assert not [text for text in lacking if "OOM" in text]


def test_a_kernel_that_does_not_show_its_oom_killer_is_no_obstacle_and_is_reported(kernel, table, target):
    kernel.without = "mark_victim"
    lacking: list[str] = []

    made = attachment(kernel, table, lacking=lacking)
    made.attach([target])
    made.close()

    assert not table.sees_oom
    assert [text for text in lacking if "OOM" in text] == [
        "not known: which workers the kernel's OOM killer ends (cannot attach to the tracepoint mark_victim: it is"
        " absent. Use --backend ptrace.)"
    ]


def test_workers_of_a_master_that_replaces_itself_while_tracing_begins_are_kept(kernel, table, target, master):
    def read() -> list[Fact]:
        """Read records of a worker that died and a master that replaced itself."""
        made.follow(master.pid)
        return [DIED]

    made = attachment(kernel, table, read)
    made.attach([before_upgrade(target)])
    made.close()

    worker = children(master)[0].pid
    assert [fact.pid for fact in made.take_pending()] == [worker, DIED.pid]


def test_an_upgraded_php_is_hooked_and_its_file_is_closed_in_the_end(kernel, table, tmp_path, target):
    made = attachment(kernel, table)
    made.attach([before_upgrade(target)])
    upgraded = executable(tmp_path / "php-fpm-8.3", php_elf())
    with running(upgraded, TITLE) as new:
        table.masters[new.pid] = before_upgrade(target)
        made.follow(new.pid)
        during = open_files(upgraded.name)
        made.close()

    once = [name for name in UPROBES_ON_PHP if name != "on_output_end"]
    assert kernel.uprobes == [*once, *once]
    assert during > 0
    assert open_files(upgraded.name) == 0


def test_an_upgrade_to_a_php_that_cannot_be_traced_is_a_loss_and_leaves_no_file_open(kernel, table, tmp_path, target):
    made = attachment(kernel, table)
    made.attach([before_upgrade(target)])
    other = executable(tmp_path / "other", elfs.elf())
    with running(other, TITLE) as new:
        table.masters[new.pid] = before_upgrade(target)
        made.follow(new.pid)
        during = open_files(other.name)
        (loss,) = made.take_pending()
        made.close()

    assert isinstance(loss, Loss)
    assert "cannot trace the new PHP" in loss.why
    assert during == 0


def test_the_file_of_the_c_library_is_closed_in_the_end(kernel, table, target):
    myself = process(os.getpid())
    assert myself is not None
    with_libc = dataclasses.replace(target, master=None, workers=(myself,))
    before = open_files("libc.so.6")
    made = attachment(kernel, table)
    made.attach([with_libc])
    during = open_files("libc.so.6")
    made.close()

    if during == before:
        pytest.skip("/proc/PID/map_files may not be opened: run as root")
    assert open_files("libc.so.6") == before


@pytest.fixture
def other(tmp_path: Path) -> Iterator[Target]:
    """A master with a worker that runs another file than `target`."""
    path = executable(tmp_path / "php-fpm-other", php_elf())
    image = open_image(str(path))
    with running(path, TITLE, ("php-fpm: pool other",)) as started:
        yield Target("php-fpm", php_binary.inspect(image), "fpm-fcgi", started, tuple(children(started)), None)
    image.close()


def test_a_master_whose_probes_cannot_be_set_is_as_if_it_had_not_been_found_until_they_can(
    kernel, table, target, other, master
):
    once = [name for name in UPROBES_ON_PHP if name != "on_output_end"]
    made = attachment(kernel, table)
    made.attach([target])
    known, entries = made.take_pending(), set(kernel.maps["workers"])
    kernel.refused = len(once) + 3
    open_before = open_files("php-fpm-other")
    with pytest.raises(PhptraceError, match="Too many open files"):
        made.add([other])
    left = (open_files("php-fpm-other"), made.take_pending(), set(table.masters), set(kernel.maps["workers"]))
    kernel.refused = None
    made.add([other])
    found = [fact.pool for fact in made.take_pending()]
    probes = open_files("php-fpm-other")
    made.close()

    assert left == (open_before, [], {master.pid}, entries)
    assert [fact.pool for fact in known] == ["www"]
    assert kernel.uprobes == [*once, *once[:3], *once]
    assert probes == open_before + len(once)
    assert (found, set(table.masters)) == (["other"], {master.pid, other.pid})


def test_a_master_that_ends_before_its_file_can_be_compared_is_gone(kernel, table, target, other, master):
    def read() -> list[Fact]:
        with contextlib.suppress(ProcessLookupError):
            os.kill(other.pid, signal.SIGKILL)
            os.waitpid(other.pid, 0)
        return []

    made = attachment(kernel, table, read)
    same = dataclasses.replace(other.php.image, fd=target.php.image.fd)  # by another mount
    made._probed.add(target.php.image, [0])

    with pytest.raises(TargetGoneError, match=f"cannot set probes in process {other.pid}: it has ended"):
        made.add([dataclasses.replace(other, php=dataclasses.replace(other.php, image=same))])

    assert (table.masters, table.workers, kernel.maps["workers"], kernel.uprobes) == ({}, {}, {}, [])
    made.close()


def test_processes_that_come_and_go_with_one_c_library_open_it_once(kernel, table, target):
    myself = process(os.getpid())
    assert myself is not None
    with_libc = dataclasses.replace(target, master=None, workers=(myself,))
    before = open_files("libc.so.6")
    made = attachment(kernel, table)
    opened = []
    for _ in range(10):
        made.add([with_libc])
        made.gone(myself.pid)
        opened.append(open_files("libc.so.6"))
    known = len(made._libraries)
    made.close()

    if opened[0] == before:
        pytest.skip("/proc/PID/map_files may not be opened: run as root")
    assert opened == [opened[0]] * 10
    assert known == 0


def test_copies_of_one_php_share_an_entry_and_another_has_its_own(kernel, table, target, tmp_path):
    made = attachment(kernel, table)
    for number in range(20):
        path = executable(tmp_path / f"php-fpm-{number}", php_elf())
        with running(path, TITLE) as master, contextlib.ExitStack() as undo:
            image = open_image(str(path))
            undo.callback(image.close)
            made.add([dataclasses.replace(target, php=php_binary.inspect(image), master=master, workers=())])
            table.masters.clear()
    made.add([dataclasses.replace(target, php=dataclasses.replace(target.php, sapi_globals=7))])
    made.close()

    assert set(kernel.maps["php_binaries"]) == {0, 1}
