"""The part common to `attach` and `record`: find the targets, choose a backend, attach, report how it ended."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import math
import os
import platform
import time
from collections.abc import Collection, Iterator, Sequence
from typing import Any

from tracer import __version__
from tracer.analysis.tally import Tally
from tracer.backends import Backend, NativeOptions, PtraceMode, StackOptions, Watch
from tracer.backends.choose import AUTO, BackendOptions, Choice, assign, choose, fallback
from tracer.backends.restarts import Restarts
from tracer.backends.together import Together
from tracer.capture import Filter, Progress, Why
from tracer.commands.messages import note_limits, notice
from tracer.errors import (
    IncompleteError,
    NoTargetError,
    NotPermittedError,
    PhptraceError,
    TargetGoneError,
    UnsupportedError,
    UsageError,
)
from tracer.targets import containers, host_memory
from tracer.targets.php import Php
from tracer.targets.resolve import Found, Target, find, is_pid, master_pids
from tracer.units import counted, counted_loss

log = logging.getLogger(__name__)

IDLE_NOTE = (
    "no request seen yet. Send one (curl the site), or check with `phptrace doctor` that these workers serve it."
)


@dataclasses.dataclass(frozen=True, slots=True)
class Plan:
    """The options of a verb that attaches, checked."""

    names: tuple[str, ...]  # targets, as the user wrote them
    duration_s: float | None  # None: until a signal
    count: int | None  # None: no limit
    backend: str
    keep: Filter
    keep_query: bool
    force: bool
    stacks: StackOptions | None = None  # None: do not record call stacks
    ptrace_mode: PtraceMode = PtraceMode.SYSCALLS
    native: NativeOptions | None = None  # None: do not count native memory

    @classmethod
    def of(
        cls,
        *,
        targets: Sequence[str],
        pids: Sequence[int],
        duration: float | None,
        count: int | None,
        backend: str,
        uri: str | None,
        script: str | None,
        slow: float | None,
        min_growth: int | None,
        query: str,
        force: bool,
        ptrace_mode: PtraceMode = PtraceMode.SYSCALLS,
        native: str = "off",
        native_budget: float | None = None,
        stacks: bool = False,
        max_depth: int = 0,
        every: int = 0,
        hz: int = 0,
        retained_after: int = 1,
    ) -> Plan:
        """Make a plan of attach_options and stack_recording_options. UsageError if they contradict each other."""
        names = (*targets, *map(str, pids))
        if not names:
            raise UsageError(
                "cannot trace: no target is given. Name php-fpm (every master on this host), php-fpm:POOL,"
                " container:NAME, cgroup:PATH, or a PID."
            )
        if backend not in ("auto", "ptrace") and ptrace_mode is not PtraceMode.SYSCALLS:
            raise UsageError(
                f"cannot use --ptrace-mode with --backend {backend}: only ptrace has modes. Use --backend ptrace."
            )
        slow_ns = None if slow is None else round(slow * 1e9)
        keep = Filter(uri, script, slow_ns, min_growth)
        if native == "on" and backend == "ptrace":
            raise UsageError(
                "cannot use --native on with --backend ptrace: it sees no calls inside PHP. Use --backend bpf."
            )
        if native != "auto" and native_budget is not None:
            raise UsageError(
                f"cannot use --native-budget with --native {native}: only --native auto has a budget."
                " Leave one of them out."
            )
        counting = {
            "off": None,
            "auto": NativeOptions() if native_budget is None else NativeOptions(native_budget),
            "on": NativeOptions(math.inf, required=True),
        }[native]
        options = StackOptions(max_depth, every, hz, retained_after) if stacks else None
        return cls(
            names, duration or None, count, backend, keep, query == "keep", force, options, ptrace_mode, counting
        )


@dataclasses.dataclass(frozen=True, slots=True)
class Session:
    """An attached backend."""

    choice: Choice
    watch: Watch  # of the backend, and of what is found again
    shown: str  # the targets, as the user named them

    @property
    def targets(self) -> tuple[Target, ...]:
        """The targets that are traced."""
        return self.choice.targets

    @property
    def lacking(self) -> list[str]:
        """Sentences on what cannot be measured or named."""
        found = (containers.surroundings(target.pid) for target in self.targets)
        nameless = {
            f"container {where.shown} is shown by its id, since its name is not known: {where.why}"
            for where in found
            if where.container_id is not None and where.why is not None
        }
        return [*self.watch.lacking, *sorted(nameless)]

    def memory(self) -> dict[str, Any]:
        """The memory of this host, and of the cgroups of the targets."""
        return host_memory.snapshot(target.pid for target in self.targets)

    @property
    def not_traced(self) -> list[str]:
        """A sentence on each process that was meant, and is not traced."""
        return [str(refused) for refused in self.choice.left_out]

    def meta(self, plan: Plan) -> dict[str, Any]:
        """The entries of a recording's `meta` table: how and where it was made."""
        stacks = {} if plan.stacks is None else {"stacks": dataclasses.asdict(plan.stacks)}
        native = {} if plan.native is None else {"native": {"budget": min(plan.native.budget, 1.0)}}
        return {
            **stacks,
            **native,
            "phptrace": __version__,
            "host": os.uname().nodename,
            "kernel": platform.release(),
            "machine": platform.machine(),
            "backend": self.choice.backend.name,
            "backend_why": self.choice.why,
            "targets": list(plan.names),
            "php": sorted({target.php.shown_version for target in self.targets}),
            "lacking": self.lacking,
            "not_traced": self.not_traced,
            "options": {
                "duration_s": plan.duration_s,
                "count": plan.count,
                "query": "keep" if plan.keep_query else "strip",
                **dataclasses.asdict(plan.keep),
            },
            "memory": self.memory(),
            "clock": {"unix_ns": time.time_ns(), "monotonic_ns": time.clock_gettime_ns(time.CLOCK_MONOTONIC)},
        }


