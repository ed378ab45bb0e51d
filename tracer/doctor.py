"""The requirements of tracing, checked one by one, each with a fix.

These are the checks that a backend makes before it attaches. The doctor makes all of them, and also looks
at the workers that would be traced.
"""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.metadata
import os
import platform
import shutil
import sys
from collections.abc import Iterator, Sequence

from tracer.backends import PtraceMode
from tracer.backends.bpf.programs import bcc_problem, bcc_version
from tracer.backends.choose import AUTO, BACKENDS, Assignment, BackendOptions, assign
from tracer.backends.ptrace import permissions
from tracer.errors import PhptraceError, UnsupportedError
from tracer.targets import allocator, arch, btf, containers, kernel, libc, processes
from tracer.targets.fpm_config import has_slowlog
from tracer.targets.processes import GRANTS
from tracer.targets.resolve import FPM, Target, find
from tracer.units import counted

# Backends, by their names in BACKENDS, that do not work where a check fails.
BPF = ("bpf",)
PTRACE = ("ptrace",)
ALL = tuple(BACKENDS)


@dataclasses.dataclass(frozen=True, slots=True)
class Check:
    """One requirement: whether it is met, what was found, and how to fix it."""

    name: str
    ok: bool
    found: str
    fix: str | None = None  # what to do if it is not ok
    needed: bool = True  # False: tracing works without it, but shows less or costs more
    by: tuple[str, ...] = BPF  # names of the backends that do not work without it


@dataclasses.dataclass(frozen=True, slots=True)
class Verdict:
    """The outcome of an `attach`: it would trace, with these backends; or fail with this error."""

    assignment: Assignment | None
    error: PhptraceError | None  # None: it would trace

    @property
    def backend(self) -> str | None:
        """Name of the backend of most worth that would be used; None if none works."""
        return None if self.assignment is None else self.assignment.parts[0].name

    @property
    def exit_code(self) -> int:
        """Of `attach`; 0 if it would trace."""
        return 0 if self.error is None else self.error.exit_code


def verdict(names: Sequence[str]) -> Verdict:
    """Decide as `attach` does with these targets, and attach to nothing. No name means php-fpm."""
    try:
        found = find(names or (FPM,))
        with contextlib.closing(found):
            return Verdict(assign(AUTO, found, BackendOptions()), None)
    except PhptraceError as exc:
        return Verdict(None, exc)


def checks(names: Sequence[str]) -> Iterator[Check]:
    """Every check, in the order in which to fix them: rights, kernel, Python, PHP. No name means php-fpm."""
    yield _rights()
    yield from _kernel_checks()
    yield from _python_checks()
    yield from _ptrace_checks()
    yield from _target_checks(names or (FPM,))


def _rights() -> Check:
    missing = kernel.missing_capabilities()
    if missing:
        found = f"uid {os.geteuid()}, missing {', '.join(missing)}"
        return Check("rights", False, found, "run with sudo")
    return Check("rights", True, "root" if os.geteuid() == 0 else "has the capabilities needed")


def _kernel_checks() -> Iterator[Check]:
    machine = platform.machine()
    yield Check("kernel", machine == arch.MACHINE, f"Linux {platform.release()} on {machine}", "use an x86-64 host")
    if not kernel.has_sysfs():
        yield Check("sysfs", False, "/sys is not mounted", "mount -t sysfs sysfs /sys")
    try:
        layout = kernel.running_layout()
        yield Check("BTF", True, f"{btf.VMLINUX}: found all offsets")
        if layout.rss_kind is kernel.RssKind.PERCPU:
            shown = not kernel.hides_addresses()
            found = "kernel addresses are visible" if shown else "kernel addresses are hidden"
            yield Check("kallsyms", shown, found, "sysctl kernel.kptr_restrict=1, or 0 without CAP_SYSLOG")
    except UnsupportedError as exc:
        yield Check("BTF", False, str(exc), "boot a distribution kernel from 2020 or later (CONFIG_DEBUG_INFO_BTF=y)")
    pmu = kernel.uprobe_pmu()
    found = "not available"
    if pmu is not None:
        found = f"available as {'BPF links' if kernel.has_uprobe_multi() else 'perf events, which are slow to remove'}"
    yield Check("uprobes", pmu is not None, found, "boot a kernel with CONFIG_UPROBE_EVENTS=y")
    lockdown = kernel.lockdown()
    yield Check(
        "lockdown", lockdown != "confidentiality", lockdown, "boot without lockdown=confidentiality (integrity is fine)"
    )
    yield Check(
        "PID namespace",
        kernel.in_initial_pid_namespace(),
        "the host's" if kernel.in_initial_pid_namespace() else "separate from the host",
        "run on the host, or run the container with --pid=host",
    )
    yield Check("tracefs", True, "not needed to attach tracepoints")


