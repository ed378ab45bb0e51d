"""The backend of each target, the reason that is given for it, and what `auto` does not decide by itself."""

from __future__ import annotations

import contextlib
import dataclasses
import math
from collections.abc import Iterator
from pathlib import Path

import pytest
from phps import executable, php_data, php_elf, running, static_php

from tracer.backends import NativeOptions, PtraceMode, StackOptions
from tracer.backends.bpf.backend import BpfBackend
from tracer.backends.choose import BACKENDS, Assignment, BackendFactory, BackendOptions, Choice, assign, choose
from tracer.backends.ptrace import syscalls
from tracer.backends.ptrace.backend import PtraceBackend
from tracer.backends.together import Together
from tracer.errors import NotPermittedError, PhptraceError, UnsupportedError
from tracer.targets.resolve import Found, Refused, find

IDLE = "php-fpm: pool www"
NO_BCC = UnsupportedError("cannot import bcc: none. Install it.", fixable=True)
NOT_ROOT = NotPermittedError("cannot trace with BPF: not root. Run with sudo.", fixable=True)
OLD_KERNEL = UnsupportedError("cannot trace with BPF: this kernel is old. Boot another.")
COST = "each system call of a worker stops it twice, so a 10 ms request takes some 13 ms with 30 calls, 30 ms with 140"


@dataclasses.dataclass
class Host:
    """The errors of each backend on the host of a test."""

    bpf: list[PhptraceError]
    third: list[PhptraceError]
    ptrace: list[PhptraceError]


@pytest.fixture
def host(monkeypatch: pytest.MonkeyPatch) -> Host:
    """A host on which both backends work; an error that is added to a list keeps that backend from working."""
    lacks = Host([], [], [])
    table = {
        "bpf": dataclasses.replace(BACKENDS["bpf"], unmet=lambda: lacks.bpf),
        "ptrace": dataclasses.replace(BACKENDS["ptrace"], unmet=lambda: lacks.ptrace),
    }
    monkeypatch.setattr("tracer.backends.choose.BACKENDS", table)
    return lacks


class Third(PtraceBackend):
    """A backend that is neither of the two there are."""

    name = "third"


@pytest.fixture
def third(host: Host, monkeypatch: pytest.MonkeyPatch) -> Host:
    """The same host with a third backend between the two."""
    table = {
        "bpf": dataclasses.replace(BACKENDS["bpf"], unmet=lambda: host.bpf),
        "third": BackendFactory("", lambda: host.third, lambda *_: None, lambda options: Third(stacks=options.stacks)),
        "ptrace": dataclasses.replace(BACKENDS["ptrace"], unmet=lambda: host.ptrace),
    }
    monkeypatch.setattr("tracer.backends.choose.BACKENDS", table)
    return host


PROGRAMS = {
    "dynamic": php_elf(),
    "static": static_php(),
    "static cli": static_php(fastcgi=False),
    "cli": php_elf(data=php_data(sapi="cli")),
    "cli-server": php_elf(data=php_data(sapi="cli-server")),
    "zts": php_elf(data=php_data(api="API20220829,TS")),
}


@pytest.fixture
def processes(tmp_path: Path) -> Iterator[Processes]:
    with contextlib.ExitStack() as stack:
        yield Processes(tmp_path, stack)


class Processes:
    """Processes that phptrace takes for PHP of several kinds."""

    def __init__(self, folder: Path, stack: contextlib.ExitStack) -> None:
        self._folder = folder
        self._stack = stack

    def found(self, *kinds: str) -> Found:
        """A target of each kind, as if found by the name php-fpm."""
        whole = self.named(*kinds)
        return Found([dataclasses.replace(target, named="php-fpm") for target in whole.targets], whole.refused)

    def named(self, *kinds: str) -> Found:
        """A target of each kind, named by its PID."""
        pids = []
        for kind in kinds:
            path = executable(self._folder / f"{kind} {len(pids)}", PROGRAMS[kind])
            pids.append(self._stack.enter_context(running(path, IDLE)).pid)
        whole = find([str(pid) for pid in pids])
        self._stack.callback(whole.close)
        return whole


def parts(assignment: Assignment) -> list[tuple[str, list[int]]]:
    return [(part.name, [target.pid for target in part.targets]) for part in assignment.parts]


def auto(found: Found, **options: object) -> Choice:
    return choose("auto", found, BackendOptions(**options))  # type: ignore[arg-type]


def test_an_unknown_name_is_refused_with_the_names_there_are():
    with pytest.raises(UnsupportedError, match="^cannot use backend 'dtrace': .* Use auto, bpf or ptrace.$"):
        choose("dtrace", Found([], []), BackendOptions())