@contextlib.contextmanager
def session(plan: Plan) -> Iterator[Session]:
    """Find the targets and attach to them. Print which backend is used, what it cannot measure, and who is left out.

    With `--backend auto`, go on to the next backend if one is not available on this host. Raises a PhptraceError if it
    only lacks something that can be fixed here, or if the last fails, too.
    """
    choice, found = _attached(plan)
    watch = _found_again(plan, choice)
    try:
        shown = ", ".join(plan.names)
        workers = counted(choice.backend.watched, "worker")
        notice(f"{shown}: {workers}, backend {choice.backend.name} ({choice.why})")
        for target in choice.targets:
            if target.master is not None and target.named == str(target.master.pid):
                workers = counted(len(target.workers), "worker")
                itself = " that also serves requests: tracing it, its" if target.master_serves else ": tracing its"
                notice(f"{target.named} is a master{itself} {workers}, and new ones as they start")
        running = Session(choice, watch, shown)
        note_limits([lack for lack in running.lacking if lack not in choice.cost])
        yield running
    finally:
        watch.close()
        found.close()


@dataclasses.dataclass(frozen=True, slots=True)
class _Later:
    """A backend that was attached to masters that were started later."""

    backend: Backend | None  # None: the first one watches these masters, too
    targets: tuple[Target, ...]
    found: Found

    @property
    def holds_files(self) -> bool:
        """True if close() closes any file."""
        return bool(self.found.targets)

    def close(self) -> None:
        """Close the targets' files, after the backend."""
        self.found.close()


def _found_again(plan: Plan, choice: Choice) -> Watch:
    """The backend; if masters are named otherwise than by PID, one that finds them again when they were restarted."""
    names = [name for name in plan.names if not is_pid(name)]
    if not names:
        return choice.backend

    known = {str(refused.error) for refused in choice.left_out}
    noted = {*choice.backend.lacking, *choice.cost}
    first = tuple(choice.backend.parts) if isinstance(choice.backend, Together) else (choice.backend,)
    attached_later: list[Backend] = []
    open_files = {target.php.image.identity: target.php for target in choice.targets}

    def attach_to(masters: Collection[int]) -> _Later | None:
        # One that watches nobody any more is closed, or about to be.
        attached_later[:] = [backend for backend in attached_later if backend.masters or backend.watched]
        backends = [*first, *attached_later]
        try:
            later = _added(plan, names, masters, backends, open_files)
            later = later or _attached_later(plan, names, masters, known)
        except (NoTargetError, TargetGoneError):
            return None
        if later.backend is not None:
            attached_later.append(later.backend)
        lacking = {lack: None for backend in (*backends, *attached_later) for lack in backend.lacking}
        note_limits([lack for lack in lacking if lack not in noted])
        noted.update(lacking)
        return later

    return Restarts(
        choice.backend, choice.targets, masters=master_pids, attach_to=attach_to, report=notice, known=known
    )