def _python_checks() -> Iterator[Check]:
    yield Check("Python", sys.version_info >= (3, 11), platform.python_version(), "use Python 3.11 or later")
    problem = bcc_problem()
    if problem is None:
        yield Check("bcc", True, bcc_version())
    else:
        fix = "apt install python3-bpfcc, and make the venv with /usr/bin/python3 -m venv --system-site-packages"
        yield Check("bcc", False, str(problem), fix)
    for package in ("click", "pyelftools", "rich"):
        yield Check(package, True, importlib.metadata.version(package))
    command = shutil.which("phptrace")
    if command is not None and not _is_ours(command):
        fix = "run `python3 -m tracer`, or put this phptrace first on PATH"
        yield Check("command", False, f"{command} is another program of the same name", fix, needed=False)


def _ptrace_checks() -> Iterator[Check]:
    """The requirements of the fallback; they do not matter if BPF works."""
    obstacle = permissions.obstacle()
    held = "CAP_SYS_PTRACE" if permissions.has_capability() else "own processes only, CAP_SYS_PTRACE is missing"
    yield Check("ptrace", obstacle is None, obstacle or held, GRANTS, by=PTRACE)
    scope = permissions.yama_scope()
    shown = "not in this kernel" if scope is None else f"ptrace_scope {scope}"
    free = scope in (None, 0) or (scope in (1, 2) and permissions.has_capability())
    fix = "sysctl kernel.yama.ptrace_scope=0, or run with sudo"
    yield Check("Yama", free, shown, fix, by=PTRACE)


def _is_ours(command: str) -> bool:
    """True if it is a Python script that calls us: PECL's trace installs a binary of the same name."""
    try:
        with open(command, "rb") as file:
            return b"tracer" in file.read(4096)
    except OSError:
        return False


def _target_checks(names: Sequence[str]) -> Iterator[Check]:
    """The checks of each target. One that says the same as that of a target before is left out."""
    seen: set[Check] = set()
    for check in _all_target_checks(names):
        if check not in seen:
            seen.add(check)
            yield check


def _all_target_checks(names: Sequence[str]) -> Iterator[Check]:
    for name in names:
        try:
            found = find([name])
        except PhptraceError as exc:
            yield Check(name, False, str(exc), by=ALL)
            continue
        with contextlib.closing(found):
            for target in found.targets:
                yield from _php_checks(name, target)
        for refused in found.refused:
            yield Check(name, False, str(refused), needed=False, by=ALL)


def _php_checks(name: str, target: Target) -> Iterator[Check]:
    php = target.php
    who = f"master {target.master.pid}" if target.master else f"process {target.workers[0].pid}"
    where = containers.surroundings(target.pid)
    if where.in_container:
        who += f" in container {where.shown}"
    pools = ", ".join(sorted({worker.pool for worker in target.workers if worker.pool})) or "none"
    sapi = target.sapi or "unknown SAPI"
    found = f"{who}, {counted(len(target.serving), 'worker')}, pools: {pools}; PHP {php.shown_version}, {sapi}"
    yield Check(name, True, found)
    if target.one_request:
        found = f"SAPI {sapi} runs one request, which began when it started and ends with it"
        fix = f"`phptrace heap {target.pid} --again 10s` shows what it holds and what grew"
        yield Check("requests", False, found, fix, by=ALL)
    hooks = php.hooks
    if hooks is None:
        fix = "none for this PHP build; only ptrace can trace it, if it is php-fpm or php-cgi"
        yield Check("request hooks", False, str(php.unhooked), fix)
        yield from _tracee_checks(target)
        return
    end = "the return of php_request_shutdown" if hooks.end_is_return else "the USDT probe request__shutdown"
    stepped = [
        field.name
        for field in dataclasses.fields(hooks)
        if field.name != "end_is_return" and not getattr(getattr(hooks, field.name), "emulated", True)
    ]
    yield Check("request hooks", True, f"found; a request ends at {end}")
    if stepped:
        found = f"the kernel single-steps {', '.join(stepped)}: 12 µs a hit"
        yield Check("hook cost", False, found, "none; tracing works, but slower", needed=False)
    yield Check(
        "Zend's heap",
        php.heap is not None,
        "found by its accessor functions" if php.heap else "its accessor functions have an unknown form",
        "report this PHP build; tracing works, without figures of Zend's heap",
        needed=False,
    )
    yield Check(
        "PHP's globals",
        php.layout is not None,
        "layout known: status, memory_limit and fatal errors are recorded"
        if php.layout
        else f"the layout of PHP {php.shown_version} is unknown",
        "use a newer phptrace; tracing works, without status, memory_limit and fatal errors",
        needed=False,
    )
    yield Check(
        "call stacks",
        php.stack is not None,
        "layout known, and confirmed by accessor functions" if php.stack else str(php.stack_lacking),
        "use a newer phptrace; tracing works, without --stacks",
        needed=False,
    )
    yield Check(
        "REQUEST_URI",
        target.speaks_fastcgi and php.sapi_globals is not None,
        "in the FastCGI environment" if target.speaks_fastcgi else f"SAPI {target.sapi} has no FastCGI environment",
        "none; the recorded URI is SCRIPT_NAME",
        needed=False,
    )
    yield _calls_check(target)
    yield _native_check(target)
    yield from _tracee_checks(target)


