"""Watches PHP workers and says what they did; the only part that needs privileges."""

from __future__ import annotations

import dataclasses
import enum
from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

from tracer.errors import PhptraceError, UnsupportedError
from tracer.facts import Fact

if TYPE_CHECKING:  # so that reading a recording does not need pyelftools
    from tracer.targets.resolve import Target


@dataclasses.dataclass(frozen=True, slots=True)
class StackOptions:
    """How call stacks are to be had."""

    max_depth: int = 128  # frames, from the innermost
    every: int = 16  # page faults a sample
    hz: int = 999  # looks at Zend's heap, a second of CPU time


class Backend(Protocol):
    """Watches PHP workers and says what they did.

    Facts of one worker come in time order; workers may interleave. What could not be delivered
    arrives as Loss. Workers forked later are included. Where stacks were asked for, the Growth of a
    request follows its Request at once.
    """

    name: str
    needs_symbols: bool  # whether a PHP whose functions cannot be found is beyond it

    def attach(self, targets: Sequence[Target]) -> None:
        """Begins to watch; raises a PhptraceError, having undone what was begun."""

    def poll(self, timeout_s: float) -> list[Fact]:
        """What happened since, waiting up to that long for something; [] on time-out."""

    def close(self) -> list[Fact]:
        """Stops watching and returns what was still under way. Idempotent; workers go on undisturbed."""

    @property
    def watched(self) -> int:
        """How many workers are watched now."""

    @property
    def masters(self) -> int:
        """How many masters are alive, whose future workers would be watched."""

    @property
    def lacking(self) -> Sequence[str]:
        """What cannot be measured on these targets, in words."""


@dataclasses.dataclass(frozen=True, slots=True)
class Choice:
    """A backend, and why it is this one."""

    backend: Backend
    why: str


BACKENDS = ("bpf", "ptrace")


class PtraceMode(enum.Enum):
    """Where ptrace stops a worker."""

    SYSCALLS = "syscalls"  # at entry and exit of each system call
    BREAKPOINTS = "breakpoints"  # by hardware breakpoints at a request's start, Zend's teardown and its end


def choose(
    wanted: str,
    *,
    keep_query: bool = False,
    stacks: StackOptions | None = None,
    ptrace_mode: PtraceMode = PtraceMode.SYSCALLS,
    refused: PhptraceError | None = None,
) -> Choice:
    """The backend asked for, or with `auto` the first that works here; the error says why it does not.

    `ptrace_mode` matters to ptrace alone; `refused` is what BPF was found not to work for, when it was tried.
    """
    from tracer.backends.bpf.requirements import unmet_requirements

    if wanted not in ("auto", *BACKENDS):
        raise UnsupportedError(f"there is no backend {wanted!r}: write auto or {' or '.join(BACKENDS)}")
    found = unmet_requirements() if wanted != "ptrace" else []
    if not found and wanted != "ptrace":
        from tracer.backends.bpf.backend import BpfBackend

        why = "asked for" if wanted == "bpf" else "everything it needs is here"
        return Choice(BpfBackend(keep_query=keep_query, stacks=stacks), why)
    if wanted == "bpf":
        raise found[0]
    from tracer.backends.ptrace.backend import PtraceBackend

    obstacle = refused or (found[0] if found else None)
    why = "asked for" if obstacle is None else f"since BPF cannot be used: {obstacle}"
    return Choice(PtraceBackend(keep_query=keep_query, stacks=stacks, mode=ptrace_mode), why)
