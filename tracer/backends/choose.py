"""Chooses the backend. Has the only list of backends; each is imported when it is needed."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping

from tracer.backends import Backend, NativeOptions, PtraceMode, StackOptions
from tracer.errors import NotPermittedError, PhptraceError, UnsupportedError


@dataclasses.dataclass(frozen=True, slots=True)
class BackendOptions:
    """Options of a run that a backend has to know."""

    keep_query: bool = False  # False: cut the query string off the URI
    stacks: StackOptions | None = None  # None: no call stacks
    ptrace_mode: PtraceMode = PtraceMode.SYSCALLS  # only ptrace has modes
    native: NativeOptions | None = None  # None: do not count native memory


@dataclasses.dataclass(frozen=True, slots=True)
class BackendFactory:
    """Functions that make one backend and check its requirements, and what the user should know of it."""

    caveat: str  # of tracing with it, as a clause that begins with a comma; "" if there is none
    unmet: Callable[[], list[PhptraceError]]  # what this host lacks for it, the gravest first; [] if nothing
    create: Callable[[BackendOptions], Backend]


@dataclasses.dataclass(frozen=True, slots=True)
class Choice:
    """A backend, and why it is this one."""

    backend: Backend
    why: str


def _bpf_unmet() -> list[PhptraceError]:
    from tracer.backends.bpf.requirements import unmet_requirements

    return unmet_requirements()


def _bpf(options: BackendOptions) -> Backend:
    from tracer.backends.bpf.backend import BpfBackend

    return BpfBackend(keep_query=options.keep_query, stacks=options.stacks, native=options.native)


def _ptrace_unmet() -> list[PhptraceError]:
    from tracer.backends.ptrace.permissions import obstacle
    from tracer.targets.processes import GRANTS

    found = obstacle()
    return [] if found is None else [NotPermittedError(f"{found}. {GRANTS}")]


def _ptrace(options: BackendOptions) -> Backend:
    from tracer.backends.ptrace.backend import PtraceBackend

    if options.native is not None and options.native.required:
        raise UnsupportedError(
            "cannot count native memory with ptrace: it sees no calls inside PHP. Use --backend bpf, or --native auto."
        )
    return PtraceBackend(keep_query=options.keep_query, stacks=options.stacks, mode=options.ptrace_mode)


# By name, the preferred first. The last is the fallback: nothing is checked before it is taken, and its attach() says
# what it lacks.
BACKENDS = {
    "bpf": BackendFactory("", _bpf_unmet, _bpf),
    "ptrace": BackendFactory(", which slows requests down", _ptrace_unmet, _ptrace),
}


def preferred() -> str:
    """Name of the backend that `auto` tries first."""
    return next(iter(BACKENDS))


def fallback() -> str:
    """Name of the backend that `auto` takes if no other can be used."""
    return next(reversed(BACKENDS))


def choose(
    wanted: str,
    *,
    keep_query: bool = False,
    stacks: StackOptions | None = None,
    ptrace_mode: PtraceMode = PtraceMode.SYSCALLS,
    native: NativeOptions | None = None,
    refused: Mapping[str, PhptraceError] | None = None,
) -> Choice:
    """Return the backend that was asked for; with `auto`, the first that works on this host.

    `refused` has the errors of the backends that failed to attach, by name: `auto` skips them, and names
    their errors as the reason. Raises UnsupportedError if there is no backend of that name; the first unmet
    requirement of a backend that was asked for and is not the fallback.
    """
    if wanted != "auto" and wanted not in BACKENDS:
        raise UnsupportedError(f"cannot use backend {wanted!r}: there is none of that name. Use {_listed()}.")
    options = BackendOptions(keep_query, stacks, ptrace_mode, native)
    if wanted != "auto":
        if wanted != fallback() and (unmet := BACKENDS[wanted].unmet()):
            raise unmet[0]
        return Choice(BACKENDS[wanted].create(options), "asked for")
    taken, reasons = fallback(), []
    for name in list(BACKENDS)[:-1]:
        error = (refused or {}).get(name) or next(iter(BACKENDS[name].unmet()), None)
        if error is None:
            taken = name
            break
        reasons.append(f"phptrace {error}")
    why = f"since {'; '.join(reasons)}" if reasons else "everything it needs is here"
    return Choice(BACKENDS[taken].create(options), why)


def _listed() -> str:
    names = ["auto", *BACKENDS]
    return f"{', '.join(names[:-1])} or {names[-1]}"