def test_ptrace_is_taken_when_it_is_asked_for_and_its_cost_is_no_news(host, processes):
    choice = choose("ptrace", processes.found("dynamic"), BackendOptions())

    assert isinstance(choice.backend, PtraceBackend)
    assert (choice.why, choice.cost) == ("asked for", ())


def test_bpf_is_taken_where_it_lacks_nothing(host, processes):
    choice = auto(processes.found("dynamic", "cli-server"))

    assert isinstance(choice.backend, BpfBackend)
    assert (choice.why, choice.cost, choice.left_out) == ("everything it needs is here", (), ())


@pytest.mark.parametrize("error", [NO_BCC, NOT_ROOT])
def test_auto_stops_at_what_can_be_fixed_and_names_what_could_be_used_at_once(host, processes, error):
    host.bpf.append(error)

    with pytest.raises(type(error)) as stopped:
        auto(processes.found("dynamic"))

    assert str(stopped.value) == f"{error} Or use --backend ptrace, which slows requests down: {COST}."


def test_auto_does_not_offer_a_ptrace_that_is_refused_too(host, processes):
    host.bpf.append(NO_BCC)
    host.ptrace.append(NotPermittedError("cannot trace a child."))
    with pytest.raises(UnsupportedError) as stopped:
        auto(processes.found("dynamic"))
    assert str(stopped.value) == str(NO_BCC)

    host.ptrace.clear()
    with pytest.raises(UnsupportedError) as stopped:
        auto(processes.found("cli-server"))
    assert str(stopped.value) == str(NO_BCC)


@pytest.mark.parametrize("lacks", [[OLD_KERNEL], [NO_BCC, OLD_KERNEL], [OLD_KERNEL, NOT_ROOT]])
def test_auto_takes_ptrace_where_bpf_is_not_possible_and_says_what_it_costs(host, processes, lacks):
    host.bpf += lacks

    choice = auto(processes.found("dynamic"))

    assert isinstance(choice.backend, PtraceBackend)
    assert choice.why == f"since phptrace {OLD_KERNEL}"
    assert choice.cost == (f"cost: {COST}",)


def test_a_fix_is_not_asked_for_where_it_would_not_help(host, processes):
    """No package gives a static PHP symbols."""
    host.bpf.append(NO_BCC)

    choice = auto(processes.found("static"))

    assert isinstance(choice.backend, PtraceBackend)
    assert "it is a static build without dynamic symbols" in choice.why


def test_bpf_that_is_asked_for_and_lacks_something_is_refused(host, processes):
    host.bpf += [NO_BCC, OLD_KERNEL]

    with pytest.raises(UnsupportedError) as refusal:
        choose("bpf", processes.found("dynamic"), BackendOptions())

    assert str(refusal.value) == str(OLD_KERNEL)


def test_after_a_bpf_that_was_tried_auto_takes_ptrace_and_names_the_error(host, processes):
    found = processes.found("dynamic")
    choice = choose("auto", found, BackendOptions(), {"bpf": UnsupportedError("cannot use BPF: no room")})

    assert isinstance(choice.backend, PtraceBackend)
    assert choice.why == "since phptrace cannot use BPF: no room"


def test_each_target_has_the_best_backend_that_can_trace_it(host, processes):
    found = processes.found("static", "dynamic", "zts")
    static, dynamic, zts = [target.pid for target in found.targets]

    choice = auto(found)

    assert parts(assign("auto", found, BackendOptions())) == [("bpf", [dynamic]), ("ptrace", [static, zts])]
    assert isinstance(choice.backend, Together)
    assert choice.backend.name == "bpf+ptrace"
    assert choice.why.startswith(f"ptrace for process {static}, process {zts} since phptrace cannot find the functions")
    assert choice.cost == (f"cost: {COST} [ptrace, process {static}, {zts}]",)
    assert [target.pid for target in choice.targets] == [dynamic, static, zts]


def test_a_php_that_no_backend_can_trace_is_left_out_beside_others(host, processes):
    whole = processes.found("dynamic", "static cli")
    dynamic, static = [target.pid for target in whole.targets]
    already = Refused("php-fpm", 7919, UnsupportedError("cannot trace /x: it is ARM."))

    made = assign("auto", Found(whole.targets, [already]), BackendOptions())

    assert parts(made) == [("bpf", [dynamic])]
    assert [one.pid for one in made.left_out] == [7919, static]
    assert "has no symbols that BPF could use, and is neither php-fpm nor php-cgi" in str(made.left_out[1])


