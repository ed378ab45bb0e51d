"""Chooses the backend of each target. Has the only list of backends; each is imported when it is needed.

assign() decides for the verbs that attach and for the doctor, so that both end alike.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

from tracer.backends import Backend, NativeOptions, PtraceMode, StackOptions
from tracer.errors import NotPermittedError, PhptraceError, UnsupportedError

if TYPE_CHECKING:  # so that reading a recording does not need pyelftools
    from tracer.targets.resolve import Found, Refused, Target

AUTO = "auto"
_COST = "cost: "  # what such a remark of Backend.lacking begins with
_FINE = "everything it needs is here"


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
    refusal: Callable[[Target, BackendOptions], PhptraceError | None]  # why it cannot trace that target on any host
    create: Callable[[BackendOptions], Backend]


@dataclasses.dataclass(frozen=True, slots=True)
class Part:
    """The targets of one backend, and why it is this one."""

    name: str
    targets: tuple[Target, ...]
    why: str


@dataclasses.dataclass(frozen=True, slots=True)
class Assignment:
    """The backend of each target. There is at least one part."""

    parts: tuple[Part, ...]  # the preferred backend first
    left_out: tuple[Refused, ...]  # processes that were meant, and are not traced


@dataclasses.dataclass(frozen=True, slots=True)
class Choice:
    """A backend that is ready to attach to the targets, and why it is this one."""

    backend: Backend
    why: str
    targets: tuple[Target, ...]
    left_out: tuple[Refused, ...]  # processes that were meant, and are not traced
    cost: tuple[str, ...]  # what a backend costs that nobody asked for, as sentences


def _bpf_unmet() -> list[PhptraceError]:
    from tracer.backends.bpf.requirements import unmet_requirements

    return unmet_requirements()


def _bpf_refusal(target: Target, options: BackendOptions) -> PhptraceError | None:  # noqa: ARG001 - see BackendFactory
    from tracer.backends.bpf.requirements import refusal_of

    return refusal_of(target)


def _bpf(options: BackendOptions) -> Backend:
    from tracer.backends.bpf.backend import BpfBackend

    return BpfBackend(keep_query=options.keep_query, stacks=options.stacks, native=options.native)


def _ptrace_unmet() -> list[PhptraceError]:
    from tracer.backends.ptrace.permissions import obstacle
    from tracer.targets.processes import GRANTS

    found = obstacle()
    return [] if found is None else [NotPermittedError(f"{found}. {GRANTS}")]


def _ptrace_refusal(target: Target, options: BackendOptions) -> PhptraceError | None:
    from tracer.backends.ptrace.permissions import refusal_of

    if options.native is not None and options.native.required:
        return UnsupportedError(
            "cannot count native memory with ptrace: it sees no calls inside PHP. Use --backend bpf, or --native auto."
        )
    return refusal_of(target, options.ptrace_mode, stacks=options.stacks is not None)


def _ptrace(options: BackendOptions) -> Backend:
    from tracer.backends.ptrace.backend import PtraceBackend

    return PtraceBackend(keep_query=options.keep_query, stacks=options.stacks, mode=options.ptrace_mode)


# By name, the preferred first. The last is the fallback: it is slow, so `auto` takes it if no other is available.
BACKENDS = {
    "bpf": BackendFactory("", _bpf_unmet, _bpf_refusal, _bpf),
    "ptrace": BackendFactory(", which slows requests down", _ptrace_unmet, _ptrace_refusal, _ptrace),
}


def preferred() -> str:
    """Name of the backend that `auto` tries first."""
    return next(iter(BACKENDS))


def fallback() -> str:
    """Name of the backend that `auto` takes if no other can be used."""
    return next(reversed(BACKENDS))


def choose(
    wanted: str, found: Found, options: BackendOptions, refused: Mapping[str, PhptraceError] | None = None
) -> Choice:
    """Return the backend that assign() finds, or several as one. Raises as assign() does. Attaches to nothing."""
    assignment = assign(wanted, found, options, refused)
    made = [(part, BACKENDS[part.name].create(options)) for part in assignment.parts]
    targets = tuple(target for part in assignment.parts for target in part.targets)
    (first, backend), *others = made
    why = first.why
    if others:
        from tracer.backends.together import Together

        backend = Together([(backend, part.targets) for part, backend in made])
        why = "; ".join(f"{part.name} for {_shown(part.targets)} {part.why}" for part, _ in others)
    not_asked_for = wanted == AUTO and any(part.name == fallback() for part in assignment.parts)
    cost = tuple(_costs(backend)) if not_asked_for else ()
    return Choice(backend, why, targets, assignment.left_out, cost)


def assign(
    wanted: str, found: Found, options: BackendOptions, refused: Mapping[str, PhptraceError] | None = None
) -> Assignment:
    """Return the backend of each target: the one that was asked for; with `auto`, the first that can trace it.

    `refused` has the errors of the backends that failed to attach, by name: `auto` skips them. A target that nobody can
    trace is left out if the user did not name its PID, and another one is traced.

    Raises UnsupportedError if there is no backend of that name. Otherwise the error of a target: with `auto`, that of a
    backend that would trace it once something is fixed on this host; then `auto` takes no slower one by itself.
    """
    from tracer.targets.resolve import Refused

    if wanted != AUTO and wanted not in BACKENDS:
        raise UnsupportedError(f"cannot use backend {wanted!r}: there is none of that name. Use {_listed()}.")
    hosts = _Hosts(refused or {})
    names = list(BACKENDS) if wanted == AUTO else [wanted]
    traced: dict[str, list[Target]] = {name: [] for name in names}
    why: dict[str, str] = {}
    left_out: list[Refused] = []
    for target in found.targets:
        try:
            name, reason = _backend_of(target, names, options, hosts)
        except PhptraceError as exc:
            left_out.append(Refused(target.named, target.pid, exc))
            if exc.fixable or target.named == str(target.pid):
                raise
            continue
        traced[name].append(target)
        why.setdefault(name, reason)
    if not any(traced.values()):
        raise left_out[0].error
    parts = tuple(
        Part(name, tuple(targets), why[name] if wanted == AUTO else "asked for")
        for name, targets in traced.items()
        if targets
    )
    return Assignment(parts, (*found.refused, *left_out))


class _Hosts:
    """The first reason why a backend cannot be used on this host; each is looked for once, when it is needed."""

    def __init__(self, refused: Mapping[str, PhptraceError]) -> None:
        self._known: dict[str, PhptraceError | None] = dict(refused)

    def lacks(self, name: str) -> PhptraceError | None:
        """None if nothing keeps it from working here. What cannot be fixed here comes first, since it decides."""
        if name not in self._known:
            unmet = BACKENDS[name].unmet()
            self._known[name] = next((error for error in unmet if not error.fixable), unmet[0] if unmet else None)
        return self._known[name]


def _backend_of(target: Target, names: Sequence[str], options: BackendOptions, hosts: _Hosts) -> tuple[str, str]:
    """The first of the backends that can trace the target, and why not the ones before. Raises what assign() says."""
    if target.one_request:
        raise UnsupportedError(
            f"cannot trace process {target.pid}: it is PHP's {ascii(target.sapi)[1:-1]}, whose one request began when"
            f" it started and ends with it. Use `phptrace heap {target.pid} --again 10s`, which shows what it holds and"
            " what grew."
        )
    errors: list[PhptraceError] = []
    for name in names:
        own = BACKENDS[name].refusal(target, options)
        error = own or hosts.lacks(name)
        if error is None:
            return name, _since(errors) if errors else _FINE
        if own is None and error.fixable and len(names) > 1:
            raise _with_alternative(error, target, options, hosts)
        errors.append(error)
    *before, last = errors
    if not before or target.php.hooks is None:  # no other works with this PHP on any host, and the last says all
        raise last
    raise type(last)(f"{last} (Tried {names[-1]} {_since(before)})")


def _since(errors: Sequence[PhptraceError]) -> str:
    return f"since {'; '.join(f'phptrace {error}' for error in errors)}"


def _with_alternative(error: PhptraceError, target: Target, options: BackendOptions, hosts: _Hosts) -> PhptraceError:
    """The error, with what the fallback costs that could be used at once; without, if that cannot be used either."""
    name = fallback()
    if (BACKENDS[name].refusal(target, options) or hosts.lacks(name)) is not None:
        return error
    costs = "; ".join(cost.removeprefix(_COST) for cost in _costs(BACKENDS[name].create(options)))
    return type(error)(f"{error} Or use --backend {name}{BACKENDS[name].caveat}: {costs}.", fixable=True)


def _costs(backend: Backend) -> list[str]:
    """Of the remarks of a backend, those on what it costs."""
    return [lack for lack in backend.lacking if lack.startswith(_COST)]


def _shown(targets: Sequence[Target]) -> str:
    return ", ".join(f"{'process' if target.master is None else 'master'} {target.pid}" for target in targets)


def _listed() -> str:
    names = [AUTO, *BACKENDS]
    return f"{', '.join(names[:-1])} or {names[-1]}"
