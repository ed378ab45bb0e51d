"""What `attach` and `record` do alike: resolve, choose, attach, and say what is going on."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import platform
import time
from collections.abc import Iterator, Sequence
from typing import Any

import click

from tracer import __version__
from tracer.analysis.tally import Tally
from tracer.backends import StackOptions
from tracer.backends.choose import Choice, choose
from tracer.capture import Filter, Progress, Why
from tracer.errors import IncompleteError, NotPermittedError, TargetGoneError, UnsupportedError, UsageError
from tracer.targets.resolve import Target, targets

IDLE_REMARK = (
    "no request seen yet: none has reached these workers. Send one (curl the site), or check with"
    " `phptrace doctor` that this is the pool that serves it."
)


@dataclasses.dataclass(frozen=True, slots=True)
class Plan:
    """The options of a verb that attaches."""

    names: tuple[str, ...]
    duration_s: float | None
    count: int | None
    backend: str
    keep: Filter
    keep_query: bool
    force: bool
    stacks: StackOptions | None = None
    ptrace_mode: str = "syscalls"

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
        ptrace_mode: str = "syscalls",
        stacks: bool = False,
        max_depth: int = 0,
        every: int = 0,
        hz: int = 0,
    ) -> Plan:
        """From the options of commands.options.tracing, and of stacks."""
        names = (*targets, *map(str, pids))
        if not names:
            raise UsageError("name a target: php-fpm (every master on this host), php-fpm:POOL, or a PID")
        if backend == "bpf" and ptrace_mode != "syscalls":
            raise UsageError("--ptrace-mode is about --backend ptrace, or auto where that falls back to it")
        slow_ns = None if slow is None else round(slow * 1e9)
        keep = Filter(uri, script, slow_ns, min_growth)
        options = StackOptions(max_depth, every, hz) if stacks else None
        return cls(names, duration or None, count, backend, keep, query == "keep", force, options, ptrace_mode)


@dataclasses.dataclass(frozen=True, slots=True)
class Session:
    """A backend at work."""

    choice: Choice
    targets: tuple[Target, ...]
    shown: str  # the targets, as the user named them

    def meta(self, plan: Plan) -> dict[str, Any]:
        """What a recording says of its own making."""
        stacks = {} if plan.stacks is None else {"stacks": dataclasses.asdict(plan.stacks)}
        return {
            **stacks,
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
def attached(plan: Plan) -> Iterator[Session]:
    """Finds the targets and attaches to them; says with which backend, and what cannot be measured."""
    choice = choose(plan.backend, keep_query=plan.keep_query, stacks=plan.stacks, ptrace_mode=plan.ptrace_mode)
    try:
        found = _attach(plan, choice)
    except (UnsupportedError, NotPermittedError) as exc:
        if plan.backend != "auto":
            raise
        if choice.backend.name != "bpf":
            raise type(exc)(f"{exc} (Tried ptrace {choice.why})") from exc
        choice = choose(
            "ptrace", keep_query=plan.keep_query, stacks=plan.stacks, ptrace_mode=plan.ptrace_mode, refused=exc
        )
        found = _attach(plan, choice)
    try:
        shown = ", ".join(plan.names)
        notice(f"{shown}: {choice.backend.watched} workers, backend {choice.backend.name} ({choice.why})")
        for target in found:
            if target.master is not None and target.named == str(target.master.pid):
                notice(f"{target.named} is a master: tracing its {len(target.workers)} workers and those to come")
        for lack in choice.backend.lacking:
            notice(f"note: {lack}")
        yield Session(choice, tuple(found), shown)
    finally:
        choice.backend.close()
        _close(found)


def _attach(plan: Plan, choice: Choice) -> list[Target]:
    """The targets, attached to; to be closed."""
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


def notice(text: str) -> None:
    """A remark for the user, on stderr; none with -q."""
    context = click.get_current_context(silent=True)
    if context is None or not context.find_root().params.get("quiet"):
        click.echo(f"phptrace: {text}", err=True)


def finish(why: Why, progress: Progress, tally: Tally, plan: Plan) -> None:
    """Says how it ended; raises where the exit code has to tell."""
    if plan.keep:
        notice(f"kept {progress.kept:,} of {progress.seen:,} requests")
    if why is Why.TARGET_GONE:
        raise TargetGoneError(
            f"{', '.join(plan.names)} ended: nothing is left to trace. What was seen is in the output."
        )
    if tally.lost:
        reasons = "; ".join(f"{lost} {reason}" for reason, lost in tally.losses.items())
        raise IncompleteError(f"the output is incomplete. Lost: {reasons}")