def test_bpf_that_is_asked_for_leaves_a_static_php_out_and_names_the_command(host, processes):
    whole = processes.found("dynamic", "static")

    made = assign("bpf", whole, BackendOptions())

    assert [one.pid for one in made.left_out] == [whole.targets[1].pid]
    pid = made.left_out[0].pid
    assert str(made.left_out[0]).endswith(f" symbols. Use --backend ptrace --pid {pid}, which needs none.")


def test_bpf_that_is_asked_for_does_not_advise_a_ptrace_that_would_refuse(host, processes):
    with pytest.raises(UnsupportedError, match="symbols. Use a non-thread-safe build of PHP with dynamic symbols.$"):
        choose("bpf", processes.named("static cli"), BackendOptions())


@pytest.mark.parametrize("kind", ["static cli", "cli"])
def test_a_pid_that_cannot_be_traced_is_refused_also_beside_others(host, processes, kind):
    with pytest.raises(UnsupportedError, match="^cannot trace process"):
        auto(processes.named("dynamic", kind))


@pytest.mark.parametrize("backend", ["auto", "bpf", "ptrace"])
def test_a_script_on_the_command_line_is_refused_with_what_can_be_seen_of_it(host, processes, backend):
    found = processes.named("cli")
    pid = found.targets[0].pid

    with pytest.raises(UnsupportedError) as refusal:
        choose(backend, found, BackendOptions())

    assert str(refusal.value) == (
        f"cannot trace process {pid}: it is PHP's cli, whose one request began when it started and ends with it."
        f" Use `phptrace heap {pid} --again 10s`, which shows what it holds and what grew."
    )


def test_a_php_without_fastcgi_is_refused_by_ptrace_with_the_reason_against_bpf(host, processes):
    host.bpf.append(OLD_KERNEL)

    with pytest.raises(UnsupportedError, match=r"is PHP's cli-server, .*\(Tried ptrace since phptrace .*kernel is old"):
        auto(processes.found("cli-server"))


def test_a_process_that_is_traced_already_is_left_out_of_ptrace(host, processes):
    whole = processes.found("static", "static")
    traced, free = [target.pid for target in whole.targets]
    syscalls.seize(traced, syscalls.O_SYSGOOD)

    made = assign("auto", whole, BackendOptions())

    assert parts(made) == [("ptrace", [free])]
    assert [(one.pid, "already traced" in str(one)) for one in made.left_out] == [(traced, True)]


def test_native_memory_that_must_be_counted_is_not_left_to_ptrace(host, processes):
    required = NativeOptions(math.inf, required=True)
    with pytest.raises(UnsupportedError, match="cannot count native memory with ptrace"):
        auto(processes.found("static"), native=required)

    host.bpf.append(NO_BCC)
    with pytest.raises(UnsupportedError) as stopped:
        auto(processes.found("dynamic"), native=required)
    assert str(stopped.value) == str(NO_BCC)


def test_breakpoints_are_refused_before_anything_is_attached(host, processes):
    host.bpf.append(OLD_KERNEL)

    with pytest.raises(UnsupportedError, match="cannot use --ptrace-mode breakpoints"):
        auto(processes.found("static"), ptrace_mode=PtraceMode.BREAKPOINTS)


def test_auto_tries_the_backends_in_the_order_of_the_table(third, processes):
    found = processes.found("dynamic")
    third.bpf.append(OLD_KERNEL)

    second = auto(found)
    assert isinstance(second.backend, Third)
    assert (second.why, second.cost) == (f"since phptrace {OLD_KERNEL}", ())

    third.third.append(UnsupportedError("cannot use it: no third"))
    assert auto(found).why == f"since phptrace {OLD_KERNEL}; phptrace cannot use it: no third"


def test_a_third_backend_is_taken_or_refused_when_it_is_asked_for(third, processes):
    found = processes.found("dynamic")
    choice = choose("third", found, BackendOptions())
    assert isinstance(choice.backend, Third)
    assert choice.why == "asked for"

    third.third.append(UnsupportedError("cannot use it: no third"))
    with pytest.raises(UnsupportedError, match="^cannot use it: no third$"):
        choose("third", found, BackendOptions())


@pytest.mark.parametrize(("name", "kind"), [("bpf", BpfBackend), ("ptrace", PtraceBackend)])
def test_a_factory_makes_the_backend_of_its_name(name, kind):
    backend = BACKENDS[name].create(BackendOptions(stacks=StackOptions()))

    assert isinstance(backend, kind)
    assert backend.name == name
