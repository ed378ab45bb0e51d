"""Chooses the backend. The only module that knows both; each is imported when it is needed."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

from tracer.backends import Backend, NativeOptions, PtraceMode, StackOptions
from tracer.errors import NotPermittedError, PhptraceError, UnsupportedError


@dataclasses.dataclass(frozen=True, slots=True)
class BackendOptions:
    """Options of a run that a backend has to know."""

    keep_query: bool = False  # False: cut the query string off the URI
    stacks: StackOptions | None = None  # None: no call stacks
    ptrace_mode: PtraceMode = PtraceMode.SYSCALLS  # BPF ignores it
    native: NativeOptions | None = None  # None: do not count native memory


@dataclasses.dataclass(frozen=True, slots=True)
class BackendFactory:
    """How to make one backend."""

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


# By name, the preferred first; `auto` takes the last where nothing else works, and its attach() says what it lacks.
BACKENDS = {"bpf": BackendFactory(_bpf_unmet, _bpf), "ptrace": BackendFactory(_ptrace_unmet, _ptrace)}


def choose(
    wanted: str,
    *,
    keep_query: bool = False,
    stacks: StackOptions | None = None,
    ptrace_mode: PtraceMode = PtraceMode.SYSCALLS,
    native: NativeOptions | None = None,
    refused: PhptraceError | None = None,
) -> Choice:
    """Return the backend that was asked for; with `auto`, the first that works on this host.

    `refused` is the error of a BPF backend that was tried, for the reason
    given. Raises UnsupportedError if there is no backend of that name; with `bpf`, the first of its unmet
    requirements.
    """
    options = BackendOptions(keep_query, stacks, ptrace_mode, native)
    if wanted not in ("auto", *BACKENDS):
        raise UnsupportedError(f"there is no backend {wanted!r}. Use auto or {' or '.join(BACKENDS)}.")
    unmet = BACKENDS["bpf"].unmet() if wanted != "ptrace" else []
    if not unmet and wanted != "ptrace":
        why = "asked for" if wanted == "bpf" else "everything it needs is here"
        return Choice(BACKENDS["bpf"].create(options), why)
    if wanted == "bpf":
        raise unmet[0]
    obstacle = refused or (unmet[0] if unmet else None)
    why = "asked for" if obstacle is None else f"since BPF cannot be used: {obstacle}"
    return Choice(BACKENDS["ptrace"].create(options), why)