def _added(
    plan: Plan,
    names: Sequence[str],
    only: Collection[int],
    backends: Sequence[Backend],
    open_files: dict[tuple[int, int], Php],
) -> _Later | None:
    """Have one of the backends watch these masters, too; None if none of them can: then nothing is left open.

    A php-fpm that was restarted runs a file that is open already: `open_files`, which gets those that are new.
    """
    options = BackendOptions(plan.keep_query, plan.stacks, plan.ptrace_mode, plan.native)
    with contextlib.ExitStack() as undo:
        found = find(names, only=only)
        undo.callback(found.close)
        assignment = assign(plan.backend, found, options)
        (first, *others), left_out = assignment.parts, assignment.left_out
        if others or left_out:
            return None
        with_known = tuple(
            dataclasses.replace(target, php=open_files.get(target.php.image.identity, target.php))
            for target in first.targets
        )
        if not any(backend.add(with_known) for backend in backends if backend.name == first.name):
            return None
        undo.pop_all()
    new = [target for target in found.targets if target.php.image.identity not in open_files]
    for target in found.targets:
        if target not in new:
            target.close()
    open_files.update({target.php.image.identity: target.php for target in new})
    return _Later(None, with_known, Found(new, []))


def _attached_later(plan: Plan, names: Sequence[str], only: Collection[int], known: set[str]) -> _Later:
    choice, found = _attached(plan, names, only, known)
    return _Later(choice.backend, choice.targets, found)


def _attached(
    plan: Plan,
    names: Sequence[str] | None = None,
    only: Collection[int] | None = None,
    known: set[str] | None = None,
) -> tuple[Choice, Found]:
    """Choose a backend and attach it to the targets. The caller closes both.

    `names`: not all that the plan has; `only`: these masters alone. `known`: errors of processes that are left out, and
    were reported already; it gets those that are reported here.
    """
    reported: set[str] = set() if known is None else known
    options = BackendOptions(plan.keep_query, plan.stacks, plan.ptrace_mode, plan.native)
    refused: dict[str, PhptraceError] = {}
    while True:
        with contextlib.ExitStack() as undo:
            found = find(plan.names if names is None else names, only=only)
            undo.callback(found.close)
            choice = choose(plan.backend, found, options, refused)
            _announce(choice, reported)
            undo.callback(choice.backend.close)
            try:
                choice.backend.attach(choice.targets)
            except (UnsupportedError, NotPermittedError) as exc:
                name = choice.backend.attaching if isinstance(choice.backend, Together) else choice.backend.name
                if plan.backend != AUTO or exc.fixable or (plan.native is not None and plan.native.required):
                    raise
                if name == fallback():
                    raise type(exc)(f"{exc} (Tried {name} {choice.why})") from exc
                refused[name] = exc
            else:
                undo.pop_all()
                return choice, found


def _announce(choice: Choice, known: set[str]) -> None:
    """Warn, before anything is attached, who is left out, and what a backend costs that nobody asked for.

    Errors that are `known` were reported before; those that are reported here are added.
    """
    for refused in choice.left_out:
        if str(refused.error) not in known:
            known.add(str(refused.error))
            log.warning("%s", refused)
    if choice.cost:
        log.warning("using %s (%s)", choice.backend.name.replace("+", " and "), choice.why)
        for cost in choice.cost:
            log.warning("%s", cost)


def finish(why: Why, progress: Progress, tally: Tally, plan: Plan) -> None:
    """Print how many requests a filter kept. TargetGoneError or IncompleteError if the run did not end as planned."""
    if plan.keep:
        notice(f"kept {progress.kept:,} of {counted(progress.seen, 'request')}")
    if why is Why.TARGET_GONE:
        raise TargetGoneError(
            f"cannot go on tracing {', '.join(plan.names)}: all its processes have ended. Start PHP, then"
            " phptrace, again. The output has the requests until then."
        )
    if tally.lost:
        reasons = "; ".join(counted_loss(lost, reason) for reason, lost in tally.losses.items())
        raise IncompleteError(
            f"cannot give a complete output: phptrace lost some of it ({reasons})."
            " Trace again, or fewer workers at a time."
        )