def _tracee_checks(target: Target) -> Iterator[Check]:
    """Reasons why ptrace cannot trace these processes."""
    if target.one_request:
        return
    refused = permissions.refusal_of(target, PtraceMode.SYSCALLS, stacks=False)
    if not target.speaks_fastcgi:
        yield Check("FastCGI", False, str(refused), "use --backend bpf" if target.php.hooks else None, by=PTRACE)
    elif refused is not None:
        yield Check("tracees", False, str(refused), "do what the reason says, or use BPF", by=PTRACE)
    else:
        found = "phptrace may trace every worker, and no other process does"
        yield Check("tracees", True, found, by=PTRACE)
    if target.master is not None and has_slowlog(target.master):
        found = "request_slowlog_timeout is set: php-fpm's slowlog stays empty while ptrace traces the workers"
        yield Check("slowlog", False, found, "use BPF, which leaves the slowlog alone", needed=False)


def _calls_check(target: Target) -> Check:
    witness = target.master or target.workers[0]
    fix = "none; phptrace uses the system-call tracepoint instead, which costs every process on this host time"
    try:
        image = processes.open_libc(witness.pid)
        if image is None:
            return Check("mmap and brk", False, "the process has no C library with a known name", fix, needed=False)
        with contextlib.closing(image):
            library = libc.inspect(image)
    except (OSError, UnsupportedError) as exc:
        return Check("mmap and brk", False, str(exc), fix, needed=False)
    if library.missing:
        found = f"{image.shown}: unknown machine code in {', '.join(library.missing)}"
        return Check("mmap and brk", False, found, fix, needed=False)
    return Check("mmap and brk", True, f"counted in {image.shown}; costs other processes 1 µs an mmap")


def _native_check(target: Target) -> Check:
    """The C library's malloc and free: without counting them, what requests keep is only estimated."""
    witness = target.master or target.workers[0]
    fix = "none; phptrace estimates what requests keep from the growth of the workers"
    try:
        substitute = allocator.substitute(witness.pid)
        image = processes.open_libc(witness.pid)
        if substitute is not None or image is None:
            if image is not None:
                image.close()
            found = f"the workers use {substitute or 'a C library with an unknown name'}: not counted"
            return Check("native memory", False, found, fix, needed=False)
        with contextlib.closing(image):
            missing = allocator.inspect(image).missing
    except (OSError, UnsupportedError) as exc:
        return Check("native memory", False, str(exc), fix, needed=False)
    if missing:
        found = f"{image.shown}: unknown machine code in {', '.join(missing)}"
    elif not kernel.has_uprobe_multi():
        found = "not counted: this kernel cannot set probes in one process alone; Linux 6.6 can"
    elif kernel.filters_refuse_returns() and processes.has_seccomp_filter(witness.pid):
        found = "not counted: with this kernel, a seccomp filter of the workers forbids probes on returns"
    else:
        return Check("native memory", True, f"malloc and free are counted in {image.shown}")
    return Check("native memory", False, found, fix, needed=False)
