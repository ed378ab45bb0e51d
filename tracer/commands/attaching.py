"""The part common to `attach` and `record`: find the targets, choose a backend, attach, report how it ended."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import os
import platform
import time
from collections.abc import Iterator, Sequence
from typing import Any

from tracer import __version__
from tracer.analysis.tally import Tally
from tracer.backends import NativeOptions, PtraceMode, StackOptions
from tracer.backends.choose import Choice, choose, fallback
from tracer.capture import Filter, Progress, Why
from tracer.commands.messages import note_limits, notice
from tracer.errors import (
    IncompleteError,
    NotPermittedError,
    PhptraceError,
    TargetGoneError,
    UnsupportedError,
    UsageError,
)
from tracer.targets.resolve import Target, targets
from tracer.units import counted, counted_loss

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
                "cannot trace: no target is given. Name php-fpm (every master on this host), php-fpm:POOL, or a PID."
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
    targets: tuple[Target, ...]
    shown: str  # the targets, as the user named them

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
            "lacking": list(self.choice.backend.lacking),
            "options": {
                "duration_s": plan.duration_s,
                "count": plan.count,
                "query": "keep" if plan.keep_query else "strip",
                **dataclasses.asdict(plan.keep),
            },
            "clock": {"unix_ns": time.time_ns(), "monotonic_ns": time.clock_gettime_ns(time.CLOCK_MONOTONIC)},
        }


@contextlib.contextmanager
def session(plan: Plan) -> Iterator[Session]:
    """Find the targets and attach to them. Print which backend is used, and what it cannot measure.

    With `--backend auto`, go on to the next backend if one does not work. Raises a PhptraceError if the last
    fails, too.
    """
    choice, found = _attached(plan)
    try:
        shown = ", ".join(plan.names)
        workers = counted(choice.backend.watched, "worker")
        notice(f"{shown}: {workers}, backend {choice.backend.name} ({choice.why})")
        for target in found:
            if target.master is not None and target.named == str(target.master.pid):
                workers = counted(len(target.workers), "worker")
                itself = " that also serves requests: tracing it, its" if target.master_serves else ": tracing its"
                notice(f"{target.named} is a master{itself} {workers}, and new ones as they start")
        note_limits(choice.backend.lacking)
        yield Session(choice, tuple(found), shown)
    finally:
        choice.backend.close()
        _close(found)


def _attached(plan: Plan) -> tuple[Choice, list[Target]]:
    """Choose a backend and attach it to the targets. The caller closes both."""
    refused: dict[str, PhptraceError] = {}
    while True:
        choice = choose(
            plan.backend,
            keep_query=plan.keep_query,
            stacks=plan.stacks,
            ptrace_mode=plan.ptrace_mode,
            native=plan.native,
            refused=refused,
        )
        name = choice.backend.name
        try:
            return choice, _attach_to_targets(plan, choice)
        except (UnsupportedError, NotPermittedError) as exc:
            if plan.backend != "auto" or (plan.native is not None and plan.native.required):
                raise
            if str(exc) in map(str, refused.values()):
                raise  # it is not the backend's fault
            if name == fallback():
                raise type(exc)(f"{exc} (Tried {name} {choice.why})") from exc
            refused[name] = exc


def _attach_to_targets(plan: Plan, choice: Choice) -> list[Target]:
    """Find the targets and attach the backend to them. The caller closes both."""
    found = targets(plan.names, symbols=choice.backend.needs_symbols)
    try:
        choice.backend.attach(found)
    except BaseException:
        choice.backend.close()
        _close(found)
        raise
    return found


def _close(found: Sequence[Target]) -> None:
    for target in found:
        target.php.image.close()


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
